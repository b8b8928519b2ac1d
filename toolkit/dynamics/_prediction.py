"""The predicted change of each response in one step, split by what caused it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.dynamics import _optimizers, _step, _step_parts
from toolkit.dynamics._step_parts import StepParts
from toolkit.gradients import Metric, pair_stats
from toolkit.model import Policy
from toolkit.pairs import EncodedPair

PARTS = ("self_delta", "cross_delta", "momentum_delta", "weight_decay_delta", "projection_delta")


@dataclass(frozen=True)
class TakenStep:
    """A step taken on a copy of the weights.

    Attributes:
        before: Weights before it, by parameter name.
        after: Weights after it.
        parts: What moved each parameter; ``None`` for an optimiser whose parts are not known.
        batch: The minibatch gradient behind it.
    """

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    parts: dict[str, StepParts] | None
    batch: _step.Minibatch


def take_step(
    selected: Mapping[str, nn.Parameter], batch: _step.Minibatch, recipe: _optimizers.Recipe
) -> TakenStep:
    """Let the optimiser step on clones of the parameters; the parameters themselves stay.

    Args:
        selected: Parameters by name.
        batch: Their gradient.
        recipe: The optimiser.
    """
    before = {name: p.detach() for name, p in selected.items()}
    clones = {name: nn.Parameter(p.clone()) for name, p in before.items()}
    optimizer, grads = recipe.over(selected, clones), batch.clipped
    old = _step_parts.buffers(optimizer)
    # Some optimisers write into the gradient, which is still needed.
    given = {clones[name]: None if g is None else g.clone() for name, g in grads.items()}
    _optimizers.apply(optimizer, given)
    parts = {}
    for name, clone in clones.items():
        if grads[name] is not None:
            past = old.get(clone, {})
            parts[name] = _step_parts.step_parts(optimizer, clone, before[name], grads[name], past)
    known = all(part is not None for part in parts.values())
    after = {name: clone.detach() for name, clone in clones.items()}
    return TakenStep(before, after, parts if known else None, batch)


def split(
    policy: Policy, encoded: Sequence[EncodedPair], probes: Sequence[EncodedPair], step: TakenStep
) -> dict[str, np.ndarray]:
    """Return the parts of the predicted change of each probe response, ``[2·probes]`` each.

    Every part is its own forward-mode pass along its own direction, so that their sum is a check
    and no construction; ``self_delta`` is the closed form under the metric of the step.
    """
    size = 2 * len(probes)
    if step.parts is None:
        return {name: np.full(size, np.nan) for name in PARTS}
    found = {}
    for name in ("momentum", "weight_decay", "projection"):
        move = {n: getattr(part, name) for n, part in step.parts.items()}
        found[f"{name}_delta"] = _along(policy, probes, step, move)
    if any(part.scale is None for part in step.parts.values()):
        unknown = np.full(size, np.nan)
        return {"self_delta": unknown, "cross_delta": unknown, **found}
    grads = step.batch.clipped
    pulls = {n: -part.scale * grads[n] for n, part in step.parts.items()}
    own = _own(policy, encoded, probes, step)
    return {"self_delta": own, "cross_delta": _along(policy, probes, step, pulls) - own, **found}


def _along(policy, probes, step: TakenStep, move: Mapping[str, Tensor | None]) -> np.ndarray:
    if all(m is None for m in move.values()):
        return np.zeros(2 * len(probes))
    filled = {n: torch.zeros_like(b) if move.get(n) is None else move[n] for n, b in _items(step)}
    return _step.sums_of(_step.directional(policy, probes, step.before, filled))


def _own(policy, encoded, probes, step: TakenStep) -> np.ndarray:
    """Return what each probe's own gradient in the minibatch does to it (FORMULAS A.2 under P)."""
    found = np.zeros((len(probes), 2))
    places = [[i for i, e in enumerate(encoded) if _step.same_tokens(e, p)] for p in probes]
    inside = [k for k, at in enumerate(places) if at]
    if not inside:
        return found.ravel()
    scales, selected = {n: part.scale for n, part in step.parts.items()}, set(step.before)
    plain = all(isinstance(s, float) for s in scales.values()) and len(set(scales.values())) == 1
    metric = None if plain else Metric("step", _weights(step, scales))
    factor = next(iter(scales.values())) if plain else 1.0
    stats = pair_stats(
        policy,
        [probes[k] for k in inside],
        params=lambda name, p: name in selected,
        metric=metric,
        progress=False,
    )
    weights = step.batch.weights
    for row, k in enumerate(inside):
        # The same pair can be in the minibatch twice: both pull.
        up, down = (float(d[places[k]].sum()) for d in (weights.d_chosen, weights.d_rejected))
        inner = stats.inner[row]
        found[k, 0] = up * stats.chosen_sq_norm[row] - down * inner
        found[k, 1] = up * inner - down * stats.rejected_sq_norm[row]
    return (found * factor * step.batch.clip_factor / len(encoded)).ravel()


def _weights(step: TakenStep, scales: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    # A parameter that the loss does not reach has no gradient for its weight to meet.
    return {n: torch.zeros_like(b) + scales.get(n, 0.0) for n, b in _items(step)}


def _items(step: TakenStep):
    return step.before.items()
