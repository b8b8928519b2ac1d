"""The forces behind a step: what each part of an optimiser's move does to each response.

Every optimiser here moves the weights linearly in the gradient and in its momentum, under its own
denominators. So its move is a sum, exactly: of the terms of the loss that raise chosen responses,
of those that lower rejected ones, the same of earlier steps through the momentum, weight decay and
projection. A response changes by ``⟨∇log π, ·⟩`` of each, at first order.

One backward per response serves all parts, however many they are, and the response's own share
too; forward derivatives would take one pass over all responses for each part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.dynamics import batch_gradient
from toolkit.dynamics._step_parts import StepParts, buffer_of, step_parts
from toolkit.gradients.products import flat_products
from toolkit.model import Policy
from toolkit.model.forward import Row, Scorer, evaluation, sequences
from toolkit.model.parameters import only
from toolkit.model.scores import same_tokens
from toolkit.pairs import EncodedPair

EARLIER = ("earlier_chosen", "earlier_rejected", "earlier_unsplit")
FORCES = (
    "own_chosen",
    "own_rejected",
    "others_chosen",
    "others_rejected",
    *EARLIER,
    "decay",
    "projection",
)
MOVES = ("batch_chosen", "batch_rejected", *FORCES[4:])
Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class SplitStep:
    """A step whose move is split by what caused it.

    Attributes:
        before: Weights before it, by parameter name.
        names: The parts that moved anything, some of ``MOVES``.
        moves: Δθ by part, ``[parts, *shape]`` by parameter name; parameters that stayed are left
            out.
        parts: The factors of the step, by parameter name.
    """

    before: Values
    names: list[str]
    moves: Values
    parts: Mapping[str, StepParts]


class SplitMoments:
    """Momentum buffers kept apart by what built them, as the optimiser's own recursion does.

    ``chosen``, ``rejected``, ``decay`` (where it enters the gradient), and ``unsplit``: moments
    that an optimiser brought with it. They sum to the optimiser's own buffer up to rounding.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]):
        brought = {name: buffer_of(optimizer, p) for name, p in named.items()}
        self._kept: dict[str, dict[str, Tensor]] = {
            name: {"unsplit": _wide(buffer).clone()}
            for name, buffer in brought.items()
            if buffer is not None
        }

    def advance(
        self,
        optimizer: torch.optim.Optimizer,
        named: Mapping[str, nn.Parameter],
        before: Values,
        batch: batch_gradient.Minibatch,
    ) -> SplitStep | None:
        """Return the split of the step that was just taken, ``None`` if it is not known.

        Args:
            optimizer: After its step.
            named: The parameters by name, as the optimiser holds them.
            before: Their values before the step.
            batch: The minibatch gradient, split by the terms of the loss.
        """
        grads = {name: g for name, g in batch.clipped.items() if g is not None}
        known = {}
        for name, g in grads.items():
            old = sum(self._kept.get(name, {}).values()) if name in self._kept else None
            known[name] = step_parts(optimizer, named[name], _wide(before[name]), _wide(g), old)
            if known[name] is None:
                return None
        found: dict[str, dict[str, Tensor]] = {move: {} for move in MOVES}
        for name, parts in known.items():
            theta, total = _wide(before[name]), _wide(grads[name])
            built = batch.from_chosen[name]
            chosen = torch.zeros_like(total) if built is None else _wide(built) * batch.clip_factor
            incoming = {"chosen": chosen, "rejected": total - chosen}
            for move, values in self._moves(name, parts, theta, incoming).items():
                found[move][name] = values
        present = [move for move in MOVES if found[move]]
        stacked = {}
        for name in known:
            blank = torch.zeros_like(_wide(before[name]))
            stacked[name] = torch.stack([found[move].get(name, blank) for move in present])
        return SplitStep(before, present, stacked, known)

    def _moves(self, name, parts: StepParts, theta: Tensor, incoming) -> dict[str, Tensor]:
        """Return one parameter's Δθ by part, and let its buffers go on."""
        if parts.l2:
            incoming = {**incoming, "decay": parts.l2 * theta}
        old = self._kept.get(name, {})
        now = {kind: -parts.scale * values for kind, values in incoming.items()}
        past = {kind: -parts.past * values for kind, values in old.items()}
        if parts.take is not None:
            kinds = dict.fromkeys([*old, *incoming])
            self._kept[name] = {kind: _next(kind, parts, old, incoming) for kind in kinds}
        decay = [now.pop("decay", None), past.pop("decay", None)]
        decay.append(-parts.decoupled * theta if parts.decoupled else None)
        found = {f"batch_{kind}": values for kind, values in now.items()}
        found |= {f"earlier_{kind}": values for kind, values in past.items()}
        given = [values for values in decay if values is not None]
        found |= {"decay": sum(given)} if given else {}
        return found | ({} if parts.projection is None else {"projection": parts.projection})


