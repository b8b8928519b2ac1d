"""The parts of explorers: a table that picks, a figure that stays out of pyplot's hands."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from ipywidgets import Image

from toolkit.widgets.panels.figure import Picture, Still
from toolkit.widgets.panels.table import PairTable


@pytest.fixture
def table():
    picked = []
    table = PairTable(picked.append)
    frame = pd.DataFrame({"pair_id": ["0", "<b>1</b>"], "value": [0.123456, float("nan")]})
    table.show(frame, 0)
    return table, picked


def test_table_reports_what_the_user_picks_and_nothing_else(table):
    table, picked = table
    table.select(1)
    table.show(pd.DataFrame({"pair_id": ["a", "b", "c"]}), 2)
    assert picked == [] and table._table.selected_rows == [2]
    table._table.selected_rows = []
    table._table.selected_rows = [1]
    assert picked == [1]


def test_table_escapes_text_and_rounds_numbers(table):
    rows = json.loads(table[0]._table._dt_args["data_json"])
    assert rows[1][0] == "&lt;b&gt;1&lt;/b&gt;"
    assert rows[0][1] == ["0.123", 0.123456]


def test_new_numbers_keep_every_option(table):
    """A function that is not listed for evaluation anew leaves the browser with an empty table."""
    table, _ = table
    before = table._table._dt_args
    table.show(pd.DataFrame({"pair_id": ["a"], "value": [2.0]}), 0)
    after = table._table._dt_args
    assert {k for k in before if before[k] != after.get(k)} == {"data_json"}


def test_next_row_follows_the_sorting_and_the_search(table):
    """The browser says in which order it shows the rows; before that it is the data's."""
    table, _ = table
    table.show(pd.DataFrame({"pair_id": list("abcde")}), 0)
    assert [table.neighbour(row, 1) for row in (0, 4)] == [1, 0]
    assert [table.neighbour(row, -1) for row in (0, 4)] == [4, 3]
    table._browser.rows = [3, 0, 4]
    assert [table.neighbour(row, 1) for row in (3, 0, 4)] == [0, 4, 3]
    assert [table.neighbour(row, -1) for row in (3, 0, 4)] == [4, 3, 0]
    assert table.neighbour(1, 1) == 3 and table.neighbour(1, -1) == 4  # not among those found
    table.show(pd.DataFrame({"pair_id": list("ab")}), 0)  # the browser has not answered yet
    assert table.neighbour(0, 1) == 0 and table.neighbour(1, 1) == 0


def test_columns_of_numbers_sort_as_numbers_with_gaps_last(table):
    table, _ = table
    table.show(
        pd.DataFrame({"pair_id": ["a", "b"], "n": [117, 34], "x": [float("nan"), 1234.0]}), 0
    )
    options = table._table._dt_args
    assert {"targets": [1, 2], "type": "missing-last"} in options["columnDefs"]
    rows = json.loads(options["data_json"])
    assert [row[1] for row in rows] == [117, 34]
    assert rows[1][2] == ["1234", 1234.0]


def test_all_rows_reach_the_browser():
    table = PairTable(print)
    table.show(pd.DataFrame({"text": ["x" * 100] * 2000}), 1999)
    assert len(json.loads(table._table._dt_args["data_json"])) == 2000
    assert table._table.selected_rows == [1999]


def test_a_table_reaches_the_browser_in_one_message(monkeypatch):
    """An empty one came first, and a busy browser kept it: "No data available in table"."""
    from ipywidgets.widgets import widget

    opened, create = [], widget.comm.create_comm
    monkeypatch.setattr(
        widget.comm, "create_comm", lambda **given: (opened.append(given), create(**given))[1]
    )
    PairTable(print).show(pd.DataFrame({"text": ["some row"]}), 0)
    states = [given["data"]["state"] for given in opened]
    tables = [state for state in states if "_dt_args" in state]
    assert len(tables) == 1 and "some row" in tables[0]["_dt_args"]["data_json"]


def test_pictures_are_unknown_to_pyplot():
    before = plt.get_fignums()
    for live in (True, False):
        picture = Picture(200, 100, live=live)
        picture.figure.subplots().plot([0, 1])
        picture.redraw()
    assert plt.get_fignums() == before


def test_picture_without_ipympl_is_an_image(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ipympl.backend_nbagg", None)
    picture = Picture(200, 100)
    assert isinstance(picture.widget, Image)
    picture.redraw()
    assert bytes(picture.widget.value).startswith(b"\x89PNG")


def test_still_figure_shows_itself():
    assert Still(figsize=(1, 1))._repr_png_().startswith(b"\x89PNG")
