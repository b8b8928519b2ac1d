"""The dataset explorer: filter, selection, linking, export, rows without scores, the still copy."""

import doctest
import html
import re

import numpy as np
import pandas as pd
import pytest
import traitlets
from explorers import HOSTILE, artist as find_artist, part, table
from matplotlib.backend_bases import KeyEvent, MouseEvent

import toolkit as tk
from toolkit import scoring
from toolkit.dataset import choice, scores as dataset_scores
from toolkit.widgets import dataset_explorer

TOO_LONG = "too <b>long"


@pytest.fixture(scope="module")
def pairs():
    hostile = tk.PreferencePair(
        "<i>h</i>", f"{HOSTILE} Good?", f" Yes {HOSTILE}", " No & <b>no</b>"
    )
    bad = tk.PreferencePair(TOO_LONG, "word " * 1200, " a", " b")
    return [
        *tk.load_pairs("long_suffix", limit=10),
        *tk.load_pairs("stance", limit=4),
        hostile,
        bad,
    ]


@pytest.fixture(scope="module")
def scores(policy, pairs):
    measures = ("similarity", "entanglement")
    return scoring.score_pairs(policy, pairs, measures=measures, progress=False)


@pytest.fixture
def explorer(policy, pairs, scores):
    shown = tk.DatasetExplorer(policy, pairs, scores=scores, selection=pairs[0].id)
    yield shown
    shown.close()


def synthetic(n, seed=0):
    """Scores with ties, gaps and one infinite value, and short pairs to go with them."""
    rng = np.random.default_rng(seed)
    pairs = [tk.PreferencePair(f"p{k}", f"Say {k}.", " yes", " no") for k in range(n)]
    frame = pd.DataFrame({"pair_id": [p.id for p in pairs], "error": ""})
    frame["ln_ches"] = rng.normal(0, 2, n).round(1)
    frame["cosine"] = rng.uniform(-1, 1, n)
    frame["regime"] = rng.choice(["ideal", "both_down", "both_up"], n)
    frame["chosen_length"] = rng.integers(1, 30, n)
    frame["rejected_length"] = rng.integers(1, 30, n)
    frame.loc[::7, ["ln_ches", "cosine"]] = np.nan
    frame.loc[::7, "error"] = "chosen is empty"
    frame.loc[3, "cosine"] = np.inf
    return pairs, frame


@pytest.fixture(scope="module")
def many():
    return synthetic(200)


@pytest.fixture
def wide(policy, many):
    shown = tk.DatasetExplorer(policy, many[0], scores=many[1])
    yield shown
    shown.close()


def axes(explorer, name="map"):
    """Return the axes of the scatter, or of the histogram of a column."""
    if name == "map":
        return explorer.map.figure.axes[0]
    return explorer.histograms.figure.axes["xy".index(name)]


def artist(explorer, gid, name="map"):
    return find_artist(axes(explorer, name), gid)


def pixel(explorer, id):
    place = explorer.choice.places()[explorer.choice.place_of(id)]
    return axes(explorer).transData.transform(place)


def drag(explorer, start, end):
    canvas = explorer.map.figure.canvas
    steps = [("button_press_event", start), ("motion_notify_event", end),
             ("button_release_event", end)]  # fmt: skip
    for name, (x, y) in steps:
        button = None if name.startswith("motion") else 1
        buttons = {"buttons": [1]} if button is None else {}
        canvas.callbacks.process(name, MouseEvent(name, canvas, x, y, button, **buttons))


# ----------------------------------------------------------------- the filter


