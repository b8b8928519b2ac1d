"""How far long work is: buttons, a bar, and words."""

from __future__ import annotations

import ipywidgets as w

from toolkit.widgets.panels.controls import row


class Progress:
    """A row that says how far work is.

    Args:
        *buttons: What starts and stops it.
    """

    def __init__(self, *buttons: w.Button):
        self._bar, self._words = w.IntProgress(layout={"width": "200px"}), w.Label()
        self.widget = row(*buttons, self._bar, self._words)

    def show(self, done: int, total: int, words: str) -> None:
        """Show how much is done."""
        self._bar.max, self._bar.value, self._words.value = total, done, words
