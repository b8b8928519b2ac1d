"""A training run that goes one step at a time, and measures each step as it is taken."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.dynamics import _optimizers, batch_gradient, given, responses
from toolkit.dynamics._interrupts import uninterrupted
from toolkit.dynamics._lora import trained_policy
from toolkit.dynamics._trajectory import Divergence, StepRecord, Trajectory, steps_of
from toolkit.dynamics._watch import Watch
from toolkit.dynamics.forces import FORCES, SplitMoments, SplitStep, forces_on, pair_terms
from toolkit.dynamics.pulls import PairMoments, check_bytes
from toolkit.dynamics.run_settings import RunSettings, signature
from toolkit.model import Policy
from toolkit.model.inputs import Pairs
from toolkit.model.scores import scores
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair
from toolkit.remedies import bound

WATCHED = 8  # probes, where none are given


@dataclass(frozen=True)
class Pending:
    """A step that was taken and not measured yet."""

    before: dict[str, Tensor]
    record: StepRecord
    at: list[int]
    batch: list[EncodedPair]
    gradient: batch_gradient.Minibatch
    split: SplitStep | None


@dataclass(frozen=True)
class Measured:
    """What is known after a step: arrays as in :class:`Trajectory`, without the steps' axis.

    Before the first step there is only how things are; ``forces`` and ``pulls`` if asked for.
    """

    logps: np.ndarray
    kl: np.ndarray
    losses: np.ndarray
    record: StepRecord | None = None
    predicted: np.ndarray | None = None
    in_batch: list[bool] | None = None
    forces: np.ndarray | None = None
    pulls: np.ndarray | None = None


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
            ``Trajectory.forces``. Takes a backward per watched response, and
            memory for three more copies of the momentum; the training stays the same bit for bit.
            ``"by_pair"``: also by training pair, see ``Trajectory.pulls``; one more backward per
            pair of the minibatch, and a copy of the trained parameters per training pair.
        update_rule: How the step weighs the two responses in place of the loss alone: a key of
            ``UPDATE_RULES``, an ``UpdateRule``, a function (see there), or ``Constrained``.
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
    def __init__(self, policy: Policy, pairs: Pairs, *, probes: Pairs | None = None, **settings):
        self._asked = want = RunSettings.of(settings)
        self.steps, self.loss, self.hparams = want.steps, want.loss, want.hparams
        self.checkpoint_every, self.stopped = want.checkpoint_every, False
        self._pairs, watched, known = given.trained_and_watched(
            policy, pairs, probes, want.on_error
        )
        self._probes = watched or self._pairs[:WATCHED]
        self._schedule = want.schedule(len(self._pairs))
        self._used = sorted({i for batch in self._schedule for i in batch})
        self.policy = trained_policy(policy, want.in_place, want.lora, want.seed)
        self._bind(policy)
        if want.forces == "by_pair":
            entries = want.steps * 2 * len(self._probes) * len(self._used)
            check_bytes(len(self._used), self._selected, entries)
        params_here = self._selected, self._optimizer, self._selected
        self._rule = bound(want.rule, self.policy, *params_here, self._pairs)
        # All arguments are checked: from here on the model runs.
        self._watch = Watch(policy, self._probes)
        self._ref = self._references(policy)
        labels = given.labels_of(self.policy, want.params, "weights at the start")
        self.settings = {**labels, **want.to_attrs(), **known}
        self._start, self._start_state = self._kept(), copy.deepcopy(self._optimizer.state_dict())
        self._clear()

    def __iter__(self) -> Iterator[StepRecord]:
        return self

    @alone
    def __next__(self) -> StepRecord:
        """Take one step and measure it."""
        if self.divergence or (self._pending is None and self._taken == self.steps):
            raise StopIteration
        try:
            if self._pending is None:
                self._advance()
            # An interrupt in here costs nothing: the next call measures the step that was taken.
            record = self._measure()
        except batch_gradient.NotFinite as error:
            if self._pending is None and not self._taken:
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
        done, steps = self._taken, self._done[1:]
        if done not in self._checkpoints:
            current = self._kept() if self._pending is None else _on_cpu(self._pending.before)
            self._end = self._end if self._end and self._end[0] == done else (done, current)
        kept = dict([*self._checkpoints.items(), *([self._end] if self._end else [])])
        probes, by_pair = len(self._probes), self._asked.forces == "by_pair"

        def stacked(name: str, *shape: int, dtype=float) -> np.ndarray:
            return np.array([getattr(m, name) for m in steps], dtype=dtype).reshape(done, *shape)

        return Trajectory(
            axis=self._watch.axis.copy(),
            logps=np.stack([m.logps for m in self._done]),
            predicted=stacked("predicted", len(self._watch.axis)),
            ref_logps=self._watch.ref_logps,
            losses=np.stack([m.losses for m in self._done]),
            kl=np.stack([m.kl for m in self._done]),
            in_batch=stacked("in_batch", probes, dtype=bool),
            steps=steps_of([m.record for m in steps]),
            settings=self.settings,
            checkpoints={step: kept[step] for step in sorted(kept) if step <= done},
            stopped=self.stopped,
            policy=self.policy,
            divergence=self.divergence,
            step_forces=(
                stacked("forces", 2 * probes, len(FORCES)) if self._asked.forces else None
            ),
            step_pulls=stacked("pulls", 2 * probes, len(self._used), 2) if by_pair else None,
            train_ids=[self._pairs[i].id for i in self._used] if by_pair else [],
        )

    @alone
    def reset(self) -> None:
        """Go back to the start: weights, optimiser and records."""
        self._put(self._start)
        self._optimizer.load_state_dict(copy.deepcopy(self._start_state))
        self._clear()

    @property
    def _taken(self) -> int:
        """Steps that were taken and measured."""
        return len(self._done) - 1

    def _bind(self, policy: Policy) -> None:
        """Find the parameters that are trained and put the optimiser on them."""
        recipe, params = self._asked.recipe, self._asked.params
        if recipe.live:
            originals = recipe.moved(policy.parameters_in(params))
            named = dict(self.policy.model.named_parameters())
            self._selected = {name: named[name] for name in originals}
        else:
            originals = self._selected = self.policy.parameters_in(params)
        if recipe.live and self._asked.in_place:
            self._optimizer = recipe.optimizer
            for group in self._optimizer.param_groups:
                group.update({} if recipe.lr is None else {"lr": float(recipe.lr)})
        else:
            self._optimizer = recipe.over(originals, self._selected)

    def _clear(self) -> None:
        forces = self._asked.forces
        self._moments = SplitMoments(self._optimizer, self._selected) if forces else None
        self._by_pair = PairMoments(len(self._used)) if forces == "by_pair" else None
        self._pending, self._end, self.stopped, self.divergence = None, None, False, None
        self._checkpoints = {0: self._start}
        self._done = [Measured(**self._looked())]

    def _references(self, policy: Policy) -> dict[int, np.ndarray]:
        """Return the reference's log-probabilities of every pair that will be trained on."""
        encoded = [self._pairs[i] for i in self._used]
        own = responses.token_logps(policy, encoded) if policy.ref_model is None else []
        sums = responses.sums_of(responses.ref_token_logps(policy, encoded, own))
        return dict(zip(self._used, sums.reshape(-1, 2), strict=True))

    def _advance(self) -> None:
        at, want = self._schedule[self._taken], self._asked
        batch, ref = [self._pairs[i] for i in at], np.concatenate([self._ref[i] for i in at])
        found = batch_gradient.minibatch(
            self.policy,
            self._selected,
            batch,
            ref,
            want.loss,
            want.hparams,
            want.max_grad_norm,
            self._rule,
            self._done[-1].record.notes if self._taken else None,
        )
        before = {name: p.detach().clone() for name, p in self._selected.items()}
        grads = {self._selected[name]: g for name, g in found.clipped.items()}
        loss, ids = float(found.weights.losses.mean()), [e.id for e in batch]
        record = StepRecord(self._taken + 1, loss, found.norm, found.clip_factor, ids, found.notes)
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
            at, lr = self._taken + 1, self.settings["lr"]
            self.divergence, self.stopped = Divergence(at, lr, str(error)), True
        warnings.warn(f"training {self.divergence}", RuntimeWarning, stacklevel=5)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self._selected.items():
                p.copy_(weights[name])

    def _measure(self) -> StepRecord:
        step, want = self._pending, self._asked
        predicted = np.full(len(self._watch.axis), np.nan)
        if want.predict:
            move = responses.moved(step.before, self._selected)
            tokens = responses.directional(self.policy, self._probes, step.before, move)
            predicted = torch.cat(tokens).double().cpu().numpy()
        terms = self._terms(step)
        forces, pulls = self._felt(step, terms) if want.forces else (None, None)
        at, inside = step.record.step, responses.among(self._probes, step.batch)
        found = Measured(**self._looked(), record=step.record, predicted=predicted,
                         in_batch=inside, forces=forces, pulls=pulls)  # fmt: skip
        keep = want.checkpoint_every and at % want.checkpoint_every == 0
        weights = {at: self._kept()} if keep or at == want.steps else {}
        with uninterrupted():
            self._done.append(found)
            if terms is not None:
                self._by_pair.advance(step.split.parts, *terms)
            self._checkpoints.update(weights)
            self._pending = None
        return step.record

    def _terms(self, step: Pending) -> tuple[list[int], list[dict[str, Tensor]]] | None:
        """Which of the training pairs made a step, and their shares of its gradient."""
        if self._by_pair is None or step.split is None:
            return None
        at = [self._used.index(i) for i in step.at]
        return at, pair_terms(self.policy, step.batch, step.gradient, step.before)

    def _felt(self, step: Pending, terms) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the forces of a step on the probes, and its pulls by training pair."""

        def by_pair(grads):
            return self._by_pair.pulls(grads, step.split.parts, *terms)

        made = step.batch, step.gradient, step.split
        forces, pulls = forces_on(self.policy, self._probes, *made, by_pair if terms else None)
        if pulls is None:
            pulls = np.full((len(forces), len(self._used), 2), np.nan)
        return forces, pulls

    def _looked(self) -> dict[str, np.ndarray]:
        logps, kl = self._watch.look(self.policy)
        sums = self._watch.sums(logps), self._watch.sums(self._watch.ref_logps)
        found = batch_gradient.weigh(self.loss, scores(self._probes, *sums), self.hparams)
        self.settings.update(loss_name=found.loss_name, **found.hparams)
        return {"logps": logps, "kl": kl, "losses": found.losses}

    def _kept(self) -> dict[str, Tensor]:
        return _on_cpu(self._selected)


def _on_cpu(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in values.items()}


TrainingRun.__signature__ = signature(None)