@pytest.mark.parametrize("by", ["ln_ches", "cosine"])
@pytest.mark.parametrize("keep", [0.001, 0.05, 0.1, 0.3, 0.5, 0.999, 1.0])
def test_counts_mask_and_cut_are_those_of_filter_pairs(wide, many, by, keep):
    """The slider ranks once for speed; ties and gaps must fall as filter_pairs has them."""
    pairs, frame = many
    wide.by, wide.keep = by, keep
    expected = scoring.filter_pairs(pairs, frame, by=by, keep=keep)
    ids = [pair.id for pair in expected]
    shown, counts = wide.to_frame(), wide.choice.counts()
    assert [pair.id for pair in wide.kept()] == ids == shown.loc[shown["kept"], "pair_id"].tolist()
    unscored = int(frame[by].isna().sum())
    assert counts == {
        "kept": len(ids), "dropped": len(pairs) - len(ids) - unscored, "unscored": unscored,
    }  # fmt: skip
    assert wide.choice.cut == frame.set_index("pair_id").loc[ids, by].max()
    regimes = wide.choice.regimes()
    assert regimes["kept"].sum() == len(ids) and regimes["all"].sum() == len(pairs)


def test_slider_dropdown_and_python_move_each_other(wide):
    part(wide, "pe-keep").value = 25.0
    assert wide.keep == 0.25
    assert f"kept {len(wide.kept()):,}</b>" in part(wide, "pe-ranking").value
    wide.keep = 0.001  # below the slider's range, which gives way
    assert part(wide, "pe-keep").value == pytest.approx(0.1)
    part(wide, "pe-by").value = "length_difference"
    assert wide.by == "length_difference"
    wide.x = "cosine"
    assert part(wide, "pe-x").value == "cosine"


def test_cut_is_drawn_where_the_filter_ranks(wide):
    wide.keep = 0.4
    cut = wide.choice.cut
    for axes in ("map", "x"):
        line = artist(wide, "cut-x", axes)
        assert line.get_visible() and line.get_xdata()[0] == cut
    assert not artist(wide, "cut-y").get_visible() and not artist(wide, "cut-x", "y").get_visible()
    wide.by = "cosine"
    assert artist(wide, "cut-y").get_visible() and not artist(wide, "cut-x").get_visible()
    wide.by = "length_difference"
    assert not artist(wide, "cut-y").get_visible() and not artist(wide, "cut-x").get_visible()


def test_points_are_grouped_as_the_filter_has_them(wide):
    wide.keep = 0.3
    frame = wide.to_frame()
    drawn = np.isfinite(frame[["ln_ches", "cosine"]]).all(axis=1)
    for name in ("ideal", "both_down", "both_up"):
        here = frame[drawn & frame["kept"] & (frame["regime"] == name)]
        np.testing.assert_array_equal(artist(wide, name).get_xdata(), here["ln_ches"])
    dropped = frame[drawn & ~frame["kept"]]
    np.testing.assert_array_equal(artist(wide, "dropped").get_ydata(), dropped["cosine"])


def test_length_confound_is_that_of_scoring(wide, many):
    rho = scoring.length_confound(wide.to_frame(), "ln_ches")
    assert f"{rho:+.2f}".replace("-", "−") in part(wide, "pe-ranking").value
    wide.by = "length_difference"
    assert (
        "+1.00" in part(wide, "pe-ranking").value
        and "<b>most</b> of the ranking" in part(wide, "pe-ranking").value
    )


# ----------------------------------------------------------------- picking and selecting


def shown_everywhere(explorer, id):
    index = explorer.choice.place_of(id)
    ring = np.ravel(artist(explorer, "picked").get_data())
    return (
        explorer.selection == id
        and part(explorer, "pe-choose").value == index + 1
        and table(explorer).selected_rows == [index]
        and np.allclose(ring, explorer.choice.places()[index])
        and f"pair {html.escape(id)}" in part(explorer, "pe-status").value
        and html.escape(explorer.pair.prompt_text[:40]) in part(explorer, "pe-prompt").value
        and f"pair {html.escape(id)}" in part(explorer, "pe-numbers").value
    )


def click(explorer, id):
    place = pixel(explorer, id)
    drag(explorer, place, place)


PICKS = {
    "table": lambda e, i, id: setattr(table(e), "selected_rows", [i]),
    "number": lambda e, i, id: setattr(part(e, "pe-choose"), "value", i + 1),
    "python": lambda e, i, id: setattr(e, "selection", id),
    "next": lambda e, i, id: [part(e, "pe-next").click() for _ in range(i)],
    "click": lambda e, i, id: click(e, id),
}


