"""Why a response fell: the forces of a run on the picked probe or on the mean, as one panel."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as w
import pandas as pd
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.plots import html_text
from toolkit.widgets.panels.controls import column, row
from toolkit.widgets.panels.figure import image, image_html
from toolkit.widgets.panels.panel import Panel, refill

UNKEPT = "This run kept no forces: give <code>forces=True</code> to see why a response fell."
LATER = "The forces appear here after the first step, when the run rests."
MOST = 24  # tokens that the strips show


class FallPanel(Panel):
    """The anatomy of a fall, what it says in a sentence, and the tokens that fell.

    Args:
        forces: Returns ``Trajectory.forces()`` so far, ``None`` where the run keeps none.
        tokens: Returns the tokens of all steps so far: ``pair_id, step, side, position, token,
            actual_delta``.
        pair_id: Returns the picked probe's id.
        event: Runs a callback and tells the user when it fails.
        on: As for :class:`Panel`.
    """

    def __init__(
        self,
        forces: Callable[[], pd.DataFrame | None],
        tokens: Callable[[], pd.DataFrame],
        pair_id: Callable[[], str],
        event: Callable,
        on: tuple[str, ...] = (),
    ):
        super().__init__(self._draw, self._html, on=on)
        self._forces, self._tokens, self._pair_id = forces, tokens, pair_id
        whose = [("this probe", False), ("mean of the probes", True)]
        self.mean = w.ToggleButtons(options=whose, style={"button_width": "150px"})
        self.side = w.ToggleButtons(options=["chosen", "rejected"], style={"button_width": "90px"})
        self._words, self._picture = w.HTML(), w.VBox()
        self.widget = column(row(self.mean, self.side), self._words, self._picture)
        for control in (self.mean, self.side):
            control.observe(lambda _: event(self._draw, frozenset()), "value")

    def rest(self) -> None:
        """Say that the picture comes when the run rests."""
        self._words.value = _quiet(LATER)
        refill(self._picture)

    def _draw(self, changed: frozenset[str]) -> None:
        forces = self._forces()
        self._words.value = self._said(forces)
        refill(self._picture, *([] if _missing(forces) else [image(self._figure(forces), 110)]))

    def _html(self) -> str:
        forces = self._forces()
        words = self._said(forces)
        return words if _missing(forces) else words + image_html(self._figure(forces), "forces")

    def _said(self, forces: pd.DataFrame | None) -> str:
        if _missing(forces):
            return _quiet(UNKEPT if forces is None else LATER)
        return f"<div>{html_text(plots.fall_sentence(forces, **self._whose))}</div>"

    @property
    def _whose(self) -> dict[str, str | None]:
        return {"pair_id": None if self.mean.value else self._pair_id(), "side": self.side.value}

    def _figure(self, forces: pd.DataFrame) -> Figure:
        """The anatomy; of one probe, its tokens beside it."""
        forces = forces.copy()
        forces.attrs = {}  # the header says them
        if self.mean.value:
            figure = Figure(figsize=(7.2, 5.0), layout="constrained")
            plots.anatomy_of_a_fall(forces, **self._whose, ax=figure.subplots())
            return figure
        figure = Figure(figsize=(12.4, 5.0), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
        plots.anatomy_of_a_fall(forces, **self._whose, ax=left)
        tokens = self._tokens().copy()
        tokens.attrs = {}
        plots.fall_by_token(tokens, **self._whose, top=MOST, ax=right)
        return figure


def _missing(forces: pd.DataFrame | None) -> bool:
    return forces is None or forces.empty


def _quiet(words: str) -> str:
    return f'<div class="pe-quiet">{words}</div>'
