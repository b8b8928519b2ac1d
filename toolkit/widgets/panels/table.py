"""A table that picks a pair, by mouse or by key, in whatever order the user sorts it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from itables.javascript import JavascriptFunction
from itables.widget import ITable

from toolkit.widgets.panels.browser import Browser
from toolkit.widgets.panels.panel import Quiet

# A table that gets new numbers is built anew in the browser: DataTables hands its state (sorting,
# search, page) to these functions, and the page keeps it under the table's key. The selection is
# left out: it comes from Python, and itables fails on a selection that is restored so early.
SAVE_STATE = """function (settings, state) {
  const {select, ...kept} = state;
  ((window.peTables ??= {})['KEY'] ??= {}).state = kept;
}"""
# Called before anything is sorted, and so the place to say where a missing number belongs: last,
# whichever way the column is sorted.
LOAD_STATE = """function (settings) {
  const missing = x => x === null || x === '' || Number.isNaN(x);
  const order = sign => (a, b) => missing(a) - missing(b) || (missing(a) ? 0 : sign * (a - b));
  const orders = this.dataTable.ext.type.order;
  orders['missing-last-asc'] = order(1);
  orders['missing-last-desc'] = order(-1);
  return window.peTables?.['KEY']?.state ?? null;
}"""
DRAWN = """function (settings) {
  const table = ((window.peTables ??= {})['KEY'] ??= {});
  table.api = this.api();
  table.drawn?.(table.api);
}"""


class WholeTable(ITable):
    """A table that the browser hears of once, with its rows.

    Its base class opens an empty one and sends the rows after it; a busy browser can draw the first
    and miss the second, and then says that there are no data.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.open()

    def open(self) -> None:
        """Open the channel to the browser as soon as there is something to send."""
        if self._dt_args:
            super().open()


class PairTable:
    """A sortable, searchable table that picks a pair; pairs are named by their places in the data.

    Args:
        pick: Called with the place of a pair when the user picks its row.
        page: Rows shown at once.
        buttons: Page buttons below the table.
        lowest_first: Column whose smallest numbers stand on top until the user sorts otherwise.
    """

    def __init__(
        self,
        pick: Callable[[int], None],
        page: int = 8,
        buttons: int = 5,
        lowest_first: str | None = None,
    ):
        self._pick, self._page, self._buttons = pick, page, buttons
        self._lowest_first = lowest_first
        self._key, self._quiet, self.places = uuid.uuid4().hex, Quiet(), np.arange(0)
        self._table: WholeTable | None = None
        self._browser = Browser(self._key)
        self.widget = ipywidgets.VBox([self._browser])

    def show(self, frame: pd.DataFrame, place: int | None, places: np.ndarray | None = None):
        """Show a frame with one pair picked, or none; text is escaped, numbers have 3 digits.

        Args:
            frame: One row per pair.
            place: Place of the picked pair; marked nowhere if it is not among the rows.
            places: Rising places of the pairs in the rows; all pairs if not given.
        """
        self.places = np.arange(len(frame)) if places is None else places
        options = {"selected_rows": self._row_of(place), **self._options(frame)}
        with pd.option_context("display.float_format", _digits):
            if self._table is None:
                self._table = WholeTable(frame, **options)
                self._table.observe(self._on_rows, "selected_rows")
                self.widget.children = [self._table, self._browser]
            else:
                with self._quiet:
                    self._table.update(frame, **options)

    def select(self, place: int | None) -> None:
        """Mark another pair, or none, without calling back."""
        with self._quiet:
            self._table.selected_rows = self._row_of(place)

    def neighbour(self, place: int, by: int) -> int | None:
        """Return the pair before or after this one as the user has sorted and searched.

        The ends are joined; a pair that the search leaves out has the first one after it, and one
        that is not in the table its neighbour by place. Without rows there is none.
        """
        known = [shown for shown in self._browser.rows if shown < len(self.places)]
        rows, here = known or range(len(self.places)), self._row_of(place)
        if not rows:
            return None
        if not here:
            row = int(np.searchsorted(self.places, place)) - (by < 0)
            return int(self.places[row % len(self.places)])
        at = rows.index(here[0]) if here[0] in rows else -1 if by > 0 else 0
        return int(self.places[rows[(at + by) % len(rows)]])

    def _row_of(self, place: int | None) -> list[int]:
        return [] if place is None else np.flatnonzero(self.places == place).tolist()

    def _on_rows(self, change) -> None:
        # An empty selection comes between two picks.
        if change["new"] and not self._quiet:
            self._pick(int(self.places[change["new"][0]]))

    def _options(self, frame: pd.DataFrame) -> dict[str, Any]:
        numbers = [i for i, kind in enumerate(frame.dtypes) if kind.kind in "iuf"]
        first = [i for i, name in enumerate(frame.columns) if name == self._lowest_first]
        script = {
            "stateSaveCallback": SAVE_STATE, "stateLoadCallback": LOAD_STATE, "drawCallback": DRAWN,
        }  # fmt: skip
        return {
            "select": {"style": "single", "toggleable": False, "info": False},
            "classes": "display compact nowrap",
            "style": "width:100%;margin:0",
            "layout": {
                "topStart": "search",
                "topEnd": None,
                "bottomEnd": {"paging": {"type": "simple_numbers", "buttons": self._buttons}},
            },
            "language": {
                "info": "_START_ – _END_ of _TOTAL_ pairs",
                "infoEmpty": "no pair",
                "infoFiltered": "(of _MAX_)",
                "zeroRecords": "no pair matches",
            },
            "columnDefs": [{"targets": numbers, "type": "missing-last"}],
            "order": [[i, "asc"] for i in first],
            "pageLength": self._page,
            "scrollX": True,
            "maxBytes": 0,
            "allow_html": False,
            "showIndex": False,
            "text_in_header_can_be_selected": False,
            "stateSave": True,
            "warn_on_undocumented_option": False,
            **{
                name: JavascriptFunction(code.replace("KEY", self._key))
                for name, code in script.items()
            },
        }


def _digits(value: float) -> str:
    """Three digits, but all of a count, which is a float in a column with gaps."""
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"
