"""Train for real, watch each step beside its prediction, and see where the probability goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import ipywidgets as w
import numpy as np
import pandas as pd
import torch
import traitlets
from matplotlib.figure import Figure
from torch import Tensor

from toolkit import plots
from toolkit.checks import choice, whole
from toolkit.dynamics import OPTIMIZERS, TrainingRun, Trajectory
from toolkit.losses import LOSSES
from toolkit.measurement import place_in
from toolkit.model import Policy
from toolkit.model.inputs import check_pairs, check_policy
from toolkit.pairs import PreferencePair
from toolkit.plots import html_text, visible_token
from toolkit.widgets import _trajectory_words as text
from toolkit.widgets import words
from toolkit.widgets._trajectory_state import COLORS, Settings, TrajectoryState, usual_rate
from toolkit.widgets.background import Background
from toolkit.widgets.explorer import Explorer
from toolkit.widgets.panels.browser import Browser
from toolkit.widgets.panels.controls import arrows, button, column, dropdown, number, row
from toolkit.widgets.panels.fall import FallPanel
from toolkit.widgets.panels.figure import Picture, Still, image, image_html
from toolkit.widgets.panels.panel import Later, Panel, Text, refill

REFRESH = 0.4  # seconds between two drawings while it runs, at least
SETTLE = 0.25  # seconds of rest before the flow of probability is measured
ICONS = {"run": "play", "pause": "pause", "stop": "stop", "reset": "undo"}


class TrajectoryExplorer(Explorer):
    """Run preference training step by step, and look at every step of it.

    Shown in a notebook it has Run, Pause, Stop and Reset, the mean and one probe's
    log-probabilities over what first order predicted, a slider through the steps with token strips
    on one scale, and the tokens that gained and lost probability. The training goes on between
    the clicks, one step at a time. *Pause* goes on with *Continue*, as if it had not been paused;
    *Stop* ends the run and keeps everything done so far. Loss, optimiser, learning rate, steps and
    batch size are used from the next Run or Reset on, which starts anew from step 0.

    Everything is in reach of Python too, without a screen. A notebook keeps no widgets: whoever
    opens it without running it finds a still copy under the explorer.

    Args:
        policy: The model; a copy of it is trained.
        pairs: Training pairs, ids unique.
        loss: A key of ``LOSSES`` or a function (see ``loss_weights``).
        optimizer: As for :class:`TrainingRun`.
        lr: Learning rate; if not given 3e-5, or a live optimiser's own.
        steps: Number of steps.
        batch_size: Pairs in a minibatch.
        probes: Pairs to watch; the first eight training pairs if not given.
        run: A run made before, to go on with; ``policy`` and ``pairs`` may be left out.
        trajectory: What a run left, to look at; likewise.
        live: Use ipympl, where installed, so that a click in the lines picks a step.
        **options: Others of :class:`TrainingRun`, such as ``seed``, ``checkpoint_every`` (ten
            steps if not given, fewer for a large model) and the loss's hyper-parameters.

    Raises:
        ValueError: If an argument is not allowed.
        PairError: If a pair cannot be scored.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("single_token", limit=4)
        >>> explorer = tk.TrajectoryExplorer(policy, pairs, lr=1e-5, steps=3, batch_size=2)
        >>> explorer.run(2).step
        2
        >>> len(explorer.to_frame()), len(explorer.trajectory)
        (24, 2)
    """

    selection = traitlets.Any(help="id of the picked probe")
    step = traitlets.Any(help="the step that is shown, up to the last one taken")
    color = traitlets.Any("since_start", help="what the strips show: since_start or this_step")
    settings = traitlets.Any(help="what the next start uses")

    def __init__(
        self,
        policy: Policy | None = None,
        pairs: Sequence[PreferencePair] | None = None,
        *,
        loss: str | Callable[..., Tensor] = "dpo",
        optimizer: str | torch.optim.Optimizer = "adamw",
        lr: float | None = None,
        steps: int = 50,
        batch_size: int = 8,
        probes: Sequence[PreferencePair] | None = None,
        run: TrainingRun | None = None,
        trajectory: Trajectory | None = None,
        live: bool = True,
        **options,
    ):
        pairs, probes = _checked(policy, pairs, probes, run, trajectory)
        lr = usual_rate(optimizer) if lr is None else lr
        settings = Settings(loss, optimizer, lr, steps, batch_size)
        self._state = TrajectoryState(policy, pairs, probes, settings, options, run, trajectory)
        super().__init__()
        self._state = TrajectoryState(policy, pairs, probes, settings, options, run, trajectory)
        self._background = Background(
            self._steps, progress=lambda: self.show("progress"), refresh=self._refresh,
            rest=self._rest, every=REFRESH, waiting=self.say_waiting, bar=self._bar_options,
        )  # fmt: skip
        self.take(settings=dict(vars(self._state.wanted)))
        self._follow()
        self._build(live)

    # ----------------------------------------------------------------- traits

    @traitlets.validate("selection", "step", "color", "settings")
    def _check(self, proposal) -> object:
        name, value, state = proposal["trait"].name, proposal["value"], self._state
        if self.quiet:  # our own
            return value
        if name == "selection":
            state.index = place_in(state.ids, value, "is no id of these probes")
        elif name == "step":
            self._look()
            state.trajectory.check_step(value)
            value = state.step = int(value)
        elif name == "color":
            state.color = choice("color", value, COLORS)
        else:
            state.wanted = self._wanted(value)
        return value

    def _wanted(self, settings: dict[str, object]) -> Settings:
        known = vars(self._state.wanted)
        for name in settings:
            if name not in known:
                raise ValueError(f"{name!r} is no setting; allowed: {', '.join(known)}")
        if not self._state.can_start:
            raise ValueError("settings belong to the run that was given: give policy and pairs too")
        return Settings(**{**known, **settings})

    def configure(self, **settings) -> None:
        """Change ``loss``, ``optimizer``, ``lr``, ``steps`` or ``batch_size`` for the next start.

        Raises:
            ValueError: If there is no such setting, or nothing to start with it.
        """
        self.settings = {**self.settings, **settings}

    def _follow(self) -> None:
        """Let probe and step follow the run."""
        self.take(selection=self._state.id, step=self._state.step)

    # ----------------------------------------------------------------- the run

    def run(self, n: int | None = None, *, progress: bool = True) -> TrajectoryExplorer:
        """Take ``n`` steps, or all that are left; an interrupt pauses, an error keeps what is done.

        A run that was stopped or has finished, or whose settings were changed, starts anew.

        Args:
            n: Number of steps.
            progress: Show a progress bar when it takes longer than a second.

        Raises:
            ValueError: If ``n`` is no positive whole number, or a step fails (see its message).
        """
        whole("n", n, optional=True)
        self._background.cancel()
        self._begin()
        self._background.run(n, disable=not progress)
        return self

    def pause(self) -> None:
        """Rest after the step being taken; ``run()`` or Continue goes on."""
        self._background.pause()

    def stop(self) -> None:
        """End the run here and keep everything done so far."""
        state = self._state
        self._background.cancel()
        state.stopped = not state.finished and state.done > 0
        self._rest()

    def reset(self) -> None:
        """Go back to step 0, with the settings that the controls show."""
        self._background.cancel()
        self._restart()
        self.write_copy()

    @property
    def running(self) -> bool:
        """Whether it trains in the background of a kernel."""
        return self._background.running

    @property
    def error(self) -> Exception | None:
        """What went wrong in the last step, if something did."""
        return self._state.error

    @property
    def trajectory(self) -> Trajectory:
        """Everything done so far."""
        self._look()
        return self._state.trajectory

    def _go(self) -> None:
        """Train between the clicks; where nothing can run there, at once."""
        if not self.running:
            self._begin()
            self._background.start()

    def _begin(self) -> None:
        """Make ready for the next step; a run that is over, or has other settings, starts anew."""
        state = self._state
        if state.finished or state.stopped or state.changed:
            self._restart()

    def _restart(self) -> None:
        self._state.restart()
        self._flow_shown = None
        self._follow()
        self.show()

    def _steps(self) -> Iterator[int]:
        while not (self._state.finished or self._state.stopped):
            self._state.advance()
            if not self._state.stopped:
                yield 1

    def _bar_options(self) -> dict[str, object]:
        return {"desc": "training", "unit": "step", "delay": 1, "leave": False,
                "total": self._state.total - self._state.done}  # fmt: skip

    def _refresh(self) -> None:
        """Show what the run has left so far."""
        self._state.take_in()
        self._follow()
        self.show("run", "selection", "step")

    def _rest(self) -> None:
        """Show what is there once nothing runs."""
        if not self._look():
            self.show("run", "selection", "step")
        self.write_copy()

    def _look(self) -> bool:
        """Take in what was done since; return whether there was something."""
        state = self._state
        new = state.run is not None and (
            len(state.trajectory) != state.done or state.trajectory.stopped != state.stopped
        )
        if new:
            self._refresh()
        return new

    def _write_copy(self) -> None:
        if not self.running:  # it is written again when the run rests
            super()._write_copy()

    # ----------------------------------------------------------------- panels

    def _build(self, live: bool) -> None:
        state, shown = self._state, ["run", "selection", "step"]
        self.lines = Picture(810, 470, live=live)
        self.lines.connect("button_press_event", lambda event: self.event(self._point_at, event))
        self._strips, self._scale = w.HTML(), None
        self._flow_words, self._flow, self._flow_shown = w.HTML(), w.VBox(), None
        self.fall = FallPanel(state.forces, state.moves, lambda: state.id, self.event)
        self._flow_settle = Later(self._measure_flow, SETTLE)
        self.panels = {
            "header": Text(lambda: text.header(state)),
            "progress": Panel(
                self._draw_progress,
                lambda: words.quiet([html_text(text.progress(state, False))]),
                on=["run", "progress", "settings"],
            ),
            "note": Text(
                lambda: text.note(state), on=["run", "progress", "settings"], widget=self.note
            ),
            "lines": Panel(self._draw_lines, self._lines_html, on=shown),
            "status": Text(lambda: text.sentence(state), on=shown),
            "prompt": Text(self._prompt_html, on=["run", "selection"]),
            "strips": Panel(
                self._draw_strips, lambda: text.strips(state, state.scale()), on=[*shown, "color"]
            ),
            "numbers": Text(lambda: text.numbers(state), on=shown),
            "flow": Panel(self._draw_flow, self._flow_html, on=shown),
            "fall": Panel(self._draw_fall, self.fall.html, on=["run", "selection"]),
            "rate": Panel(self._draw_rate, on=["settings"]),
        }
        self._build_settings()
        self._build_steps()
        self._lay_out()

    def _build_settings(self) -> None:
        wanted = self._state.wanted
        losses, optimizers = {name: name for name in LOSSES}, {name: name for name in OPTIMIZERS}
        if callable(wanted.loss):
            losses = {wanted.loss: wanted.loss.__name__, **losses}
        if wanted.optimizer not in OPTIMIZERS:
            name = wanted.optimizer
            words = name if isinstance(name, str) else type(name).__name__.lower()
            optimizers = {name: words, **optimizers}
        # A field: a slider would round the rate to its own steps, and so change the settings.
        rate = w.FloatText(1e-4, description="learning rate", style={"description_width": "auto"})
        self._fields = {
            "loss": dropdown("loss", losses, 165),
            "optimizer": dropdown("optimiser", optimizers, 190),
            "lr": rate,
            "steps": number("steps", 100_000, 120),
            "batch_size": number("batch size", 100_000, 145),
        }
        for name, control in self._fields.items():
            control.disabled = not self._state.can_start
            self.bind(
                "settings", control, show=lambda settings, name=name: settings[name],
                change=lambda value, name=name: self.configure(**{name: value}),
            )  # fmt: skip

    def _build_steps(self) -> None:
        calls = {"run": self._go, "pause": self.pause, "stop": self.stop, "reset": self.reset}
        self.buttons = {
            name: button(name.capitalize(), lambda call=call: self.event(call), icon=ICONS[name])
            for name, call in calls.items()
        }
        self.buttons["run"].button_style, self.buttons["run"].layout.width = "primary", "112px"
        self._bar, self._left = w.IntProgress(layout={"width": "150px"}), w.Label()
        ids = {id: visible_token(id) for id in self._state.ids}
        self._choose, self._color = dropdown("probe", ids, 200), dropdown("colour", COLORS, 270)
        self._slider = w.IntSlider(
            0, min=0, max=1, description="step", style={"description_width": "auto"},
            layout={"width": "330px"},
        )  # fmt: skip
        self._arrows = arrows("step", lambda by: self.event(self._go_by, by))
        self.bind("selection", self._choose)
        self.bind("step", self._slider)
        self.bind("color", self._color)

    def _lay_out(self) -> None:
        part = {n: p.widget for n, p in self.panels.items() if isinstance(p, Text)}
        picture = column(self.lines.widget, overflow="auto")
        flow = column(self._flow_words, self._flow, flex="1 1 400px", min_width="0")
        back, on = self._arrows
        root = column(
            part["header"], row(*self._fields.values()),
            row(*self.buttons.values(), self._bar, self._left), part["note"], picture,
            row(self._choose, back, self._slider, on, self._color),
            part["status"], part["prompt"], self._strips,
            row(part["numbers"], flow, align_items="flex-start", grid_gap="8px 24px"),
            self.fall.widget, Browser(),
            width="100%", grid_gap="6px",
        )  # fmt: skip
        self.open(root, {
            "te-explorer": root, "te-lines": picture, "te-note": self.note,
            "te-status": part["status"], "pe-strips te-strips": self._strips,
            "te-numbers": part["numbers"], "te-flow": flow,
                "te-fall": self.fall.widget, "te-progress": self._left,
            "te-step": self._slider, "te-back": back, "te-on": on, "te-probe": self._choose,
            "te-color": self._color,
            **{f"te-{name}": made for name, made in self.buttons.items()},
            "te-lr": self._fields["lr"], "te-steps": self._fields["steps"],
            "te-loss": self._fields["loss"],
        })  # fmt: skip

    def _draw_progress(self, changed: frozenset[str]) -> None:
        """Show how far the run is, and what can be done with it."""
        state, running = self._state, self.running
        self._bar.max, self._bar.value = state.total, state.done
        self._left.value = text.progress(state, running)
        paused = state.done > 0 and not (state.finished or state.stopped or state.changed)
        again = state.done and not paused
        run, can_run = self.buttons["run"], state.can_start or state.run is not None
        run.description = "Continue" if paused else "Run again" if again else "Run"
        run.disabled = running or not can_run
        self.buttons["pause"].disabled = not running
        self.buttons["stop"].disabled = not running and not paused
        self.buttons["reset"].disabled = not can_run

    def _draw_rate(self, changed: frozenset[str]) -> None:
        several = " (each group has its own)" if self.settings["lr"] is None else ""
        self._fields["lr"].description = f"learning rate{several}"
        self._fields["lr"].layout.width = "360px" if several else "190px"

    def _draw_lines(self, changed: frozenset[str]) -> None:
        """Draw the lines when there is something new; else move the marks of the step alone."""
        state, figure, anew = self._state, self.lines.figure, changed != {"step"}
        with self.lines.changing():
            if anew:
                text.draw_lines(figure, state)
                # Fixed places: finding them anew would take most of each drawing.
                figure.subplots_adjust(
                    left=0.095, right=0.985, top=0.94, bottom=0.1, wspace=0.9, hspace=0.38
                )
            else:
                for axes in figure.axes:
                    plots.mark_step(axes, state.step)
            marks = [m for axes in figure.axes for m in axes.lines if m.get_gid() == "step"]
            self.lines.move(marks, anew=anew)
        if anew:
            with self.quiet:
                self._slider.max = max(len(state.trajectory), 1)
                self._slider.disabled = not len(state.trajectory)

    def _lines_html(self) -> str:
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        text.draw_lines(figure, self._state)
        return image_html(figure, "lines of the training run")

    def _prompt_html(self) -> str:
        pair = self._state.pair
        return "" if pair is None else words.prompt_box(pair.prompt_text)

    def _draw_strips(self, changed: frozenset[str]) -> None:
        """Draw the token strips; the scale stays while the step moves."""
        if changed != {"step"} or self._scale is None:
            self._scale = self._state.scale()
        self._strips.value = text.strips(self._state, self._scale)

    def _draw_flow(self, changed: frozenset[str]) -> None:
        """Show the flow: at once when it is at hand, else when slider and run rest."""
        state = self._state
        self._flow_settle.cancel()
        self._flow_words.value = text.flow_words(state)
        if state.kept_step is None:
            self._fill_flow()
        elif state.flow_is_kept():
            self._measure_flow()
        elif not self.running or state.step < len(state.trajectory):
            self._fill_flow(w.Label("measuring …"))
            self._flow_settle.ask()
        else:
            told = "measured when the run rests, or at a step that the slider is moved to"
            self._fill_flow(w.Label(told))

    def _draw_fall(self, changed: frozenset[str]) -> None:
        """Show why a response fell, once the run rests."""
        if self.running and self._state.trajectory.step_forces is not None:
            self.fall.rest()
        else:
            self.fall.draw(changed)

    def _fill_flow(self, *widgets: w.Widget, shown: tuple | None = None) -> None:
        refill(self._flow, *widgets)
        self._flow_shown = shown

    def _measure_flow(self) -> None:
        key = self._state.index, self._state.kept_step
        if key == self._flow_shown:
            return
        try:
            self._fill_flow(image(text.flow_figure(self._state), 110), shown=key)
        except Exception as error:  # a timer's error would be shown nowhere
            self._fill_flow(w.HTML(words.failure(error)))

    def _flow_html(self) -> str:
        if self._state.kept_step is None:
            return ""
        try:
            picture = image_html(text.flow_figure(self._state), "flow of probability")
        except ValueError as error:
            return words.quiet([html_text(str(error))])
        return f"{text.flow_words(self._state)}</div><div>{picture}"

    # ----------------------------------------------------------------- what the user does

    def _go_by(self, by: int) -> None:
        self.step = int(np.clip(self.step + by, 0, len(self._state.trajectory)))

    def _point_at(self, event) -> None:
        """Go to the step under the pointer."""
        if event.inaxes is not None and event.xdata is not None:
            self.step = int(np.clip(round(event.xdata), 0, len(self._state.trajectory)))

    # ----------------------------------------------------------------- results without a screen

    def to_frame(self) -> pd.DataFrame:
        """Return one row a step, probe and side (see :meth:`Trajectory.to_frame`)."""
        self._look()
        return self._state.frame.copy()

    def tokens(self) -> pd.DataFrame:
        """Return one row a token of the picked probe at the shown step."""
        self._look()
        frame = self._state.trajectory.tokens(self.step)
        return frame[frame["pair_id"] == self.selection].reset_index(drop=True)

    def mass_flow(self) -> pd.DataFrame:
        """Return ``mass_flow`` of the picked probe, from step 0 to a kept step.

        That is the kept step nearest to ``step``; ``attrs["step"]`` says which.
        """
        frame = self._state.flow().copy()
        frame.attrs["step"] = self._state.kept_step
        return frame

    def figure(self) -> Figure:
        """Return a still figure: the lines, predictions against reality, the flow."""
        self._look()
        s = self._state
        figure = Still(figsize=(14, 10), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[1.3, 1])
        text.draw_lines(above, s)
        left, right = below.subplots(1, 2)
        if len(s.trajectory) and s.frame["predicted_delta"].notna().any():
            plots.predicted_vs_actual(s.frame, ax=left)
        else:
            left.set_axis_off()
        try:
            plots.mass_flow(s.flow(), top=6, ax=right)
        except ValueError as error:
            right.text(0, 0.9, str(error), wrap=True, va="top", parse_math=False)
            right.set_axis_off()
        return figure

    def to_html(self) -> str:
        """Return the run and the picked probe at the shown step as self-contained HTML."""
        self._look()
        return super().to_html()

    def close(self) -> None:
        """Stop training and take the widgets away."""
        self._background.cancel()
        super().close()

    def __repr__(self) -> str:
        state = self._state
        return f"TrajectoryExplorer({state.done} of {state.total} steps, picked {state.id!r})"


def _checked(policy, pairs, probes, run, trajectory) -> tuple[list | None, list | None]:
    """Return the pairs and the probes, once everything given was checked."""
    if run is not None and trajectory is not None:
        raise ValueError("run and trajectory cannot both be given: run.trajectory is in the run")
    for name, value, kind in (("run", run, TrainingRun), ("trajectory", trajectory, Trajectory)):
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, received {type(value).__name__}")
    before = run is not None or trajectory is not None
    if policy is not None or not before:
        check_policy(policy)
    if pairs is None and not before:
        raise ValueError("pairs must be given, or a run or trajectory made before")
    return (
        None if pairs is None else check_pairs(pairs, text=True),
        None if probes is None else check_pairs(probes, "probes"),
    )
