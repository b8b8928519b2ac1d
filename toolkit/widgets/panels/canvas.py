"""The canvas of a figure that can be pointed at: ipympl's, without ipympl's hand on pyplot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache

import matplotlib
from matplotlib.figure import Figure

# Held by whoever changes or draws a figure of an explorer: clicks, and the browser's wish to see a
# figure drawn, arrive in another thread than the cell that is running, and matplotlib has no lock
# of its own. It is taken last: nothing is measured and no callback of the user's runs under it.
DRAWING = threading.RLock()


def live_canvas(figure: Figure):
    """Return an ipympl canvas for a figure that pyplot does not know, ``None`` without ipympl."""
    try:
        with _backend_kept():
            from ipympl.backend_nbagg import FigureManager
    except ImportError:
        return None
    canvas = _canvas_class()(figure)
    FigureManager(canvas, 0)
    canvas.header_visible = canvas.footer_visible = canvas.resizable = False
    canvas.toolbar_visible = False
    return canvas


@cache
def _canvas_class() -> type:
    from ipympl.backend_nbagg import Canvas

    class LockedCanvas(Canvas):
        """Draws and sends under ``DRAWING``, and calls back after it."""

        def __init__(self, figure: Figure):
            self._here = threading.local()
            super().__init__(figure)

        def later(self, call: Callable, *args) -> None:
            """Call now, or once the message that is being handled in this thread is done with."""
            waiting = getattr(self._here, "calls", None)
            if waiting is None:
                call(*args)
            else:
                waiting.append((call, args))

        def draw(self) -> None:
            with DRAWING:
                super().draw()

        def get_diff_image(self) -> bytes | None:
            # A whole frame each time: in the browser a frame that comes before the one before it
            # is decoded takes its place, and what only that one held would never be shown.
            self._force_full = True
            return super().get_diff_image()

        def _handle_message(self, widget, content, buffers) -> None:
            self._here.calls = calls = []
            try:
                with DRAWING:
                    super()._handle_message(widget, content, buffers)
            finally:
                self._here.calls = None
            for call, args in calls:
                call(*args)

    return LockedCanvas


@contextmanager
def _backend_kept():
    """Leave pyplot's backend as it is, chosen or not, when ipympl is imported for the first time.

    The import calls ``matplotlib.use``; switching back afterwards would load the inline backend
    without its PNG formatter, and every later figure of the kernel would be a line of text.
    """
    use, matplotlib.use = matplotlib.use, lambda *args, **options: None
    try:
        yield
    finally:
        matplotlib.use = use
