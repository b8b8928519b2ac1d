"""What explorers are made of: a table that picks a pair, a figure that can be clicked."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from typing import Any

import ipywidgets
import pandas as pd
from itables.javascript import JavascriptFunction
from itables.widget import ITable
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# A table that gets new numbers is built anew in the browser: DataTables hands its state (sorting,
# search, page) to these two functions, and the page keeps it under the table's key. The selection
# is left out: it comes from Python, and itables fails on a selection that is restored so early.
SAVE_STATE = """function (settings, state) {
  const {select, ...kept} = state;
  (window.peTables ??= {})['KEY'] = kept;
}"""
LOAD_STATE = "function (settings) { return (window.peTables ??= {})['KEY'] ?? null; }"
# A row that is picked elsewhere may be on another page: turn to it.
FOLLOW = """function (settings) {
  const api = this.api(), node = api.table().node();
  if (node.peFollows) return;
  node.peFollows = true;
  api.on('select', function (event, dt, type, indexes) {
    const shown = dt.rows({order: 'applied', search: 'applied'}).indexes().toArray();
    const page = Math.floor(shown.indexOf(indexes[0]) / dt.page.len());
    if (page >= 0 && page !== dt.page()) dt.page(page).draw('page');
  });
}"""


class PairTable:
    """A sortable, searchable table that picks one row; rows are named by their place in the data.

    Args:
        pick: Called with the row's place in the frame when the user picks a row.
        page: Rows shown at once.
    """

    def __init__(self, pick: Callable[[int], None], page: int = 8):
        self._pick, self._page, self._quiet = pick, page, False
        self._key = uuid.uuid4().hex
        self._table: ITable | None = None
        self.widget = ipywidgets.VBox()

    def show(self, frame: pd.DataFrame, row: int) -> None:
        """Show this frame with one row picked; text is escaped, numbers have three digits."""
        with pd.option_context("display.float_format", "{:.3g}".format):
            if self._table is None:
                self._table = ITable(frame, selected_rows=[row], **self._options())
                self._table.observe(self._on_rows, "selected_rows")
                self.widget.children = [self._table]
            else:
                self._quiet = True
                self._table.update(frame, selected_rows=[row], **self._options())
                self._quiet = False

    def select(self, row: int) -> None:
        """Mark another row without calling back."""
        self._quiet = True
        self._table.selected_rows = [row]
        self._quiet = False

    def _on_rows(self, change) -> None:
        # An empty selection comes between two picks.
        if change["new"] and not self._quiet:
            self._pick(change["new"][0])

    def _options(self) -> dict[str, Any]:
        return {
            "select": {"style": "single", "toggleable": False, "info": False},
            "classes": "display compact nowrap",
            "style": "width:100%;margin:0",
            "layout": {
                "topStart": "search",
                "topEnd": None,
                "bottomEnd": {"paging": {"type": "simple_numbers", "buttons": 5}},
            },
            "language": {
                "info": "_START_ – _END_ of _TOTAL_ pairs",
                "infoEmpty": "no pair",
                "infoFiltered": "(of _MAX_)",
                "zeroRecords": "no pair matches",
            },
            "pageLength": self._page,
            "scrollX": True,
            "maxBytes": 0,
            "allow_html": False,
            "showIndex": False,
            "text_in_header_can_be_selected": False,
            "stateSave": True,
            "stateSaveCallback": JavascriptFunction(SAVE_STATE.replace("KEY", self._key)),
            "stateLoadCallback": JavascriptFunction(LOAD_STATE.replace("KEY", self._key)),
            "drawCallback": JavascriptFunction(FOLLOW),
            "warn_on_undocumented_option": False,
        }


class Picture:
    """A figure in a notebook: under ipympl it can be clicked, without ipympl it is a still image.

    The figure is its own canvas's, unknown to pyplot: it is shown once and goes with its widget.

    Args:
        width: Width in CSS pixels.
        height: Height in CSS pixels.
        live: Use ipympl when it is installed.
    """

    DPI = 90  # small enough that a narrow map's words keep apart

    def __init__(self, width: int, height: int, *, live: bool = True):
        self.figure = Figure(figsize=(width / self.DPI, height / self.DPI), dpi=self.DPI)
        self._canvas = _live_canvas(self.figure) if live else None
        self.widget = self._canvas or ipywidgets.Image(format="png", width=width, height=height)
        if self._canvas is None:
            FigureCanvasAgg(self.figure)

    @property
    def live(self) -> bool:
        """Whether the figure answers clicks."""
        return self._canvas is not None

    def on_click(self, call: Callable[[Any], None]) -> None:
        """Call back with matplotlib's event when the figure is clicked; still images never do."""
        self.figure.canvas.mpl_connect("button_press_event", call)

    def redraw(self) -> None:
        """Show what the figure's artists are now."""
        if self._canvas is not None:
            self._canvas.draw_idle()
        else:
            self.widget.value = png(self.figure, dpi=2 * self.DPI)


def _live_canvas(figure: Figure):
    try:
        from ipympl.backend_nbagg import Canvas, FigureManager
    except ImportError:
        return None
    canvas = Canvas(figure)
    FigureManager(canvas, 0)
    canvas.header_visible = canvas.footer_visible = canvas.resizable = False
    canvas.toolbar_visible = False
    return canvas


class Still(Figure):
    """A figure outside pyplot that a notebook shows as a picture, whatever its backend."""

    def _repr_png_(self) -> bytes:
        return png(self, 100)


def png(figure: Figure, dpi: float, **options) -> bytes:
    """Return the figure as a PNG file; options are those of ``Figure.savefig``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, **options)
    return buffer.getvalue()
