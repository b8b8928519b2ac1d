"""Log-probabilities of pairs, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.model.batching import batches
from toolkit.model.forward import Row, evaluation, scored_logps, sequences
from toolkit.model.inputs import Pairs, Skipped, encoded_pairs, skipped_frame
from toolkit.model.policy import Policy
from toolkit.model.reference import reference_logps
from toolkit.model.tokens import token_texts
from toolkit.model.turns import alone


@dataclass(frozen=True)
class PairLogps:
    """Per-token log-probabilities of one pair, in nats.

    Attributes:
        pair_id: The pair's id.
        chosen: Log-probability of each scored chosen token, shape ``[chosen_length]``.
        rejected: The same for the rejected response, shape ``[rejected_length]``.
        ref_chosen: Chosen under the reference model, same shape as ``chosen``.
        ref_rejected: Rejected under the reference model.
        chosen_tokens: Text of each scored chosen token; of several tokens that are pieces of one
            character the first holds it, the others are empty.
        rejected_tokens: The same of the rejected response.
    """

    pair_id: str
    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: list[str]
    rejected_tokens: list[str]


class ScoredPairs(list[PairLogps]):
    """Log-probabilities of pairs in order; `skipped`: a frame (row, pair_id, reason) of others.

    Attributes:
        skipped: The pairs that could not be scored, under ``on_error="skip"``.
    """

    def __init__(self, found: Iterable[PairLogps], left_out: Skipped = ()) -> None:
        super().__init__(found)
        self.skipped = skipped_frame(left_out)


def per_token_logps(
    policy: Policy,
    pairs: Pairs,
    *,
    batch_size: int | None = None,
    on_error: str = "raise",
) -> ScoredPairs:
    """Return log π(y_t | x, y_<t) of every scored token of both responses, in nats.

    Args:
        policy: The model; the reference is scored too (once, when it has the same weights).
        pairs: Preference pairs, plain or encoded; a single pair is allowed.
        batch_size: Pairs scored at once (default 8). It never changes a result beyond rounding.
        on_error: "raise" stops at the first pair that cannot be scored, before any work; "skip"
            leaves such pairs out and names them in ``.skipped``.

    Returns:
        A list of one :class:`PairLogps` per pair, in order, with ``.skipped``.

    Raises:
        PairError: If a pair cannot be scored; the message names it.
        ValueError: If ``batch_size`` is not a positive integer.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> logps = tk.per_token_logps(policy, tk.load_pairs("single_token", limit=2))
        >>> logps[0].chosen.shape
        torch.Size([2])
    """
    found, results = encoded_pairs(policy, pairs, on_error), []
    for batch in batches(found.pairs, batch_size):
        rows = sequences(batch)
        own, ref = _both_logps(policy, rows)
        for i, enc in enumerate(batch):
            tokens = [token_texts(policy.tokenizer, *row) for row in rows[2 * i : 2 * i + 2]]
            results.append(
                PairLogps(enc.id, *own[2 * i : 2 * i + 2], *ref[2 * i : 2 * i + 2], *tokens)
            )
    return ScoredPairs(results, found.left_out)


@alone
def _both_logps(policy: Policy, rows: Sequence[Row]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the rows' log-probabilities under the policy and under its reference."""
    with evaluation(policy.model), torch.no_grad():
        own = scored_logps(policy.model, rows)
    return own, reference_logps(policy, rows, own)