@pytest.mark.parametrize("how", PICKS)
def test_a_pick_anywhere_is_shown_everywhere(explorer, how):
    ids = explorer.choice.ids
    assert shown_everywhere(explorer, ids[0])
    PICKS[how](explorer, 3, ids[3])
    assert shown_everywhere(explorer, ids[3])


def test_arrow_keys_walk_along_the_axes(wide):
    canvas = wide.map.figure.canvas
    frame = wide.to_frame()
    frame = frame[np.isfinite(frame[["ln_ches", "cosine"]]).all(axis=1)]
    for key, column in (("right", "ln_ches"), ("up", "cosine")):
        order = frame.sort_values(column, kind="stable")["pair_id"].tolist()
        at = order.index(wide.selection)
        canvas.callbacks.process("key_press_event", KeyEvent("key_press_event", canvas, key))
        assert wide.selection == order[at + 1]
    wide.selection = order[-1]
    canvas.callbacks.process("key_press_event", KeyEvent("key_press_event", canvas, "up"))
    assert wide.selection == order[-1]


def test_box_selects_what_the_frame_says(wide):
    frame = wide.to_frame()
    inside = frame["ln_ches"].between(-1, 1) & frame["cosine"].between(-0.5, 0.25)
    assert wide.select_box((1, -1), (-0.5, 0.25)) == frame.loc[inside, "pair_id"].tolist()
    assert wide.to_frame()["selected"].sum() == inside.sum() > 5
    assert len(artist(wide, "selected").get_xdata()) == inside.sum()
    assert f"selected {inside.sum()}" in part(wide, "pe-ranking").value


def test_dragged_box_selects_and_a_click_keeps_it(wide):
    transform = axes(wide).transData.transform
    drag(wide, transform((-1, -0.5)), transform((1, 0.25)))
    selected = wide.selected_ids
    frame = wide.to_frame().set_index("pair_id").loc[selected]
    assert len(selected) > 5
    assert frame["ln_ches"].between(-1.01, 1.01).all()
    picked = wide.selection
    click(wide, selected[-1])
    assert wide.selected_ids == selected and wide.selection != picked
    wide.pointer.clear.click()
    assert wide.selected_ids == []


def test_outline_selects_what_is_inside(wide):
    wide.select_outline([(-9, -0.2), (9, -0.2), (9, 0.2), (-9, 0.2)])
    frame = wide.to_frame()
    assert frame.loc[frame["selected"], "cosine"].abs().max() <= 0.2
    drawn = np.isfinite(frame["ln_ches"])
    assert frame["selected"].sum() == (drawn & frame["cosine"].between(-0.2, 0.2)).sum()


def test_table_shows_the_chosen_part_and_names_its_rows(wide):
    wide.selected_ids = ["p9", "p4"]
    part(wide, "pe-part").value = "selected"
    shown = table(wide)
    assert shown.df["pair_id"].tolist() == ["p4", "p9"]
    shown.selected_rows = [1]
    assert wide.selection == "p9"
    wide.pointer.clear.click()
    assert len(shown.df) == 0 and shown.selected_rows == []
    part(wide, "pe-part").value = "unscored"
    assert len(shown.df) == len(wide.unscored)
    part(wide, "pe-part").value = "kept"
    wide.keep = 0.1
    assert shown.df["pair_id"].tolist() == [pair.id for pair in wide.kept()]


def test_what_is_chosen_is_linked(wide, policy, many):
    other = tk.DatasetExplorer(policy, many[0], scores=many[1], live=False)
    for name in ("selection", "selected_ids", "keep", "by"):
        traitlets.link((wide, name), (other, name))
    drag(wide, *axes(wide).transData.transform([(-1, -0.5), (1, 0.25)]))
    part(other, "pe-keep").value = 20.0
    part(other, "pe-by").value = "cosine"
    assert other.selected_ids == wide.selected_ids and len(wide.selected_ids) > 5
    assert wide.keep == 0.2 and wide.kept() == other.kept()
    assert part(wide, "pe-ranking").value == part(other, "pe-ranking").value
    other.close()


