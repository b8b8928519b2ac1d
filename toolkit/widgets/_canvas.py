"""The canvas of a figure that can be pointed at: ipympl's, without ipympl's hand on pyplot."""

from __future__ import annotations

from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure


def live_canvas(figure: Figure):
    """Return an ipympl canvas for a figure that pyplot does not know, ``None`` without ipympl."""
    try:
        with _backend_kept():
            from ipympl.backend_nbagg import Canvas, FigureManager
    except ImportError:
        return None
    canvas = Canvas(figure)
    FigureManager(canvas, 0)
    canvas.header_visible = canvas.footer_visible = canvas.resizable = False
    canvas.toolbar_visible = False
    return canvas


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
