"""One training step: the minibatch gradient, and what a move of the weights does to responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.gradients.fallback import directional_logps
from toolkit.losses import LossWeights, loss_weights
from toolkit.model import Params, Policy, reference, reference_logps
from toolkit.model.batching import by_length, longest
from toolkit.model.forward import (
    Row,
    Scorer,
    evaluation,
    scored_logps,
    sequences,
)
from toolkit.model.inputs import Skipped, encoded_pairs, skipped_pairs
from toolkit.model.parameters import Parameters, only
from toolkit.pairs import EncodedPair

SIDES = ("chosen", "rejected")
CELLS = 1 << 26  # most logits of one forward pass: 256 MB in float32
PADDING = (
    24  # most padded tokens (of one side) in a forward pass: more costs more than another pass
)
Values = Mapping[str, Tensor]


class NotFinite(ValueError):
    """A loss is not finite, or a log-probability that it is made of."""


@dataclass(frozen=True)
class Scores:
    """What a loss reads of some pairs; see ``losses.HasLogps``. Arrays ``[B]``, float64."""

    ids: list[str]
    chosen_logps: np.ndarray
    rejected_logps: np.ndarray
    ref_chosen_logps: np.ndarray
    ref_rejected_logps: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray


@dataclass(frozen=True)
class Minibatch:
    """The gradient of the mean loss over a minibatch, and the loss weights behind it.

    Attributes:
        weights: Per-pair losses, ``d_chosen`` and ``d_rejected``.
        grads: ∇ℓ by parameter name; ``None`` where a parameter is not used.
        norm: ‖∇ℓ‖ before clipping.
        clip_factor: What clipping multiplies ∇ℓ by, 1 without.
        from_chosen: The share of ∇ℓ that comes from the chosen responses, if asked for.
    """

    weights: LossWeights
    grads: dict[str, Tensor | None]
    norm: float
    clip_factor: float
    from_chosen: dict[str, Tensor | None] | None = None

    @property
    def clipped(self) -> dict[str, Tensor | None]:
        """∇ℓ after clipping."""
        if self.clip_factor == 1:
            return self.grads
        return {n: None if g is None else g * self.clip_factor for n, g in self.grads.items()}


def trained_and_watched(
    policy: Policy, pairs, probes, on_error: str
) -> tuple[list[EncodedPair], list[EncodedPair] | None, Skipped]:
    """Return the tokens of training pairs and probes, ``None`` if there are none, and the rest."""
    trained = encoded_pairs(policy, pairs, on_error)
    if probes is None:
        return trained.pairs, None, trained.left_out
    watched = encoded_pairs(policy, probes, on_error, name="probes")
    left_out = skipped_pairs([*trained.errors, *watched.errors])
    return trained.pairs, watched.pairs, left_out


def minibatch(
    policy: Policy,
    selected: Parameters,
    batch,
    ref: np.ndarray,
    loss,
    hparams,
    clip=None,
    split: bool = False,
) -> Minibatch:
    """Return the gradient of the mean loss, ``−1/B·Σ (d_chosen·g_chosen − d_rejected·g_rejected)``.

    The loss weights are those of the whole minibatch, however many passes it takes.

    Args:
        policy: The model.
        selected: Parameters to differentiate.
        batch: Encoded pairs.
        ref: Reference log-probabilities of the responses, ``[2B]``.
        loss: Name or function.
        hparams: Its hyper-parameters.
        clip: Largest norm of the gradient, or ``None``.
        split: Find ``from_chosen`` too, by another backward; all else is the same bit for bit.
    """
    model, parts = policy.model, parts_of(policy, batch)
    places = [[2 * i + side for i in part for side in range(2)] for part in parts]
    rows = [sequences([batch[i] for i in part]) for part in parts]
    sums = torch.zeros(2 * len(batch), dtype=torch.float64)
    with only(model, selected), evaluation(model):
        # The loss weights need all log-probabilities; where the graphs of all passes do not fit
        # into memory together, the passes are made once more.
        fits = _cells(policy, batch) <= CELLS
        with torch.set_grad_enabled(fits):
            kept = []
            for at, part in zip(places, rows, strict=True):
                kept.append(_sums(model, part))
                sums[at] = kept[-1].detach().cpu()
        weights = weigh(loss, scores(batch, sums.numpy(), ref), hparams)
        pulls = np.stack([-weights.d_chosen, weights.d_rejected], 1).ravel() / len(batch)
        by_chosen = np.where(np.arange(len(pulls)) % 2, 0.0, pulls)
        sets = np.stack([pulls, by_chosen] if split else [pulls])
        graphs = kept if fits else (_sums(model, part) for part in rows)
        grads, *more = _pulled(selected, graphs, [sets[:, at] for at in places])
    norm = _norm(grads)
    factor = 1.0 if clip is None else min(1.0, float(clip) / (norm + 1e-6))
    return Minibatch(weights, grads, norm, factor, *more)


def weigh(loss, found: Scores, hparams: Mapping[str, float]) -> LossWeights:
    """Return the loss and its weights of each pair; an error names the pair."""
    sides = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    values = np.stack([getattr(found, name) for name in sides])
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        side, i = bad[0]
        raise NotFinite(
            f"the loss of pair {found.ids[i]!r} is not finite: its {sides[side]} is "
            f"{values[side, i]}"
        )
    try:
        return loss_weights(found, loss, **hparams)
    except ValueError as error:
        place = re.search(r"at pair (\d+)$", str(error))
        if not place:
            raise
        raise NotFinite(f"{error} ({found.ids[int(place.group(1))]!r})") from None


def scores(batch: Sequence[EncodedPair], own: np.ndarray, ref: np.ndarray) -> Scores:
    """Return the loss's view of the responses' sums, both ``[2B]``, chosen before rejected."""
    lengths = [np.array([int(getattr(e, f"{side}_mask").sum()) for e in batch]) for side in SIDES]
    arrays = [np.asarray(x, float)[i::2] for x in (own, ref) for i in range(2)]
    return Scores([e.id for e in batch], *arrays, *lengths)


def labels_of(policy: Policy, params: Params, frozen: str) -> dict[str, object]:
    """Return the policy's labels; ``frozen`` names the reference where it is the policy's own."""
    labels = policy.labels(params)
    if labels.ref == "same weights":
        labels = replace(labels, ref=frozen)
    return labels.to_attrs()


def parts_of(policy: Policy, batch: Sequence[EncodedPair]) -> list[list[int]]:
    """Return the positions of pairs that share a forward pass: like lengths, bounded logits."""
    lengths, most = list(map(longest, batch)), CELLS // (2 * _vocabulary(policy))
    return list(by_length(lengths, positions=most, padding=PADDING))


def by_parts(
    policy: Policy, batch: Sequence[EncodedPair], run: Callable[[list[Row]], list]
) -> list:
    """Run the rows of each part, and return what was found in the order of the batch."""
    found = [None] * (2 * len(batch))
    for part in parts_of(policy, batch):
        rows = sequences([batch[i] for i in part])
        places = [2 * i + side for i in part for side in range(2)]
        for at, value in zip(places, run(rows), strict=True):
            found[at] = value
    return found


def token_logps(policy: Policy, batch, values: Values | None = None) -> list[Tensor]:
    """Return the log-probabilities of each response's tokens, with other weights if given."""
    model = policy.model

    def run(rows):
        if values is None:
            return scored_logps(model, rows)
        named = {f"model.{name}": v for name, v in values.items()}
        return torch.func.functional_call(Scorer(model, rows), named, ())

    with evaluation(model), torch.no_grad():
        return by_parts(policy, batch, run)


