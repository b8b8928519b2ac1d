"""The base of all explorers: traits for what is picked and set, panels that follow them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ipywidgets as w
import traitlets
from IPython.display import HTML, display

from toolkit.model.turns import told_of_waiting
from toolkit.widgets import words
from toolkit.widgets.background import Background
from toolkit.widgets.panels import controls
from toolkit.widgets.panels.browser import Browser
from toolkit.widgets.panels.panel import Later, Panel, Quiet, close_all
from toolkit.widgets.panels.table import PairTable

WAITING = "waiting: the model is measuring for another cell"
SETTLE = 0.4  # seconds of rest before what takes longer is drawn
COPY = 1.0  # seconds until the still copy is written anew


class Explorer(traitlets.HasTraits):
    """Something to pick from and to set, and panels that show what follows.

    What is picked and every setting is a trait: it can be set, observed, and linked with that of
    another explorer, as in ``traitlets.link((one, "selection"), (other, "selection"))``. A trait
    that changes is handed to :meth:`compute`, and every panel that depends on it is drawn once.

    A derived class makes its ``panels`` and its controls in ``__init__`` and ends it with
    ``self.open(...)``. Panels and controls go by their names, ``"status"`` or ``"lr"``: in the
    layout, in ``parts``, and as CSS classes, ``pe-status`` or ``pe-lr``.

    Args:
        pairs: What was given to explore; rows that were left out when it was loaded are counted.
    """

    selection = traitlets.Any(help="id of what is picked")

    every = 1.0  # seconds between two drawings while work goes on in the background, at least
    ids: Sequence[str] = ()  # of what can be picked, in the order of the table

    def __init__(self, pairs: Sequence[Any] = ()):
        super().__init__()
        self.skipped_before = len(getattr(pairs, "skipped", ()))
        self.panels: dict[str, Panel] = {}
        self.parts: dict[str, w.Widget] = {}
        self.note = w.HTML()  # also takes what went wrong, and that a click waits for the model
        self.quiet = Quiet()
        self.background = Background(
            self._steps, progress=lambda: self.show("progress"), refresh=self._refresh,
            rest=self._rest, every=self.every, waiting=self.say_waiting, bar=self._bar,
        )  # fmt: skip
        self._before_waiting, self._twin = "", None
        self._controls: dict[str, list[Callable[[], None]]] = {}
        self._pending: dict[str, frozenset[str]] = {}  # what changed, by panel
        self._settle = Later(lambda: self.event(self._draw_pending), SETTLE)
        self._copy = Later(self._write_copy, COPY)

    # ----------------------------------------------------------------- layout

    def beside(self, *items: str | w.Widget, **layout: str) -> w.HBox:
        """Return widgets side by side; panels and controls go by their names."""
        return controls.row(*map(self._part, items), **layout)

    def below(self, *items: str | w.Widget, **layout: str) -> w.VBox:
        """Return widgets one below the other; panels and controls go by their names."""
        return controls.column(*map(self._part, items), **layout)

    def open(self, *items: str | w.Widget) -> None:
        """Show everything for the first time, and follow the traits from here on.

        Args:
            *items: What stands one below the other, as for ``below``.
        """
        style, keys = w.HTML(words.STYLE), Browser()
        self.widget = self.below(style, *items, keys, width="100%", grid_gap="6px")
        self.widget.add_class("pe-explorer").add_class(type(self).__name__)
        shown = {n: p.widget for n, p in self.panels.items() if p.widget is not None}
        for name, widget in (shown | self.parts).items():
            widget.add_class(f"pe-{name}")
        self.show()
        self.observe(self._on_trait, self.trait_names())

    def _part(self, item: str | w.Widget) -> w.Widget:
        if not isinstance(item, str):
            return item
        return self.parts[item] if item in self.parts else self.panels[item].widget

    # ----------------------------------------------------------------- traits and controls

    def compute(self, name: str) -> Iterable[str]:
        """Bring the results up to date after a trait has changed; return what else has changed."""
        return ()

    def chosen(self) -> dict[str, Any]:
        """Return the traits as the results have them, where they follow the results."""
        return {}

    def follow(self) -> list[str]:
        """Let the traits follow the results; return the names of those that change."""
        values = self.chosen()
        changed = [name for name, value in values.items() if getattr(self, name) != value]
        self.take(**{name: values[name] for name in changed})
        return changed

    def take(self, **values: Any) -> None:
        """Set traits that follow from the results; it is for the caller to draw."""
        with self.quiet:
            for name, value in values.items():
                setattr(self, name, value)

    def bind(
        self,
        trait: str,
        control: w.Widget,
        name: str | None = None,
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
            name: Name of the control among the parts; that of the trait if not given.
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
                    controls.put(control, value)

        control.observe(from_control, "value")
        self._controls.setdefault(trait, []).append(to_control)
        self.parts[name or trait] = control

    def _on_trait(self, change) -> None:
        if not self.quiet:
            self.show(change["name"], *self.compute(change["name"]))

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

    # ----------------------------------------------------------------- picking

    @property
    def index(self) -> int:
        """Place of what is picked."""
        return self.ids.index(self.selection)

    def pick(self, place: int | None) -> None:
        """Pick by place; ``None``, where nothing was pointed at, changes nothing."""
        if place is not None:
            self.selection = self.ids[place]

    def add_picker(self, page: int = 8, **options: Any) -> None:
        """Add what picks a pair: ``table``, the arrows ``previous`` and ``next``, and ``choose``.

        Args:
            page: Rows of the table shown at once.
            **options: Others of :class:`PairTable`.
        """
        self.table = PairTable(lambda place: self.event(self.pick, place), page, **options)
        self.add_arrows("pair", "previous", "next", self._step)
        count = len(self.ids)
        field = controls.number(f"pair 1 … {count:,}", count, 172)
        self.bind(
            "selection", field, "choose",
            show=lambda _: self.index + 1, read=lambda place: self.ids[place - 1],
        )  # fmt: skip

    def add_arrows(self, what: str, back: str, on: str, step: Callable[[int], None]) -> None:
        """Add two buttons that go one back and one on."""
        for name, way, icon, by in ((back, "previous", "left", -1), (on, "next", "right", 1)):
            self.parts[name] = controls.button(
                "", lambda by=by: self.event(step, by), icon=f"chevron-{icon}",
                tip=f"{way} {what}", width=40,
            )  # fmt: skip

    def _step(self, by: int) -> None:
        self.pick(self.table.neighbour(self.index, by))

    # ----------------------------------------------------------------- long work

    @property
    def running(self) -> bool:
        """Whether something is computed between the clicks of a kernel."""
        return self.background.running

    def _steps(self) -> Iterator[int]:
        """Take what is left of the work, one step at a time; yield how much each has done."""
        yield from ()

    def _bar(self) -> dict[str, object]:
        """The options of tqdm's bar for work that is done at once."""
        return {}

    def _refresh(self) -> None:
        """Show what the work has left so far."""

    def _rest(self) -> None:
        """Show what is there once nothing runs."""
        self._refresh()
        self.show("progress")
        self.write_copy()

    # ----------------------------------------------------------------- showing

    def show(self, *names: str) -> None:
        """Draw what depends on these traits, and on what else goes by such a name; or everything.

        A panel that is drawn late waits until the user rests.
        """
        changed = frozenset(names)
        for trait, shown in self._controls.items():
            if not changed or trait in changed:
                for to_control in shown:
                    to_control()
        for name, panel in sorted(self.panels.items(), key=lambda item: item[1].measures):
            if not changed or changed & panel.on:
                self._pending.pop(name, None)
                panel.draw(changed)
            elif changed & panel.late:
                self._pending[name] = self._pending.get(name, frozenset()) | changed
        if self._pending:
            self._settle.ask()

    def _draw_pending(self) -> None:
        for name in [name for name in self.panels if name in self._pending]:
            self.panels[name].draw(self._pending.pop(name))

    def to_html(self) -> str:
        """Return what is shown as self-contained HTML that needs no kernel."""
        return words.still(p.html() for p in self.panels.values() if p.html is not None)

    def snapshot(self) -> HTML:
        """Return ``to_html()`` as an output that stays in the saved notebook."""
        return HTML(self.to_html())

    def close(self) -> None:
        """Stop what runs and take all widgets away, also those that are not shown now."""
        self.background.cancel()
        own = [*vars(self).values(), *self.panels.values(), *self.parts.values()]
        for part in own:
            for timer in (part, getattr(part, "settle", None)):
                if isinstance(timer, Later):
                    timer.cancel()
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
        if not self.running:  # it is written again when the work rests
            self._twin.update(HTML(words.TWIN % self.to_html()))
