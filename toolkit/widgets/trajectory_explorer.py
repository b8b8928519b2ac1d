"""Train for real, watch each step beside its prediction, and see where the probability goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import ipywidgets as w
import pandas as pd
import torch
import traitlets
from matplotlib.figure import Figure
from torch import Tensor

from toolkit import plots
from toolkit.checks import choice, whole
from toolkit.dynamics import OPTIMIZERS, TrainingRun, Trajectory
from toolkit.dynamics.watched_run import WatchedRun
from toolkit.losses import LOSSES
from toolkit.measurement import place_in
from toolkit.model import Policy
from toolkit.pairs import PreferencePair
from toolkit.plots import html_text, visible_token
from toolkit.widgets import _trajectory_words as text, words
from toolkit.widgets.explorer import Explorer
from toolkit.widgets.panels.controls import WIDE, button, dropdown, number
from toolkit.widgets.panels.fall import FallPanel
from toolkit.widgets.panels.figure import Still
from toolkit.widgets.panels.flow import FlowPanel
from toolkit.widgets.panels.lines import Lines, LinesPanel
from toolkit.widgets.panels.panel import Panel, Text
from toolkit.widgets.panels.progress import Progress

COLORS = {
    "since_start": "change since the start",
    "this_step": "this step: predicted and actual",
}


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
        pairs: Training pairs, ids unique; those that cannot be scored are left out and named.
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
            steps if not given, fewer for a large model), ``on_error="raise"`` and the loss's
            hyper-parameters.

    Raises:
        ValueError: If an argument is not allowed, or no pair can be scored.
        PairError: If a pair cannot be scored, under ``on_error="raise"``.

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

    every = 0.4  # seconds between two drawings while it runs, at least

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
        super().__init__(() if pairs is None else pairs)
        self.watched = WatchedRun(
            policy, pairs, probes, run, trajectory, loss=loss, optimizer=optimizer, lr=lr,
            steps=steps, batch_size=batch_size, **{"on_error": "skip", **options},
        )  # fmt: skip
        self.ids = self.watched.ids
        self.take(settings=dict(vars(self.watched.wanted)))
        self.follow()
        self._build(live)

    # ----------------------------------------------------------------- traits

    def chosen(self) -> dict[str, object]:
        """Return the picked probe and the shown step, as the traits have them."""
        return {"selection": self.watched.id, "step": self.watched.step}

    @traitlets.validate("selection", "step", "color", "settings")
    def _check(self, proposal) -> object:
        name, value, watched = proposal["trait"].name, proposal["value"], self.watched
        if self.quiet:  # it follows the run
            return value
        if name == "selection":
            watched.index = place_in(watched.ids, value, "is no id of these probes")
        elif name == "step":
            self._look()
            watched.trajectory.check_step(value)
            value = watched.step = int(value)
        elif name == "color":
            choice("color", value, COLORS)
        else:
            watched.want(value)
        return value

    def configure(self, **settings) -> None:
        """Change ``loss``, ``optimizer``, ``lr``, ``steps`` or ``batch_size`` for the next start.

        Raises:
            ValueError: If there is no such setting, or nothing to start with it.
        """
        self.settings = {**self.settings, **settings}

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
        self.background.cancel()
        self._begin()
        self.background.run(n, disable=not progress)
        return self

    def pause(self) -> None:
        """Rest after the step being taken; ``run()`` or Continue goes on."""
        self.background.pause()

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs and probes that cannot be scored: ``row, pair_id, reason``."""
        return self.watched.trajectory.skipped

    def stop(self) -> None:
        """End the run here and keep everything done so far."""
        self.background.cancel()
        self.watched.stopped = not self.watched.finished and self.watched.done > 0
        self._rest()

    def reset(self) -> None:
        """Go back to step 0, with the settings that the controls show."""
        self.background.cancel()
        self._restart()
        self.write_copy()

    @property
    def error(self) -> Exception | None:
        """What went wrong in the last step, if something did."""
        return self.watched.error

    @property
    def trajectory(self) -> Trajectory:
        """Everything done so far."""
        self._look()
        return self.watched.trajectory

    def _go(self) -> None:
        """Train between the clicks; where nothing can run there, at once."""
        if not self.running:
            self._begin()
            self.background.start()

    def _begin(self) -> None:
        """Make ready for the next step; a run that is over, or has other settings, starts anew."""
        if self.watched.over:
            self._restart()

    def _restart(self) -> None:
        self.watched.restart()
        self.follow()
        self.show()

    def _steps(self) -> Iterator[int]:
        while not (self.watched.finished or self.watched.stopped):
            self.watched.advance()
            if not self.watched.stopped:
                yield 1

    def _bar(self) -> dict[str, object]:
        return {"desc": "training", "unit": "step", "delay": 1, "leave": False,
                "total": self.watched.total - self.watched.done}  # fmt: skip

    def _refresh(self) -> None:
        self.watched.take_in()
        self.follow()
        self.show("run", "selection", "step")

    def _look(self) -> None:
        """Take in what was done since."""
        if self.watched.has_news:
            self._refresh()

    # ----------------------------------------------------------------- panels

    def _build(self, live: bool) -> None:
        run, shown = self.watched, ["run", "selection", "step"]
        self.progress = Progress(*self._buttons())
        self.panels = {
            "header": Text(lambda: text.header(run)),
            "progress": Panel(
                self._draw_progress,
                lambda: words.quiet([html_text(text.progress(run, False))]),
                on=["run", "progress", "settings"], widget=self.progress.widget,
            ),
            "note": Text(
                lambda: text.note(run, self.skipped_before),
                on=["run", "progress", "settings"], widget=self.note,
            ),
            "lines": LinesPanel(self._lines, self._go_to, self.event, live, on=shown),
            "status": Text(lambda: text.sentence(run), on=shown),
            "prompt": Text(
                lambda: words.prompt_box(run.pair) if run.pair else "", on=["run", "selection"]
            ),
            "strips": Text(lambda: text.strips(run, self.color), on=[*shown, "color"]),
            "numbers": Text(lambda: text.numbers(run), on=shown),
            "flow": FlowPanel(
                run.flow,
                key=lambda: None if run.kept_step is None else (run.index, run.kept_step),
                at_hand=run.flow_is_kept,
                busy=lambda: self.running and run.step == run.seen,
                said=lambda: text.flow_words(run), on=shown,
            ),
            "fall": FallPanel(
                run.forces, run.moves, lambda: run.id, self.event, lambda: self.running,
                run.pulls, run.named,
                on=["run", "selection"],
            ),
            "rate": Panel(self._draw_rate, on=["settings"]),
        }  # fmt: skip
        self._build_settings()
        self._build_steps()
        self.open(
            "header",
            self.beside("loss", "optimizer", "lr", "steps", "batch_size"),
            "progress", "note", "lines",
            self.beside("selection", "back", "step", "on", "color"),
            "status", "prompt", "strips",
            self.beside("numbers", "flow", align_items="flex-start", grid_gap="8px 24px"),
            "fall",
        )  # fmt: skip

    def _build_settings(self) -> None:
        wanted = self.watched.wanted
        losses, optimizers = {name: name for name in LOSSES}, {name: name for name in OPTIMIZERS}
        if callable(wanted.loss):
            losses = {wanted.loss: wanted.loss.__name__, **losses}
        if wanted.optimizer not in OPTIMIZERS:
            name = wanted.optimizer
            shown = name if isinstance(name, str) else type(name).__name__.lower()
            optimizers = {name: shown, **optimizers}
        fields = {
            "loss": dropdown("loss", losses, 165),
            "optimizer": dropdown("optimiser", optimizers, 190),
            # A field: a slider would round the rate to its own steps, and so change the settings.
            "lr": w.FloatText(1e-4, style=WIDE),
            "steps": number("steps", 100_000, 120),
            "batch_size": number("batch size", 100_000, 145),
        }
        for name, control in fields.items():
            control.disabled = not self.watched.can_start
            self.bind(
                "settings", control, name, show=lambda settings, name=name: settings[name],
                change=lambda value, name=name: self.configure(**{name: value}),
            )  # fmt: skip

    def _buttons(self) -> list[w.Button]:
        calls = {"run": self._go, "pause": self.pause, "stop": self.stop, "reset": self.reset}
        for name, call in calls.items():
            icon = {"run": "play", "reset": "undo"}.get(name, name)
            self.parts[name] = button(name.capitalize(), lambda c=call: self.event(c), icon=icon)
        self.parts["run"].button_style, self.parts["run"].layout.width = "primary", "112px"
        return [self.parts[name] for name in calls]

    def _build_steps(self) -> None:
        slider = w.IntSlider(
            0, min=0, max=1, description="step", style=WIDE, layout={"width": "330px"}
        )
        ids = {id: visible_token(id) for id in self.ids}
        self.bind("selection", dropdown("probe", ids, 200))
        self.bind("step", slider)
        self.bind("color", dropdown("colour", COLORS, 270))
        self.add_arrows("step", "back", "on", lambda by: self._go_to(self.step + by))

    def _draw_progress(self, changed: frozenset[str]) -> None:
        """Show how far the run is, and what can be done with it."""
        watched, running, parts = self.watched, self.running, self.parts
        self.progress.show(watched.done, watched.total, text.progress(watched, running))
        paused = watched.done > 0 and not watched.over
        can_run = watched.can_start or watched.run is not None
        again = watched.done and not paused
        parts["run"].description = "Continue" if paused else "Run again" if again else "Run"
        parts["run"].disabled = running or not can_run
        parts["pause"].disabled = not running
        parts["stop"].disabled = not running and not paused
        parts["reset"].disabled = not can_run
        with self.quiet:  # the slider reaches all steps taken
            parts["step"].max, parts["step"].disabled = max(watched.seen, 1), not watched.seen

    def _draw_rate(self, changed: frozenset[str]) -> None:
        several = " (each group has its own)" if self.settings["lr"] is None else ""
        self.parts["lr"].description = f"learning rate{several}"
        self.parts["lr"].layout.width = "360px" if several else "190px"

    def _lines(self) -> Lines:
        run = self.watched
        return Lines(run.frame, run.id, run.step, max(run.total, run.seen))

    def _go_to(self, step: int) -> None:
        self.step = min(max(step, 0), self.watched.seen)

    # ----------------------------------------------------------------- results without a screen

    def to_frame(self) -> pd.DataFrame:
        """Return one row per step, probe and side (see :meth:`Trajectory.to_frame`)."""
        self._look()
        return self.watched.frame.copy()

    def tokens(self) -> pd.DataFrame:
        """Return one row per token of the picked probe at the shown step."""
        self._look()
        frame = self.watched.trajectory.tokens(self.step)
        return frame[frame["pair_id"] == self.selection].reset_index(drop=True)

    def mass_flow(self) -> pd.DataFrame:
        """Return ``mass_flow`` of the picked probe, from step 0 to a kept step.

        That is the kept step nearest to ``step``; ``attrs["step"]`` says which.
        """
        frame = self.watched.flow().copy()
        frame.attrs["step"] = self.watched.kept_step
        return frame

    def figure(self) -> Figure:
        """Return a still figure: the lines, predictions against reality, the flow."""
        self._look()
        watched = self.watched
        figure = Still(figsize=(14, 10), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=[1.3, 1])
        self._lines().paint(above)
        left, right = below.subplots(1, 2)
        if watched.seen and watched.frame["predicted_delta"].notna().any():
            plots.predicted_vs_actual(watched.frame, ax=left)
        else:
            left.set_axis_off()
        try:
            plots.mass_flow(watched.flow(), top=6, ax=right)
        except ValueError as error:
            right.text(0, 0.9, str(error), wrap=True, va="top", parse_math=False)
            right.set_axis_off()
        return figure

    def to_html(self) -> str:
        """Return the run and the picked probe at the shown step as self-contained HTML."""
        self._look()
        return super().to_html()

    def __repr__(self) -> str:
        run = self.watched
        return f"TrajectoryExplorer({run.done} of {run.total} steps, picked {run.id!r})"
