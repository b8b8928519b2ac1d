"""Exact gradient products of log-probabilities: norms, inner products, token contributions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from toolkit.checks import check_seed, flag, shown, whole
from toolkit.gradients import _autograd, _response_gram, _ways
from toolkit.gradients._batching import fitting, longest
from toolkit.gradients._findings import names, plan_for
from toolkit.gradients._gradient_results import (
    Gram,
    PairStats,
    TokenContributions,
    TokenMatrix,
    concat_stats,
)
from toolkit.gradients._metric import Metric
from toolkit.gradients._plan import Plan
from toolkit.model import Labels, Params, Policy, batches, reference_logps
from toolkit.model._forward import evaluation, scored_logps, sequences
from toolkit.model._memory import in_halves
from toolkit.model._tokens import token_texts
from toolkit.model.inputs import encoded_pair, encoded_pairs
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair, PreferencePair

Pairs = Sequence[PreferencePair | EncodedPair] | PreferencePair | EncodedPair


def pair_stats(
    policy: Policy,
    pairs: Pairs,
    *,
    params: Params = "all",
    metric: Metric | None = None,
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
        metric: A diagonal metric P for ⟨·,·⟩_P, such as ``Metric.from_optimizer(adam, model)``;
            it needs materialised gradients, one backward per response. ``None``: Euclidean.
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
        >>> stats.to_frame()[["id", "cosine"]].shape
        (2, 2)
    """
    found = encoded_pairs(policy, pairs, on_error)
    encoded = found.pairs
    order = sorted(range(len(encoded)), key=lambda i: longest(encoded[i]))
    flag("progress", progress)
    options = {
        "params": params,
        "metric": metric,
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
    metric: Metric | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> Iterator[PairStats]:
    """Yield :func:`pair_stats` batch by batch, so that long work can be stopped and kept.

    Pairs come in the order given; neighbours of similar length make for less padding.
    """
    from tqdm.auto import tqdm

    encoded = encoded_pairs(policy, pairs).pairs
    task = _Task(policy, params, metric)
    bar = tqdm(total=len(encoded), desc="pair gradients", unit="pair", disable=not progress)
    with bar:
        for batch in task.fitting(encoded, batch_size, memory):
            for part in in_halves(partial(_measure, task), batch):
                bar.update(len(part))
                yield part


@alone
def token_contributions(
    policy: Policy,
    pair: PreferencePair | EncodedPair,
    *,
    params: Params = "all",
    metric: Metric | None = None,
) -> TokenContributions:
    """Return ⟨∇log π_t, g_chosen⟩ and ⟨∇log π_t, g_rejected⟩ of every token of both responses.

    Forward-mode derivatives of the token log-probabilities along g_chosen and g_rejected give all
    of them at once, whatever the number of tokens.

    Args:
        policy: The model.
        pair: One pair.
        params: Parameter set (see ``Policy.parameters_in``).
        metric: A diagonal metric P for ⟨·,·⟩_P (plain autograd, slower); ``None``: Euclidean.

    Raises:
        PairError: If the pair cannot be scored.
        ValueError: If ``params`` matches nothing.

    Source:
        arXiv 2410.13828, token-wise decomposition of the gradient inner product.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> tokens = tk.token_contributions(policy, tk.load_pairs("single_token", limit=1)[0])
        >>> tokens.to_frame().columns[0]
        'pair_id'
    """
    enc, task = encoded_pair(policy, pair), _Task(policy, params, metric)
    rows = sequences([enc])
    found, note = _ways.token_products(policy.model, task.plan, task.selected, rows, task.weights)
    values = [_numpy(torch.cat(list(v))) for v in found]
    axis, labels = _token_axis(policy, rows), task.labels_with(note)
    return TokenContributions(enc.id, *axis, *values, labels=labels)


@alone
def token_matrix(
    policy: Policy,
    pair: PreferencePair | EncodedPair,
    *,
    params: Params = "all",
    metric: Metric | None = None,
    progress: bool = False,
) -> TokenMatrix:
    """Return the matrix ⟨∇log π_i, ∇log π_j⟩ over all tokens of both responses.

    Args:
        policy: The model.
        pair: One pair.
        params: Parameter set (see ``Policy.parameters_in``).
        metric: A diagonal metric P for ⟨·,·⟩_P (plain autograd, slower); ``None``: Euclidean.
        progress: Show a progress bar over the layers (not with plain autograd).

    Raises:
        PairError: If the pair cannot be scored.
        ValueError: If ``params`` matches nothing.

    Source:
        arXiv 2410.13828, Section 4.3 (token-level heat-map).

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> tk.token_matrix(policy, tk.load_pairs("single_token", limit=1)[0]).matrix.shape
        (4, 4)
    """
    from tqdm.auto import tqdm

    flag("progress", progress)
    enc, task = encoded_pair(policy, pair), _Task(policy, params, metric)
    rows = sequences([enc])
    with tqdm(desc="token gradients", unit="block", disable=not progress) as bar:
        (_, gram), note = _ways.token_gram(
            policy.model, task.plan, task.selected, rows, task.weights, partial(_show, bar)
        )
    axis, labels = _token_axis(policy, rows), task.labels_with(note)
    return TokenMatrix(enc.id, *axis, gram.numpy(), labels)


@alone
def gram(
    policy: Policy,
    pairs: Pairs,
    *,
    params: Params = "all",
    metric: Metric | None = None,
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
        metric: A diagonal metric P for ⟨·,·⟩_P; ``None``: Euclidean.
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
    from tqdm.auto import tqdm

    whole("memory", memory, unit="number of bytes")
    check_seed(seed)
    flag("progress", progress)
    if projection is not None:
        whole("projection", projection)
    given = encoded_pairs(policy, pairs, on_error)
    encoded, task = given.pairs, _Task(policy, params, metric)
    selected = task.selected
    groups = _response_gram.slices_for(selected, 2 * len(encoded), memory)
    rows = [sequences(batch) for batch in batches(encoded, batch_size)]
    estimate = _response_gram.Projection(projection, seed) if projection else None
    held = 8 * len(encoded) * max(sum(s.stop - s.start for s in g) for g in groups) / 2**30
    title = f"gram: {len(groups)} passes, {held:.2g} GiB of gradients held"
    with tqdm(total=len(groups) * len(rows), desc=title, disable=not progress) as bar:
        contract = estimate or _response_gram.exact
        found = _response_gram.response_gram(
            policy.model, selected, rows, groups, contract, bar.update, task.scales()
        )
    matrix = estimate.finish(found) if estimate else found
    ids = [enc.id for enc in encoded for _ in range(2)]
    sides = np.tile(["chosen", "rejected"], len(encoded))
    error = projection**-0.5 if projection else 0.0
    symmetric = (matrix + matrix.T).numpy() / 2
    return Gram(ids, sides, symmetric, error, task.labels, given.left_out)


class _Task:
    """What is measured on which parameters under which metric, and who accounts for them."""

    @alone
    def __init__(self, policy: Policy, params: Params, metric: Metric | None):
        if metric is not None and not isinstance(metric, Metric):
            raise ValueError(
                f"metric must be None or a Metric, received {shown(metric)}: use "
                "tk.Metric.from_optimizer(optimizer, policy.model)"
            )
        self.policy, self.selected = policy, policy.parameters_in(params)
        self.weights, self.own_labels = None, policy.labels(params)
        if metric is None:
            self.plan = plan_for(policy.model, self.selected)
        else:
            # A metric has no low-rank form that a layer rule could use: plain autograd takes all.
            self.weights = metric.of(self.selected)
            self.plan = Plan({}, None, self.selected)
            self.own_labels = replace(self.own_labels, optimizer_metric=metric.name)

    @property
    def labels(self) -> Labels:
        """The policy's labels, with the parameters that plain autograd took."""
        return self.labels_with("")

    def labels_with(self, note: str) -> Labels:
        """The same with a note on the way that was taken."""
        by_autograd = names(list(self.plan.remainder), list(self.selected))
        both = "; ".join(text for text in (by_autograd, note) if text)
        return replace(self.own_labels, by_autograd=both)

    def fitting(self, encoded, batch_size, memory) -> Iterator[Sequence[EncodedPair]]:
        """The pairs in batches that fit into memory."""
        return fitting(encoded, batch_size, self.plan.position_bytes, self.policy.device, memory)

    def scales(self) -> dict[str, Tensor] | None:
        """√P by parameter name."""
        if self.weights is None:
            return None
        roots = (w.sqrt() for w in self.weights)
        return dict(zip(self.selected, roots, strict=True))


@alone
def _measure(task: _Task, batch) -> PairStats:
    model, plan, rows = task.policy.model, task.plan, sequences(batch)
    if plan.rules:
        parts, own, plan = _ways.pair_products_by(model, plan, task.selected, rows)
        task.plan = plan
    else:
        with evaluation(model), torch.no_grad():
            parts, own = {}, scored_logps(model, rows)
    if plan.remainder:
        parts.update(_autograd.pair_products(model, plan.remainder, rows, task.weights))
    ref = reference_logps(task.policy, rows, own)
    return _to_stats([enc.id for enc in batch], own, ref, parts, task.labels)


def _show(bar, level: int, count: int) -> None:
    bar.total = count
    bar.update(level - bar.n)


def _token_axis(policy: Policy, rows) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """The side, the position, the text and the id of every scored token."""
    texts = [token_texts(policy.tokenizer, *row) for row in rows]
    sides = np.repeat(["chosen", "rejected"], [len(t) for t in texts])
    ids = torch.cat([ids[mask] for ids, mask in rows]).cpu().numpy()
    return sides, np.concatenate([np.arange(len(t)) for t in texts]), texts[0] + texts[1], ids


def _to_stats(ids, own, ref, parts: dict[str, Tensor], labels: Labels) -> PairStats:
    by_name = {name: products.numpy() for name, products in parts.items()}
    sums = [np.array([float(row.double().sum()) for row in rows]) for rows in (own, ref)]
    lengths = np.array([len(row) for row in own])
    arrays = [values[side::2] for values in (*sums, lengths) for side in range(2)]
    return PairStats(ids, *arrays, *sum(by_name.values()).T, labels=labels, parts=by_name)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
