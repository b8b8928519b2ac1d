"""The panel that says why a response fell: its words, its picture and its still copy agree."""

import pandas as pd
import pytest
from test_fall_plots import forces_frame, pulls_frame, tokens_frame

import toolkit as tk
from toolkit import plots
from toolkit.widgets.panels.fall import FallPanel


def panel(forces, busy=False, pulls=None, named=lambda id: None):
    event = lambda call, *a: call(*a)  # noqa: E731
    return FallPanel(
        lambda: forces, tokens_frame, lambda: "a", event, lambda: busy, lambda: pulls, named
    )


def test_panel_says_and_draws_the_picked_probe_and_the_mean():
    forces = forces_frame(ids=("a", "b"))
    shown = panel(forces)
    shown.draw(frozenset())
    assert plots.fall_sentence(forces, pair_id="a") in shown.html()
    (first,) = shown._picture.children
    shown.mean.value = True
    assert plots.fall_sentence(forces) in shown._words.value
    (second,) = shown._picture.children
    assert second is not first and first.comm is None  # the picture before is closed
    shown.side.value = "rejected"
    assert plots.fall_sentence(forces, side="rejected") in shown.html()
    assert shown.html().count("<img") == 1


@pytest.mark.parametrize(
    ("forces", "words"), [(None, "forces=True"), (forces_frame().head(0), "after the first step")]
)
def test_panel_without_forces_says_what_to_do(forces, words):
    shown = panel(forces)
    shown.draw(frozenset())
    assert words in shown._words.value and words in shown.html()
    assert not shown._picture.children and "<img" not in shown.html()


def test_panel_waits_until_the_run_rests():
    shown = panel(forces_frame(), busy=True)
    shown.draw(frozenset())
    assert "when the run rests" in shown._words.value and not shown._picture.children


def test_training_pairs_are_ranked_and_can_be_picked_and_read():
    pulls = pulls_frame().replace({"pair_id": {"p": "a", "q": "b"}})
    pair = tk.PreferencePair("c", "Is <it>?", "yes", "no")
    shown = panel(forces_frame(ids=("a", "b")), pulls=pulls, named={"c": pair}.get)
    shown.draw(frozenset())
    ranks = shown.pulls
    assert [id for _, id in ranks.ranks.options] == ["b", "c", "$x_{$"]
    assert ranks.picked == "b" and ranks.ranks.options[0][0].startswith("−0.5")
    (first,) = ranks._picture.children
    ranks.ranks.value = "c"
    (second,) = ranks._picture.children
    assert second is not first and first.comm is None
    assert "Is &lt;it&gt;?" in ranks._text.value and "Is &lt;it&gt;?" in shown.html()
    shown.mean.value = True  # of both probes, and the picked pair stays picked
    assert ranks.picked == "c" and [id for _, id in ranks.ranks.options] == ["b", "c", "$x_{$"]
    plain = panel(forces_frame())
    plain.draw(frozenset())
    assert "by_pair" in plain.pulls._words.value and "by_pair" in plain.html()
    assert shown.html().count("<img") == 2 and plain.html().count("<img") == 1


def test_explorer_shows_the_forces_of_its_run():
    policy, pairs = tk.load_model(), tk.load_pairs("single_token", limit=2)
    explorer = tk.TrajectoryExplorer(
        policy, pairs, steps=2, batch_size=2, lr=1e-5, forces="by_pair", live=False
    ).run(progress=False)
    forces = explorer.trajectory.forces()
    page = explorer.to_html()
    assert plots.fall_sentence(forces, pair_id=explorer.selection) in page
    explorer.selection = pairs[1].id
    assert plots.fall_sentence(forces, pair_id=pairs[1].id) in explorer.to_html()
    plain = tk.TrajectoryExplorer(policy, pairs, steps=2, batch_size=2, live=False)
    assert "forces=True" in plain.to_html()
    assert isinstance(explorer.to_frame(), pd.DataFrame)
    for one in (explorer, plain):
        one.close()
