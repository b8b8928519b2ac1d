"""What to do when memory runs out: the one test for it, and the one way of going on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Result = TypeVar("Result")
# What torch says where it raises a bare RuntimeError: its CPU allocator on Linux, macOS and
# Windows, the C++ runtime, and devices other than CUDA's caching allocator.
_SAYINGS = ("defaultcpuallocator", "allocate memory", "enough memory", "out of memory", "bad_alloc")


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
