"""Inner products between whole responses: materialised a slice of the parameters at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.checks import check_seed, flag, whole
from toolkit.gradients import _autograd
from toolkit.gradients._findings import plan_for
from toolkit.gradients._passes import backward
from toolkit.gradients._plan import Plan
from toolkit.gradients._scope import Scope
from toolkit.gradients.preconditioner import Preconditioner
from toolkit.gradients.products import flat_products
from toolkit.gradients.results import Gram
from toolkit.model import Params, Policy, Provenance
from toolkit.model.batching import batches
from toolkit.model.forward import Row, evaluation, scored_logps, sequences
from toolkit.model.inputs import Pairs, encoded_pairs
from toolkit.model.parameters import Parameters, only
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair

BLOCK = 1 << 14  # columns of a random projection drawn at once


@alone
def gram(
    policy: Policy,
    pairs: Pairs,
    *,
    params: Params = "all",
    preconditioner: Preconditioner | None = None,
    memory: int = 2 << 30,
    projection: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> Gram:
    """Return ⟨g_i, g_j⟩ over the 2N responses of N pairs: how much training one moves another.

    Gradients are materialised for a slice of the parameters at a time, so that at most ``memory``
    bytes of them are held; the bar says how many passes that takes before the first one runs.

    Args:
        policy: The model.
        pairs: Preference pairs.
        params: Parameter set (see ``Policy.parameters_in``).
        preconditioner: A diagonal P for ⟨·,·⟩_P; ``None``: Euclidean.
        memory: Most bytes of gradients to hold at once.
        projection: Number k of random directions to estimate the off-diagonal entries from;
            ``None`` is exact. The standard error, about ``1/√k``, is in the result.
        seed: Seed of the projection.
        batch_size: Pairs per forward pass (default 8).
        on_error: "raise" stops at the first pair that cannot be scored, before any work; "skip"
            leaves such pairs out and names them in ``.skipped``.
        progress: Show a progress bar.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If ``params`` matches nothing, or ``memory`` or ``projection`` is not positive.

    Source:
        The kernel of arXiv 2210.05643 at the level of responses.

    Example:
        >>> import toolkit as tk
        >>> kernel = tk.gram(tk.load_model(), tk.load_pairs("stance", limit=2), progress=False)
        >>> kernel.matrix.shape
        (4, 4)
    """
    whole("memory", memory, unit="number of bytes")
    check_seed(seed)
    flag("progress", progress)
    if projection is not None:
        whole("projection", projection)
    given = encoded_pairs(policy, pairs, on_error)
    estimate = Projection(projection, seed) if projection else None
    found, labels = contracted(
        policy,
        given.pairs,
        estimate or exact,
        params=params,
        preconditioner=preconditioner,
        memory=memory,
        batch_size=batch_size,
        progress=progress,
    )
    matrix = estimate.finish(found) if estimate else found
    ids = [enc.id for enc in given.pairs for _ in range(2)]
    sides = np.tile(["chosen", "rejected"], len(given.pairs))
    error = projection**-0.5 if projection else 0.0
    symmetric = (matrix + matrix.T).numpy() / 2
    return Gram(ids, sides, symmetric, error, labels, given.left_out)


def contracted(
    policy: Policy,
    encoded: Sequence[EncodedPair],
    contract: Callable[[Tensor], Tensor],
    *,
    params: Params = "all",
    preconditioner: Preconditioner | None = None,
    memory: int = 2 << 30,
    batch_size: int | None = None,
    progress: bool = True,
) -> tuple[Tensor, Provenance]:
    """Return the sum of ``contract(G)`` over slices G ``[2N, entries]`` of all gradients.

    For whatever adds up over parameters, such as ``G Gᵀ``; the rest is as for :func:`gram`.
    """
    from tqdm.auto import tqdm

    whole("memory", memory, unit="number of bytes")
    flag("progress", progress)
    scope = Scope(policy, params, preconditioner)
    groups = slices_for(scope.selected, 2 * len(encoded), memory)
    rows = [sequences(batch) for batch in batches(encoded, batch_size)]
    held = 8 * len(encoded) * max(sum(s.stop - s.start for s in g.values()) for g in groups) / 2**30
    title = f"gram: {len(groups)} passes, {held:.2g} GiB of gradients held"
    with tqdm(total=len(groups) * len(rows), desc=title, disable=not progress) as bar:
        found = response_gram(scope, rows, groups, contract, bar.update)
    return found, scope.labels()


def slices_for(selected: Parameters, rows: int, memory: int) -> list[dict[str, slice]]:
    """Split the parameters into groups whose gradients of all rows take at most ``memory`` bytes.

    A group holds some entries of each of its flattened parameters, by name; one entry of each row
    is held at the least.
    """
    most = max(1, memory // (4 * rows))
    groups, at = {}, 0
    for name, p in selected.items():
        start = 0
        while start < p.numel():
            stop = min(p.numel(), start + most - at % most)
            groups.setdefault(at // most, {})[name] = slice(start, stop)
            start, at = stop, at + stop - start
    return list(groups.values())


def response_gram(
    scope: Scope,
    batches: Sequence[Sequence[Row]],
    groups: Sequence[dict[str, slice]],
    contract: Callable[[Tensor], Tensor],
    advance: Callable[[], None],
) -> Tensor:
    """Return the sum over all slices of ``contract(gradients [rows, entries] · √P)``."""
    total, count = 0, sum(len(rows) for rows in batches)
    for group in groups:
        plan = plan_for(scope.model, {name: scope.selected[name] for name in group})
        held, at = {}, 0
        for rows in batches:
            for gradients in row_gradients(scope.model, plan, rows):
                for name, part in group.items():
                    entries = gradients[name].flatten()[part]
                    if scope.roots:
                        entries = entries * scope.roots[name].flatten()[part]
                    if name not in held:
                        held[name] = entries.new_empty(count, len(entries), device="cpu")
                    # Copied: a view would keep the whole gradient of every row.
                    held[name][at] = entries
                at += 1
            advance()
        for name in group:
            total = total + contract(held.pop(name))
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
                    found[name] = found.get(name, 0) + g
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
