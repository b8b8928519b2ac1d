"""A training run watched step by step: what it has left so far, one probe and one step of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from toolkit.checks import whole
from toolkit.displacement import mass_flow
from toolkit.dynamics._training import TrainingRun
from toolkit.dynamics._trajectory import Trajectory
from toolkit.losses import LOSSES
from toolkit.model import Policy
from toolkit.model.inputs import check_pairs, check_policy
from toolkit.pairs import PreferencePair

SINCE = "change of each token's log-probability since step 0, nats"
ACTUAL = "actual change of each token's log-probability in this step, nats"
RATE = 3e-5  # learning rate of a named optimiser
KEPT_WEIGHTS = 256 << 20  # bytes of weights that a run may keep unasked
KEPT_STEPS = 10  # and how many steps' weights at most


@dataclass(frozen=True)
class Settings:
    """What a run is started with, as the controls show it."""

    loss: str | Callable
    optimizer: Any
    lr: float | None
    steps: int
    batch_size: int


class WatchedRun:
    """A training run that goes step by step, and what can be seen of it.

    Args:
        policy: The model to start from; may be left out with a run or trajectory.
        pairs: Training pairs; likewise.
        probes: Pairs to watch.
        run: A run made before.
        trajectory: What a run left, without the run.
        loss: As for :class:`TrainingRun`, what a new run is started with; so are the next four.
        optimizer: Its name, or a live one.
        lr: Learning rate; if not given 3e-5, or a live optimiser's own.
        steps: Number of steps.
        batch_size: Pairs in a minibatch.
        **options: Other arguments of ``TrainingRun``, hyper-parameters of the loss included.

    Raises:
        ValueError: If an argument is not allowed.
        PairError: If a pair cannot be scored, under ``on_error="raise"``.
    """

    def __init__(
        self,
        policy: Policy | None,
        pairs: Sequence[PreferencePair] | None,
        probes: Sequence[PreferencePair] | None = None,
        run: TrainingRun | None = None,
        trajectory: Trajectory | None = None,
        *,
        loss: str | Callable,
        optimizer: Any,
        lr: float | None,
        steps: int,
        batch_size: int,
        **options,
    ):
        before = run is not None or trajectory is not None
        _check_given(run, trajectory)
        if policy is not None or not before:
            check_policy(policy)
        if pairs is None and not before:
            raise ValueError("pairs must be given, or a run or trajectory made before")
        self.policy, self.options, self.index = policy, options, 0
        self.pairs = None if pairs is None else check_pairs(pairs, text=True)
        self.probes = None if probes is None else check_pairs(probes, "probes")
        self.run, self.error, self.stopped = run, None, False
        if before:
            found = run.settings if run is not None else trajectory.settings
            self.wanted = self.settings = _settings_of(found, run)
            self._first_loss = self.settings.loss
            self._clear()
            if run is not None:
                self.options = {**run.hparams, **options}
            self.take_in(trajectory)
        else:
            lr = usual_rate(optimizer) if lr is None else lr
            self.wanted = self.settings = Settings(loss, optimizer, lr, steps, batch_size)
            self._first_loss = loss
            self._start()
        repeated = [i for i, n in Counter(self.ids).items() if n > 1]
        if repeated:
            raise ValueError(f"probes: id {repeated[0]!r} occurs twice; ids must be unique")

    # ----------------------------------------------------------------- the run

    @property
    def can_start(self) -> bool:
        """Whether a new run can be made: the model and the pairs are known."""
        return self.policy is not None and self.pairs is not None

    @property
    def changed(self) -> bool:
        """Whether the controls ask for another run than this one."""
        return self.wanted != self.settings

    @property
    def done(self) -> int:
        """Steps taken so far."""
        return self._taken

    @property
    def total(self) -> int:
        """Steps that the run will have."""
        return self.settings.steps

    @property
    def seen(self) -> int:
        """Steps that were taken in."""
        return len(self.trajectory)

    @property
    def has_news(self) -> bool:
        """Whether the run has left something that was not taken in."""
        new = self.seen != self._taken or self.trajectory.stopped != self.stopped
        return self.run is not None and new

    @property
    def finished(self) -> bool:
        """Whether no step is left to take."""
        return self.run is None or self._taken >= self.total

    @property
    def over(self) -> bool:
        """Whether the next step is that of another run: this one is done, or others are wanted."""
        return self.finished or self.stopped or self.changed

    @property
    def seconds_a_step(self) -> float:
        """Median time of the last steps; NaN before the first one."""
        return float(np.median(self._times[-8:])) if self._times else float("nan")

    @property
    def seconds_left(self) -> float:
        """Estimate of the time until the last step; NaN before the first one."""
        return self.seconds_a_step * (self.total - self._taken)

    @property
    def kept_bytes(self) -> int:
        """Bytes of weights that the run will have kept at its end; its start is one of them."""
        if self.run is None:
            return 0
        every = self.run.checkpoint_every
        one = sum(w.numel() * w.element_size() for w in self.trajectory.checkpoints[0].values())
        return one * (2 + (-(-self.total // every) - 1 if every else 0))

    def want(self, settings: Mapping[str, object]) -> None:
        """Set some of what the next run is started with.

        Raises:
            ValueError: If there is no such setting, or nothing to start with it.
        """
        known = vars(self.wanted)
        for name in settings:
            if name not in known:
                raise ValueError(f"{name!r} is no setting; allowed: {', '.join(known)}")
        if not self.can_start:
            raise ValueError("settings belong to the run that was given: give policy and pairs too")
        self.wanted = Settings(**{**known, **settings})

    def restart(self) -> None:
        """Go back to step 0, with the settings that the controls show."""
        if self.can_start and (self.changed or self.run is None):
            self._start()
        elif self.run is not None:
            self.run.reset()
            self._clear()
            self.take_in()
        else:
            raise ValueError("this trajectory has no run to start: give policy and pairs too")

    def _start(self) -> None:
        want = self.wanted
        options = {"checkpoint_every": self._checkpoint_every(want.steps), **self._options_for()}
        run = TrainingRun(self.policy, self.pairs, probes=self.probes, **vars(want), **options)
        self.run, self.settings = run, want  # from here on nothing can fail
        self._clear()
        self.take_in()

    def _options_for(self) -> dict[str, object]:
        """The options, without hyper-parameters that only another loss has."""
        if self.wanted.loss == self._first_loss or callable(self.wanted.loss):
            return self.options
        other = {name for loss in LOSSES.values() for name in loss.defaults}
        other |= set(getattr(LOSSES.get(self._first_loss), "defaults", ()))
        own = set(LOSSES[self.wanted.loss].defaults) if self.wanted.loss in LOSSES else set()
        return {n: v for n, v in self.options.items() if n in own or n not in other}

    def _checkpoint_every(self, steps: int) -> int | None:
        """Keep as many weights as a budget allows, start and end in any case."""
        whole("steps", steps)
        chosen = self.policy.parameters_in(self.options.get("params", "all")).values()
        one = sum(p.numel() * p.element_size() for p in chosen)
        times = min(KEPT_STEPS, KEPT_WEIGHTS // max(one, 1) - 1)
        return None if times < 2 else -(-steps // times)

    def _clear(self) -> None:
        self.error = None
        self.stopped = self.run is not None and self.run.divergence is not None
        self._times: list[float] = []
        self._taken, self.step = 0, 0
        self._start_policy, self._flows = None, {}
        if self.run is not None:
            self._taken = len(self.run.trajectory)

    def advance(self) -> None:
        """Take one step; an error is kept in ``error`` and raised, what was done stays.

        A run that diverges is stopped instead.
        """
        start = time.perf_counter()
        try:
            next(self.run)
        except StopIteration:
            self.stopped = True
            return
        except Exception as error:
            self.error = error
            raise
        self.error, self._taken = None, self._taken + 1
        self._times.append(time.perf_counter() - start)

    def take_in(self, trajectory: Trajectory | None = None) -> None:
        """Look at what the run has left so far; the last step is shown if it was before."""
        following = not hasattr(self, "trajectory") or self.step >= len(self.trajectory)
        if self.run is not None:
            self.run.stopped = self.stopped
        self.trajectory = self.run.trajectory if trajectory is None else trajectory
        self._taken = len(self.trajectory)
        self.frame = self.trajectory.to_frame()
        self.step = self._taken if following else min(self.step, self._taken)
        self.ids = self.trajectory.pair_ids
        self.index = min(self.index, len(self.ids) - 1)

    # ----------------------------------------------------------------- what is shown

    @property
    def id(self) -> str:
        """Id of the picked probe."""
        return self.ids[self.index]

    @property
    def pair(self) -> PreferencePair | None:
        """The picked probe, where its text is known."""
        return self.named(self.id)

    def named(self, id: str) -> PreferencePair | None:
        """The probe or training pair of an id, where its text is known."""
        found = [*(self.probes or ()), *(self.pairs or ())]
        return next((p for p in found if getattr(p, "id", None) == id), None)

    @property
    def rows(self) -> pd.DataFrame:
        """The picked probe's two rows at the shown step, by side."""
        f = self.frame
        return f[(f["step"] == self.step) & (f["pair_id"] == self.id)].set_index("side")

    @property
    def regimes(self) -> tuple[str | None, str | None]:
        """What the step that led here was predicted to be and really was; ``None``: unknown."""
        found = self.rows.iloc[0][["regime", "actual_regime"]]
        return tuple(name if isinstance(name, str) else None for name in found)

    def tokens(self) -> pd.DataFrame:
        """One row a token of the picked probe at the shown step, changes since the start too."""
        now, start = self.trajectory.tokens(self.step), self.trajectory.tokens(0)
        now[SINCE], now[ACTUAL] = now["logp"] - start["logp"], now["actual_delta"]
        return now[now["pair_id"] == self.id].reset_index(drop=True)

    def largest(self, since_start: bool) -> float | None:
        """The largest change of a token of the picked probe over all steps, in nats."""
        t = self.trajectory
        own = (t.axis["pair_id"] == self.id).to_numpy()
        logps = t.logps[:, own]
        if since_start:
            values = logps - logps[0]
        else:
            values = np.concatenate([np.diff(logps, axis=0), t.predicted[:, own]])
        sizes = np.abs(values[np.isfinite(values)])
        return float(sizes.max(initial=0.0)) or None

    def forces(self) -> pd.DataFrame | None:
        """What moved every probe in every step; ``None`` where the run does not keep it."""
        return None if self.trajectory.step_forces is None else self.trajectory.forces()

    def pulls(self) -> pd.DataFrame | None:
        """What each training pair did to every probe; ``None`` where the run does not keep it."""
        return None if self.trajectory.step_pulls is None else self.trajectory.pulls()

    def moves(self) -> pd.DataFrame:
        """One row per step and token of the picked probe: ``actual_delta``, in nats."""
        t = self.trajectory
        own = (t.axis["pair_id"] == self.id).to_numpy()
        steps = np.arange(1, len(t) + 1)
        frame = t.axis[own].merge(pd.DataFrame({"step": steps}), how="cross")
        return frame.assign(actual_delta=np.diff(t.logps[:, own], axis=0).T.ravel())

    @property
    def kept_step(self) -> int | None:
        """The step nearest to the shown one, after the start, whose weights are kept."""
        kept = [k for k in self.trajectory.checkpoints if k]
        return min(kept, key=lambda k: (abs(k - self.step), k)) if kept else None

    def flow_is_kept(self) -> bool:
        """Whether the flow of the picked probe is at hand."""
        return (self.index, self.kept_step) in self._flows

    def flow(self) -> pd.DataFrame:
        """``mass_flow`` of the picked probe from the start to ``kept_step``."""
        if self.kept_step is None:
            raise ValueError("no step has been taken yet whose weights are kept")
        if self._probe is None:
            raise ValueError("the pairs are not known: give pairs or probes to see the flow")
        key = self.index, self.kept_step
        if key not in self._flows:
            if self._start_policy is None:
                self._start_policy = self.trajectory.policy_at(0, self.policy)
            after = self.trajectory.policy_at(self.kept_step, self.policy)
            self._flows[key] = mass_flow(self._start_policy, after, self._probe)
        return self._flows[key]

    @property
    def _probe(self):
        if self.pair is not None:
            return self.pair
        watched = [] if self.run is None else self.run._probes
        return next((e for e in watched if e.id == self.id), None)


def usual_rate(optimizer: str | torch.optim.Optimizer) -> float | None:
    """Return the learning rate where none is given; ``None`` where a live optimiser has several."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return RATE
    rates = {float(group["lr"]) for group in optimizer.param_groups}
    return rates.pop() if len(rates) == 1 else None


def _check_given(run: object, trajectory: object) -> None:
    if run is not None and trajectory is not None:
        raise ValueError("run and trajectory cannot both be given: run.trajectory is in the run")
    for name, value, kind in (("run", run, TrainingRun), ("trajectory", trajectory, Trajectory)):
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, received {type(value).__name__}")


def _settings_of(found: Mapping, run: TrainingRun | None) -> Settings:
    loss = found["loss_name"] if run is None else run.loss
    lr = None if isinstance(found["lr"], list) else found["lr"]
    return Settings(loss, found["optimizer"], lr, found["steps"], found["batch_size"])
