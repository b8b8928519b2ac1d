"""The lines of a training run, over which the mark of a step moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.widgets.panels.controls import column
from toolkit.widgets.panels.figure import Picture, image_html
from toolkit.widgets.panels.panel import Panel

TITLES = {"loss": "loss", "margin": "margin of the rewards", "kl": "KL to the reference, nats"}
PLACES = [["mean"] * 3 + ["picked"] * 3, ["loss"] * 2 + ["margin"] * 2 + ["kl"] * 2]


class Lines(NamedTuple):
    """What is drawn of a run: its frame, the picked probe, the shown step, steps in all."""

    frame: pd.DataFrame
    picked: str
    step: int
    steps: int

    def paint(self, figure: Figure) -> Figure:
        """Draw mean and picked probe, then loss, margin and KL, into an empty figure."""
        frame = self.frame.copy()
        frame.attrs = {}  # the header says them
        axes = figure.subplot_mosaic(PLACES, height_ratios=[1.65, 1])
        common = {"step": self.step, "steps": self.steps}
        plots.trajectory(frame, ax=axes["mean"], **common)
        plots.trajectory(frame, picked=self.picked, ax=axes["picked"], **common)
        for value, title in TITLES.items():
            ax = plots.trajectory(frame, value=value, ax=axes[value], **common)
            if frame["pair_id"].nunique() > 1:
                plots.trajectory(frame, value=value, picked=self.picked, ax=ax, **common)
            ax.set_title(title, loc="left", fontsize=9)
            ax.set_ylabel("")
            ax.tick_params(labelsize=8)
            if value != "loss" and ax.get_legend():
                ax.get_legend().remove()
        axes["mean"].set_xlabel("")
        axes["picked"].set(xlabel="", ylabel="")
        return figure


class LinesPanel(Panel):
    """The lines; a click picks the step under the pointer.

    Args:
        shown: Returns what is drawn.
        pick: Called with the step that was clicked.
        event: Runs a callback and tells the user when it fails.
        live: Use ipympl, where installed.
        on: As for :class:`Panel`.
    """

    def __init__(
        self,
        shown: Callable[[], Lines],
        pick: Callable[[int], None],
        event: Callable,
        live: bool,
        on: Iterable[str],
    ):
        self.picture, self._shown, self._pick = Picture(810, 470, live=live), shown, pick
        self.picture.connect("button_press_event", lambda e: event(self._point_at, e))
        box = column(self.picture.widget, overflow="auto")
        super().__init__(self._draw, self._html, on=on, widget=box)

    def _draw(self, changed: frozenset[str]) -> None:
        """Draw the lines when there is something new; else move the marks of the step alone."""
        shown, figure, anew = self._shown(), self.picture.figure, changed != {"step"}
        with self.picture.changing():
            if anew:
                figure.clear()
                # Fixed places: finding them anew would take most of each drawing.
                shown.paint(figure).subplots_adjust(
                    left=0.095, right=0.985, top=0.94, bottom=0.1, wspace=0.9, hspace=0.38
                )
            else:
                for axes in figure.axes:
                    plots.mark_step(axes, shown.step)
            marks = [m for axes in figure.axes for m in axes.lines if m.get_gid() == "step"]
            self.picture.move(marks, anew=anew)

    def _html(self) -> str:
        figure = self._shown().paint(Figure(figsize=(10, 5.6), layout="constrained"))
        return image_html(figure, "lines of the training run")

    def _point_at(self, event) -> None:
        if event.inaxes is not None and event.xdata is not None:
            self._pick(round(event.xdata))
