"""How many pairs go through the model at once: as many as a memory budget holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from toolkit.checks import whole
from toolkit.model import batches
from toolkit.pairs import EncodedPair

POSITIONS = {"cpu": 1024, "cuda": 65536}  # of one batch: more was no faster
BUDGET = 2 << 30  # bytes on the CPU; on another device half of its memory


def longest(pair: EncodedPair) -> int:
    """Return the length of the longer response of a pair, prompt included."""
    return max(len(pair.chosen_ids), len(pair.rejected_ids))


def fitting(
    pairs: Sequence[EncodedPair],
    size: int | None,
    position_bytes: int,
    device: torch.device,
    memory: int | None = None,
) -> Iterator[Sequence[EncodedPair]]:
    """Yield consecutive pairs that fit into memory together, padding counted; one at least.

    Args:
        pairs: Encoded pairs, best of similar length next to each other.
        size: Pairs a batch; ``None`` lets the budget decide.
        position_bytes: What one position of one row takes; 0 where that is not known.
        device: Where the model is.
        memory: Bytes that activations may take; ``None``: 2 GiB on the CPU, half of the memory of
            another device. A fixed number, not what happens to be free: batches, and with them the
            last bits of a result, are the same in every run.

    Raises:
        ValueError: If ``size`` or ``memory`` is not a positive integer.
    """
    if memory is not None:
        whole("memory", memory, unit="number of bytes")
    if size is not None or not position_bytes:
        yield from batches(pairs, size)
        return
    room = min(
        POSITIONS.get(device.type, POSITIONS["cuda"]),
        (memory or _budget(device)) // position_bytes,
    )
    start, widest = 0, 0
    for i, pair in enumerate(pairs):
        widest = max(widest, longest(pair))
        if i > start and 2 * (i + 1 - start) * widest > room:
            yield pairs[start:i]
            start, widest = i, longest(pair)
    yield pairs[start:]


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        return BUDGET
    return torch.cuda.get_device_properties(device).total_memory // 2
