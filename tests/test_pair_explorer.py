"""The pair explorer: linking, settings, partial results, bad input, escaping, the still copy."""

import asyncio
import html
import re
import threading
import time

import numpy as np
import pytest
import traitlets
from explorers import (
    TEXTS,
    artist,
    click,
    drawings,
    make_pairs,
    part,
    points,
    table,
)

import toolkit as tk
from toolkit import measurement
from toolkit.model.turns import alone
from toolkit.widgets import pair_explorer
from toolkit.widgets.panels import tabs


@pytest.fixture(scope="module")
def measured(policy):
    pairs = make_pairs()
    return {
        "stats": tk.pair_stats(policy, pairs, progress=False),
        "similarity": tk.similarity(policy, pairs, progress=False),
    }


@pytest.fixture
def explorer(policy, measured):
    shown = tk.PairExplorer(policy, make_pairs(), lr=1e-3, selection="p0", **measured)
    yield shown
    shown.close()


def axes(explorer):
    return explorer.map.figure.axes[0]


def shown_everywhere(explorer, index):
    """Whether table, map, number field, sentence, prompt and numbers all show this pair."""
    id, row = list(TEXTS.items())[index]
    ring = artist(axes(explorer), "ring").get_offsets()[0]
    return (
        explorer.selection == id
        and table(explorer).selected_rows == [index]
        and part(explorer, "pe-choose").value == index + 1
        and np.allclose(ring, points(axes(explorer))[0][index])
        and f"pair {html.escape(id)}" in part(explorer, "pe-status").value
        and html.escape(row[0]) in part(explorer, "pe-prompt").value
        and f"pair {html.escape(id)}" in part(explorer, "pe-numbers").value
    )


PICKS = {
    "table": lambda e: setattr(table(e), "selected_rows", [3]),
    "number": lambda e: setattr(part(e, "pe-choose"), "value", 4),
    "python": lambda e: setattr(e, "selection", "p3"),
    "next": lambda e: [part(e, "pe-next").click() for _ in range(3)],
    "previous": lambda e: [part(e, "pe-previous").click() for _ in range(2)],
    "map": lambda e: click(e.map, points(axes(e))[1][3] + 2),
}


@pytest.mark.parametrize("how", PICKS)
def test_a_pick_anywhere_is_shown_everywhere(explorer, how):
    assert shown_everywhere(explorer, 0)
    PICKS[how](explorer)
    assert shown_everywhere(explorer, 3)


def test_one_pick_is_drawn_once(explorer):
    """Parts that tell each other about a pick must not go round in circles."""
    shown = drawings(explorer, "map")
    table(explorer).selected_rows = [2]
    part(explorer, "pe-choose").value = 5
    assert len(shown) == 2


def test_one_setting_is_drawn_once(explorer):
    """A slider moved by Python must not set the value, and draw everything, once more."""
    shown = drawings(explorer, "map")
    explorer.beta = 0.2
    explorer.lr = 1e-8
    part(explorer, "pe-beta").value = 0.4
    assert len(shown) == 3


def test_two_explorers_are_linked_in_one_line(explorer, policy, measured):
    other = tk.PairExplorer(policy, make_pairs(), live=False, **measured)
    traitlets.link((explorer, "selection"), (other, "selection"))
    traitlets.link((explorer, "beta"), (other, "beta"))
    part(other, "pe-choose").value = 4
    assert shown_everywhere(explorer, 3) and shown_everywhere(other, 3)
    part(explorer, "pe-beta").value = 0.7
    assert "at β 0.7 and" in part(other, "pe-status").value
    other.close()


def test_settings_can_be_observed(explorer):
    seen = []
    explorer.observe(lambda change: seen.append((change["name"], change["new"])), ["beta", "lr"])
    part(explorer, "pe-beta").value = 0.5
    explorer.lr = 2e-3
    assert seen == [("beta", 0.5), ("lr", 2e-3)]


