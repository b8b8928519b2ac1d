"""What a training run left behind: every watched token at every step, and kept weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit.displacement import falls
from toolkit.dynamics import _trajectory_files
from toolkit.dynamics.forces import FORCES, unexplained
from toolkit.entanglements import regimes
from toolkit.model import Policy
from toolkit.model.inputs import skipped_frame
from toolkit.model.scores import SIDES
from toolkit.model.turns import alone

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step.

    Attributes:
        step: Its number, from 1.
        loss: Mean loss of the minibatch before the step.
        grad_norm: ‖∇ℓ‖ before clipping.
        clip_factor: What clipping multiplied the gradient by.
        batch_ids: Ids of the pairs of the minibatch.
        notes: What the update rule noted: multipliers and gaps of a constraint.
    """

    step: int
    loss: float
    grad_norm: float
    clip_factor: float
    batch_ids: list[str]
    notes: Mapping[str, float] = field(default_factory=dict)


def steps_of(records: Sequence[StepRecord]) -> pd.DataFrame:
    """Return one row per step: its fields, and what was noted of it in columns of their own."""
    known = [name for name in StepRecord.__dataclass_fields__ if name != "notes"]
    columns = list(dict.fromkeys([*known, *(name for r in records for name in r.notes)]))
    return pd.DataFrame([{**vars(r), **r.notes} for r in records], columns=columns)


@dataclass(frozen=True)
class Divergence:
    """Why a run ended before its last step: a loss was not finite any more.

    Attributes:
        step: The first step that could not be taken, or not be measured once it was.
        lr: Learning rate of the run; a list where the optimiser's groups have several.
        reason: What was not finite, and of which pair.
    """

    step: int
    lr: float | list[float]
    reason: str

    def __str__(self) -> str:
        smaller = f", such as lr={self.lr / 10:.2g}" if isinstance(self.lr, float) else ""
        return (
            f"diverged at step {self.step} with lr={self.lr}: {self.reason}; the "
            f"{self.step - 1} steps before it are kept; try a smaller lr{smaller}"
        )


