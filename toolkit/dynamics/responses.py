"""What the policy thinks of responses, and what a move of its weights does to them: few passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit.gradients.fallback import directional_logps
from toolkit.model import Policy, reference, reference_logps
from toolkit.model.batching import by_length, longest
from toolkit.model.forward import Row, Scorer, evaluation, scored_logps, sequences
from toolkit.model.parameters import only
from toolkit.model.scores import same_tokens
from toolkit.pairs import EncodedPair

CELLS = 1 << 26  # most logits of one forward pass: 256 MB in float32
PADDING = 24  # most padded tokens of one side in a pass; more cost more than another pass
Values = Mapping[str, Tensor]


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


def among(probes: Sequence[EncodedPair], batch: Sequence[EncodedPair]) -> list[bool]:
    """Return whether each probe is one of the pairs of a minibatch."""
    return [any(same_tokens(pair, probe) for pair in batch) for probe in probes]


def fits(policy: Policy, batch: Sequence[EncodedPair]) -> bool:
    """Return whether all logits of a minibatch may be held at once."""
    return _cells(policy, batch) <= CELLS


def _cells(policy: Policy, batch: Sequence[EncodedPair]) -> int:
    """Logits of one forward pass, none left out."""
    return 2 * len(batch) * max(map(longest, batch)) * _vocabulary(policy)


def _vocabulary(policy: Policy) -> int:
    return policy.model.get_output_embeddings().weight.shape[0]