def forces_on(
    policy: Policy,
    probes: Sequence[EncodedPair],
    batch: Sequence[EncodedPair],
    gradient: batch_gradient.Minibatch,
    step: SplitStep | None,
    by_pair: Callable[[list[Values]], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the forces of one step on each response in nats, ``[2·probes, len(FORCES)]``.

    A probe that is in the minibatch moves itself by
    ``d_chosen·⟨g, g_chosen⟩_P − d_rejected·⟨g, g_rejected⟩_P`` over the size of the minibatch.

    Args:
        policy: The model; its own weights do not matter.
        probes: The responses.
        batch: The pairs of the minibatch.
        gradient: Its gradient.
        step: Its split; ``None``: everything is NaN.
        by_pair: What to find besides from the gradients of a probe's two responses.
    """
    found, more = np.zeros((2 * len(probes), len(FORCES))), []
    if step is None:
        return np.full_like(found, np.nan), None
    weights = gradient.weights
    for k, (probe, rows) in enumerate(zip(probes, map(_rows, probes), strict=True)):
        grads = [_gradient(policy, [row], step.before) for row in rows]
        moved = dict.fromkeys(MOVES, 0.0)
        along = sum(flat_products(torch.stack([a[n] for a in grads]), m)
                    for n, m in step.moves.items())  # fmt: skip
        moved.update(zip(step.names, np.asarray(along).T, strict=True))
        # The same pair can be in the minibatch twice: both pull.
        at = [i for i, pair in enumerate(batch) if same_tokens(pair, probe)]
        own = np.zeros((2, 2))
        if len(at) == len(batch):
            own = np.stack([np.broadcast_to(moved[name], 2) for name in MOVES[:2]], axis=1)
        elif at:
            pulls = [weights.d_chosen[at].sum(), -weights.d_rejected[at].sum()]
            share = gradient.clip_factor / len(batch)
            own = _products(grads, step.parts) * np.array(pulls) * share
        others = [moved["batch_chosen"] - own[:, 0], moved["batch_rejected"] - own[:, 1]]
        rest = [np.broadcast_to(moved[name], 2) for name in FORCES[4:]]
        found[2 * k : 2 * k + 2] = np.stack([*own.T, *others, *rest], axis=1)
        more += [by_pair(grads)] if by_pair else []
    return found, np.concatenate(more) if more else None


def pair_terms(
    policy: Policy,
    batch: Sequence[EncodedPair],
    gradient: batch_gradient.Minibatch,
    before: Values,
) -> list[dict[str, Tensor]]:
    """Return each pair's share of a minibatch's gradient after clipping: one backward per pair."""
    weights, share = gradient.weights, gradient.clip_factor / len(batch)
    pulls = np.stack([-weights.d_chosen, weights.d_rejected], axis=1) * share
    return [
        _gradient(policy, _rows(pair), before, pull)
        for pair, pull in zip(batch, pulls, strict=True)
    ]


def unexplained(
    actual: np.ndarray, forces: np.ndarray, predicted: np.ndarray | float = np.nan
) -> np.ndarray:
    """Return what forces ``[…, len(FORCES)]`` leave of actual changes, so that all sum to them.

    Where the forces are not known, the prediction takes their place.
    """
    known = forces.sum(-1)
    return actual - np.where(np.isnan(known), predicted, known)


def _gradient(
    policy: Policy, rows: list[Row], values: Values, pulls: Sequence[float] = (1.0,)
) -> dict[str, Tensor]:
    """Return ``Σ pull·∇log π`` of responses at these weights."""
    model = policy.model
    leaves = {f"model.{name}": v.detach().requires_grad_() for name, v in values.items()}
    with only(model, {}), evaluation(model):
        logps = torch.func.functional_call(Scorer(model, rows), leaves, ())
        total = sum(float(pull) * x.sum() for pull, x in zip(pulls, logps, strict=True))
        grads = torch.autograd.grad(
            total, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
    return {name: _wide(g) for name, g in zip(values, grads, strict=True)}


def _products(grads: Sequence[Values], parts: Mapping[str, StepParts]) -> np.ndarray:
    """Return ⟨g_i, g_j⟩_P of the two responses of a pair, ``[2, 2]``."""
    total = np.zeros((2, 2))
    for name, part in parts.items():
        both = torch.stack([g[name] for g in grads])
        total += flat_products(both * part.scale, both).numpy()
    return total


def _rows(pair: EncodedPair) -> list[Row]:
    return sequences([pair])


def _next(kind: str, parts: StepParts, old: Values, incoming: Values) -> Tensor:
    kept = parts.keep * old[kind] if kind in old else None
    taken = parts.take * incoming[kind] if kind in incoming else None
    return kept if taken is None else taken if kept is None else kept + taken


def _wide(values: Tensor) -> Tensor:
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))
