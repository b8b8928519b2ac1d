"""Pointing at a scatter: a click or an arrow key picks, a drag selects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets as w
import numpy as np
from matplotlib.widgets import LassoSelector, RectangleSelector

from toolkit.widgets.panels.controls import row
from toolkit.widgets.panels.figure import REACH, Picture

STILL = 4  # pixels that a click may move
KEYS = {"left": (0, -1), "right": (0, 1), "down": (1, -1), "up": (1, 1)}
FRAME = {"edgecolor": "black", "facecolor": "none", "linewidth": 1.5, "zorder": 8}


class Pointer:
    """Turns what happens on the canvas into picks and selections.

    Args:
        picture: The scatter's figure.
        event: Runs a callback and tells the user when it fails.
        places: Returns the places of all points in data, (n, 2), NaN where there is none.
        pick: Called with the place in the data of a point that was clicked.
        walk: Called with an axis and −1 or 1 when an arrow key is pressed.
        box: Called with the two ends across and up of a dragged box.
        outline: Called with the corners of a dragged outline.
        clear: Called when nothing is to be selected.
    """

    def __init__(
        self,
        picture: Picture,
        event: Callable,
        *,
        places: Callable[[], np.ndarray],
        pick: Callable[[int], None],
        walk: Callable[[int, int], None],
        box: Callable,
        outline: Callable,
        clear: Callable[[], None],
    ):
        self._picture, self._event = picture, event
        self._places, self._pick, self._walk = places, pick, walk
        self._select_box, self._select_outline, self._select_nothing = box, outline, clear
        self._down: tuple[float, float] | None = None
        self._selectors: dict[str, Any] = {}
        self.widget = row(grid_gap="2px 8px")
        if picture.live:
            self._build_controls()
            picture.widget.add_class("pe-arrows")
        picture.connect("button_press_event", self._press)
        picture.connect("button_release_event", lambda e: self._event(self._release, e))
        picture.connect("key_press_event", lambda e: self._event(self._key, e))

    def _build_controls(self) -> None:
        self.shape = w.ToggleButtons(
            options=["box", "lasso"], tooltips=["drag a box", "drag an outline"],
        )  # fmt: skip
        self.shape.style.button_width = "60px"
        self.shape.observe(lambda _: self._event(self._switch), "value")
        self.clear = w.Button(description="clear", tooltip="select nothing",
                              layout={"width": "64px"})  # fmt: skip
        self.clear.on_click(lambda _: self._event(self._select_nothing))
        hint = '<span class="pe-quiet">drag: select · click or arrow keys: pick</span>'
        self.widget.children = self.shape, self.clear, w.HTML(hint)

    def attach(self, axes) -> None:
        """Select on these axes."""
        for selector in self._selectors.values():
            selector.disconnect_events()
        self._selectors = {}
        if self._picture.live:
            box = RectangleSelector(
                axes, lambda a, b: self._later(self._box, a, b), minspanx=STILL, minspany=STILL,
                spancoords="pixels", button=[1], useblit=False, props=FRAME | {"fill": False},
            )  # fmt: skip
            lasso = LassoSelector(
                axes, lambda corners: self._later(self._lasso, corners), button=[1], useblit=False,
                props={"color": "black", "linewidth": 1.5, "zorder": 8},
            )  # fmt: skip
            self._selectors = {"box": box, "lasso": lasso}
            self._switch()

    def _later(self, call: Callable, *args) -> None:
        self._picture.later(self._event, call, *args)

    def _switch(self) -> None:
        with self._picture.changing():
            for name, selector in self._selectors.items():
                selector.set_active(name == self.shape.value)
                selector.set_visible(False)
            self._picture.redraw()

    def _box(self, press, release) -> None:
        with self._picture.changing():
            self._selectors["box"].set_visible(False)
        # After a first box, matplotlib calls a click a box as well.
        if max(abs(press.x - release.x), abs(press.y - release.y)) <= STILL:
            return
        self._select_box((press.xdata, release.xdata), (press.ydata, release.ydata))

    def _lasso(self, corners) -> None:
        pixels = self._picture.figure.axes[0].transData.transform(corners)
        if len(corners) > 2 and np.ptp(pixels, axis=0).max() > STILL:
            self._select_outline(corners)

    def _press(self, event) -> None:
        self._down = (event.x, event.y) if event.inaxes is not None else None

    def _release(self, event) -> None:
        """Pick the nearest pair, if the pointer did not move since it was pressed."""
        down, self._down = self._down, None
        if down is None or event.inaxes is None:
            return
        if np.hypot(event.x - down[0], event.y - down[1]) > STILL:
            return
        far = np.hypot(*(event.inaxes.transData.transform(self._places()) - down).T)
        if np.nanmin(far, initial=np.inf) <= REACH:
            self._pick(int(np.nanargmin(far)))

    def _key(self, event) -> None:
        if event.key in KEYS:
            self._walk(*KEYS[event.key])
