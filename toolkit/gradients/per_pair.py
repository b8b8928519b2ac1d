"""Norms and inner products of the gradients of each pair's two responses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from toolkit.checks import flag
from toolkit.gradients import _autograd, fallback
from toolkit.gradients._scope import Scope
from toolkit.gradients.preconditioner import Preconditioner
from toolkit.gradients.results import PairStats, concat_stats
from toolkit.model import Params, Policy, Provenance, reference_logps
from toolkit.model.batching import in_halves, longest
from toolkit.model.forward import evaluation, scored_logps, sequences
from toolkit.model.inputs import Pairs, encoded_pairs
from toolkit.model.turns import alone


def pair_stats(
    policy: Policy,
    pairs: Pairs,
    *,
    params: Params = "all",
    preconditioner: Preconditioner | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> PairStats:
    """Return ‖g_chosen‖², ‖g_rejected‖² and ⟨g_chosen, g_rejected⟩ of every pair, exactly.

    Args:
        policy: The model; dropout is off while gradients are taken, and nothing is changed.
        pairs: Preference pairs.
        params: Parameter set (see ``Policy.parameters_in``).
        preconditioner: A diagonal P for ⟨·,·⟩_P, such as
            ``Preconditioner.from_optimizer(adam, model)``; it needs materialised gradients, one
            backward per response. ``None``: Euclidean.
        batch_size: Pairs per forward pass; ``None``: as many as fit into ``memory`` together. A
            batch that does not fit after all is halved.
        memory: Bytes that activations may take where ``batch_size`` is ``None`` (default 2 GiB on
            the CPU, half of a GPU's memory).
        on_error: "raise" stops at the first pair that cannot be scored, before any work; "skip"
            leaves such pairs out and names them in ``.skipped``.
        progress: Show a progress bar.

    Returns:
        :class:`PairStats` in pair order.

    Raises:
        PairError: If a pair cannot be scored; raised before any gradient is taken.
        ValueError: If ``params`` matches nothing.

    Source:
        arXiv 2410.13828, Section 3.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> stats = tk.pair_stats(policy, tk.load_pairs("long_suffix", limit=2), progress=False)
        >>> stats.to_frame()[["pair_id", "cosine"]].shape
        (2, 2)
    """
    found = encoded_pairs(policy, pairs, on_error)
    encoded = found.pairs
    order = sorted(range(len(encoded)), key=lambda i: longest(encoded[i]))
    flag("progress", progress)
    options = {
        "params": params,
        "preconditioner": preconditioner,
        "batch_size": batch_size,
        "memory": memory,
        "progress": progress,
    }
    parts = list(iter_pair_stats(policy, [encoded[i] for i in order], **options))
    return replace(concat_stats(parts).take(np.argsort(order)), left_out=found.left_out)


def iter_pair_stats(
    policy: Policy,
    pairs: Pairs,
    *,
    params: Params = "all",
    preconditioner: Preconditioner | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> Iterator[PairStats]:
    """Yield :func:`pair_stats` batch by batch, so that long work can be stopped and kept.

    Pairs come in the order given; neighbours of similar length make for less padding.
    """
    from tqdm.auto import tqdm

    encoded = encoded_pairs(policy, pairs).pairs
    scope = Scope(policy, params, preconditioner)
    bar = tqdm(total=len(encoded), desc="pair gradients", unit="pair", disable=not progress)
    with bar:
        for batch in scope.fitting(encoded, batch_size, memory):
            for part in in_halves(partial(_measure, scope), batch):
                bar.update(len(part))
                yield part


@alone
def _measure(scope: Scope, batch) -> PairStats:
    model, plan, rows = scope.policy.model, scope.plan, sequences(batch)
    if plan.rules:
        parts, own, plan = fallback.pair_products_by(model, plan, scope.selected, rows)
        scope.plan = plan
    else:
        with evaluation(model), torch.no_grad():
            parts, own = {}, scored_logps(model, rows)
    if plan.remainder:
        parts.update(_autograd.pair_products(model, plan.remainder, rows, scope.weights))
    ref = reference_logps(scope.policy, rows, own)
    return _to_stats([enc.id for enc in batch], own, ref, parts, scope.labels)


def _to_stats(ids, own, ref, parts: dict[str, Tensor], labels: Provenance) -> PairStats:
    by_name = {name: products.numpy() for name, products in parts.items()}
    sums = [np.array([float(row.double().sum()) for row in rows]) for rows in (own, ref)]
    lengths = np.array([len(row) for row in own])
    arrays = [values[side::2] for values in (*sums, lengths) for side in range(2)]
    return PairStats(ids, *arrays, *sum(by_name.values()).T, labels=labels, parts=by_name)
