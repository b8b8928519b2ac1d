"""A rule or a constraint at work on a model: it measures what it reads, and weighs the step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.gradients import Preconditioner, concat_stats, iter_pair_stats
from toolkit.losses import LossWeights, PairLogSums
from toolkit.model import Policy
from toolkit.model.batching import by_length, longest
from toolkit.model.forward import evaluation, scored_logps, sequences
from toolkit.model.parameters import Parameters, only
from toolkit.pairs import EncodedPair
from toolkit.remedies.constraints import Constrained, check_start
from toolkit.remedies.update_rules import UpdateRule, check_rule

POSITIONS = 4096  # most tokens of one pass over a minibatch
METRICS = (torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam, torch.optim.AdamW)
Products = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Bound:
    """A rule with the model and the optimiser that it serves.

    Attributes:
        rule: The rule.
        constraint: The bounds on top of it, or ``None``.
        policy: The model that is trained.
        selected: Its parameters that are trained.
        optimizer: The optimiser.
        held: The same parameters as the optimiser holds them.
    """

    rule: UpdateRule
    constraint: Constrained | None
    policy: Policy
    selected: Parameters
    optimizer: torch.optim.Optimizer
    held: Mapping[str, nn.Parameter]

    def __call__(
        self,
        weights: LossWeights,
        found: PairLogSums,
        batch: Sequence[EncodedPair],
        notes: Mapping[str, float],
    ) -> tuple[LossWeights, dict[str, float]]:
        """Return the loss with the weights that this minibatch gets, and the notes of this step.

        Args:
            weights: Those of the loss.
            found: The minibatch's log-probabilities.
            batch: Its pairs.
            notes: Those of the step before, nothing before the first one.

        Raises:
            ValueError: If a function of the user's returns no weights.
        """
        weights, now = self._by_rule(weights, batch), {}
        if self.constraint is not None:
            chosen, rejected, now = self.constraint.pulls(weights, found, notes)
            weights = replace(weights, d_chosen=chosen, d_rejected=rejected)
        return weights, now

    def _by_rule(self, weights: LossWeights, batch: Sequence[EncodedPair]) -> LossWeights:
        d_chosen, d_rejected = weights.d_chosen, weights.d_rejected
        if not self.rule.reads_gradients:
            nothing = np.zeros(len(batch))
            found = self.rule.weights(d_chosen, d_rejected, nothing, nothing, nothing)
        elif self.rule.per == "pair":
            found = self.rule.weights(d_chosen, d_rejected, *self._pair_products(batch))
        else:
            # The sums as those of one pair, with mean weights: every pair gets its factors.
            sizes = [np.abs(d).mean(keepdims=True) for d in (d_chosen, d_rejected)]
            shares = [np.divide(d, s, out=np.zeros_like(d), where=s > 0)
                      for d, s in zip((d_chosen, d_rejected), sizes, strict=True)]  # fmt: skip
            new = self.rule.weights(*sizes, *self._sum_products(batch, shares))
            found = [n * share for n, share in zip(new, shares, strict=True)]
        return replace(weights, d_chosen=found[0], d_rejected=found[1])

    def _pair_products(self, batch: Sequence[EncodedPair]) -> Products:
        """Return both norms and the inner product of each pair, ``[B]``."""
        own = copy.copy(self.policy)
        own.ref_model = None  # its log-probabilities are not needed here
        parts = iter_pair_stats(
            own,
            batch,
            params=lambda name, p: name in self.selected,
            preconditioner=self._preconditioner(),
        )
        stats = concat_stats(list(parts))
        return np.sqrt(stats.chosen_sq_norm), np.sqrt(stats.rejected_sq_norm), stats.inner

    def _sum_products(self, batch: Sequence[EncodedPair], shares) -> Products:
        """Return the same of ``Σ share·g / B`` over the minibatch, each of shape ``[1]``."""
        p = self._preconditioner()
        scales = [None] * len(self.selected) if p is None else p.of(self.selected)
        chosen, rejected = (self._gradient(batch, side, s) for side, s in enumerate(shares))

        def product(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
            terms = zip(a, b, scales, strict=True)
            return sum(float((x.double() * y * (1 if s is None else s)).sum()) for x, y, s in terms)

        norms = [np.sqrt([product(g, g)]) for g in (chosen, rejected)]
        return *norms, np.array([product(chosen, rejected)])

    def _gradient(self, batch: Sequence[EncodedPair], side: int, shares) -> list[Tensor]:
        """Return ``∇ Σ share·log π / B`` of one side's responses, by parameter."""
        model, wanted = self.policy.model, list(self.selected.values())
        total = [torch.zeros_like(p) for p in wanted]
        parts = by_length(list(map(longest, batch)), positions=POSITIONS)
        with only(model, self.selected), evaluation(model):
            for part in parts:
                rows = sequences([batch[i] for i in part])[side::2]
                pull = torch.as_tensor(shares[part] / len(batch))
                sums = torch.stack([x.double().sum() for x in scored_logps(model, rows)])
                grads = torch.autograd.grad(pull.to(sums) @ sums, wanted, allow_unused=True)
                total = [t if g is None else t + g for t, g in zip(total, grads, strict=True)]
        return total

    def _preconditioner(self) -> Preconditioner | None:
        """Return the optimiser's P as it stands; ``None`` where that is 1 for every parameter."""
        plain = isinstance(self.optimizer, torch.optim.SGD) or not self.optimizer.state
        if self.rule.metric == "plain" or plain:
            return None
        known = {n: p for n, p in self.held.items() if self.optimizer.state.get(p)}
        found = Preconditioner.from_optimizer(self.optimizer, known)
        # Nothing pulled on the others so far: as far as P goes they are free.
        rest = {n: torch.ones_like(p) for n, p in self.held.items() if n not in known}
        return Preconditioner(found.name, {**found.weights, **rest})


def bound(
    rule: UpdateRule | Constrained,
    policy: Policy,
    selected: Parameters,
    optimizer: torch.optim.Optimizer,
    held: Mapping[str, nn.Parameter],
    pairs: Sequence[EncodedPair],
) -> Bound | None:
    """Return a rule at work, ``None`` for the plain one.

    Args:
        rule: What was asked for, checked.
        policy: The model that is trained.
        selected: Its parameters that are trained.
        optimizer: The optimiser.
        held: The same parameters as the optimiser holds them.
        pairs: All pairs that will be trained on.

    Raises:
        ValueError: If it is to use the metric of an optimiser that has none, or a bound does not
            hold at the start.
    """
    constraint = rule if isinstance(rule, Constrained) else None
    rule = check_rule(constraint.rule) if constraint else rule
    if rule.metric == "optimizer" and type(optimizer) not in METRICS:
        allowed = ", ".join(kind.__name__ for kind in METRICS)
        raise ValueError(
            f'metric="optimizer" of the update_rule needs an optimizer with a diagonal P of its '
            f'own ({allowed}), received {type(optimizer).__name__}: take metric="plain"'
        )
    if constraint is not None:
        check_start(constraint, policy, pairs)
    elif rule.rule == "plain":
        return None
    return Bound(rule, constraint, policy, selected, optimizer, held)
