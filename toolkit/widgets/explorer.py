"""The base of all explorers: traits for what is picked and set, panels that follow them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets as w
import traitlets
from IPython.display import HTML, display

from toolkit.model.turns import told_of_waiting
from toolkit.widgets import words
from toolkit.widgets.panels.controls import name_parts, put
from toolkit.widgets.panels.panel import Later, Panel, Quiet, Text, close_all

WAITING = "waiting: the model is measuring for another cell"
SETTLE = 0.4  # seconds of rest before what takes longer is drawn
COPY = 1.0  # seconds until the still copy is written anew


class Explorer(traitlets.HasTraits):
    """Something to pick from and to set, and panels that show what follows.

    What is picked and every setting is a trait: it can be set, observed, and linked with that of
    another explorer, as in ``traitlets.link((one, "selection"), (other, "selection"))``. A trait
    that changes is handed to :meth:`compute`, and every panel that depends on it is drawn once.

    A derived class makes its panels and its controls in ``__init__`` and ends it with
    ``self.open(...)``.
    """

    selection = traitlets.Any(help="id of what is picked")

    style = ""  # CSS rules beyond those of all explorers

    def __init__(self):
        super().__init__()
        self.panels: dict[str, Panel] = {}
        self.note = w.HTML()  # also takes what went wrong, and that a click waits for the model
        self.quiet = Quiet()
        self._before_waiting, self._twin = "", None
        self._controls: dict[str, list[Callable[[], None]]] = {}
        self._pending: set[str] = set()
        self._settle = Later(lambda: self.event(self._draw_pending), SETTLE)
        self._copy = Later(self._write_copy, COPY)
        self._widgets: list[w.Widget] = []

    def open(self, root: w.Box, parts: Mapping[str, w.Widget]) -> None:
        """Show everything for the first time, and follow the traits from here on.

        Args:
            root: The widget that holds all others.
            parts: CSS classes, and the widgets that get them; a panel of words has its name's.
        """
        root.children = w.HTML(words.STYLE + self.style), *root.children
        self.widget = root
        texts = {n: panel.widget for n, panel in self.panels.items() if isinstance(panel, Text)}
        name_parts({f"pe-{name}": widget for name, widget in texts.items()})
        name_parts({"pe-explorer": root, **parts})
        self.show()
        self.observe(self._on_trait, self.trait_names())

    # ----------------------------------------------------------------- traits and controls

    def compute(self, name: str) -> None:
        """Bring the results up to date after a trait has changed, before anything is drawn."""

    def bind(
        self,
        trait: str,
        control: w.Widget,
        *,
        show: Callable[[Any], Any] = lambda value: value,
        read: Callable[[Any], Any] = lambda value: value,
        change: Callable[[Any], None] | None = None,
    ) -> None:
        """Let a control and a trait follow each other.

        ``traitlets.link`` would lose a click that another thread brings while an explorer draws:
        it has one flag for all threads, and kernels with subshells have several.

        Args:
            trait: Name of the trait.
            control: A widget with a ``value``.
            show: Returns what the control shows for a value of the trait.
            read: Returns the value of the trait for what the control shows.
            change: What a change by the user calls instead of setting the trait.
        """

        def from_control(event) -> None:
            self.event(take, read(event["new"]))

        def take(value) -> None:
            try:
                change(value) if change else setattr(self, trait, value)
            finally:  # a value that is refused leaves the control where it was
                to_control()

        def to_control() -> None:
            with self.quiet:
                value = show(getattr(self, trait))
                if value is not None:
                    put(control, value)

        control.observe(from_control, "value")
        self._controls.setdefault(trait, []).append(to_control)
        self._widgets.append(control)

    def take(self, **values: Any) -> None:
        """Set traits that follow from the results; it is for the caller to draw."""
        with self.quiet:
            for name, value in values.items():
                setattr(self, name, value)

    def _on_trait(self, change) -> None:
        if self.quiet:
            return
        self.compute(change["name"])
        self.show(change["name"])

    def event(self, call: Callable, *args) -> None:
        """Run what the user asked for, unless the change is our own; say what went wrong."""
        if self.quiet:
            return
        try:
            with told_of_waiting(self.say_waiting):
                call(*args)
        except Exception as error:
            self.note.value = words.failure(error)
            raise

    def say_waiting(self, waiting: bool) -> None:
        """Say that a computation waits for its turn on the model, and then what was said before."""
        if waiting:
            self._before_waiting, self.note.value = self.note.value, WAITING
        elif self.note.value == WAITING:
            self.note.value = self._before_waiting

    # ----------------------------------------------------------------- showing

    def show(self, *names: str) -> None:
        """Draw what depends on these traits, and on what else goes by such a name; or everything.

        A panel that is drawn late waits until the user rests.
        """
        changed = frozenset(names)
        for trait, controls in self._controls.items():
            if not changed or trait in changed:
                for control in controls:
                    control()
        for name, panel in sorted(self.panels.items(), key=lambda item: item[1].measures):
            if not changed or changed & panel.on:
                self._pending.discard(name)
                panel.draw(changed)
            elif changed & panel.late:
                self._pending.add(name)
        if self._pending:
            self._settle.ask()

    def _draw_pending(self) -> None:
        for name in [name for name in self.panels if name in self._pending]:
            self._pending.discard(name)
            self.panels[name].draw(self.panels[name].late)

    def to_html(self) -> str:
        """Return what is shown as self-contained HTML that needs no kernel."""
        parts = [panel.html() for panel in self.panels.values() if panel.html is not None]
        return words.still(parts, self.style)

    def snapshot(self) -> HTML:
        """Return ``to_html()`` as an output that stays in the saved notebook."""
        return HTML(self.to_html())

    def close(self) -> None:
        """Stop what runs and take all widgets away, also those that are not shown now."""
        for timer in (part for part in vars(self).values() if isinstance(part, Later)):
            timer.cancel()
        self._close_parts([self.widget, *self._widgets, *vars(self).values()])
        self._close_parts(self.panels.values())

    def _close_parts(self, parts: Iterable[Any]) -> None:
        for part in parts:
            widget = getattr(part, "widget", part)
            if isinstance(widget, w.Widget):
                close_all(widget)

    # ----------------------------------------------------------------- the still copy

    def _ipython_display_(self) -> None:
        display({**self.widget._repr_mimebundle_(), "text/plain": repr(self)}, raw=True)
        self._twin = display(HTML(words.TWIN % self.to_html()), display_id=True)

    def write_copy(self) -> None:
        """Write the still copy anew: in a kernel a little later, so that a click is shown first."""
        if self._twin is not None:
            self._copy.ask()

    def _write_copy(self) -> None:
        self._twin.update(HTML(words.TWIN % self.to_html()))