@dataclass(frozen=True, repr=False)
class Trajectory:
    """A training run of T steps, watched on P probe pairs with n tokens in all.

    Step 0 is the start; step k is the state after k optimiser steps. All log-probabilities and
    their changes are in nats, float64.

    Attributes:
        axis: One row per watched token: ``pair_id, side, position, token, row`` (row = 2·probe, +1
            for the rejected side).
        logps: log π of each token at each step, ``[T + 1, n]``.
        predicted: ``⟨∇log π_t, Δθ⟩`` of each token in each step, ``[T, n]``; NaN if not asked for.
        ref_logps: log π_ref of each token, ``[n]``.
        losses: Loss of each probe at each step, ``[T + 1, P]``.
        kl: KL(π‖π_ref) over the whole vocabulary, mean over the scored positions of both
            responses, nats, ``[T + 1, P]``.
        in_batch: Whether each probe was in the minibatch of each step, ``[T, P]``.
        steps: One row per step: ``step, loss, grad_norm, clip_factor, batch_ids``, and what the
            update rule noted.
        settings: Labels and settings, as in the frames' ``attrs``.
        checkpoints: Kept weights by step: the parameters that are trained, on the CPU.
        stopped: Whether the run was stopped before its last step.
        divergence: At which step and learning rate the run diverged, or ``None``; a run that did
            is ``stopped``, at the last step whose numbers are finite.
        step_forces: What moved each response in each step, ``[T, 2P, len(FORCES)]``; ``None`` if
            not asked for. See :meth:`forces`.
        step_pulls: The loss's part of it by training pair, ``[T, 2P, N, 2]``: through the
            minibatch's gradient, and through the momentum. See :meth:`pulls`.
        train_ids: Ids of the N training pairs of ``step_pulls``.
    """

    axis: pd.DataFrame
    logps: np.ndarray
    predicted: np.ndarray
    ref_logps: np.ndarray
    losses: np.ndarray
    kl: np.ndarray
    in_batch: np.ndarray
    steps: pd.DataFrame
    settings: Mapping[str, object]
    checkpoints: Mapping[int, Weights]
    stopped: bool = False
    policy: Policy | None = field(default=None, compare=False)
    divergence: Divergence | None = None
    step_forces: np.ndarray | None = None
    step_pulls: np.ndarray | None = None
    train_ids: Sequence[str] = ()

    def __repr__(self) -> str:
        s, kept = self.settings, ", ".join(map(str, sorted(self.checkpoints)))
        end = f", {self.divergence}" if self.divergence else ", stopped" if self.stopped else ""
        return (
            f"Trajectory({len(self)} steps of {s['optimizer']} on {s['loss_name']}, "
            f"{self.losses.shape[1]} probes, weights kept at {kept}{end})"
        )

    def __len__(self) -> int:
        return len(self.predicted)

    @property
    def pair_ids(self) -> list[str]:
        """Ids of the probes."""
        return list(self.axis.drop_duplicates("row")["pair_id"][::2])

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs and probes that ``on_error="skip"`` left out: ``row, pair_id, reason``."""
        return skipped_frame(self.settings.get("skipped", []))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per step, probe and side; step 0 is the start and has no changes.

        Returns:
            Columns ``step, pair_id, side, logps, drawdown`` (largest fall so far from an earlier
            high), ``predicted_delta, actual_delta, predicted_logps`` (starting value plus all
            predictions so far), ``loss, reward`` (β·logratio where the loss has a beta, else the
            logratio), ``margin`` (chosen − rejected reward), ``kl, regime`` (from the signs of
            that step's two predicted changes), ``actual_regime`` (from those of the actual ones),
            ``in_batch``.
        """
        logps, moves = self._sums(self.logps), self._sums(self.predicted)
        rows = logps.shape[1]
        gap, still = np.full((1, rows), np.nan), np.zeros((1, rows // 2), bool)
        ratio = float(self.settings.get("beta", 1.0)) * (logps - self._sums(self.ref_logps[None]))
        changes = [np.vstack([gap, moves]), np.vstack([gap, np.diff(logps, axis=0)])]
        names, real = (regimes(*(c[:, side::2] for side in range(2))) for c in changes)
        inside = np.vstack([still, self.in_batch])
        columns = {
            **self._by_step(0),
            "logps": logps.ravel(),
            "drawdown": np.maximum.accumulate(falls(logps)).ravel(),
            "predicted_delta": changes[0].ravel(),
            "actual_delta": changes[1].ravel(),
            "predicted_logps": (logps[:1] + np.vstack([0 * logps[:1], moves]).cumsum(0)).ravel(),
            "loss": np.repeat(self.losses, 2, axis=1).ravel(),
            "reward": ratio.ravel(),
            "margin": np.repeat(ratio[:, ::2] - ratio[:, 1::2], 2, axis=1).ravel(),
            "kl": np.repeat(self.kl, 2, axis=1).ravel(),
            "regime": np.repeat(names, 2, axis=1).ravel(),
            "actual_regime": np.repeat(real, 2, axis=1).ravel(),
            "in_batch": np.repeat(inside, 2, axis=1).ravel(),
        }
        return self._labelled(pd.DataFrame(columns))

    def forces(self) -> pd.DataFrame:
        """Return what moved each response in each step, at first order, beside what happened.

        ``Δθ`` is split as the optimiser really built it, under its own denominators, and each part
        is ``⟨∇log π, part⟩``. The nine forces and ``residual`` sum to ``actual_delta``.

        Returns:
            One row per step, pair and side: ``step, pair_id, side``; by terms of the loss that
            pull at chosen and at rejected responses, ``own_chosen, own_rejected`` (the pair's own
            terms, where it is in the minibatch), ``others_chosen, others_rejected`` (the rest of
            the minibatch), ``earlier_chosen, earlier_rejected`` (earlier steps, through the
            momentum), ``earlier_unsplit`` (moments that the optimiser brought with it, else 0);
            ``decay`` (weight decay), ``projection`` (what AdamP and SGDP take out), ``residual``
            (curvature, and the rounding of the weights), ``actual_delta, in_batch``; nats. NaN for
            an optimiser whose step is not known.

        Raises:
            ValueError: If the run did not keep them.

        Source:
            arXiv 2410.13828, Section 3, step by step; the split follows from linearity.
        """
        if self.step_forces is None:
            raise ValueError("this run kept no forces: run it again with tk.train(…, forces=True)")
        actual = np.diff(self._sums(self.logps), axis=0)
        columns = {
            **self._by_step(1),
            **dict(zip(FORCES, self.step_forces.reshape(-1, len(FORCES)).T, strict=True)),
            "residual": unexplained(actual, self.step_forces).ravel(),
            "actual_delta": actual.ravel(),
            "in_batch": np.repeat(self.in_batch, 2, axis=1).ravel(),
        }
        return self._labelled(pd.DataFrame(columns))

    def pulls(self) -> pd.DataFrame:
        """Return what each training pair did to each response in each step, at first order.

        A pair's terms of the loss move a response in the step whose minibatch it is in, and in all
        later ones through the momentum: ``⟨∇log π, Δθ⟩`` with its share of the optimiser's own Δθ,
        under the optimiser's own denominators. Summed over the training pairs, ``batch_delta`` is
        the sum of the own and others' forces, ``earlier_delta`` that of ``earlier_chosen`` and
        ``earlier_rejected``.

        Returns:
            One row per step, response and training pair: ``step, pair_id, side`` (the response),
            ``train_pair_id``, ``batch_delta``, ``earlier_delta`` (through the momentum) and their
            sum ``delta``; nats. NaN for an optimiser whose step is not known.

        Raises:
            ValueError: If the run did not keep them.
        """
        if self.step_pulls is None:
            raise ValueError(
                "this run kept no pulls: run it again with tk.train(…, forces='by_pair')"
            )
        count, rows, trained = self.step_pulls.shape[:3]
        parts = self.step_pulls.reshape(-1, 2).T
        columns = {
            **{name: np.repeat(values, trained) for name, values in self._by_step(1).items()},
            "train_pair_id": np.tile(np.array(self.train_ids, dtype=object), count * rows),
            "batch_delta": parts[0],
            "earlier_delta": parts[1],
            "delta": parts.sum(0),
        }
        return self._labelled(pd.DataFrame(columns))

    def drawdown(self) -> pd.DataFrame:
        """Return each response's largest fall from an earlier high beside its whole change.

        Returns:
            One row per pair and side: ``pair_id, side, start, final`` (log π), ``change`` (final −
            start), ``drawdown`` (largest fall from an earlier high, at least 0), ``high_step,
            low_step`` (where that fall begins and ends; both 0 without a fall), nats; and
            ``prob_drawdown``, the same of the probability π.

        Source:
            arXiv 2410.08847, Table 1 (the largest drop of the chosen response over the run).
        """
        logps = self._sums(self.logps)
        fallen = falls(logps)
        low = fallen.argmax(0)
        high = [int(values[: end + 1].argmax()) for values, end in zip(logps.T, low, strict=True)]
        columns = {
            "pair_id": np.repeat(self.pair_ids, 2),
            "side": np.tile(SIDES, logps.shape[1] // 2),
            "start": logps[0],
            "final": logps[-1],
            "change": logps[-1] - logps[0],
            "drawdown": fallen.max(0),
            "high_step": np.where(fallen.max(0) > 0, high, 0),
            "low_step": low,
            "prob_drawdown": falls(np.exp(logps)).max(0),
        }
        return self._labelled(pd.DataFrame(columns))

    def steps_frame(self) -> pd.DataFrame:
        """Return one row per step.

        Returns:
            Columns ``step, loss`` (of the minibatch, before the step), ``grad_norm`` (before
            clipping), ``clip_factor, batch_ids, chosen_logps, rejected_logps`` (means over the
            probes after the step) and ``r_squared`` of that step's predictions.
        """
        logps, moves = self._sums(self.logps), self._sums(self.predicted)
        real = np.diff(logps, axis=0)
        frame = self.steps.copy()
        frame["chosen_logps"] = logps[1:, ::2].mean(1)
        frame["rejected_logps"] = logps[1:, 1::2].mean(1)
        frame["r_squared"] = [_r_squared(p, a) for p, a in zip(moves, real, strict=True)]
        return self._labelled(frame)

    def tokens(self, step: int) -> pd.DataFrame:
        """Return one row per watched token after a step.

        Returns:
            Columns ``pair_id, side, position, token, logp, predicted_delta, actual_delta`` (NaN
            at step 0).

        Raises:
            ValueError: If there is no such step.
        """
        self.check_step(step)
        frame = self.axis.drop(columns="row")
        frame["logp"] = self.logps[step]
        frame["predicted_delta"] = self.predicted[step - 1] if step else np.nan
        frame["actual_delta"] = self.logps[step] - self.logps[step - 1] if step else np.nan
        return self._labelled(frame, step=step)

    def r_squared(self) -> float:
        """Return how much of the actual changes the predictions explain, all steps together.

        ``1 − Σ(actual − predicted)² / Σ(actual − mean)²`` over steps and responses; NaN where
        nothing was predicted.
        """
        actual = np.diff(self._sums(self.logps), axis=0)
        return _r_squared(self._sums(self.predicted).ravel(), actual.ravel())

    @alone
    def policy_at(self, step: int, policy: Policy | None = None) -> Policy:
        """Return a policy with the weights after a step; its reference is the run's.

        Args:
            step: A step whose weights were kept: 0, the last one, and every ``checkpoint_every``.
            policy: Needed after :meth:`load`: the policy that the run started from.

        Raises:
            ValueError: If the weights of that step were not kept (it names the nearest), or the
                policy has other parameters.
        """
        self.check_step(step)
        if step not in self.checkpoints:
            near = min(self.checkpoints, key=lambda kept: abs(kept - step))
            raise ValueError(
                f"step={step}: its weights were not kept; the nearest kept step is {near} (give "
                "train checkpoint_every=1 to keep all of them)"
            )
        template = policy or self.policy
        if template is None:
            raise ValueError("policy must be given: a loaded trajectory holds weights, no model")
        found = copy.copy(template)
        found.model = _with_weights(template.model, self.checkpoints[step])
        own = template.ref_model is None and not hasattr(template.model, "disable_adapter")
        if own and step:
            found.ref_model = _with_weights(template.model, self.checkpoints[0])
        return found

    def save(self, folder: str | Path) -> Path:
        """Write everything to a folder: JSON, Parquet and safetensors, whole or not at all.

        A trajectory that was saved there before is replaced.

        Raises:
            ValueError: If the folder exists and holds something else; nothing is touched then.
        """
        return _trajectory_files.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Trajectory:
        """Return a trajectory that was saved.

        Raises:
            ValueError: If the folder holds none.
        """
        fields = _trajectory_files.load(Path(folder))
        if fields["divergence"] is not None:
            fields["divergence"] = Divergence(**fields["divergence"])
        return cls(**fields)

    def _by_step(self, first: int) -> dict[str, np.ndarray]:
        """Columns of a frame with a row per step, pair and side, from a first step on."""
        steps, pairs = np.arange(first, len(self) + 1), len(self.pair_ids)
        return {
            "step": np.repeat(steps, 2 * pairs),
            "pair_id": np.tile(np.repeat(self.pair_ids, 2), len(steps)),
            "side": np.tile(SIDES, len(steps) * pairs),
        }

    def _sums(self, tokens: np.ndarray) -> np.ndarray:
        """Sum ``[…, n]`` over the tokens of each response, ``[…, 2P]``."""
        starts = np.flatnonzero(np.diff(self.axis["row"].to_numpy(), prepend=-1))
        return np.add.reduceat(tokens, starts, axis=-1)

    def check_step(self, step) -> None:
        """Refuse what is no step of this run, with the steps there are."""
        whole = isinstance(step, (int, np.integer)) and not isinstance(step, bool)
        if not whole or not 0 <= step <= len(self):
            raise ValueError(f"step must be 0 to {len(self)}, received {step!r}")

    def _labelled(self, frame: pd.DataFrame, **more) -> pd.DataFrame:
        diverged = str(self.divergence) if self.divergence else None
        frame.attrs.update(self.settings, stopped=self.stopped, divergence=diverged, **more)
        return frame


def _r_squared(predicted: np.ndarray, actual: np.ndarray) -> float:
    total = np.square(actual - actual.mean()).sum() if actual.size else 0.0
    if total == 0 or np.isnan(predicted).any():
        return float("nan")
    return float(1 - np.square(actual - predicted).sum() / total)


def _with_weights(model, weights: Weights):
    twin = copy.deepcopy(model)
    named = dict(twin.named_parameters())
    for name, values in weights.items():
        if name not in named or named[name].shape != values.shape:
            raise ValueError(f"policy has no parameter {name} of shape {tuple(values.shape)}")
        with torch.no_grad():
            named[name].copy_(values)
    return twin
