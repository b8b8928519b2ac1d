"""The panel that says why a response fell: its words, its picture and its still copy agree."""

import pandas as pd
import pytest
from test_fall_plots import forces_frame, tokens_frame

import toolkit as tk
from toolkit import plots
from toolkit.widgets.panels.fall import FallPanel


def panel(forces, busy=False):
    event = lambda call, *a: call(*a)  # noqa: E731
    return FallPanel(lambda: forces, tokens_frame, lambda: "a", event, lambda: busy)


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


def test_explorer_shows_the_forces_of_its_run():
    policy, pairs = tk.load_model(), tk.load_pairs("single_token", limit=2)
    explorer = tk.TrajectoryExplorer(
        policy, pairs, steps=2, batch_size=2, lr=1e-5, forces=True, live=False
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
