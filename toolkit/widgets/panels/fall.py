"""Why a response fell: the forces of a run on the picked probe or on the mean, as one panel."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import ipywidgets as w
import pandas as pd
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.pairs import PreferencePair
from toolkit.plots import html_text
from toolkit.widgets import words
from toolkit.widgets.panels.controls import column, row
from toolkit.widgets.panels.figure import image, image_html
from toolkit.widgets.panels.panel import Panel, refill
from toolkit.widgets.panels.pulls import PullsPanel

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
        busy: Whether a run goes on: the picture waits until it rests.
        pulls: Returns ``Trajectory.pulls()`` so far, ``None`` where the run keeps none.
        named: Returns the training pair of an id, ``None`` where its text is not known.
        on: As for :class:`Panel`.
    """

    def __init__(
        self,
        forces: Callable[[], pd.DataFrame | None],
        tokens: Callable[[], pd.DataFrame],
        pair_id: Callable[[], str],
        event: Callable,
        busy: Callable[[], bool],
        pulls: Callable[[], pd.DataFrame | None],
        named: Callable[[str], PreferencePair | None],
        on: Iterable[str] = (),
    ):
        self._forces, self._tokens, self._pair_id, self._busy = forces, tokens, pair_id, busy
        whose = [("this probe", False), ("mean of the probes", True)]
        self.mean = w.ToggleButtons(options=whose, style={"button_width": "150px"})
        self.side = w.ToggleButtons(options=["chosen", "rejected"], style={"button_width": "90px"})
        self._words, self._picture = w.HTML(), w.VBox()
        self.pulls = PullsPanel(pulls, lambda: self._whose, named, event)
        box = column(row(self.mean, self.side), self._words, self._picture, self.pulls.widget)
        super().__init__(self._draw, self._html, on=on, widget=box)
        for control in (self.mean, self.side):
            control.observe(lambda _: event(self._draw, frozenset()), "value")

    def _draw(self, changed: frozenset[str]) -> None:
        forces = self._forces()
        if forces is not None and self._busy():
            forces = forces.head(0)
        self._words.value = self._said(forces)
        missing = _missing(forces)
        refill(self._picture, *([] if missing else [image(self._figure(forces), 110)]))
        self.pulls.widget.layout.display = "none" if missing else None
        if not missing:
            self.pulls.draw(changed)

    def _html(self) -> str:
        forces = self._forces()
        said = self._said(forces)
        if _missing(forces):
            return said
        return said + image_html(self._figure(forces), "forces") + self.pulls.html()

    def _said(self, forces: pd.DataFrame | None) -> str:
        if _missing(forces):
            return words.quiet([UNKEPT if forces is None else LATER])
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