def test_explore_opens_the_selected_pairs(explorer):
    assert explorer.explore().to_frame()["pair_id"].tolist() == [explorer.selection]
    explorer.selected_ids = explorer.choice.ids[2:4]
    assert explorer.explore(lr=1e-4).to_frame()["pair_id"].tolist() == explorer.choice.ids[2:4]


# ----------------------------------------------------------------- rows without scores


def test_pair_without_a_score_is_named_never_kept_and_can_be_looked_at(explorer):
    explorer.keep = 1.0
    assert TOO_LONG not in [pair.id for pair in explorer.kept()]
    assert explorer.unscored["pair_id"].tolist() == [TOO_LONG]
    assert "1 of 16 pairs without ln_ches" in part(explorer, "pe-note").value
    assert "too &lt;b&gt;long" in part(explorer, "pe-note").value
    assert TOO_LONG in explorer.to_frame()["pair_id"].tolist()
    assert len(table(explorer).df) == 16
    explorer.selection = TOO_LONG
    assert "cannot be scored" in part(explorer, "pe-status").value
    assert not len(artist(explorer, "picked").get_xdata())
    explorer.selection = explorer.choice.ids[0]
    assert shown_everywhere(explorer, explorer.choice.ids[0])


def test_notes_count_what_is_not_drawn(wide):
    frame = wide.to_frame()
    lost = (~np.isfinite(frame[["ln_ches", "cosine"]]).all(axis=1)).sum()
    assert f"{lost} pairs without both values" in artist(wide, "note").get_text()
    gaps = (~np.isfinite(frame["cosine"])).sum()
    assert f"{gaps} pairs without a value" in artist(wide, "note", "y").get_text()


# ----------------------------------------------------------------- scores


def test_scores_in_another_order_and_with_more_rows_find_their_pairs(policy, pairs, scores):
    explorer = tk.DatasetExplorer(policy, pairs[3:8], scores=scores.iloc[::-1])
    expected = scores.iloc[3:8]
    assert explorer.to_frame()["pair_id"].tolist() == expected["pair_id"].tolist()
    np.testing.assert_array_equal(explorer.to_frame()["ln_ches"], expected["ln_ches"])


def test_scores_are_read_from_a_file_or_measured(policy, pairs, scores, tmp_path):
    out = tmp_path / "scores.parquet"
    scoring.score_pairs(policy, pairs, measures="similarity", out=out, progress=False)
    read = tk.DatasetExplorer(policy, pairs, scores=out, y="ches").to_frame()
    measured = tk.DatasetExplorer(policy, pairs).to_frame()
    for frame in (read, measured):
        np.testing.assert_allclose(frame["ln_ches"], scores["ln_ches"], rtol=1e-6)
    assert measured["regime"].tolist()[:-1] == scores["regime"].tolist()[:-1]
    assert "regime" not in read


def test_interrupted_measuring_keeps_what_is_done(policy, pairs, monkeypatch):
    real, calls = dataset_scores.score_pairs, []

    def interrupted(policy, pairs, **options):
        calls.append(len(pairs))
        if len(calls) == 1:
            real(policy, pairs[:6], rows_per_part=6, **options)
            raise KeyboardInterrupt
        return real(policy, pairs, **options | {"resume": False})

    monkeypatch.setattr(dataset_scores, "score_pairs", interrupted)
    explorer = tk.DatasetExplorer(policy, pairs)
    assert explorer.to_frame()["ln_ches"].notna().sum() == 6
    assert "6 of 16 pairs measured" in part(explorer, "pe-note").value
    assert explorer.measure().to_frame()["ln_ches"].notna().sum() == 15
    assert "measured" not in part(explorer, "pe-note").value


# ----------------------------------------------------------------- export


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_export_is_read_back_by_load_pairs(explorer, tmp_path, format):
    explorer.keep = 0.4
    path = explorer.export(tmp_path / f"kept.{format}", format=format)
    kept = explorer.kept()
    again = tk.load_pairs(str(path))
    assert [p.id for p in again] == [p.id for p in kept]
    assert [(p.prompt, p.chosen, p.rejected) for p in again] == [
        (p.prompt, p.chosen, p.rejected) for p in kept
    ]


