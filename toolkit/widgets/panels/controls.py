"""The controls of explorers, and how a control makes room for a value beyond its range."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets as w

WIDE = {"description_width": "auto"}
ROW = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "4px 12px"}


def row(*widgets: w.Widget, **layout: str) -> w.HBox:
    """Return widgets side by side, on more lines where the room ends."""
    return w.HBox(widgets, layout=ROW | layout)


def column(*widgets: w.Widget, **layout: str) -> w.VBox:
    """Return widgets one below the other."""
    return w.VBox(widgets, layout=layout)


def log_slider(words: str, low: int, high: int, width: int) -> w.FloatLogSlider:
    """Return a slider over powers of ten."""
    return w.FloatLogSlider(
        10.0**low, min=low, max=high, step=0.05, description=words, style=WIDE,
        readout_format=".3g", layout={"width": f"{width}px"},
    )  # fmt: skip


def dropdown(words: str, options: Iterable | Mapping, width: int) -> w.Dropdown:
    """Return a list to choose from; a mapping goes from values to words."""
    if isinstance(options, Mapping):
        options = [(text, value) for value, text in options.items()]
    return w.Dropdown(
        options=list(options), description=words, style=WIDE, layout={"width": f"{width}px"}
    )


def number(words: str, most: int, width: int) -> w.BoundedIntText:
    """Return a field for a number: JupyterLab takes the arrow keys away from a dropdown."""
    return w.BoundedIntText(
        1, min=1, max=most, description=words, style=WIDE, layout={"width": f"{width}px"}
    )


def button(
    words: str, call: Callable[[], None], *, icon: str = "", tip: str = "", width: int = 96
) -> w.Button:
    """Return a button."""
    made = w.Button(description=words, icon=icon, tooltip=tip, layout={"width": f"{width}px"})
    made.on_click(lambda _: call())
    return made


def put(control: w.Widget, value: Any) -> None:
    """Set a control; its range or its options give way to the value."""
    options = getattr(control, "options", None)
    if options is not None:
        known = [o[1] if isinstance(o, tuple) else o for o in options]
        if value not in known:
            control.options = [(str(value), value), *options]
    elif hasattr(control, "min"):
        ends = value, value
        if isinstance(control, w.FloatLogSlider):
            ends = math.floor(math.log10(value)), math.ceil(math.log10(value))
        control.min, control.max = min(control.min, ends[0]), max(control.max, ends[1])
    control.value = value