def test_a_cleared_selection_keeps_the_pair(explorer):
    """The browser deselects the old row before it selects the new one."""
    explorer.selection = "p1"
    table(explorer).selected_rows = []
    assert explorer.selection == "p1"


def test_a_click_away_from_every_point_picks_nothing(explorer):
    explorer.selection = "p1"
    box = axes(explorer).bbox
    click(explorer.map, (box.x0 + 3, box.y0 + 3))
    click(explorer.map, (1, 1))
    assert explorer.selection == "p1"


def test_beta_and_lr_rescale_without_the_model(explorer, monkeypatch):
    before, rows = explorer.tokens(), explorer.to_frame()
    for name in ("token_contributions", "iter_pair_stats", "similarity"):
        monkeypatch.setattr(measurement, name, lambda *a, **k: pytest.fail("model call"))
    explorer.beta = 0.2
    # The policy is its own reference, so a DPO weight is exactly β/2.
    np.testing.assert_allclose(
        explorer.tokens()["predicted_delta"], 2 * before["predicted_delta"], rtol=1e-12
    )
    explorer.lr = 5e-3
    changed = explorer.to_frame()["predicted_chosen_delta"]
    np.testing.assert_allclose(changed, 10 * rows["predicted_chosen_delta"], rtol=1e-12)
    assert "β 0.2 and learning rate 0.005" in part(explorer, "pe-status").value


def test_sliders_and_python_move_each_other(explorer):
    part(explorer, "pe-beta").value = 0.5
    assert explorer.beta == 0.5
    explorer.lr = 1e-8  # below the slider's range, which gives way
    assert part(explorer, "pe-lr").value == 1e-8
    part(explorer, "pe-color").value = "logp"
    assert explorer.color == "logp"
    assert "log-probability of each token" in part(explorer, "pe-strips").value


def test_table_takes_the_new_numbers(explorer):
    before = table(explorer)._dt_args["data_json"]
    explorer.lr = 2e-3
    assert table(explorer)._dt_args["data_json"] != before


def test_colour_scale_stays_while_a_slider_moves(explorer):
    scale = explorer._scale
    explorer.lr = 3e-3
    assert explorer._scale == scale
    part(explorer, "pe-fit").click()
    assert explorer._scale == pytest.approx(3 * scale)


def test_tokens_sum_to_the_pair(explorer):
    row = explorer.to_frame().iloc[0]
    sums = explorer.tokens().groupby("side")["predicted_delta"].sum()
    assert sums["chosen"] == pytest.approx(row["predicted_chosen_delta"], rel=1e-3)
    assert sums["rejected"] == pytest.approx(row["predicted_rejected_delta"], rel=1e-3)


def test_results_of_a_pair_are_kept(explorer, monkeypatch):
    calls, real = [], measurement.token_contributions
    monkeypatch.setattr(
        measurement, "token_contributions", lambda *a, **k: (calls.append(1), real(*a, **k))[1]
    )
    for id in ("p1", "p3", "p1", "p3"):
        explorer.selection = id
    assert len(calls) == 2


def test_tabs_compute_when_opened(explorer, monkeypatch):
    monkeypatch.setattr(tabs, "PATIENCE", 1e9)
    shown = explorer.tabs
    assert not shown.heat.children
    for tab, box in ((1, shown.heat), (2, shown.prompt), (3, shown.alike)):
        shown.widget.selected_index = tab
        assert box.children
    assert bytes(shown.heat.children[0].value).startswith(b"\x89PNG")
    gap = explorer.one.attributions().gaps["margin"]
    assert f"{gap:+.3g}".replace("-", "−") in shown.prompt.children[0].value
    before = shown.alike.children
    explorer.lr = 2e-3
    assert shown.alike.children != before


