"""Inner products between whole responses: materialised a slice of the parameters at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.gradients import _autograd
from toolkit.gradients._findings import plan_for
from toolkit.gradients._passes import backward, only
from toolkit.gradients._plan import Parameters, Plan
from toolkit.gradients._rules import flat_products
from toolkit.model._forward import Row, evaluation, scored_logps

BLOCK = 1 << 14  # columns of a random projection drawn at once


@dataclass(frozen=True)
class Slice:
    """Entries ``start:stop`` of one flattened parameter."""

    name: str
    start: int
    stop: int


def slices_for(selected: Parameters, rows: int, memory: int) -> list[list[Slice]]:
    """Split the parameters into groups whose gradients of all rows take at most ``memory`` bytes.

    A parameter larger than that is cut; one entry of each row is held at the least.
    """
    most = max(1, memory // (4 * rows))
    groups: list[list[Slice]] = [[]]
    room = most
    for name, p in selected.items():
        start = 0
        while start < p.numel():
            if room == 0:
                groups.append([])
                room = most
            stop = min(p.numel(), start + room)
            groups[-1].append(Slice(name, start, stop))
            room -= stop - start
            start = stop
    return groups


def response_gram(
    model: nn.Module,
    selected: Parameters,
    batches: Sequence[Sequence[Row]],
    groups: Sequence[Sequence[Slice]],
    contract: Callable[[Tensor], Tensor],
    advance: Callable[[], None],
    scale: dict[str, Tensor] | None = None,
) -> Tensor:
    """Return the sum over all slices of ``contract(gradients [rows, entries] · scale)``."""
    total, count = 0, sum(len(rows) for rows in batches)
    for group in groups:
        needed = {s.name: selected[s.name] for s in group}
        plan = plan_for(model, needed)
        held, at = {}, 0
        for rows in batches:
            for gradients in row_gradients(model, plan, rows):
                for s in group:
                    entries = gradients[s.name].flatten()[s.start : s.stop]
                    if scale:
                        entries = entries * scale[s.name].flatten()[s.start : s.stop]
                    if s not in held:
                        held[s] = entries.new_empty(count, len(entries), device="cpu")
                    # Copied: a view would keep the whole gradient of every row.
                    held[s][at] = entries
                at += 1
            advance()
        for s in group:
            total = total + contract(held.pop(s))
    return total


def row_gradients(model: nn.Module, plan: Plan, rows: Sequence[Row]) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of each row by parameter name; a tied matrix sums its two uses."""
    uses = {}
    backward(model, plan, rows, uses.__setitem__)
    for i, row in enumerate(rows):
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for module, use in uses.items():
                for name, g in plan.rules[module].gradient(use, i).items():
                    found[name] = found[name] + g if name in found else g
        if plan.remainder:
            with only(model, plan.remainder), evaluation(model):
                scalar = scored_logps(model, [row])[0].sum()
                rest = _autograd.gradient(scalar, plan.remainder)
            found.update(zip(plan.remainder, rest, strict=True))
        yield found


def exact(gradients: Tensor) -> Tensor:
    """Return ``G Gᵀ``."""
    return flat_products(gradients, gradients)


class Projection:
    """``G R Rᵀ Gᵀ / k`` with seeded random signs R, and exact squared norms on the diagonal."""

    def __init__(self, size: int, seed: int):
        self.size, self.generator = size, torch.Generator().manual_seed(seed)
        self.projected: Tensor | float = 0.0

    def __call__(self, gradients: Tensor) -> Tensor:
        """Add a slice to the projection and return its share of the exact squared norms."""
        for part in gradients.split(BLOCK, 1):
            shape = (part.shape[1], self.size)
            signs = torch.randint(0, 2, shape, generator=self.generator, dtype=torch.int8)
            self.projected = self.projected + part @ signs.to(part.dtype).mul_(2).sub_(1)
        return torch.diag(gradients.double().square().sum(1))

    def finish(self, diagonal: Tensor) -> Tensor:
        """Return the estimated Gram matrix with the exact diagonal."""
        estimate = (self.projected.double() @ self.projected.double().T) / self.size
        return estimate - torch.diag(estimate.diagonal()) + diagonal
