"""Callbacks that tell when they fail."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets

from toolkit.model.turns import told_of_waiting
from toolkit.plots import html_text
from toolkit.widgets.explorer import WAITING
from toolkit.widgets.panels.panel import Quiet, close_all


class Events:
    """Callbacks of a view: they rest while it sets its own widgets, and tell when they fail.

    A view that derives from it has a ``_note``, the HTML widget that takes what went wrong.
    """

    _note: ipywidgets.HTML
    _before_waiting = ""

    def __init__(self):
        self._quiet = Quiet()

    def _event(self, call: Callable, *args) -> None:
        """Run a callback, unless the change is the view's own; say what went wrong."""
        if self._quiet:
            return
        try:
            with told_of_waiting(self.say_waiting):
                call(*args)
        except Exception as error:
            self._note.value = f"<b>{html_text(type(error).__name__)}</b>: {html_text(str(error))}"
            raise

    def say_waiting(self, waiting: bool) -> None:
        """Say that a computation waits for its turn on the model, and then what was said before."""
        if waiting:
            self._before_waiting, self._note.value = self._note.value, WAITING
        elif self._note.value == WAITING:
            self._note.value = self._before_waiting

    def _silently(self) -> Quiet:
        return self._quiet

    def close_widgets(self) -> None:
        """Take away the view's widgets, also those that are not shown now."""
        for part in vars(self).values():
            widget = getattr(part, "widget", part)
            if isinstance(widget, ipywidgets.Widget):
                close_all(widget)
