"""Token masks: which tokens of a response a pair's log-probability counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit.model import Policy
from toolkit.model.forward import sequences
from toolkit.model.inputs import Pairs, encoded_pair, encoded_pairs
from toolkit.model.scores import SIDES
from toolkit.model.tokens import token_columns
from toolkit.pairs import EncodedPair, PairError, PreferencePair


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


def mask_frame(policy: Policy, pair: PreferencePair | EncodedPair, masked: EncodedPair):
    """Return which tokens of a pair a mask leaves, for ``plots.token_strip_html(value="mask")``.

    Args:
        policy: Its tokenizer reads the tokens.
        pair: The pair without the mask.
        masked: The same with it.

    Returns:
        A frame with one row per scored token: ``pair_id, side, position, token, token_id`` and
        ``mask``, 1 or 0.

    Raises:
        ValueError: If the mask is of another pair: other tokens, or another length.
    """
    whole = encoded_pair(policy, pair)
    columns, kept = {"pair_id": whole.id}, []
    rows = sequences([whole])
    for (ids, mask), (other, left), side in zip(rows, sequences([masked]), SIDES, strict=True):
        if not torch.equal(ids, other) or len(left) != len(mask) or bool((left & ~mask).any()):
            raise ValueError(
                f"masked: its {side} response is not that of pair {whole.id!r} with a mask of "
                f"{len(mask)} positions, received {len(left)}: give what contrast_only returns"
            )
        kept.append(left[mask].int())
    columns |= token_columns(policy.tokenizer, rows)
    return pd.DataFrame({**columns, "mask": torch.cat(kept).numpy()})


def _contrast(pair: EncodedPair) -> EncodedPair:
    sides = sequences([pair])
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
