"""Tabs: each is filled when it is opened; one that takes long asks first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import ipywidgets as w

from toolkit.widgets.panels.panel import refill

PATIENCE = 1.5  # seconds that opening a tab may take unasked


class Tabs:
    """Tabs that are filled when they are looked at.

    Args:
        tabs: The content of each tab by its title.
        fills: Titles of those to be filled, and what fills them.
        event: Runs a callback and tells the user when it fails.
    """

    def __init__(
        self,
        tabs: Mapping[str, w.Widget],
        fills: Mapping[str, Callable[[], None]],
        event: Callable,
    ):
        self._titles, self._fills = list(tabs), fills
        self.widget = w.Tab(list(tabs.values()), titles=self._titles)
        self.widget.observe(lambda _: event(self.show), "selected_index")

    def show(self, *titles: str) -> None:
        """Fill the open tab, if it is one of these; any, where none is named."""
        open_one = self._titles[self.widget.selected_index]
        if open_one in self._fills and (not titles or open_one in titles):
            self._fills[open_one]()


def when_asked(
    box: w.VBox, words: str, seconds: float, fill: Callable[[], None], event: Callable
) -> None:
    """Fill a box at once, or behind a button that says how long it takes.

    Args:
        box: What is filled.
        words: What is computed.
        seconds: How long it will take.
        fill: Computes it and puts it into the box.
        event: Runs a callback and tells the user when it fails.
    """
    if seconds <= PATIENCE:
        fill()
        return
    start = w.Button(
        description=f"Compute (about {seconds:.0f} s)", icon="play", layout={"width": "220px"}
    )
    told = w.Label(f"{words} of this pair; interrupt the kernel to stop")

    def run():
        start.disabled, told.value = True, "Computing …"
        try:
            fill()
        except KeyboardInterrupt:
            told.value = "Stopped."
        finally:
            start.disabled = False

    start.on_click(lambda _: event(run))
    refill(box, w.HBox([start, told]))