def test_export_button_says_what_it_wrote_or_why_not(explorer, tmp_path):
    export = explorer.exporter
    export.format.value = "parquet"
    assert export.path.value == "kept.parquet"
    export.which.value = "selected"
    assert export.path.value == "selected.parquet"
    export.button.click()
    assert "Nothing was written" in export.said.value and "no pair is selected" in export.said.value
    explorer.selected_ids = ["<i>h</i>"]
    export.path.value = str(tmp_path / "<b>out.parquet")
    export.button.click()
    assert "Wrote 1 selected pair" in export.said.value and "<b>out" not in export.said.value
    assert tk.load_pairs(export.path.value)[0].id == "<i>h</i>"
    export.path.value = str(tmp_path / "nowhere" / "out.parquet")
    export.button.click()
    assert "Nothing was written" in export.said.value


def test_export_replaces_a_file_only_when_it_is_told_to(explorer, tmp_path):
    path, export = tmp_path / "kept.jsonl", explorer.exporter
    explorer.export(path)
    explorer.keep = 0.2
    with pytest.raises(ValueError, match="exists already; give overwrite=True"):
        explorer.export(path)
    export.path.value = str(path)
    export.button.click()
    assert "Nothing was written" in export.said.value
    export.replace.value = True
    export.button.click()
    assert len(tk.load_pairs(str(path))) == len(explorer.kept())
    explorer.keep = 0.4
    explorer.export(path, overwrite=True)
    assert len(tk.load_pairs(str(path))) == len(explorer.kept())


# ----------------------------------------------------------------- what stays


def test_hostile_column_names_are_text(policy, many):
    frame = many[1].rename(columns={"cosine": "<b>$x_{$"})
    explorer = tk.DatasetExplorer(policy, many[0], scores=frame, y="<b>$x_{$", by="<b>$x_{$")
    assert "<b>$x" not in part(explorer, "pe-ranking").value + part(explorer, "pe-note").value
    assert explorer.figure()._repr_png_().startswith(b"\x89PNG")


def test_still_copy_holds_the_counts_and_the_pair(explorer):
    explorer.keep, explorer.selection = 0.4, explorer.choice.ids[2]
    still, row = explorer.to_html(), explorer.to_frame().iloc[2]
    kept = re.search(r"kept (\d+)</b> of (\d+) scored", still)
    assert (int(kept[1]), int(kept[2])) == (len(explorer.kept()), 15)
    for name in ("chosen_logps", "inner", "cosine", "ln_ches"):
        assert f"{row[name]:.5g}".replace("-", "−")[:5] in still, name
    assert "data:image/png;base64," in still and "http" not in still
    assert len(still) < 200_000
    assert explorer.snapshot().data == still


def test_ten_thousand_rows(policy):
    """Texts are cut before they go to the browser, and points are a few artists."""
    pairs, frame = synthetic(10_000)
    long = [tk.PreferencePair(p.id, p.prompt * 200, p.chosen, p.rejected) for p in pairs]
    explorer = tk.DatasetExplorer(policy, long, scores=frame)
    assert len(table(explorer)._dt_args["data_json"]) < 3_000_000
    assert len(axes(explorer).get_children()) < 60
    explorer.keep = 0.05
    assert len(explorer.kept()) == explorer.choice.counts()["kept"]


# ----------------------------------------------------------------- bad input


