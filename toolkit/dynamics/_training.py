"""A training run that goes one step at a time, and measures each step as it is taken."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit.checks import check_seed, choice, flag, positive, shown, whole
from toolkit.dynamics import _optimizers, batch_gradient, given, responses
from toolkit.dynamics._interrupts import uninterrupted
from toolkit.dynamics._lora import trained_policy
from toolkit.dynamics._trajectory import Divergence, StepRecord, Trajectory
from toolkit.dynamics._watch import Watch
from toolkit.dynamics.forces import FORCES, SplitMoments, SplitStep, forces_on, pair_terms
from toolkit.dynamics.pulls import PairMoments, check_bytes
from toolkit.losses import check_loss
from toolkit.model import Params, Policy, batches
from toolkit.model.inputs import Pairs
from toolkit.model.scores import scores
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair
from toolkit.remedies import UpdateRule, bound, check_rule

WATCHED = 8  # probes, where none are given
MOST_STEPS = 10_000_000  # their minibatches are drawn before the first one


@dataclass(frozen=True)
class Pending:
    """A step that was taken and not measured yet."""

    before: dict[str, Tensor]
    record: StepRecord
    at: list[int]
    batch: list[EncodedPair]
    gradient: batch_gradient.Minibatch
    split: SplitStep | None


class TrainingRun:
    """Preference training as an iterator: one optimiser step, measured, per ``next``.

    Leave the loop at any time and go on later with the same object: the result is that of an
    uninterrupted run, bit for bit. ``run.trajectory`` holds everything done so far.

    A run whose loss stops being finite ends at the last step that could be measured, with a
    warning; ``run.divergence`` names step and learning rate, and ``reset()`` starts again.

    Evaluation mode also while training (no dropout), so that predicted and actual changes are
    those of the same function. Minibatches are drawn as a data loader does, shuffled anew in each
    epoch from ``seed`` alone; the last one of an epoch can be short. Each loss is the mean over
    its minibatch.

    Args:
        policy: The model to start from. Its reference is ``policy.ref_model``, the base model of
            an adapter, or its own weights at the start.
        pairs: Training pairs.
        steps: Number of steps.
        lr: Learning rate; a live optimiser's own if not given.
        loss: A key of ``LOSSES`` or a function (see ``loss_weights``).
        optimizer: As for ``predict_step``: a name, or a live torch optimiser over the policy's
            parameters. A copy of it is used unless ``in_place``.
        batch_size: Pairs in a minibatch.
        probes: Pairs to watch; the first eight training pairs if not given. The reference's
            distributions over the vocabulary are kept for their tokens.
        params: Parameters that are trained (see ``Policy.parameters_in``).
        seed: Seed of the shuffling (and of LoRA's start); global random states stay untouched.
        weight_decay: As for ``predict_step``.
        max_grad_norm: Clip the minibatch gradient to this norm.
        optimizer_options: Further options of the named optimiser.
        lora: ``{"r": 8, "alpha": 16, "target_modules": …}`` trains LoRA matrices alone (extra
            ``peft``); ``{}`` takes these defaults.
        checkpoint_every: Keep the weights at each multiple of this step; start and end always are.
        in_place: Train the policy's own model (and live optimiser) instead of a deep copy.
        predict: Predict each step by a forward-mode pass; without it the predictions are NaN.
        forces: Split each response's first-order change by what caused it; see
            ``Trajectory.forces``. Takes a backward per minibatch and one per watched response, and
            memory for three more copies of the momentum; the training stays the same bit for bit.
            ``"by_pair"``: also by training pair, see ``Trajectory.pulls``; one more backward per
            pair of the minibatch, and a copy of the trained parameters per training pair.
        update_rule: How the step weighs the two responses in place of the loss alone: a key of
            ``UPDATE_RULES``, an ``UpdateRule``, or a function (see there).
        on_error: "raise" stops at the first pair that cannot be scored, before any work; "skip"
            leaves such pairs out and names
            them in the trajectory's ``skipped``.
        **hparams: Hyper-parameters of the loss, such as ``beta``.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If an argument is not allowed.
        ImportError: If an optional package is missing.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("single_token", limit=4)
        >>> run = tk.TrainingRun(policy, pairs, lr=1e-5, steps=3, batch_size=2)
        >>> next(run).step
        1
        >>> len(run.trajectory), [record.step for record in run]
        (1, [2, 3])
    """

    @alone
    def __init__(
        self,
        policy: Policy,
        pairs: Pairs,
        *,
        steps: int,
        lr: float | None = None,
        loss: str | Callable[..., Tensor] = "dpo",
        optimizer: str | torch.optim.Optimizer = "adamw",
        batch_size: int = 8,
        probes: Pairs | None = None,
        params: Params = "all",
        seed: int = 0,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        optimizer_options: Mapping[str, object] | None = None,
        lora: Mapping[str, object] | None = None,
        checkpoint_every: int | None = None,
        in_place: bool = False,
        predict: bool = True,
        forces: bool | str = False,
        update_rule: str | Callable | UpdateRule | None = None,
        on_error: str = "raise",
        **hparams: float,
    ):
        whole("steps", steps)
        if steps > MOST_STEPS:
            raise ValueError(f"steps may be at most {MOST_STEPS:,}, received {shown(steps)}")
        check_seed(seed)
        whole("checkpoint_every", checkpoint_every, optional=True)
        positive("max_grad_norm", max_grad_norm, optional=True)
        flag("in_place", in_place)
        flag("predict", predict)
        choice("forces", forces, [False, True, "by_pair"])
        check_loss(loss, hparams)
        rule = check_rule(update_rule)
        recipe = _optimizers.Recipe(optimizer, lr, weight_decay, optimizer_options)
        self.steps, self.loss, self.hparams = steps, loss, hparams
        self.predict, self.forces = predict, forces
        self.max_grad_norm, self.checkpoint_every = max_grad_norm, checkpoint_every
        self.stopped = False
        self._pairs, watched, known = given.trained_and_watched(policy, pairs, probes, on_error)
        self._probes = watched or self._pairs[:WATCHED]
        self._schedule = _schedule(len(self._pairs), batch_size, steps, seed)
        self.policy = trained_policy(policy, in_place, lora, seed)
        self._bind(policy, recipe, params, in_place, lora)
        self._used = sorted({i for batch in self._schedule for i in batch})
        self._by_pair = forces == "by_pair"
        if self._by_pair:
            entries = steps * 2 * len(self._probes) * len(self._used)
            check_bytes(len(self._used), self._selected, entries)
        self._rule = bound(rule, self.policy, self._selected, self._optimizer, self._selected)
        # All arguments are checked: from here on the model runs.
        self._watch = Watch(policy, self._probes)
        self._ref = self._references(policy)
        self.settings = {
            **given.labels_of(self.policy, params, "weights at the start"),
            **recipe.to_attrs(),
            "update_rule": rule.name,
            "steps": steps,
            "batch_size": batch_size,
            **known,
            "seed": seed,
            "max_grad_norm": max_grad_norm,
            "lora": None if lora is None else dict(lora),
        }
        self._start, self._start_state = self._kept(), copy.deepcopy(self._optimizer.state_dict())
        self._clear()

    def __iter__(self) -> Iterator[StepRecord]:
        return self

    @alone
    def __next__(self) -> StepRecord:
        """Take one step and measure it."""
        if self.divergence or (self._pending is None and len(self._records) == self.steps):
            raise StopIteration
        try:
            if self._pending is None:
                self._advance()
            # An interrupt in here costs nothing: the next call measures the step that was taken.
            record = self._measure()
        except batch_gradient.NotFinite as error:
            if self._pending is None and not self._records:
                raise  # no step was taken yet that could be the reason
            self._diverge(error)
            raise StopIteration from None
        self.stopped = False
        return record

    def __len__(self) -> int:
        return self.steps

    @property
    @alone
    def trajectory(self) -> Trajectory:
        """Everything done so far, as a :class:`Trajectory`."""
        done = len(self._records)
        if done not in self._checkpoints:
            current = self._kept() if self._pending is None else _on_cpu(self._pending.before)
            self._end = self._end if self._end and self._end[0] == done else (done, current)
        kept = dict([*self._checkpoints.items(), *([self._end] if self._end else [])])
        kept = {step: weights for step, weights in kept.items() if step <= done}
        tokens = len(self._watch.axis)
        return Trajectory(
            self._watch.axis.copy(),
            np.stack(self._logps),
            np.array(self._predicted).reshape(done, tokens),
            self._watch.ref_logps,
            np.stack(self._losses),
            np.stack(self._kl),
            np.array(self._inside, dtype=bool).reshape(done, len(self._probes)),
            pd.DataFrame(
                [vars(r) for r in self._records], columns=list(StepRecord.__dataclass_fields__)
            ),
            self.settings,
            dict(sorted(kept.items())),
            self.stopped,
            self.policy,
            self.divergence,
            self._forces_so_far() if self.forces else None,
            self._pulls_so_far() if self._by_pair else None,
            [self._pairs[i].id for i in self._used] if self._by_pair else [],
        )

    @alone
    def reset(self) -> None:
        """Go back to the start: weights, optimiser and records."""
        self._put(self._start)
        self._optimizer.load_state_dict(copy.deepcopy(self._start_state))
        self._clear()

    def _bind(self, policy: Policy, recipe, params: Params, in_place: bool, lora) -> None:
        """Find the parameters that are trained and put the optimiser on them."""
        if recipe.live and lora is not None:
            raise ValueError("lora adds parameters that your optimizer does not hold: name one")
        if recipe.live:
            originals = recipe.moved(policy.parameters_in(params))
            named = dict(self.policy.model.named_parameters())
            self._selected = {name: named[name] for name in originals}
        else:
            originals = self._selected = self.policy.parameters_in(params)
        if recipe.live and in_place:
            self._optimizer = recipe.optimizer
            for group in self._optimizer.param_groups:
                group.update({} if recipe.lr is None else {"lr": float(recipe.lr)})
        else:
            self._optimizer = recipe.over(originals, self._selected)

    def _clear(self) -> None:
        self._records: list[StepRecord] = []
        self._predicted, self._inside, self._losses = [], [], []
        self._forces: list[np.ndarray] = []
        self._pulls: list[np.ndarray] = []
        self._moments = SplitMoments(self._optimizer, self._selected) if self.forces else None
        self._pair_moments = PairMoments(len(self._used))
        self._logps, self._kl = [], []
        self._pending, self._end, self.stopped, self.divergence = None, None, False, None
        self._checkpoints = {0: self._start}
        self._look()

    def _references(self, policy: Policy) -> dict[int, np.ndarray]:
        """Return the reference's log-probabilities of every pair that will be trained on."""
        encoded = [self._pairs[i] for i in self._used]
        own = responses.token_logps(policy, encoded) if policy.ref_model is None else []
        sums = responses.sums_of(responses.ref_token_logps(policy, encoded, own))
        return dict(zip(self._used, sums.reshape(-1, 2), strict=True))

    def _advance(self) -> None:
        at = self._schedule[len(self._records)]
        batch, ref = [self._pairs[i] for i in at], np.concatenate([self._ref[i] for i in at])
        found = batch_gradient.minibatch(
            self.policy,
            self._selected,
            batch,
            ref,
            self.loss,
            self.hparams,
            self.max_grad_norm,
            self.forces,
            self._rule,
        )
        before = {name: p.detach().clone() for name, p in self._selected.items()}
        grads = {self._selected[name]: g for name, g in found.clipped.items()}
        loss, ids = float(found.weights.losses.mean()), [e.id for e in batch]
        record = StepRecord(len(self._records) + 1, loss, found.norm, found.clip_factor, ids)
        with uninterrupted():
            _optimizers.apply(self._optimizer, grads)
            split = None
            if self._moments is not None:
                split = self._moments.advance(self._optimizer, self._selected, before, found)
            self._pending = Pending(before, record, at, batch, found, split)

    def _diverge(self, error: Exception) -> None:
        """End the run at its last step whose numbers are finite, with the weights after it."""
        with uninterrupted():
            if self._pending is not None:
                self._put(self._pending.before)
                self._pending = None
            at, lr = len(self._records) + 1, self.settings["lr"]
            self.divergence, self.stopped = Divergence(at, lr, str(error)), True
        warnings.warn(f"training {self.divergence}", RuntimeWarning, stacklevel=5)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._selected.items():
                p.copy_(weights[name])

    def _measure(self) -> StepRecord:
        step, predicted = self._pending, np.full(len(self._watch.axis), np.nan)
        record = step.record
        if self.predict:
            move = responses.moved(step.before, self._selected)
            tokens = responses.directional(self.policy, self._probes, step.before, move)
            predicted = torch.cat(tokens).double().cpu().numpy()
        forces, pulls, terms = [], [], None
        if self._by_pair and step.split is not None:
            terms = self._terms(step)
        if self.forces:
            force, pull = self._felt(step, terms)
            forces, pulls = [force], [pull] if self._by_pair else []
        looked = self._watch.look(self.policy)
        keep = self.checkpoint_every and record.step % self.checkpoint_every == 0
        weights = self._kept() if keep or record.step == self.steps else None
        losses = self._probe_losses(looked[0])
        inside = responses.among(self._probes, step.batch)
        with uninterrupted():
            self._append(looked, losses)
            self._predicted.append(predicted)
            self._forces, self._pulls = self._forces + forces, self._pulls + pulls
            if terms is not None:
                self._pair_moments.advance(step.split.parts, *terms)
            self._inside.append(inside)
            self._records.append(record)
            if weights is not None:
                self._checkpoints[record.step] = weights
            self._pending = None
        return record

    def _forces_so_far(self) -> np.ndarray:
        return np.array(self._forces).reshape(-1, 2 * len(self._probes), len(FORCES))

    def _pulls_so_far(self) -> np.ndarray:
        return np.array(self._pulls).reshape(-1, 2 * len(self._probes), len(self._used), 2)

    def _terms(self, step: Pending) -> tuple[list[int], list[dict[str, Tensor]]]:
        """Which of the training pairs made a step, and their shares of its gradient."""
        at = [self._used.index(i) for i in step.at]
        return at, pair_terms(self.policy, step.batch, step.gradient, step.before)

    def _felt(self, step: Pending, terms) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the forces of a step on the probes, and its pulls by training pair."""

        def by_pair(grads):
            return self._pair_moments.pulls(grads, step.split.parts, *terms)

        given = step.batch, step.gradient, step.split
        forces, pulls = forces_on(self.policy, self._probes, *given, by_pair if terms else None)
        if pulls is None:
            pulls = np.full((len(forces), len(self._used), 2), np.nan)
        return forces, pulls

    def _look(self) -> None:
        looked = self._watch.look(self.policy)
        self._append(looked, self._probe_losses(looked[0]))

    def _append(self, looked: tuple[np.ndarray, np.ndarray], losses: np.ndarray) -> None:
        self._logps.append(looked[0])
        self._kl.append(looked[1])
        self._losses.append(losses)

    def _probe_losses(self, logps: np.ndarray) -> np.ndarray:
        sums = self._watch.sums(logps), self._watch.sums(self._watch.ref_logps)
        found = batch_gradient.weigh(self.loss, scores(self._probes, *sums), self.hparams)
        self.settings.update(loss_name=found.loss_name, **found.hparams)
        return found.losses

    def _kept(self) -> dict[str, Tensor]:
        return _on_cpu(self._selected)


def _schedule(count: int, batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Return the pairs of each minibatch, drawn by a generator of their own."""
    generator, found = torch.Generator().manual_seed(seed), []
    while len(found) < steps:
        found += batches(torch.randperm(count, generator=generator).tolist(), batch_size)
    return found[:steps]


def _on_cpu(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in values.items()}
