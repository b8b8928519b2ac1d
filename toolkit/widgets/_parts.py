"""What explorers are made of: callbacks that tell when they fail, a figure that can be clicked."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toolkit.model.turns import told_of_waiting
from toolkit.plots import html_text
from toolkit.widgets._canvas import DRAWING, live_canvas

WAITING = "waiting: the model is measuring for another cell"
REACH = 30  # pixels around a point of a map that count as pointing at it


class Quiet:
    """Says, inside ``with``, that a widget's change is no user's: in this thread alone.

    A click that another thread brings at the same moment is not lost.
    """

    def __init__(self):
        self._here = threading.local()

    def __enter__(self) -> None:
        self._here.depth = getattr(self._here, "depth", 0) + 1

    def __exit__(self, *error) -> None:
        self._here.depth -= 1

    def __bool__(self) -> bool:
        return getattr(self._here, "depth", 0) > 0


class Events:
    """Callbacks of a view: they rest while it sets its own widgets, and tell when they fail.

    A view that derives from it has a ``_note``, the HTML widget that takes what went wrong.
    """

    _note: ipywidgets.HTML
    _before_waiting = ""

    def __init__(self):
        self._quiet = Quiet()

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

    def _silently(self) -> Quiet:
        return self._quiet

    def close_widgets(self) -> None:
        """Take away the view's widgets, also those that are not shown now."""
        for part in vars(self).values():
            widget = getattr(part, "widget", part)
            if isinstance(widget, ipywidgets.Widget):
                close_all(widget)


def close_all(widget: ipywidgets.Widget) -> None:
    """Close a widget and all that it holds: children, layout, style, toolbar."""
    held = [getattr(widget, name) for name in widget.keys]
    widget.close()
    for value in held:
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, ipywidgets.Widget) and part.comm is not None:
                close_all(part)


def refill(box: ipywidgets.Box, *widgets: ipywidgets.Widget) -> None:
    """Put these widgets into a box, and close those that they replace."""
    old, box.children = box.children, widgets
    for widget in old:
        if widget not in widgets:
            close_all(widget)


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

    def connect(self, name: str, call: Callable[[Any], None]) -> None:
        """Call back with matplotlib's event of this name; still images have none."""
        self.figure.canvas.mpl_connect(name, lambda event: self.later(call, event))

    def later(self, call: Callable, *args) -> None:
        """Call back once matplotlib has let go of the figure."""
        if self._canvas is not None:
            self._canvas.later(call, *args)
        else:
            call(*args)

    def changing(self) -> AbstractContextManager:
        """Hold the figure while it is changed, so that no other thread draws it half-made.

        Nothing is measured inside: what is drawn is at hand before.
        """
        return DRAWING

    def redraw(self) -> None:
        """Show what the figure's artists are now."""
        with DRAWING:
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
        with DRAWING:
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
    with DRAWING:  # matplotlib's text parser is shared by all figures
        figure.savefig(buffer, format="png", dpi=dpi, **options)
    return buffer.getvalue()


def short(value: float) -> str:
    """Return a number with three digits."""
    return "n/a" if math.isnan(value) else f"{value:.3g}".replace("-", "−")


def signed(value: float) -> str:
    """Return a number with its sign and three digits."""
    return f"{value:+.3g}".replace("-", "−")


def token_words(labels: Mapping[str, object]) -> list[str]:
    """Return what a header says of the tokens that were scored, from a frame's labels."""
    words = [f"EOS {'appended and scored' if labels['append_eos'] else 'not appended'}"]
    cut = labels.get("truncation", "none")
    return words if cut == "none" else [*words, f"pairs cut: {html_text(str(cut))}"]
