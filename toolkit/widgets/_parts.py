"""What explorers are made of: a table that picks a pair, a figure that can be clicked."""

from __future__ import annotations

import io
import math
import uuid
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
from itables.javascript import JavascriptFunction
from itables.widget import ITable
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toolkit.model.turns import told_of_waiting
from toolkit.plots import html_text
from toolkit.widgets._canvas import live_canvas

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


WAITING = "waiting: the model is measuring for another cell"
REACH = 30  # pixels around a point of a map that count as pointing at it


class Events:
    """Callbacks of a view: they rest while it sets its own widgets, and tell when they fail.

    A view that derives from it has a ``_note``, the HTML widget that takes what went wrong.
    """

    _note: ipywidgets.HTML
    _quiet = False
    _before_waiting = ""

    def _event(self, call: Callable, *args) -> None:
        """Run a callback, unless the change is the view's own; say what went wrong."""
        if self._quiet:
            return
        try:
            with told_of_waiting(self.say_waiting):
                call(*args)
        except Exception as error:
            self._note.value = f"<b>{html_text(type(error).__name__)}</b>: {html_text(str(error))}"
            raise

    def say_waiting(self, waiting: bool) -> None:
        """Say that a computation waits for its turn on the model, and then what was said before."""
        if waiting:
            self._before_waiting, self._note.value = self._note.value, WAITING
        elif self._note.value == WAITING:
            self._note.value = self._before_waiting

    @contextmanager
    def _silently(self):
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before


def close_all(widget: ipywidgets.Widget) -> None:
    """Close a widget and everything in it."""
    for child in getattr(widget, "children", ()):
        close_all(child)
    widget.close()


def pointed_at(event) -> int | None:
    """Return the place of a map's point that is nearest to the pointer, if one is near."""
    if event.inaxes is None:
        return None
    points = next((a for a in event.inaxes.collections if a.get_gid() == "pairs"), None)
    if points is None:
        return None
    places = np.ma.filled(points.get_offset_transform().transform(points.get_offsets()), np.nan)
    far = np.hypot(*(places - (event.x, event.y)).T)
    return int(np.nanargmin(far)) if np.nanmin(far, initial=np.inf) <= REACH else None


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
        self._canvas = live_canvas(self.figure) if live else None
        self._drawing = self._still = None
        self._moving: list[Artist] = []
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

    def move(self, artists: Sequence[Artist], *, anew: bool = False) -> None:
        """Show artists that moved, over all others as they were drawn last: a fraction of the time.

        Args:
            artists: All that moves; the same ones from call to call, or others of their kind.
            anew: Whether something else changed too.
        """
        if self._canvas is None:
            self.redraw()
            return
        if self._drawing is None:
            self._drawing = self._canvas.mpl_connect("draw_event", self._draw_moving)
        self._moving = sorted(artists, key=lambda artist: artist.get_zorder())
        for artist in self._moving:
            artist.set_animated(True)
        if anew or self._still is None:
            self._still = None
            self._canvas.draw_idle()
        else:
            self._canvas.restore_region(self._still)
            self._draw_over()
            self._canvas.blit()

    def _draw_moving(self, _) -> None:
        self._still = self._canvas.copy_from_bbox(self.figure.bbox)
        self._draw_over()

    def _draw_over(self) -> None:
        for artist in self._moving:
            if artist.figure is not None:  # taken out since
                self.figure.draw_artist(artist)


class Still(Figure):
    """A figure outside pyplot that a notebook shows as a picture, whatever its backend."""

    def _repr_png_(self) -> bytes:
        return png(self, 100)


def png(figure: Figure, dpi: float, **options) -> bytes:
    """Return the figure as a PNG file; options are those of ``Figure.savefig``."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, **options)
    return buffer.getvalue()


def short(value: float) -> str:
    """Return a number with three digits."""
    return "n/a" if math.isnan(value) else f"{value:.3g}".replace("-", "−")


def signed(value: float) -> str:
    """Return a number with its sign and three digits."""
    return f"{value:+.3g}".replace("-", "−")


def verb(change: float, loud: bool = False) -> str:
    """Return what a step does to a log-probability that changes by this much."""
    word = "raise" if change > 0 else "lower" if change < 0 else "leave"
    return word.upper() if loud and change < 0 else word


def by_nats(change: float) -> str:
    """Return the words that go after the verb and its object."""
    return f" by {short(abs(change))} nats" if change else " where it is"
