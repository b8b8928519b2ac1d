"""The widgets of the trajectory explorer: layout, and callbacks that link lines, slider, strips."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import ipywidgets as w
import numpy as np

from toolkit.dynamics import OPTIMIZERS
from toolkit.losses import LOSSES
from toolkit.plots import visible_token
from toolkit.widgets import _trajectory_text as text
from toolkit.widgets._events import Events
from toolkit.widgets._trajectory_lines import Lines
from toolkit.widgets._trajectory_state import COLORS, TrajectoryState
from toolkit.widgets.panels.browser import Browser
from toolkit.widgets.panels.fall import FallPanel
from toolkit.widgets.panels.figure import image
from toolkit.widgets.panels.panel import refill

SETTLE = 0.25  # seconds of rest before the flow of probability is measured


class TrajectoryView(Events):
    """Shows a :class:`TrajectoryState` and hands what the user does to its owner.

    Args:
        state: What is shown.
        live: Use ipympl for the lines, so that a click picks a step.
        buttons: What Run, Pause, Stop and Reset call.
    """

    def __init__(self, state: TrajectoryState, live: bool, buttons: dict[str, Callable]):
        super().__init__()
        self.state, self.running = state, False
        self._settle_timer, self._scale = None, None
        self._flow_shown = None
        self.lines = Lines(lambda event: self._event(self._point_at, event), live)
        self._header, self._note, self._status = w.HTML(), w.HTML(), w.HTML()
        self._prompt, self._strips, self._numbers = w.HTML(), w.HTML(), w.HTML()
        self._flow_words, self._flow = w.HTML(), w.VBox()
        self.fall = FallPanel(state.forces, state.moves, lambda: state.id, self._event)
        self._build_settings()
        self._build_buttons(buttons)
        self._build_steps()
        self.widget = self._layout()

    # ----------------------------------------------------------------- building

    def _build_settings(self) -> None:
        auto, want = {"description_width": "auto"}, self.state.wanted
        losses = [(name, name) for name in LOSSES]
        if callable(want.loss):
            losses.insert(0, (want.loss.__name__, want.loss))
        optimizers = [(name, name) for name in OPTIMIZERS]
        if want.optimizer not in OPTIMIZERS:
            name = want.optimizer
            name = name if isinstance(name, str) else type(name).__name__.lower()
            optimizers.insert(0, (name, want.optimizer))
        dropdown, number = {"width": "165px"}, {"width": "120px"}
        self._loss = w.Dropdown(options=losses, description="loss", style=auto, layout=dropdown)
        self._optimizer = w.Dropdown(
            options=optimizers, description="optimiser", style=auto, layout={"width": "190px"}
        )
        # A field: a slider would round the rate to its own steps, and so change the settings.
        self._lr = w.FloatText(1e-4, description="learning rate", style=auto)
        self._lr.layout.width = "190px"
        self._steps = w.BoundedIntText(
            1, min=1, max=100_000, description="steps", style=auto, layout=number
        )
        self._batch = w.BoundedIntText(
            1, min=1, max=100_000, description="batch size", style=auto, layout={"width": "145px"}
        )
        self._controls = {
            "loss": self._loss,
            "optimizer": self._optimizer,
            "lr": self._lr,
            "steps": self._steps,
            "batch_size": self._batch,
        }
        for name, control in self._controls.items():
            control.disabled = not self.state.can_start
            control.observe(
                lambda change, name=name: self._event(self._want, name, change["new"]), "value"
            )

    def _build_buttons(self, calls: dict[str, Callable]) -> None:
        icons = {"run": "play", "pause": "pause", "stop": "stop", "reset": "undo"}
        self.buttons = {}
        for name, icon in icons.items():
            button = w.Button(description=name.capitalize(), icon=icon, layout={"width": "96px"})
            button.on_click(lambda _, name=name: self._event(calls[name]))
            button.add_class(f"te-{name}")
            self.buttons[name] = button
        self.buttons["run"].button_style = "primary"
        self.buttons["run"].layout.width = "112px"
        self._bar, self._left = w.IntProgress(layout={"width": "150px"}), w.Label()

    def _build_steps(self) -> None:
        auto = {"description_width": "auto"}
        names = [(visible_token(id), k) for k, id in enumerate(self.state.ids)]
        self._choose = w.Dropdown(
            options=names, description="probe", style=auto, layout={"width": "200px"}
        )
        self._slider = w.IntSlider(
            0, min=0, max=1, description="step", style=auto, layout={"width": "330px"}
        )
        self._color = w.Dropdown(
            options=[(words, name) for name, words in COLORS.items()],
            description="colour",
            style=auto,
            layout={"width": "270px"},
        )
        self._back = w.Button(icon="chevron-left", tooltip="one step back")
        self._on = w.Button(icon="chevron-right", tooltip="one step on")
        for button, by in ((self._back, -1), (self._on, 1)):
            button.layout.width = "40px"
            button.on_click(lambda _, by=by: self._event(self._go_by, by))
        self._choose.observe(lambda change: self._event(self.pick, change["new"]), "value")
        self._slider.observe(lambda change: self._event(self.go_to, change["new"]), "value")
        self._color.observe(lambda change: self._event(self.set_color, change["new"]), "value")

    def _layout(self) -> w.VBox:
        row = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "4px 12px"}
        settings = w.HBox(list(self._controls.values()), layout=row)
        buttons = w.HBox([*self.buttons.values(), self._bar, self._left], layout=row)
        steps = w.HBox([self._choose, self._back, self._slider, self._on, self._color], layout=row)
        picture = w.VBox([self.lines.widget], layout={"overflow": "auto"})
        flow = w.VBox(
            [self._flow_words, self._flow], layout={"flex": "1 1 400px", "min_width": "0"}
        )
        below = w.HBox(
            [self._numbers, flow],
            layout={**row, "align_items": "flex-start", "grid_gap": "8px 24px"},
        )
        top = self._header, settings, buttons, self._note, picture
        rest = self._status, self._prompt, self._strips, below, self.fall.widget
        root = w.VBox(
            [w.HTML(text.STYLE), *top, steps, *rest, Browser()],
            layout={"width": "100%", "grid_gap": "6px"},
        )
        hooks = {
            "pe-explorer": root,
            "te-explorer": root,
            "te-lines": picture,
            "te-note": self._note,
            "te-status": self._status,
            "te-strips": self._strips,
            "te-numbers": self._numbers,
            "te-flow": flow,
            "te-fall": self.fall.widget,
            "te-progress": self._left,
            "te-step": self._slider,
            "te-back": self._back,
            "te-on": self._on,
            "te-probe": self._choose,
            "te-color": self._color,
            "te-lr": self._lr,
            "te-steps": self._steps,
            "te-loss": self._loss,
        }
        for name, widget in hooks.items():
            widget.add_class(name)
        self._strips.add_class("pe-strips")
        return root

    # ----------------------------------------------------------------- what the user does

    def _want(self, name: str, value) -> None:
        self.want(**{name: value})

    def want(self, **settings) -> None:
        """Ask for other settings; they are used from the next start on."""
        self.state.wanted = type(self.state.wanted)(**{**vars(self.state.wanted), **settings})
        self.show_progress()
        self._show_controls()

    def pick(self, index: int) -> None:
        """Pick a probe by its place."""
        self.state.index = index
        self.show_run()

    def set_color(self, value: str) -> None:
        """Show other numbers of the tokens."""
        self.state.color, self._scale = value, None
        with self._silently():
            self._color.value = value
        self._show_strips()

    def go_to(self, step: int) -> None:
        """Show another step: everything but the scales moves."""
        self.state.step = step
        with self._silently():
            self._slider.value = step
        self.lines.mark(step)
        self._show_step()

    def _go_by(self, by: int) -> None:
        self.go_to(int(np.clip(self.state.step + by, 0, len(self.state.trajectory))))

    def _point_at(self, event) -> None:
        """Go to the step under the pointer."""
        if event.inaxes is not None and event.xdata is not None:
            self.go_to(int(np.clip(round(event.xdata), 0, len(self.state.trajectory))))

    # ----------------------------------------------------------------- showing

    def show_all(self) -> None:
        """Show a new run."""
        self._header.value = text.header(self.state)
        self._flow_shown = None
        self._show_controls()
        self.show_run()

    def show_run(self) -> None:
        """Show what the run has left so far, and the picked probe."""
        s, self._scale = self.state, None
        with self._silently():
            self._choose.value = s.index
            self._slider.max = max(len(s.trajectory), 1)
            self._slider.disabled = not len(s.trajectory)
            self._slider.value = s.step
        self._prompt.value = "" if s.pair is None else text.prompt_box(s.pair.prompt_text)
        self.lines.draw(s)
        if self.running and s.trajectory.step_forces is not None:
            self.fall.rest()
        else:
            self.fall.draw(frozenset())
        self.show_progress()
        self._show_step()

    def _show_step(self) -> None:
        self._status.value = text.sentence(self.state)
        self._numbers.value = text.numbers(self.state)
        self._show_strips()
        self._flow_soon()

    def _show_strips(self) -> None:
        if self._scale is None:
            self._scale = self.state.scale()
        self._strips.value = text.strips(self.state, self._scale)

    def show_progress(self) -> None:
        """Show how far the run is, and what can be done with it."""
        s = self.state
        self._note.value = text.note(s)
        self._bar.max, self._bar.value = s.total, s.done
        self._left.value = text.progress(s, self.running)
        paused = s.done > 0 and not (s.finished or s.stopped or s.changed)
        again = s.done and not paused
        run, idle = self.buttons["run"], not self.running
        run.description = "Continue" if paused else "Run again" if again else "Run"
        run.disabled = self.running or not (s.can_start or s.run is not None)
        self.buttons["pause"].disabled = idle
        self.buttons["stop"].disabled = idle and not paused
        self.buttons["reset"].disabled = not (s.can_start or s.run is not None)

    def _show_controls(self) -> None:
        want = self.state.wanted
        with self._silently():
            for name, control in self._controls.items():
                self._set(control, getattr(want, name))
        several = " (each group has its own)" if want.lr is None else ""
        self._lr.description = f"learning rate{several}"
        self._lr.layout.width = "360px" if several else "190px"

    def _set(self, control, value) -> None:
        options = getattr(control, "options", None)
        if options is not None and all(value != known for _, known in options):
            control.options = [(str(value), value), *options]
        if value is not None:
            control.value = value

    def _flow_soon(self) -> None:
        """Show the flow: at once when it is at hand, else when slider and run rest."""
        if self._settle_timer is not None:
            self._settle_timer.cancel()
            self._settle_timer = None
        s = self.state
        self._flow_words.value = text.flow_words(s)
        if s.kept_step is None:
            self._fill_flow()
        elif s.flow_is_kept():
            self._show_flow()
        elif not self.running or s.step < len(s.trajectory):
            self._fill_flow(w.Label("measuring …"))
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                self._show_flow()
            else:
                self._settle_timer = loop.call_later(SETTLE, self._show_flow)
        else:
            words = "measured when the run rests, or at a step that the slider is moved to"
            self._fill_flow(w.Label(words))

    def _fill_flow(self, *widgets: w.Widget, shown: tuple | None = None) -> None:
        refill(self._flow, *widgets)
        self._flow_shown = shown

    def _show_flow(self) -> None:
        self._settle_timer = None
        key = self.state.index, self.state.kept_step
        if key == self._flow_shown:
            return
        try:
            self._fill_flow(image(text.flow_figure(self.state), 110), shown=key)
        except Exception as error:  # a timer's error would be shown nowhere
            self._fill_flow(w.HTML(text.failure(error)))

    def close(self) -> None:
        """Take the widgets away."""
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        self.close_widgets()
