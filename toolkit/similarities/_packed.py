"""Both responses of a pair in one row, so that the tokens they share are computed once.

A row is ``[shared; rest of chosen; rest of rejected]``. The rest of rejected takes up the positions
after the shared part again, and a 4-D mask hides the rest of chosen from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from toolkit.pairs import EncodedPair

States = tuple[Tensor, Tensor]  # chosen [length, d] and rejected [length, d], prompt included


def shared_length(enc: EncodedPair) -> int:
    """Return the length of the longest common token prefix of both sequences, prompt included."""
    n = min(len(enc.chosen_ids), len(enc.rejected_ids))
    apart = (enc.chosen_ids[:n] != enc.rejected_ids[:n]).nonzero()
    return int(apart[0]) if len(apart) else n


def packed_length(enc: EncodedPair) -> int:
    """Return the number of tokens of the pair's packed row."""
    return len(enc.chosen_ids) + len(enc.rejected_ids) - shared_length(enc)


def packed_inputs(
    pairs: Sequence[EncodedPair], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Return the model's inputs for packed rows, padded on the right.

    Args:
        pairs: N encoded pairs; T is the longest packed row.
        dtype: Float dtype of the mask: that of the model's states.
        device: Where the inputs are wanted.

    Returns:
        ``input_ids`` and ``position_ids`` ``[N, T]``, and the additive ``attention_mask``
        ``[N, 1, T, T]``: 0 where row i sees column j, the dtype's lowest number elsewhere.
    """
    ids, positions = [], []
    for enc in pairs:
        shared = shared_length(enc)
        ids.append(torch.cat([enc.chosen_ids, enc.rejected_ids[shared:]]))
        ends = (0, len(enc.chosen_ids)), (shared, len(enc.rejected_ids))
        positions.append(torch.cat([torch.arange(*end) for end in ends]))
    pad = nn.utils.rnn.pad_sequence
    padded = pad(ids, batch_first=True).to(device)
    return {
        "input_ids": padded,
        "position_ids": pad(positions, batch_first=True).to(device),
        "attention_mask": _mask(pairs, padded.shape[1], dtype, device),
    }


def unpacked(rows: Tensor, pairs: Sequence[EncodedPair]) -> list[States]:
    """Cut packed rows of states ``[N, T, d]`` into the states of each response."""
    found = []
    for row, enc in zip(rows, pairs, strict=True):
        shared, chosen = shared_length(enc), len(enc.chosen_ids)
        rejected = torch.cat([row[:shared], row[chosen : packed_length(enc)]])
        found.append((row[:chosen], rejected))
    return found


def _mask(pairs, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    places = [(shared_length(enc), len(enc.chosen_ids)) for enc in pairs]
    shared, parted = torch.tensor(places, device=device).T[..., None, None]
    at = torch.arange(width, device=device)
    row, column = at[:, None], at[None, :]
    # Padding follows rejected in its row: it sees something, and nothing sees it.
    hidden = (column > row) | ((row >= parted) & (column >= shared) & (column < parted))
    seen = torch.zeros(hidden.shape, dtype=dtype, device=device)
    return seen.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]
