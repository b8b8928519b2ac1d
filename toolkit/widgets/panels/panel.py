"""A panel: what draws one part of an explorer, and when; and how widgets rest, wait and go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable

import ipywidgets


class Panel:
    """One part of an explorer.

    Args:
        draw: Brings the part up to date; it takes the names of what changed, none for everything.
        html: What stands for the part in a still copy; ``None`` for a part of the screen alone.
        on: Names of traits, and of what else happens, after which it is drawn at once.
        late: The same, after which it is drawn once the user rests.
        measures: Whether drawing may run the model; such panels are drawn after all others.
        widget: What stands for it on the screen; ``None`` for a part of the still copy alone.
    """

    def __init__(
        self,
        draw: Callable[[frozenset[str]], None] | None = None,
        html: Callable[[], str] | None = None,
        *,
        on: Iterable[str] = (),
        late: Iterable[str] = (),
        measures: bool = False,
        widget: ipywidgets.Widget | None = None,
    ):
        self.draw, self.html, self.widget = draw or (lambda changed: None), html, widget
        self.on, self.late, self.measures = frozenset(on), frozenset(late), measures


class Text(Panel):
    """A panel of words: on the screen and in a still copy it is the same HTML.

    Args:
        html: Returns the text.
        on: As for :class:`Panel`.
        widget: Takes the text; one of its own if not given.
    """

    def __init__(
        self,
        html: Callable[[], str],
        *,
        on: Iterable[str] = (),
        widget: ipywidgets.HTML | None = None,
    ):
        widget = widget or ipywidgets.HTML()
        super().__init__(
            lambda changed: setattr(widget, "value", html()), html, on=on, widget=widget
        )


class Quiet:
    """Says, inside ``with``, that a widget's change is no user's: in this thread alone.

    A click that another thread brings at the same moment is not lost.
    """

    def __init__(self):
        self._here = threading.local()

    def __enter__(self) -> None:
        self._here.depth = getattr(self._here, "depth", 0) + 1

    def __exit__(self, *error) -> None:
        self._here.depth -= 1

    def __bool__(self) -> bool:
        return getattr(self._here, "depth", 0) > 0


class Later:
    """Calls once nothing has asked for it for a while; at once where no kernel is running.

    Args:
        call: What is called.
        seconds: How long nothing must have been asked.
    """

    def __init__(self, call: Callable[[], None], seconds: float):
        self._call, self.seconds, self._timer = call, seconds, None

    @property
    def waiting(self) -> bool:
        """Whether a call is still to come."""
        return self._timer is not None

    def ask(self) -> None:
        """Ask for a call, and forget that it was asked before."""
        self.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._call()
        else:
            self._timer = loop.call_later(self.seconds, self._now)

    def cancel(self) -> None:
        """Take back what was asked."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _now(self) -> None:
        self._timer = None
        self._call()


def close_all(widget: ipywidgets.Widget) -> None:
    """Close a widget and all that it holds: children, layout, style, toolbar."""
    held = [getattr(widget, name) for name in widget.keys]
    widget.close()
    for value in held:
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, ipywidgets.Widget) and part.comm is not None:
                close_all(part)


def refill(box: ipywidgets.Box, *widgets: ipywidgets.Widget) -> None:
    """Put these widgets into a box, and close those that they replace."""
    old, box.children = box.children, widgets
    for widget in old:
        if widget not in widgets:
            close_all(widget)
