"""The base of explorers, by the small one that newcomers are shown: traits, panels, copy, close."""

import asyncio
import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import traitlets
from explorers import drawings, part, table
from ipywidgets.widgets.widget import _instances

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "histogram_explorer.py"
HOSTILE = "<script>x</script>"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("histogram_explorer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def frame():
    ids = [f"p{k}" for k in range(9)] + [HOSTILE]
    values = [float(k) for k in range(10)]
    return pd.DataFrame({"pair_id": ids, "cosine": values, "ches": values[::-1], "regime": "ideal"})


@pytest.fixture
def explorer(example, frame):
    shown = example.HistogramExplorer(frame, "cosine", live=False)
    yield shown
    shown.close()


def test_the_example_stays_short():
    assert len(EXAMPLE.read_text().splitlines()) < 150


def test_controls_and_traits_follow_each_other(explorer):
    part(explorer, "pe-bins").value = 7
    assert explorer.bins == 7
    explorer.bins = 99  # beyond the slider, which gives way
    assert part(explorer, "pe-bins").value == 99
    table(explorer).selected_rows = [4]
    assert explorer.selection == "p4"
    assert "<b>p4</b>: cosine 4, above 40%" in part(explorer, "pe-status").value


def test_a_panel_is_drawn_once_for_what_it_depends_on_and_for_nothing_else(explorer):
    words, rows = drawings(explorer, "status"), drawings(explorer, "row")
    explorer.bins = 5
    assert words == rows == []
    explorer.selection = "p2"
    explorer.selection = "p2"
    assert words == rows == [{"selection"}]


def test_a_value_that_is_refused_leaves_all_as_it_was(explorer):
    seen = drawings(explorer, "histogram")
    for name, value, message in (
        ("column", "regime", "allowed: cosine, ches"),
        ("bins", 0, "bins must be a positive integer"),
        ("selection", "p33", "ids close to it: p3"),
    ):
        with pytest.raises(ValueError, match=message):
            setattr(explorer, name, value)
    assert (explorer.column, explorer.bins, explorer.selection, seen) == ("cosine", 20, "p0", [])


def test_a_callback_that_fails_is_told_and_its_control_goes_back(explorer):
    slider = part(explorer, "pe-bins")
    slider.min = -5
    with pytest.raises(ValueError, match="bins"):
        slider.value = -2
    assert slider.value == explorer.bins == 20
    assert "ValueError" in explorer.note.value and "bins must be" in explorer.note.value


def test_explorers_are_linked_by_a_trait(example, frame, explorer):
    other = example.HistogramExplorer(frame, "ches", live=False)
    traitlets.link((explorer, "selection"), (other, "selection"))
    table(other).selected_rows = [3]
    assert explorer.selection == "p3" and table(explorer).selected_rows == [3]
    other.close()


def test_the_still_copy_joins_the_panels_and_escapes_their_text(explorer):
    explorer.selection = HOSTILE
    still = explorer.to_html()
    assert "<script" not in still and "&lt;script&gt;" in still
    assert "data:image/png;base64," in still and explorer.snapshot().data == still


def test_late_panels_wait_until_the_user_rests(explorer):
    explorer.panels["histogram"].on = frozenset()
    explorer.panels["histogram"].late = frozenset({"bins"})
    seen = drawings(explorer, "histogram")

    async def session():
        for bins in (3, 4, 5):
            explorer.bins = bins
        assert not seen
        while not seen:
            await asyncio.sleep(0.01)

    asyncio.run(session())
    assert len(seen) == 1
    explorer.bins = 6  # where no kernel runs nothing waits
    assert len(seen) == 2


def test_shown_in_a_notebook_it_leaves_a_copy_that_follows(explorer, monkeypatch):
    from toolkit.widgets import explorer as base

    shown, written = [], []

    class Handle:
        def update(self, copy):
            written.append(copy.data)

    def display(data, **options):
        shown.append(data)
        return Handle() if options.get("display_id") else None

    monkeypatch.setattr(base, "display", display)
    explorer.write_copy()  # nothing is shown yet
    explorer._ipython_display_()
    widget, copy = shown
    assert "application/vnd.jupyter.widget-view+json" in widget
    assert "pe-twin" in copy.data and "<b>p0</b>" in copy.data
    explorer.selection = "p5"
    explorer.write_copy()
    assert len(written) == 1 and "<b>p5</b>" in written[0]


def test_close_leaves_no_widget(example, frame):
    before = set(_instances)
    explorer = example.HistogramExplorer(frame, "cosine")
    explorer.bins = 3
    explorer.close()
    assert [type(_instances[key]).__name__ for key in set(_instances) - before] == []
