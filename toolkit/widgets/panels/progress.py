"""How far measuring is: a bar, the time that is left, and a button to stop it or go on."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as w
from tqdm import tqdm

from toolkit.widgets.panels.controls import button


class Progress:
    """A row that hides itself when all is done.

    Args:
        stop_or_go: Called when the button is pressed.
    """

    def __init__(self, stop_or_go: Callable[[], None]):
        self._bar, self._left = w.IntProgress(layout={"width": "300px"}), w.Label()
        self.stop = button("", stop_or_go, width=110)
        self.widget = w.HBox([self._bar, self._left, self.stop])

    def show(self, done: int, pairs: int, seconds_left: float, running: bool) -> None:
        """Show how many pairs are measured."""
        self.widget.layout.display = "none" if done == pairs else None
        self._bar.max, self._bar.value = pairs, done
        left = f", about {tqdm.format_interval(seconds_left)} left" if running else ", stopped"
        self._left.value = f"{done:,} of {pairs:,} pairs measured{left}"
        self.stop.description = "Stop" if running else "Continue"
        self.stop.icon = "stop" if running else "play"
