"""Token masks: which tokens of a response a pair's log-probability counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from toolkit.model import Policy
from toolkit.model.inputs import Pairs, encoded_pairs
from toolkit.pairs import EncodedPair, PairError


def contrast_only(policy: Policy, pairs: Pairs) -> list[EncodedPair]:
    """Return the pairs with only those tokens scored that the two responses do not share.

    ``log π^m(y) = Σ_t m_t·log π(y_t | …)`` with m = 0 on a longest common subsequence of the two
    responses. The result goes wherever pairs go: training, norms and inner products, token
    contributions, CHES. Watch a run on the pairs as they were (``probes=pairs``) to see what
    becomes of the whole responses. Losses that divide by a length divide by the tokens left.

    Args:
        policy: Its tokenizer encodes the pairs.
        pairs: Preference pairs.

    Returns:
        One encoded pair for each, its masks narrowed.

    Raises:
        PairError: If a pair cannot be scored, or one response has no token that the other lacks.

    Source:
        arXiv 2410.13828, Section 5, on token masks; the alignment as the fixed mask.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=1)
        >>> pair = tk.contrast_only(policy, pairs)[0]
        >>> pair.chosen_length, pair.rejected_length
        (1, 1)
    """
    return [_contrast(pair) for pair in encoded_pairs(policy, pairs).pairs]


def _contrast(pair: EncodedPair) -> EncodedPair:
    sides = [(pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask)]
    kept = unshared(*(ids[mask].tolist() for ids, mask in sides))
    for side, other, tokens in zip(("chosen", "rejected"), ("rejected", "chosen"), kept,
                                   strict=True):  # fmt: skip
        if not any(tokens):
            raise PairError(
                f"every token of the {side} response stands in the {other} one too: "
                "contrast_only leaves nothing to score",
                pair_id=pair.id,
            )
    masks = [_narrowed(mask, tokens) for (_, mask), tokens in zip(sides, kept, strict=True)]
    return replace(pair, chosen_mask=masks[0], rejected_mask=masks[1])


def _narrowed(mask: Tensor, kept: Sequence[bool]) -> Tensor:
    found = mask.clone()
    found[mask] = torch.tensor(kept)
    return found


def unshared(a: Sequence[int], b: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Return which items of two sequences are in no longest common subsequence of them."""
    longest = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in reversed(list(enumerate(a))):
        for j, y in reversed(list(enumerate(b))):
            skipped = max(longest[i + 1, j], longest[i, j + 1])
            longest[i, j] = longest[i + 1, j + 1] + 1 if x == y else skipped
    own, i, j = ([True] * len(a), [True] * len(b)), 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            own[0][i] = own[1][j] = False
            i, j = i + 1, j + 1
        elif longest[i + 1, j] >= longest[i, j + 1]:
            i += 1
        else:
            j += 1
    return own
