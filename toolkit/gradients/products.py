"""Inner products of gradients, summed in float64 whatever their dtype, a group at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

CHUNK = 1 << 22  # entries turned to float64 at once
Item = TypeVar("Item")


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return ⟨a, b⟩: short float32 dots (one per row), summed in float64."""
    width = a.shape[-1] if a.dim() > 1 else len(a)
    if width <= 1 << 12:
        rows = torch.linalg.vecdot(a.reshape(-1, width), b.reshape(-1, width))
        return rows.sum(dtype=torch.float64).cpu()
    parts = zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK), strict=True)
    return sum(x.double() @ y.double() for x, y in parts).cpu()


def flat_products(a: Tensor, b: Tensor) -> Tensor:
    """Return ``[len(a), len(b)]`` inner products of everything behind the first dimension."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    spans = zip(a.split(1 << 16, 1), b.split(1 << 16, 1), strict=True)
    return sum((x @ y.T).double() for x, y in spans).cpu()


def tensor_products(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return ‖a‖², ‖b‖², ⟨a, b⟩ of two equally shaped tensors."""
    return torch.stack([dot(chosen, chosen), dot(rejected, rejected), dot(chosen, rejected)])


def grouped(sizes: Mapping[Item, int], most: int) -> list[list[Item]]:
    """Split items, in order, into groups whose sizes sum to ``most`` at most, or into ones."""
    groups: list[list[Item]] = []
    room = 0
    for item, size in sizes.items():
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(item)
        room -= size
    return groups
