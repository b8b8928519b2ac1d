"""Figures of explorers: one that can be pointed at, and still ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toolkit.widgets.panels.canvas import DRAWING, live_canvas

REACH = 30  # pixels around a point of a map that count as pointing at it


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

    def axes(self, *shape: int, anew: bool) -> Any:
        """Return the axes of the figure: as they are, or new ones, one or ``shape`` many."""
        if anew:
            self.figure.clear()
            return self.figure.subplots(*shape)
        return self.figure.axes if shape else self.figure.axes[0]

    def lay_out(self, **pads: float) -> None:
        """Find room for all labels once: finding it anew would take half of each drawing."""
        self.figure.set_layout_engine("constrained", **pads)
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")

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


def image(figure: Figure, dpi: int = 150) -> ipywidgets.Image:
    """Return the figure as a still image, sharp on dense screens."""
    value = png(figure, dpi, bbox_inches="tight")
    width = int.from_bytes(value[16:20], "big")  # a PNG says its width there
    return ipywidgets.Image(
        value=value, layout={"width": f"{100 * width // dpi}px", "height": "auto"}
    )


def image_html(figure: Figure, alt: str, dpi: int = 90) -> str:
    """Return the figure as HTML that holds its own picture."""
    data = base64.b64encode(png(figure, dpi)).decode()
    return f'<img alt="{alt}" src="data:image/png;base64,{data}">'
