"""The pair explorer: linking, settings, partial results, bad input, escaping, the still copy."""

import asyncio
import html
import re
import threading
import time

import numpy as np
import pytest
from matplotlib.backend_bases import MouseEvent

import toolkit as tk
from toolkit.model.turns import alone
from toolkit.widgets import _pair_state, _pair_tabs, _pair_text, pair_explorer

HOSTILE = "<img src=x onerror=\"alert('a')\"><script>alert('b')</script>"
TEXTS = [
    ("The soup in the new place was", " warm and full of taste.", " cold and bland."),
    ("Is the library open on Sunday?", " Yes, until six.", " No, never on a Sunday."),
    (f"{HOSTILE} Was it good?", f" Yes {HOSTILE}", " No & <b>never</b>"),
    ("My cousin painted the fence", " green.", " green!"),
    ("Tell me a story.", " A fox met a crow on a hill.", " A fox met a cow on a hill."),
]


def make_pairs():
    pairs = [tk.PreferencePair(f"p{k}", *row) for k, row in enumerate(TEXTS)]
    return [*pairs[:2], tk.PreferencePair("<i>p2</i>", *TEXTS[2]), *pairs[3:]]


@pytest.fixture(scope="module")
def policy():
    return tk.load_model()


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


def view(explorer):
    return explorer._view


def selected_row(explorer):
    return view(explorer).table._table.selected_rows


def ring(explorer):
    axes = view(explorer)._map_axes
    return next(a for a in axes.collections if a.get_gid() == "ring").get_offsets()[0]


def points(explorer):
    axes = view(explorer)._map_axes
    return next(a for a in axes.collections if a.get_gid() == "pairs")


def click(explorer, x, y):
    canvas = view(explorer).map.figure.canvas
    event = MouseEvent("button_press_event", canvas, x, y, 1)
    canvas.callbacks.process("button_press_event", event)


def shown_everywhere(explorer, index):
    """Whether table, map, number field, sentence, prompt and numbers all show this pair."""
    id, prompt = explorer._measurement.ids[index], explorer._measurement.pairs[index].prompt
    v = view(explorer)
    return (
        explorer.selection == id
        and selected_row(explorer) == [index]
        and v._choose.value == index + 1
        and np.allclose(ring(explorer), points(explorer).get_offsets()[index])
        and f"pair {html.escape(id)}" in v._status.value
        and html.escape(prompt) in v._prompt.value
        and f"pair {html.escape(id)}" in v._numbers.value
    )


PICKS = {
    "table": lambda e: setattr(view(e).table._table, "selected_rows", [3]),
    "number": lambda e: setattr(view(e)._choose, "value", 4),
    "python": lambda e: setattr(e, "selection", "p3"),
    "next": lambda e: [view(e)._next.click() for _ in range(3)],
    "previous": lambda e: [view(e)._previous.click() for _ in range(2)],
    "map": lambda e: click(
        e, *points(e).get_offset_transform().transform(points(e).get_offsets()[3]) + 2
    ),
}


@pytest.mark.parametrize("how", PICKS)
def test_a_pick_anywhere_is_shown_everywhere(explorer, how):
    assert shown_everywhere(explorer, 0)
    PICKS[how](explorer)
    assert shown_everywhere(explorer, 3)


def test_one_pick_is_handled_once(explorer, monkeypatch):
    """Parts that tell each other about a pick must not go round in circles."""
    shown = []
    show = view(explorer).show_pair
    monkeypatch.setattr(view(explorer), "show_pair", lambda: (shown.append(1), show()))
    view(explorer).table._table.selected_rows = [2]
    view(explorer)._choose.value = 5
    assert len(shown) == 2


def test_one_setting_is_handled_once(explorer, monkeypatch):
    """A slider moved by Python must not set the value, and draw everything, once more."""
    shown = []
    monkeypatch.setattr(view(explorer), "show_map", lambda: shown.append(1))
    explorer.beta = 0.2
    explorer.lr = 1e-8
    view(explorer)._beta.value = 0.4
    assert len(shown) == 3


def test_a_cleared_selection_keeps_the_pair(explorer):
    """The browser deselects the old row before it selects the new one."""
    explorer.selection = "p1"
    view(explorer).table._table.selected_rows = []
    assert explorer.selection == "p1"


def test_a_click_away_from_every_point_picks_nothing(explorer):
    explorer.selection = "p1"
    box = view(explorer)._map_axes.bbox
    click(explorer, box.x0 + 3, box.y0 + 3)
    click(explorer, 1, 1)
    assert explorer.selection == "p1"


def test_rows_of_the_table_are_pairs_in_their_own_order(explorer):
    """Sorting and filtering happen in the browser: rows are named by their place in the data."""
    frame = _pair_text.table_frame(explorer._state)
    assert frame["id"].tolist() == explorer.to_frame()["id"].tolist() == explorer._measurement.ids


