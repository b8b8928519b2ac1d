"""Train for real, watch each step beside its prediction, and see where the probability goes."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from toolkit import plots
from toolkit.checks import choice, whole
from toolkit.dynamics import TrainingRun, Trajectory
from toolkit.model import Policy
from toolkit.model.inputs import check_pairs, check_policy
from toolkit.pairs import PreferencePair
from toolkit.widgets import _trajectory_text as text
from toolkit.widgets._trajectory_state import COLORS, Settings, TrajectoryState, usual_rate
from toolkit.widgets._trajectory_view import TrajectoryView
from toolkit.widgets.panels.figure import Still
from toolkit.widgets.words import TWIN

BREATH = 0.02  # seconds between two steps in which clicks are answered
REFRESH = 0.4  # seconds between two drawings while it runs, at least
LATER = 1.0  # seconds until the still copy is written anew
SHARE = 4  # and at least this many times what the last drawing took


class TrajectoryExplorer:
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
        self._task: asyncio.Task | None = None
        self._twin = self._twin_timer = None
        buttons = {"run": self._go, "pause": self.pause, "stop": self.stop, "reset": self.reset}
        self._view = TrajectoryView(self._state, live, buttons)
        self.widget = self._view.widget
        self._view.show_all()

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
        self._end_task()
        self._begin()
        s = self._state
        count = s.total - s.done if n is None else min(n, s.total - s.done)
        bar = {"desc": "training", "unit": "step", "delay": 1, "leave": False}
        try:
            for _ in tqdm(range(count), disable=not progress, **bar):
                s.advance()
                if s.stopped:
                    break
        except KeyboardInterrupt:
            pass
        finally:
            self._rest()
        return self

    def pause(self) -> None:
        """Rest after the step being taken; ``run()`` or Continue goes on."""
        self._end_task()
        self._rest()

    def stop(self) -> None:
        """End the run here and keep everything done so far."""
        self._end_task()
        s = self._state
        s.stopped = not s.finished and s.done > 0
        self._rest()

    def reset(self) -> None:
        """Go back to step 0, with the settings that the controls show."""
        self._end_task()
        self._state.restart()
        self._view.show_all()
        self._update_twin()

    def configure(self, **settings) -> None:
        """Change ``loss``, ``optimizer``, ``lr``, ``steps`` or ``batch_size`` for the next start.

        Raises:
            ValueError: If there is no such setting, or nothing to start with it.
        """
        known = vars(self._state.wanted)
        for name in settings:
            if name not in known:
                raise ValueError(f"{name!r} is no setting; allowed: {', '.join(known)}")
        if not self._state.can_start:
            raise ValueError("settings belong to the run that was given: give policy and pairs too")
        self._view.want(**settings)

    @property
    def settings(self) -> dict[str, object]:
        """What the next start uses."""
        return dict(vars(self._state.wanted))

    @property
    def running(self) -> bool:
        """Whether it trains in the background of a kernel."""
        return self._task is not None

    @property
    def error(self) -> Exception | None:
        """What went wrong in the last step, if something did."""
        return self._state.error

    @property
    def trajectory(self) -> Trajectory:
        """Everything done so far."""
        self._look()
        return self._state.trajectory

    # ----------------------------------------------------------------- what is shown

    @property
    def selection(self) -> str:
        """Id of the picked probe; setting it picks another one.

        Raises:
            ValueError: If no probe has this id; the message names close ones.
        """
        return self._state.id

    @selection.setter
    def selection(self, id: str) -> None:
        ids = self._state.ids
        if id not in ids:
            near = difflib.get_close_matches(str(id), ids, 3, 0.4) or ids[:3]
            raise ValueError(
                f"selection={id!r} is no id of these probes; ids close to it: {', '.join(near)}"
            )
        self._view.pick(ids.index(id))

    @property
    def step(self) -> int:
        """The step that is shown; settable, up to the last one taken."""
        return self._state.step

    @step.setter
    def step(self, value: int) -> None:
        self._look()
        self._state.trajectory._check_step(value)
        self._view.go_to(int(value))

    @property
    def color(self) -> str:
        """What the strips show: since_start or this_step; settable."""
        return self._state.color

    @color.setter
    def color(self, value: str) -> None:
        self._view.set_color(choice("color", value, COLORS))

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
        return text.still(self._state, self._view.fall.html())

    def snapshot(self) -> HTML:
        """Return ``to_html()`` as an output that stays in the saved notebook."""
        return HTML(self.to_html())

    def close(self) -> None:
        """Stop training and take the widgets away."""
        self._end_task()
        if self._twin_timer is not None:
            self._twin_timer.cancel()
        self._view.close()

    def __repr__(self) -> str:
        s = self._state
        return f"TrajectoryExplorer({s.done} of {s.total} steps, picked {s.id!r})"

    def _ipython_display_(self) -> None:
        display({**self.widget._repr_mimebundle_(), "text/plain": repr(self)}, raw=True)
        self._twin = display(HTML(TWIN % self.to_html()), display_id=True)

    # ----------------------------------------------------------------- training in the background

    def _begin(self) -> None:
        """Make ready for the next step; a run that is over, or has other settings, starts anew."""
        s = self._state
        if s.finished or s.stopped or s.changed:
            s.restart()
            self._view.show_all()

    def _go(self) -> None:
        """Train in the background of a kernel; where nothing can run there, at once."""
        if self._task is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.run()
            return
        self._begin()
        self._view.running = True
        self._view.show_progress()
        self._task = loop.create_task(self._train_live())

    def _end_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task, self._view.running = None, False

    async def _train_live(self) -> None:
        """Take a step, answer clicks, take the next; draw now and then."""
        s, due = self._state, 0.0
        try:
            while not (s.finished or s.stopped):
                await asyncio.sleep(BREATH)
                s.advance()
                self._view.show_progress()
                if time.monotonic() >= due:
                    due = self._draw()
        except KeyboardInterrupt:
            pass
        except asyncio.CancelledError:
            return
        except Exception as error:
            s.error = error
        self._task = None
        self._rest()

    def _draw(self) -> float:
        """Show the run as it is now; return when the next drawing is due."""
        start = time.monotonic()
        self._state.take_in()
        self._view.show_run()
        end = time.monotonic()
        return end + max(REFRESH, SHARE * (end - start))

    def _rest(self) -> None:
        """Show what is there once nothing runs."""
        self._view.running = False
        if not self._look():
            self._view.show_run()
        self._update_twin()

    def _look(self) -> bool:
        """Take in what was done since; return whether there was something."""
        s = self._state
        new = s.run is not None and (
            len(s.trajectory) != s.done or s.trajectory.stopped != s.stopped
        )
        if new:
            s.take_in()
            self._view.show_run()
        return new

    def _update_twin(self) -> None:
        """Write the still copy anew: in a kernel a little later, so that a click is shown first."""
        if self._twin_timer is not None:
            self._twin_timer.cancel()
            self._twin_timer = None
        if self._twin is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write_twin()
        else:
            self._twin_timer = loop.call_later(LATER, self._write_twin)

    def _write_twin(self) -> None:
        self._twin_timer = None
        if not self.running:  # it is written again when the run rests
            self._twin.update(HTML(TWIN % self.to_html()))


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
