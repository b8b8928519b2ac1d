"""What tests of explorers share: hostile pairs, and the parts of an explorer by their CSS class."""

import numpy as np
from ipywidgets import HTML
from itables.widget import ITable
from matplotlib.backend_bases import MouseEvent

import toolkit as tk

HOSTILE = "<img src=x onerror=\"alert('a')\"><script>alert('b')</script>"
TEXTS = {
    "p0": ("The soup in the new place was", " warm and full of taste.", " cold and bland."),
    "p1": ("Is the library open on Sunday?", " Yes, until six.", " No, never on a Sunday."),
    "<i>p2</i>": (f"{HOSTILE} Was it good?", f" Yes {HOSTILE}", " No & <b>never</b>"),
    "p3": ("My cousin painted the fence", " green.", " green!"),
    "p4": ("Tell me a story.", " A fox met a crow on a hill.", " A fox met a cow on a hill."),
}


def make_pairs(count: int = 5) -> list[tk.PreferencePair]:
    return [tk.PreferencePair(id, *row) for id, row in TEXTS.items()][:count]


def every(widget):
    """Yield a widget and all that it shows."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


def part(explorer, name: str):
    """Return the widget with this CSS class."""
    (found,) = [w for w in every(explorer.widget) if name in getattr(w, "_dom_classes", ())]
    return found


def table(explorer):
    """Return the table that picks a pair, as it is in the browser."""
    return next(w for w in every(explorer.widget) if isinstance(w, ITable))


def texts(explorer) -> list[str]:
    """Return all HTML that an explorer shows, and its still copy."""
    shown = [w.value for w in every(explorer.widget) if isinstance(w, HTML)]
    return [*(text for text in shown if not text.startswith("<style>")), explorer.to_html()]


def artist(axes, gid: str):
    return next(a for a in axes.get_children() if a.get_gid() == gid)


def points(axes) -> np.ndarray:
    """Return the places of a map's points, in data and in pixels."""
    found = artist(axes, "pairs")
    return found.get_offsets(), found.get_offset_transform().transform(found.get_offsets())


def click(picture, place) -> None:
    """Click on a figure, in pixels."""
    canvas = picture.figure.canvas
    event = MouseEvent("button_press_event", canvas, *place, 1)
    canvas.callbacks.process("button_press_event", event)


def drawings(explorer, panel: str) -> list[frozenset[str]]:
    """Note every drawing of a panel from here on."""
    seen, draw = [], explorer.panels[panel].draw
    explorer.panels[panel].draw = lambda changed: (seen.append(changed), draw(changed))
    return seen