def test_slow_tab_asks_before_it_computes(explorer, monkeypatch):
    monkeypatch.setattr(tabs, "PATIENCE", -1.0)
    shown = explorer.tabs
    shown.widget.selected_index = 1
    start, words = shown.heat.children[0].children
    assert start.description.startswith("Compute (about")
    monkeypatch.setattr(
        measurement, "token_matrix", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    start.click()
    assert words.value == "Stopped." and not start.disabled


def test_still_copy_holds_the_numbers_of_the_frame(explorer):
    explorer.selection, explorer.beta, explorer.lr = "p3", 0.3, 1e-4
    still, row = explorer.to_html(), explorer.to_frame().set_index("pair_id").loc["p3"]
    for name in ("chosen_logps", "inner", "cosine", "kappa", "predicted_chosen_delta", "ln_ches"):
        assert f"{row[name]:.5g}".replace("-", "−") in still, name
    assert "data:image/png;base64," in still and "http" not in still
    assert len(still) < 200_000
    assert explorer.snapshot().data == still
    words = re.search(r"predicted to <b>(\w+) the chosen response by ([\d.e−]+) nats", still)
    assert (words[1] == "raise") == (row["predicted_chosen_delta"] > 0)
    assert float(words[2]) == pytest.approx(abs(row["predicted_chosen_delta"]), rel=6e-3)


def test_frame_joins_entanglement_and_similarity(explorer, measured):
    frame = explorer.to_frame()
    expected = tk.entanglement(measured["stats"], "dpo", beta=0.1, lr=1e-3).to_frame()
    assert frame["regime"].tolist() == expected["regime"].tolist()
    assert frame["ches"].tolist() == measured["similarity"]["ches"].tolist()
    assert frame.attrs["params"] == "all" and frame.attrs["measured"] == frame.attrs["pairs"] == 5


def test_statistics_in_another_order_find_their_pairs(policy, measured):
    order = [4, 2, 0, 3, 1]
    given = measured["stats"].take(order), measured["similarity"].iloc[order]
    explorer = tk.PairExplorer(policy, make_pairs(), stats=given[0], similarity=given[1])
    frame = explorer.to_frame()
    np.testing.assert_array_equal(frame["inner"], measured["stats"].inner)
    np.testing.assert_array_equal(frame["ches"], measured["similarity"]["ches"])


def test_measures_what_is_not_given(policy, measured):
    frame = tk.PairExplorer(policy, make_pairs()).to_frame()
    np.testing.assert_allclose(frame["inner"], measured["stats"].inner, rtol=1e-4)
    np.testing.assert_allclose(frame["ches"], measured["similarity"]["ches"], rtol=1e-3, atol=1e-2)


@pytest.fixture
def slow(monkeypatch):
    """Measuring in batches of one pair that count as slow."""
    monkeypatch.setattr(pair_explorer, "BATCH", 1)
    monkeypatch.setattr(pair_explorer, "AT_ONCE", -1.0)


def test_interrupt_keeps_what_is_measured(policy, slow, monkeypatch):
    step, calls = measurement.Measurement.step, []

    def interrupted(self, count):
        calls.append(count)
        if len(calls) == 3:
            raise KeyboardInterrupt
        step(self, count)

    monkeypatch.setattr(measurement.Measurement, "step", interrupted)
    explorer = tk.PairExplorer(policy, make_pairs())
    assert len(explorer.to_frame()) == 2
    assert "2 of 5 pairs measured" in part(explorer, "pe-note").value
    assert "2 of 5 pairs measured" in explorer.to_html()
    first = explorer.selection
    part(explorer, "pe-next").click()
    assert {first, explorer.selection} == {"p0", "p1"}
    part(explorer, "pe-next").click()
    assert explorer.selection == first  # round the two that are there
    assert len(explorer.measure().to_frame()) == 5
    assert "measured" not in part(explorer, "pe-note").value
    assert part(explorer, "pe-progress").layout.display == "none"


def test_background_measuring_stops_and_goes_on(policy, slow):
    async def session():
        explorer = tk.PairExplorer(policy, make_pairs())
        done = [explorer.results.measurement.done]
        while explorer.results.measurement.done == done[0]:
            await asyncio.sleep(0)
        part(explorer, "pe-stop").click()
        while explorer.running:
            await asyncio.sleep(0.01)
        done.append(explorer.results.measurement.done)
        assert len(explorer.to_frame()) == done[1]
        assert part(explorer, "pe-stop").description == "Continue"
        part(explorer, "pe-stop").click()
        while explorer.running:
            await asyncio.sleep(0.01)
        return done, explorer

    done, explorer = asyncio.run(session())
    assert done[0] == 2 and 2 < done[1] < 5
    assert len(table(explorer).df) == 5


def test_python_waits_for_background_measuring(policy, slow):
    async def session():
        explorer = tk.PairExplorer(policy, make_pairs())
        explorer.selection = "p4"
        return explorer, explorer.to_frame()

    explorer, frame = asyncio.run(session())
    assert len(frame) == 5 and shown_everywhere(explorer, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", 0), ("beta", "0.1"), ("lr", -1.0), ("lr", float("nan")), ("color", "red")],
)
def test_settings_are_checked(explorer, name, value):
    with pytest.raises(ValueError, match=name):
        setattr(explorer, name, value)


def test_loss_without_beta_has_none(policy, measured):
    def likelihood(chosen_logps, rejected_logps, *, weight=1.0):
        return rejected_logps - weight * chosen_logps

    explorer = tk.PairExplorer(policy, make_pairs(), loss=likelihood, weight=2.0, **measured)
    assert explorer.beta is None and part(explorer, "pe-beta").disabled
    assert set(explorer.to_frame()["d_chosen"]) == {2.0}
    assert "A likelihood step at learning rate" in part(explorer, "pe-status").value
    with pytest.raises(ValueError, match="no β"):
        explorer.beta = 0.1


def test_bad_input_says_what_is_allowed(policy, measured):
    stats, pairs = measured["stats"], make_pairs()
    cases = [
        (("gpt2", pairs), {}, "policy must be a toolkit Policy, received str"),
        ((policy, []), {}, "pairs must be a list with at least one PreferencePair"),
        ((policy, "long_suffix"), {}, "received str"),
        ((policy, [*pairs, {"prompt": "a"}]), {}, r"pairs\[5\] is dict"),
        ((policy, [*pairs, pairs[0]]), {}, "'p0' occurs twice"),
        ((policy, pairs[:4]), {"stats": stats}, "'p4' is in one of them only"),
        ((policy, pairs), {"stats": stats.take([0, 1])}, "not those of the 5 pairs"),
        ((policy, pairs), {"stats": measured["similarity"]}, "stats must be PairStats"),
        ((policy, pairs), {"stats": stats, "params": "head"}, "params='all', but here"),
        ((policy, pairs), {"loss": "dpoo", **measured}, "loss='dpoo' is unknown"),
        ((policy, pairs), {"gamma": 1.0, **measured}, "no hyper-parameter 'gamma'"),
        ((policy, [tk.PreferencePair("e", "Hi", "", "")]), {}, "none can be scored"),
    ]
    for given, options, message in cases:
        with pytest.raises(ValueError, match=message):
            tk.PairExplorer(*given, **options)


def test_a_pick_that_waits_for_the_model_says_so(policy, explorer):
    """A cell computes on the model: the pick is made when it is done, and nothing is lost."""
    inside, leave, note = threading.Event(), threading.Event(), part(explorer, "pe-note")
    said, cell = note.value, alone(lambda policy: inside.set() or leave.wait(60))
    threads = [threading.Thread(target=cell, args=(policy,), daemon=True)]
    threads[0].start()
    assert inside.wait(60)
    pick = {"target": setattr, "args": (part(explorer, "pe-choose"), "value", 4), "daemon": True}
    threads.append(threading.Thread(**pick))
    threads[1].start()
    until = time.monotonic() + 600
    while note.value == said and time.monotonic() < until:
        time.sleep(0.01)
    assert note.value == "waiting: the model is measuring for another cell"
    leave.set()
    for thread in threads:
        thread.join(60)
    assert note.value == said and shown_everywhere(explorer, 3)