def test_bad_input_names_the_parameter(policy, pairs, scores):
    twice = pd.concat([scores, scores.iloc[:1]])
    empty = scores[["pair_id", "error"]]
    cases = [
        (("gpt2", pairs), {}, "policy must be a toolkit Policy"),
        ((policy, []), {}, "pairs must be a list"),
        ((policy, [*pairs, pairs[0]]), {"scores": scores}, "occurs twice"),
        ((policy, pairs), {"scores": scores.iloc[1:]}, "scores: no row for pair"),
        ((policy, pairs), {"scores": twice}, "scores: id .* is there twice"),
        (
            (policy, pairs),
            {"scores": scores.drop(columns="pair_id")},
            "scores: no column 'pair_id'",
        ),
        ((policy, pairs), {"scores": empty}, "scores: no pair has a number"),
        ((policy, pairs), {"scores": 3}, "scores must be a frame"),
        ((policy, pairs), {"scores": "/nowhere/s.parquet"}, "scores: '/nowhere"),
        ((policy, pairs), {"scores": scores, "x": "chess"}, "x='chess' is no column of numbers"),
        ((policy, pairs), {"scores": scores, "y": "regime"}, "y='regime' is no column of numbers"),
        ((policy, pairs), {"scores": scores, "by": "pair_id"}, "by='pair_id' is no column"),
        ((policy, pairs), {"scores": scores, "keep": 0}, "keep must be a share"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(ValueError, match=message):
            tk.DatasetExplorer(*arguments, **options)


def test_bad_settings_change_nothing(wide):
    before = wide.x, wide.keep, wide.selection, wide.selected_ids
    for name, value in (
        ("x", "nothing"),
        ("keep", 1.5),
        ("selection", "p"),
        ("selected_ids", ["q"]),
    ):
        with pytest.raises(ValueError, match=name):
            setattr(wide, name, value)
    with pytest.raises(ValueError, match="format='csv'"):
        wide.export("x.csv", format="csv")
    with pytest.raises(ValueError, match="which='all'"):
        wide.export("x.jsonl", which="all")
    with pytest.raises(ValueError, match="x must be two numbers"):
        wide.select_box((1,), (0, 1))
    assert (wide.x, wide.keep, wide.selection, wide.selected_ids) == before


@pytest.mark.parametrize("module", [dataset_explorer, choice])
def test_examples_run(module):
    assert doctest.testmod(module).failed == 0


# ----------------------------------------------------------------- what it begins with


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["ln_ches", "cosine", "ches"], ("ln_ches", "cosine", "ln_ches")),
        (["ln_ches", "ches", "neg_edit_distance"], ("ln_ches", "ches", "ln_ches")),
        (["cosine", "kappa"], ("cosine", "kappa", "cosine")),
        (["quality"], ("quality", "quality", "quality")),
    ],
)
def test_begins_with_the_columns_that_there_are(policy, many, columns, expected):
    """A file scored for similarity alone has no cosine."""
    pairs, frame = many
    for k, name in enumerate(columns):
        frame = frame.assign(**{name: np.arange(len(frame)) + k})
    explorer = tk.DatasetExplorer(policy, pairs, scores=frame[["pair_id", *columns]])
    assert (explorer.x, explorer.y, explorer.by) == expected
    explorer.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 0}, "keep must be a share"),
        ({"x": "nonsense"}, "x='nonsense' is no column of numbers; there are ches"),
        ({"by": "regime"}, "by='regime' is no column of numbers"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_measured(
    policy, pairs, monkeypatch, options, words
):
    measured = []
    real = dataset_scores.score_pairs
    monkeypatch.setattr(
        dataset_scores,
        "score_pairs",
        lambda policy, pairs, **more: measured.append(len(pairs)) or real(policy, pairs, **more),
    )
    with pytest.raises(ValueError, match=words):
        tk.DatasetExplorer(policy, pairs, **options)
    assert sum(measured) <= 1


def test_next_row_goes_on_from_a_pair_that_the_table_leaves_out(wide):
    part(wide, "pe-part").value = "kept"
    places = wide.table.places
    gap = next(int(p) for p in places if p + 1 not in places)
    wide.selection = wide.choice.ids[gap + 1]
    part(wide, "pe-previous").click()
    assert wide.choice.index == gap


def test_lengths_sort_as_numbers(wide):
    frame = table(wide)._df
    assert {"chosen tokens", "rejected tokens"} <= set(frame)
    assert (frame["chosen tokens"] == wide.to_frame()["chosen_length"]).all()