def test_beta_and_lr_rescale_without_the_model(explorer, monkeypatch):
    before, rows = explorer.tokens(), explorer.to_frame()
    for name in ("token_contributions", "iter_pair_stats", "similarity"):
        monkeypatch.setattr(_pair_state, name, lambda *a, **k: pytest.fail("model call"))
    explorer.beta = 0.2
    # The policy is its own reference, so a DPO weight is exactly β/2.
    np.testing.assert_allclose(
        explorer.tokens()["predicted_delta"], 2 * before["predicted_delta"], rtol=1e-12
    )
    explorer.lr = 5e-3
    changed = explorer.to_frame()["predicted_chosen_delta"]
    np.testing.assert_allclose(changed, 10 * rows["predicted_chosen_delta"], rtol=1e-12)
    assert "β 0.2 and learning rate 0.005" in view(explorer)._status.value


def test_sliders_and_python_move_each_other(explorer):
    view(explorer)._beta.value = 0.5
    assert explorer.beta == 0.5
    explorer.lr = 1e-8  # below the slider's range, which gives way
    assert view(explorer)._lr.value == 1e-8
    view(explorer)._color.value = "logp"
    assert explorer.color == "logp"
    assert "log-probability of each token" in view(explorer)._strips.value


def test_table_takes_the_new_numbers(explorer):
    before = view(explorer).table._table._dt_args["data_json"]
    explorer.lr = 2e-3
    assert view(explorer).table._table._dt_args["data_json"] != before


def test_colour_scale_stays_while_a_slider_moves(explorer):
    scale = view(explorer)._scale
    explorer.lr = 3e-3
    assert view(explorer)._scale == scale
    view(explorer)._rescale.click()
    assert view(explorer)._scale == pytest.approx(3 * scale)


def test_tokens_sum_to_the_pair(explorer):
    row = explorer.to_frame().iloc[0]
    sums = explorer.tokens().groupby("side")["predicted_delta"].sum()
    assert sums["chosen"] == pytest.approx(row["predicted_chosen_delta"], rel=1e-3)
    assert sums["rejected"] == pytest.approx(row["predicted_rejected_delta"], rel=1e-3)


def test_results_of_a_pair_are_kept_and_bounded(explorer, monkeypatch):
    calls, real = [], _pair_state.token_contributions
    monkeypatch.setattr(
        _pair_state, "token_contributions", lambda *a, **k: (calls.append(1), real(*a, **k))[1]
    )
    for id in ("p1", "p3", "p1", "p3"):
        explorer.selection = id
    assert len(calls) == 2
    cache = _pair_state.Cache(2)
    for key in "abcb":
        cache.get(key, str)
    assert ["a" in cache, "b" in cache, "c" in cache] == [False, True, True]


def test_tabs_compute_when_opened(explorer, monkeypatch):
    monkeypatch.setattr(_pair_tabs, "PATIENCE", 1e9)
    tabs = view(explorer).tabs
    assert not tabs.heat.children
    for tab, box in ((1, tabs.heat), (2, tabs.prompt), (3, tabs.alike)):
        tabs.widget.selected_index = tab
        assert box.children
    assert bytes(tabs.heat.children[0].value).startswith(b"\x89PNG")
    gap = explorer._state.attributions().gaps["margin"]
    assert f"{gap:+.3g}".replace("-", "−") in tabs.prompt.children[0].value
    before = tabs.alike.children
    explorer.lr = 2e-3
    assert tabs.alike.children != before


def test_slow_tab_asks_before_it_computes(explorer, monkeypatch):
    monkeypatch.setattr(_pair_tabs, "PATIENCE", -1.0)
    tabs = view(explorer).tabs
    tabs.widget.selected_index = 1
    start, words = tabs.heat.children[0].children
    assert start.description.startswith("Compute (about")
    monkeypatch.setattr(
        explorer._state, "matrix", lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    )
    start.click()
    assert words.value == "Stopped." and not start.disabled


