"""Norms and inner products of the gradients of each pair's two responses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from toolkit.checks import flag
from toolkit.gradients import fallback
from toolkit.gradients._scope import Scope
from toolkit.gradients.preconditioner import Preconditioner
from toolkit.gradients.results import PairStats, concat_stats
from toolkit.model import Params, Policy, reference_logps
from toolkit.model.batching import in_halves, longest
from toolkit.model.forward import sequences
from toolkit.model.inputs import Pairs, encoded_pairs
from toolkit.model.scores import scores
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
    parts = iter_pair_stats(
        policy,
        [encoded[i] for i in order],
        params=params,
        preconditioner=preconditioner,
        batch_size=batch_size,
        memory=memory,
        progress=flag("progress", progress),
    )
    return replace(concat_stats(list(parts)).take(np.argsort(order)), left_out=found.left_out)


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
    rows = sequences(batch)
    products, own = fallback.pair_products(scope, rows)
    parts = {name: found.numpy() for name, found in products.items()}
    logps = own, reference_logps(scope.policy, rows, own)
    sums = [np.array([float(row.double().sum()) for row in rows]) for rows in logps]
    arrays = [*vars(scores(batch, *sums)).values(), *sum(parts.values()).T]
    return PairStats(*arrays, labels=scope.labels(), parts=parts)
