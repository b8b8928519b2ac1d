"""Where the probability went: a picture that is measured when slider and run rest."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import ipywidgets as w
import pandas as pd
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.plots import html_text
from toolkit.widgets import words
from toolkit.widgets.panels.controls import column
from toolkit.widgets.panels.figure import image, image_html
from toolkit.widgets.panels.panel import Later, Panel, refill

SETTLE = 0.25  # seconds of rest before the flow of probability is measured


class FlowPanel(Panel):
    """The tokens that gained and lost most: at once when they are at hand, else after a while.

    Args:
        flow: Returns ``mass_flow`` of what is shown.
        key: Returns what is shown, ``None`` where there is nothing yet.
        at_hand: Whether ``flow`` needs no run of the model.
        busy: Whether it has to wait until a run rests.
        said: Returns what stands above the picture, as HTML.
        on: As for :class:`Panel`.
    """

    def __init__(
        self,
        flow: Callable[[], pd.DataFrame],
        key: Callable[[], Hashable | None],
        at_hand: Callable[[], bool],
        busy: Callable[[], bool],
        said: Callable[[], str],
        on: Iterable[str],
    ):
        self._words, self._picture, self._shown = w.HTML(), w.VBox(), None
        box = column(self._words, self._picture, flex="1 1 400px", min_width="0")
        super().__init__(self._draw, self._html, on=on, widget=box)
        self._flow, self._key, self._at_hand = flow, key, at_hand
        self._busy, self._said = busy, said
        self.settle = Later(self._measure, SETTLE)

    def _draw(self, changed: frozenset[str]) -> None:
        self.settle.cancel()
        self._words.value = self._said()
        if not changed:
            self._shown = None
        if self._key() is None:
            self._fill()
        elif self._at_hand():
            self._measure()
        elif self._busy():
            told = "measured when the run rests, or at a step that the slider is moved to"
            self._fill(w.Label(told))
        else:
            self._fill(w.Label("measuring …"))
            self.settle.ask()

    def _fill(self, *widgets: w.Widget, shown: Hashable | None = None) -> None:
        refill(self._picture, *widgets)
        self._shown = shown

    def _measure(self) -> None:
        key = self._key()
        if key == self._shown:
            return
        try:
            self._fill(image(self._figure(), 110), shown=key)
        except Exception as error:  # a timer's error would be shown nowhere
            self._fill(w.HTML(words.failure(error)))

    def _figure(self) -> Figure:
        frame = self._flow().copy()
        frame.attrs = {}  # the header says them
        figure = Figure(figsize=(5.2, 4.0), layout="constrained")
        plots.mass_flow(frame, top=6, ax=figure.subplots())
        return figure

    def _html(self) -> str:
        if self._key() is None:
            return ""
        try:
            picture = image_html(self._figure(), "flow of probability")
        except ValueError as error:
            return words.quiet([html_text(str(error))])
        return f"{self._said()}</div><div>{picture}"