def ref_token_logps(policy: Policy, batch, own: list[Tensor]) -> list[Tensor]:
    """Return the same under the reference; ``own`` where the policy is its own reference."""
    with reference(policy) as ref_model:
        if ref_model is None:
            return own
    return by_parts(policy, batch, lambda rows: reference_logps(policy, rows, []))


def directional(policy: Policy, batch, values: Values, move: Values) -> list[Tensor]:
    """Return ⟨∇log π_t, Δθ⟩ of each response's tokens, at the weights ``values``: one pass.

    Forward-mode derivative along the real move: the first-order prediction with nothing assumed
    about loss or optimiser.
    """
    model, at, direction = policy.model, dict(values), [move[name] for name in values]
    with only(model, {}), evaluation(model):
        return by_parts(policy, batch, lambda rows: directional_logps(model, rows, at, direction))


def sums_of(tokens: Sequence[Tensor]) -> np.ndarray:
    """Return the responses' log-probabilities, float64."""
    return np.array([float(x.double().sum()) for x in tokens])


def moved(before: Values, after: Values) -> dict[str, Tensor]:
    """Return Δθ by parameter name, in at least float32."""
    wide = {n: torch.promote_types(b.dtype, torch.float32) for n, b in before.items()}
    return {n: after[n].detach().to(wide[n]) - b.to(wide[n]) for n, b in before.items()}


def regimes(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Return the regime by the signs of two changes; ``None`` where they are NaN."""
    names = np.full(np.shape(chosen), "ideal", dtype=object)
    names[(chosen < 0) & (rejected <= 0)] = "both_down"
    names[(chosen >= 0) & (rejected > 0)] = "both_up"
    names[(chosen < 0) & (rejected > 0)] = "reversed"
    names[(chosen == 0) & (rejected == 0)] = "unchanged"
    names[np.isnan(chosen) | np.isnan(rejected)] = None
    return names


def same_tokens(a: EncodedPair, b: EncodedPair) -> bool:
    """Return whether two encoded pairs are the same to the model."""
    fields = [f"{side}_{what}" for side in SIDES for what in ("ids", "mask")]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)


def _sums(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    return torch.stack([x.double().sum() for x in scored_logps(model, rows)])


def _pulled(selected: Parameters, graphs, pulls) -> list[dict[str, Tensor | None]]:
    """Return ``Σ pull·∇sum`` by parameter name over all passes, for each set of pulls."""
    found: list[dict[str, Tensor | None]] = [dict.fromkeys(selected) for _ in pulls[0]]
    for sums, sets in zip(graphs, pulls, strict=True):
        for grads, pull in zip(found, sets, strict=True):
            pull = torch.tensor(pull, dtype=sums.dtype, device=sums.device)
            more, wanted = grads is not found[-1], list(selected.values())
            new = torch.autograd.grad(sums, wanted, pull, retain_graph=more, allow_unused=True)
            for name, g in zip(selected, new, strict=True):
                if g is not None:
                    grads[name] = g if grads[name] is None else grads[name].add_(g)
    return found


def _cells(policy: Policy, batch: Sequence[EncodedPair]) -> int:
    """Logits of one forward pass, none left out."""
    return 2 * len(batch) * max(map(longest, batch)) * _vocabulary(policy)


def _vocabulary(policy: Policy) -> int:
    return policy.model.get_output_embeddings().weight.shape[0]


def _norm(grads: Values) -> float:
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in _given(grads)]
    return float(np.linalg.norm([float(n) for n in norms]))


def _given(grads: Values) -> list[Tensor]:
    return [g for g in grads.values() if g is not None]