def test_failing_callback_is_told(explorer, monkeypatch):
    monkeypatch.setattr(view(explorer), "show_pair", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        view(explorer)._choose.value = 2
    assert "ZeroDivisionError" in view(explorer)._note.value


def test_text_from_data_is_never_html(explorer):
    explorer.selection = "<i>p2</i>"
    v = view(explorer)
    parts = [v._status, v._prompt, v._strips, v._numbers, v._header, v._note]
    for shown in [*(part.value for part in parts), explorer.to_html()]:
        assert "<script" not in shown and "<img src=x" not in shown and "<i>p2" not in shown
    data = v.table._table._dt_args["data_json"]
    assert "<" not in data and "&lt;script&gt;" in data
    assert html.escape(HOSTILE) in v._prompt.value


def test_still_copy_holds_the_numbers_of_the_frame(explorer):
    explorer.selection, explorer.beta, explorer.lr = "p3", 0.3, 1e-4
    still, row = explorer.to_html(), explorer.to_frame().set_index("id").loc["p3"]
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


def test_figure_needs_no_screen(explorer):
    figure = explorer.figure()
    assert len(figure.axes) == 4  # three views and a colour bar
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_without_ipympl_the_map_is_a_picture(policy, measured):
    explorer = tk.PairExplorer(policy, make_pairs(), live=False, selection="p0", **measured)
    before = view(explorer).map.widget.value
    explorer.selection = "p3"
    assert bytes(before).startswith(b"\x89PNG")
    assert bytes(view(explorer).map.widget.value) != bytes(before)


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
    step, calls = _pair_state.Measurement.step, []

    def interrupted(self, count):
        calls.append(count)
        if len(calls) == 3:
            raise KeyboardInterrupt
        step(self, count)

    monkeypatch.setattr(_pair_state.Measurement, "step", interrupted)
    explorer = tk.PairExplorer(policy, make_pairs())
    assert len(explorer.to_frame()) == 2
    assert "2 of 5 pairs measured" in view(explorer)._note.value
    assert "2 of 5 pairs measured" in explorer.to_html()
    first = explorer.selection
    view(explorer)._next.click()
    assert {first, explorer.selection} == {"p0", "p1"}
    view(explorer)._next.click()
    assert explorer.selection == first  # round the two that are there
    assert len(explorer.measure().to_frame()) == 5
    assert "measured" not in view(explorer)._note.value
    assert view(explorer)._progress.layout.display == "none"


def test_background_measuring_stops_and_goes_on(policy, slow):
    async def session():
        explorer = tk.PairExplorer(policy, make_pairs())
        done = [explorer._measurement.done]
        while explorer._measurement.done == done[0]:
            await asyncio.sleep(0)
        view(explorer)._stop.click()
        while explorer._task is not None:
            await asyncio.sleep(0.01)
        done.append(explorer._measurement.done)
        assert len(explorer.to_frame()) == done[1]
        assert view(explorer)._stop.description == "Continue"
        view(explorer)._stop.click()
        while explorer._task is not None:
            await asyncio.sleep(0.01)
        return done, explorer

    done, explorer = asyncio.run(session())
    assert done[0] == 2 and 2 < done[1] < 5
    assert len(view(explorer).table._table.df) == 5


def test_python_waits_for_background_measuring(policy, slow):
    async def session():
        explorer = tk.PairExplorer(policy, make_pairs())
        explorer.selection = "p4"
        return explorer, explorer.to_frame()

    explorer, frame = asyncio.run(session())
    assert len(frame) == 5 and shown_everywhere(explorer, 4)


def test_pair_that_cannot_be_scored_is_named(policy, measured):
    bad = tk.PreferencePair("too <b>long", "word " * 600, " a", " b")
    pairs = [bad, *make_pairs()]
    explorer = tk.PairExplorer(policy, pairs, **measured)
    assert explorer.skipped["id"].tolist() == ["too <b>long"]
    assert "1 of 6 pairs cannot be scored" in view(explorer)._note.value
    assert "too &lt;b&gt;long" in view(explorer)._note.value
    assert len(explorer.to_frame()) == 5
    with pytest.raises(ValueError, match="cannot be scored"):
        explorer.selection = bad.id


def test_unknown_id_names_close_ones(explorer):
    with pytest.raises(ValueError, match=r"'p33'.*p3"):
        explorer.selection = "p33"
    with pytest.raises(ValueError, match="is no id of these pairs"):
        explorer.selection = 3


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
    assert explorer.beta is None and view(explorer)._beta.disabled
    assert set(explorer.to_frame()["d_chosen"]) == {2.0}
    assert "A likelihood step at learning rate" in view(explorer)._status.value
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


def test_a_batch_that_was_halved_for_memory_is_one_measurement(policy, monkeypatch):
    """Where memory runs out, ``iter_pair_stats`` yields the batch in parts."""
    pairs = tk.load_pairs("single_token", limit=3)
    real = _pair_state.iter_pair_stats
    halved = lambda *given, batch_size, **more: real(*given, batch_size=1, **more)  # noqa: E731
    monkeypatch.setattr(_pair_state, "iter_pair_stats", halved)
    measurement = _pair_state.Measurement(policy, pairs, "all")
    measurement.step(3)
    assert list(measurement.results()[0].ids) == [pair.id for pair in pairs]


def test_a_pick_that_waits_for_the_model_says_so(policy, explorer):
    """A cell computes on the model: the pick is made when it is done, and nothing is lost."""
    inside, leave, note = threading.Event(), threading.Event(), view(explorer)._note
    said, cell = note.value, alone(lambda policy: inside.set() or leave.wait(60))
    threads = [threading.Thread(target=cell, args=(policy,), daemon=True)]
    threads[0].start()
    assert inside.wait(60)
    pick = {"target": setattr, "args": (view(explorer)._choose, "value", 4), "daemon": True}
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
