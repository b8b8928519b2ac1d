"""The gradient of the mean loss over a minibatch, and the loss weights behind it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.dynamics.responses import Values, fits, parts_of
from toolkit.losses import FIELDS, LossWeights, PairLogSums, loss_weights
from toolkit.model import Policy
from toolkit.model.forward import Row, evaluation, scored_logps, sequences
from toolkit.model.parameters import Parameters, only
from toolkit.model.scores import scores
from toolkit.remedies import Bound


class NotFinite(ValueError):
    """A loss is not finite, or a log-probability that it is made of."""


@dataclass(frozen=True)
class Minibatch:
    """The gradient of the mean loss over a minibatch, and the loss weights behind it.

    Attributes:
        weights: Per-pair losses, ``d_chosen`` and ``d_rejected``.
        grads: ∇ℓ by parameter name; ``None`` where a parameter is not used.
        norm: ‖∇ℓ‖ before clipping.
        clip_factor: What clipping multiplies ∇ℓ by, 1 without.
        from_chosen: The share of ∇ℓ that comes from the chosen responses.
        notes: What an update rule noted, such as multipliers.
    """

    weights: LossWeights
    grads: dict[str, Tensor | None]
    norm: float
    clip_factor: float
    from_chosen: dict[str, Tensor | None]
    notes: Mapping[str, float] = field(default_factory=dict)

    @property
    def clipped(self) -> dict[str, Tensor | None]:
        """∇ℓ after clipping."""
        if self.clip_factor == 1:
            return self.grads
        return {n: None if g is None else g * self.clip_factor for n, g in self.grads.items()}


def minibatch(
    policy: Policy,
    selected: Parameters,
    batch,
    ref: np.ndarray,
    loss,
    hparams,
    clip=None,
    rule: Bound | None = None,
    notes: Mapping[str, float] | None = None,
) -> Minibatch:
    """Return the gradient of the mean loss, ``−1/B·Σ (d_chosen·g_chosen − d_rejected·g_rejected)``.

    The loss weights are those of the whole minibatch, however many passes it takes. Chosen and
    rejected responses have passes of their own, so that their shares of ∇ℓ cost nothing.

    Args:
        policy: The model.
        selected: Parameters to differentiate.
        batch: Encoded pairs.
        ref: Reference log-probabilities of the responses, ``[2B]``.
        loss: Name or function.
        hparams: Its hyper-parameters.
        clip: Largest norm of the gradient, or ``None``.
        rule: Replaces the loss weights by others.
        notes: What the rule noted of the step before.
    """
    model, parts = policy.model, parts_of(policy, batch)
    places = [[2 * i + side for i in part] for side in range(2) for part in parts]
    every = sequences(batch)
    rows = [[every[k] for k in at] for at in places]
    sums = torch.zeros(2 * len(batch), dtype=torch.float64)
    with only(model, selected), evaluation(model):
        # The loss weights need all log-probabilities; where the graphs of all passes do not fit
        # into memory together, the passes are made once more.
        held = fits(policy, batch)
        with torch.set_grad_enabled(held):
            kept = []
            for at, part in zip(places, rows, strict=True):
                kept.append(_sums(model, part))
                sums[at] = kept[-1].detach().cpu()
        found = scores(batch, sums.numpy(), ref)
        weights, noted = weigh(loss, found, hparams), {}
        if rule is not None:
            weights, noted = rule(weights, found, batch, notes or {})
        pulls = np.stack([-weights.d_chosen, weights.d_rejected], 1).ravel() / len(batch)
        graphs = kept if held else (_sums(model, part) for part in rows)
        given = zip(graphs, (pulls[at] for at in places), strict=True)
        chosen, rejected = (
            _pulled(selected, itertools.islice(given, len(parts))) for _ in range(2)
        )
    grads = {name: _sum(chosen[name], rejected[name]) for name in selected}
    norm = _norm(grads)
    factor = 1.0 if clip is None else min(1.0, float(clip) / (norm + 1e-6))
    return Minibatch(weights, grads, norm, factor, chosen, noted)


def weigh(loss, found: PairLogSums, hparams: Mapping[str, float]) -> LossWeights:
    """Return the loss and its weights of each pair; an error names the pair."""
    sides = FIELDS[:4]
    values = np.stack([getattr(found, name) for name in sides])
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        side, i = bad[0]
        raise NotFinite(
            f"the loss of pair {found.pair_ids[i]!r} is not finite: its {sides[side]} is "
            f"{values[side, i]}"
        )
    try:
        return loss_weights(found, loss, **hparams)
    except ValueError as error:
        place = re.search(r"at pair (\d+)$", str(error))
        if not place:
            raise
        raise NotFinite(f"{error} ({found.pair_ids[int(place.group(1))]!r})") from None


def _sums(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    return torch.stack([x.double().sum() for x in scored_logps(model, rows)])


def _pulled(selected: Parameters, passes) -> dict[str, Tensor | None]:
    """Return ``Σ pull·∇sum`` by parameter name over passes, each the sums and their pulls."""
    found: dict[str, Tensor | None] = dict.fromkeys(selected)
    for sums, pull in passes:
        pull = torch.tensor(pull, dtype=sums.dtype, device=sums.device)
        new = torch.autograd.grad(sums, list(selected.values()), pull, allow_unused=True)
        found = {n: _sum(found[n], g) for n, g in zip(selected, new, strict=True)}
    return found


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _norm(grads: Values) -> float:
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in _given(grads)]
    return float(np.linalg.norm([float(n) for n in norms]))


def _given(grads: Values) -> list[Tensor]:
    return [g for g in grads.values() if g is not None]
