"""How many pairs go through the model at once, and what to do where that was too many."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from toolkit.checks import whole
from toolkit.pairs import EncodedPair

POSITIONS = {"cpu": 1024, "cuda": 65536}  # of one batch: more was no faster
BUDGET = 2 << 30  # bytes on the CPU; on another device half of its memory
Result = TypeVar("Result")
# What torch says where it raises a bare RuntimeError: its CPU allocator on Linux, macOS and
# Windows, the C++ runtime, and devices other than CUDA's caching allocator.
_SAYINGS = ("defaultcpuallocator", "allocate memory", "enough memory", "out of memory", "bad_alloc")


def batches(items: Sequence, size: int | None) -> Iterator[Sequence]:
    """Yield consecutive slices of ``size`` items (default 8).

    Raises:
        ValueError: If ``size`` is not a positive integer.
    """
    size = 8 if size is None else size
    whole("batch_size", size)
    for i in range(0, len(items), size):
        yield items[i : i + size]


def runs(
    lengths: Sequence[int],
    *,
    count: int | None = None,
    positions: int | None = None,
    padding: int | None = None,
) -> Iterator[range]:
    """Yield the places of neighbours that go through the model together, one of them at least.

    Args:
        lengths: Tokens of each item; a batch is as wide as its longest.
        count: Most items of a batch; ``None`` sets no limit, here and below.
        positions: Most tokens of a batch, padding counted.
        padding: Most tokens of padding in a batch.
    """
    limits = [math.inf if limit is None else limit for limit in (count, positions, padding)]
    start = widest = total = 0
    for i, length in enumerate(lengths):
        widest, total = max(widest, length), total + length
        area = (i + 1 - start) * widest
        taken = i + 1 - start, area, area - total
        if i > start and any(t > limit for t, limit in zip(taken, limits, strict=True)):
            yield range(start, i)
            start, widest, total = i, length, length
    if start < len(lengths):
        yield range(start, len(lengths))


def by_length(
    lengths: Sequence[int], *, longest_first: bool = False, **limits: int | None
) -> Iterator[list[int]]:
    """Yield the places of items of like length, together as far as the limits of `runs` allow."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=longest_first)
    for run in runs([lengths[i] for i in order], **limits):
        yield [order[i] for i in run]


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
    for run in runs([longest(pair) for pair in pairs], positions=room // 2):
        yield pairs[run.start : run.stop]


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        return BUDGET
    return torch.cuda.get_device_properties(device).total_memory // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on any system and device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _SAYINGS)


def in_halves(run: Callable[[Sequence], Result], items: Sequence) -> list[Result]:
    """Return ``[run(items)]``, or the results of its halves in order where memory runs out.

    Nothing of a try that failed is held when its halves are tried.

    Raises:
        Exception: What ``run`` raises for another reason, or for a single item.
    """
    try:
        return [run(items)]
    except (MemoryError, RuntimeError) as error:
        if len(items) == 1 or not is_out_of_memory(error):
            raise
    gc.collect()  # the error held its frames, and these may be in circles
    half = len(items) // 2
    return [found for part in (items[:half], items[half:]) for found in in_halves(run, part)]
