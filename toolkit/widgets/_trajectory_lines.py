"""The lines of a run: drawn when there is something new; a step is marked without drawing them."""

from __future__ import annotations

from collections.abc import Callable

from toolkit import plots
from toolkit.widgets import _trajectory_text as text
from toolkit.widgets._trajectory_state import TrajectoryState
from toolkit.widgets.panels.figure import Picture


class Lines:
    """The five panels of a run in a notebook, with an upright line at the shown step.

    Drawing the panels takes much longer than moving the line, so the panels are kept as a picture
    and the line is laid over it.

    Args:
        point: Called with matplotlib's event when the figure is clicked.
        live: Use ipympl when it is installed.
    """

    def __init__(self, point: Callable, live: bool):
        self.picture = Picture(810, 470, live=live)
        self.picture.connect("button_press_event", point)
        self.widget, self._axes = self.picture.widget, []

    def draw(self, state: TrajectoryState) -> None:
        """Draw everything that the run has left so far."""
        figure = self.picture.figure
        with self.picture.changing():
            self._axes = text.draw_lines(figure, state)
            # Fixed places: finding them anew would take most of each drawing.
            figure.subplots_adjust(
                left=0.095, right=0.985, top=0.94, bottom=0.1, wspace=0.9, hspace=0.38
            )
            self.picture.move(self._marks, anew=True)

    def mark(self, step: int) -> None:
        """Move the line to another step."""
        with self.picture.changing():
            for axes in self._axes:
                plots.mark_step(axes, step)
            self.picture.move(self._marks)

    @property
    def _marks(self) -> list:
        return [line for axes in self._axes for line in axes.lines if line.get_gid() == "step"]
