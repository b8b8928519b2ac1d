"""Exact gradient products of log-probabilities: norms, inner products, token contributions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit import _autograd, _passes, _response_gram, _tangents, _token_gram
from toolkit._forward import sequences, token_texts
from toolkit.model import Labels, Params, Policy, as_list, batches, per_token_logps
from toolkit.pairs import EncodedPair, PreferencePair

Pairs = Sequence[PreferencePair | EncodedPair] | PreferencePair | EncodedPair
PRODUCTS = ("chosen_sq_norm", "rejected_sq_norm", "inner")


@dataclass(frozen=True)
class PairStats:
    """What first-order theory needs of each pair: five scalars, log-probabilities and lengths.

    With ``g_chosen = ∇_θ log π(chosen | prompt)`` and ``g_rejected`` likewise, over one parameter
    set. All arrays are float64 of shape ``[N]``; log-probabilities are token sums in nats.

    Attributes:
        ids: Pair ids.
        chosen_logps: log π(chosen | prompt).
        rejected_logps: log π(rejected | prompt).
        ref_chosen_logps: The same under the reference.
        ref_rejected_logps: The same under the reference.
        chosen_length: Scored tokens of the chosen response.
        rejected_length: Scored tokens of the rejected response.
        chosen_sq_norm: ‖g_chosen‖², nats² per squared parameter unit.
        rejected_sq_norm: ‖g_rejected‖².
        inner: ⟨g_chosen, g_rejected⟩.
        labels: Model, parameter set, dtype, EOS policy, token mask, metric.
        parts: The three products of each parameter, ``[N, 3]`` by parameter name; they sum to
            ``chosen_sq_norm``, ``rejected_sq_norm`` and ``inner`` (see :meth:`split`).
    """

    ids: list[str]
    chosen_logps: np.ndarray
    rejected_logps: np.ndarray
    ref_chosen_logps: np.ndarray
    ref_rejected_logps: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray
    chosen_sq_norm: np.ndarray
    rejected_sq_norm: np.ndarray
    inner: np.ndarray
    labels: Labels
    parts: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def cosine(self) -> np.ndarray:
        """cos(g_chosen, g_rejected), in [−1, 1]; NaN where a gradient vanishes."""
        norms = np.sqrt(self.chosen_sq_norm) * np.sqrt(self.rejected_sq_norm)
        return np.clip(_divide(self.inner, norms), -1.0, 1.0)

    @property
    def kappa(self) -> np.ndarray:
        """⟨g_chosen, g_rejected⟩ / min(‖g_chosen‖², ‖g_rejected‖²); below 1 a DPO step is ideal."""
        return _divide(self.inner, np.minimum(self.chosen_sq_norm, self.rejected_sq_norm))

    def take(self, index: Sequence[int]) -> PairStats:
        """Return the statistics of the pairs at these positions, in this order."""
        at = np.asarray(index, dtype=int)
        kept = {name: getattr(self, name)[at] for name in _arrays()}
        parts = {name: products[at] for name, products in self.parts.items()}
        return PairStats([self.ids[i] for i in at], **kept, labels=self.labels, parts=parts)

    def split(self, by: str = "layer") -> pd.DataFrame:
        """Return the products of each part of the model; they sum to the pair's own.

        Args:
            by: ``"layer"`` (block number, or the module's own name outside the blocks),
                ``"kind"`` (the same module of all blocks together) or ``"parameter"``.

        Returns:
            Tidy: ``id, part, chosen_sq_norm, rejected_sq_norm, inner``.

        Raises:
            ValueError: If ``by`` is none of these.
        """
        groups: dict[str, np.ndarray] = {}
        for name, products in self.parts.items():
            part = _part(name, by)
            groups[part] = groups.get(part, 0) + products
        frames = [
            pd.DataFrame({"id": self.ids, "part": part, **dict(zip(PRODUCTS, p.T, strict=True))})
            for part, p in groups.items()
        ]
        frame = pd.concat(frames, ignore_index=True)
        frame.attrs.update(self.labels.to_attrs())
        return frame

    def to_frame(self) -> pd.DataFrame:
        """Return one row a pair with the derived ``cosine`` and ``kappa``; labels in ``attrs``."""
        columns = {name: getattr(self, name) for name in _arrays()}
        frame = pd.DataFrame({"id": self.ids, **columns})
        frame["cosine"], frame["kappa"] = self.cosine, self.kappa
        frame.attrs.update(self.labels.to_attrs())
        return frame


@dataclass(frozen=True)
class TokenContributions:
    """Gradient products of every token with both responses of one pair.

    Their sums are exact: over chosen tokens ``with_chosen`` gives ‖g_chosen‖² and
    ``with_rejected`` gives ⟨g_chosen, g_rejected⟩ (arXiv 2410.13828; the token decomposition).

    Attributes:
        id: Pair id.
        sides: ``"chosen"`` or ``"rejected"`` of each token; chosen tokens first.
        positions: Position within the completion, from 0.
        tokens: Token texts.
        logps: log π of each token, nats.
        with_chosen: ⟨∇log π_t, g_chosen⟩ of each token.
        with_rejected: ⟨∇log π_t, g_rejected⟩ of each token.
        labels: What it was measured with.
    """

    id: str
    sides: np.ndarray
    positions: np.ndarray
    tokens: list[str]
    logps: np.ndarray
    with_chosen: np.ndarray
    with_rejected: np.ndarray
    labels: Labels

    def to_frame(
        self, *, d_chosen: float = 1.0, d_rejected: float = 1.0, lr: float = 1.0
    ) -> pd.DataFrame:
        """Return one row a token with its predicted change in nats.

        Args:
            d_chosen: Loss weight of the chosen response (see ``loss_weights``).
            d_rejected: Loss weight of the rejected response.
            lr: Learning rate of the gradient-descent step.

        Returns:
            Columns ``pair_id, side, position, token, logp, with_chosen, with_rejected`` and
            ``predicted_delta = lr·(d_chosen·with_chosen − d_rejected·with_rejected)``.
        """
        delta = lr * (d_chosen * self.with_chosen - d_rejected * self.with_rejected)
        frame = pd.DataFrame(
            {
                "pair_id": self.id,
                "side": self.sides,
                "position": self.positions,
                "token": self.tokens,
                "logp": self.logps,
                "with_chosen": self.with_chosen,
                "with_rejected": self.with_rejected,
                "predicted_delta": delta,
            }
        )
        attrs = {"d_chosen": float(d_chosen), "d_rejected": float(d_rejected), "lr": float(lr)}
        frame.attrs.update(self.labels.to_attrs(), **attrs)
        return frame


@dataclass(frozen=True)
class TokenMatrix:
    """Inner products of all token gradients of one pair, chosen tokens before rejected ones.

    Attributes:
        id: Pair id.
        matrix: ⟨∇log π_i, ∇log π_j⟩, shape ``[n, n]``, symmetric and positive semi-definite.
        tokens: Token texts, length ``n``.
        sides: ``"chosen"`` or ``"rejected"`` of each row.
        positions: Position within the completion, from 0.
        labels: What it was measured with.
    """

    id: str
    matrix: np.ndarray
    tokens: list[str]
    sides: np.ndarray
    positions: np.ndarray
    labels: Labels

    @property
    def cosine(self) -> np.ndarray:
        """Cosines of the token gradients, shape ``[n, n]``; NaN where a gradient vanishes."""
        norms = np.sqrt(np.clip(np.diag(self.matrix), 0, None))
        return np.clip(_divide(self.matrix, np.outer(norms, norms)), -1.0, 1.0)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a cell: ``side_i, position_i, token_i, side_j, …, inner, cosine``."""
        n = len(self.tokens)
        i, j = np.divmod(np.arange(n * n), n)
        tokens = np.array(self.tokens, dtype=object)
        frame = pd.DataFrame(
            {
                "side_i": self.sides[i],
                "position_i": self.positions[i],
                "token_i": tokens[i],
                "side_j": self.sides[j],
                "position_j": self.positions[j],
                "token_j": tokens[j],
                "inner": self.matrix.ravel(),
                "cosine": self.cosine.ravel(),
            }
        )
        frame.attrs.update(self.labels.to_attrs(), pair_id=self.id)
        return frame


def pair_stats(
    policy: Policy,
    pairs: Pairs,
    *,
    params: Params = "all",
    batch_size: int | None = None,
    progress: bool = True,
) -> PairStats:
    """Return ‖g_chosen‖², ‖g_rejected‖² and ⟨g_chosen, g_rejected⟩ of every pair, exactly.

    Args:
        policy: The model; dropout is off while gradients are taken, and nothing is changed.
        pairs: Preference pairs.
        params: Parameter set (see ``Policy.parameters_in``).
        batch_size: Pairs per forward pass of the log-probabilities (default 8).
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
    encoded = [policy.encode(p) for p in as_list(pairs)]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].chosen_ids))
    options = {"params": params, "batch_size": batch_size, "progress": progress}
    parts = list(iter_pair_stats(policy, [encoded[i] for i in order], **options))
    return concat_stats(parts).take(np.argsort(order))


def iter_pair_stats(
    policy: Policy,
    pairs: Pairs,
    *,
    params: Params = "all",
    batch_size: int | None = None,
    progress: bool = False,
) -> Iterator[PairStats]:
    """Yield :func:`pair_stats` batch by batch, so that long work can be stopped and kept."""
    from tqdm.auto import tqdm

    encoded = [policy.encode(p) for p in as_list(pairs)]
    selected = policy.parameters_in(params)
    labels = policy.labels(params)
    plan = _passes.plan_for(policy.model, selected)
    bar = tqdm(total=len(encoded), desc="pair gradients", unit="pair", disable=not progress)
    with bar:
        for batch in batches(encoded, batch_size):
            for part in _measured(policy, plan, batch, labels):
                bar.update(len(part))
                yield part


def concat_stats(parts: Sequence[PairStats]) -> PairStats:
    """Join statistics measured with the same labels, in order.

    Raises:
        ValueError: If there are none, or their labels differ.
    """
    if not parts or any(p.labels != parts[0].labels for p in parts):
        raise ValueError("parts must be one or more PairStats with the same labels")
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in _arrays()}
    names = parts[0].parts
    by_name = {name: np.concatenate([p.parts[name] for p in parts]) for name in names}
    ids = [i for p in parts for i in p.ids]
    return PairStats(ids, **joined, labels=parts[0].labels, parts=by_name)


def token_contributions(
    policy: Policy, pair: PreferencePair | EncodedPair, *, params: Params = "all"
) -> TokenContributions:
    """Return ⟨∇log π_t, g_chosen⟩ and ⟨∇log π_t, g_rejected⟩ of every token of both responses.

    Forward-mode derivatives of the token log-probabilities along g_chosen and g_rejected give all
    of them at once, whatever the number of tokens.

    Args:
        policy: The model.
        pair: One pair.
        params: Parameter set (see ``Policy.parameters_in``).

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
    enc, selected = policy.encode(pair), policy.parameters_in(params)
    plan, rows = _passes.plan_for(policy.model, selected), sequences([enc])
    if plan.remainder:
        found = _autograd.token_products(policy.model, selected, rows)
    else:
        found = _tangents.token_products(policy.model, plan, rows)
    values = [_numpy(torch.cat(list(v))) for v in found]
    sides, positions, tokens = _token_axis(policy, rows)
    return TokenContributions(
        enc.id, sides, positions, tokens, *values, labels=policy.labels(params)
    )


def token_matrix(
    policy: Policy, pair: PreferencePair | EncodedPair, *, params: Params = "all"
) -> TokenMatrix:
    """Return the matrix ⟨∇log π_i, ∇log π_j⟩ over all tokens of both responses.

    Args:
        policy: The model.
        pair: One pair.
        params: Parameter set (see ``Policy.parameters_in``).

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
    enc, selected = policy.encode(pair), policy.parameters_in(params)
    plan, rows = _passes.plan_for(policy.model, selected), sequences([enc])
    if plan.remainder:
        _, gram = _autograd.token_gram(policy.model, selected, rows)
    else:
        _, gram = _token_gram.token_gram(policy.model, plan, rows)
    sides, positions, tokens = _token_axis(policy, rows)
    return TokenMatrix(enc.id, gram.numpy(), tokens, sides, positions, policy.labels(params))


@dataclass(frozen=True)
class Gram:
    """Inner products of all response gradients of a set of pairs: the empirical kernel.

    Attributes:
        ids: Pair id of each row, every pair twice.
        sides: ``"chosen"`` or ``"rejected"`` of each row; chosen first within a pair.
        matrix: ⟨g_i, g_j⟩, shape ``[2N, 2N]``, float64, symmetric.
        relative_error: Standard error of an off-diagonal entry relative to ‖g_i‖‖g_j‖; 0 when
            exact, about ``1/√k`` for a projection. The diagonal is always exact.
        labels: What it was measured with.
    """

    ids: list[str]
    sides: np.ndarray
    matrix: np.ndarray
    relative_error: float
    labels: Labels

    @property
    def cosine(self) -> np.ndarray:
        """Cosines, shape ``[2N, 2N]``; NaN where a gradient vanishes."""
        norms = np.sqrt(np.diag(self.matrix))
        return np.clip(_divide(self.matrix, np.outer(norms, norms)), -1.0, 1.0)

    def to_frame(self) -> pd.DataFrame:
        """Return one row an entry: ``id_i, side_i, id_j, side_j, inner, cosine``."""
        n = len(self.ids)
        i, j = np.divmod(np.arange(n * n), n)
        ids = np.array(self.ids, dtype=object)
        frame = pd.DataFrame(
            {"id_i": ids[i], "side_i": self.sides[i], "id_j": ids[j], "side_j": self.sides[j]}
        )
        frame["inner"], frame["cosine"] = self.matrix.ravel(), self.cosine.ravel()
        frame.attrs.update(self.labels.to_attrs(), relative_error=self.relative_error)
        return frame


def gram(
    policy: Policy,
    pairs: Pairs,
    *,
    params: Params = "all",
    memory: int = 2 << 30,
    projection: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> Gram:
    """Return ⟨g_i, g_j⟩ over the 2N responses of N pairs: how much training one moves another.

    Gradients are materialised for a slice of the parameters at a time, so that at most ``memory``
    bytes of them are held; the bar says how many passes that takes before the first one runs.

    Args:
        policy: The model.
        pairs: Preference pairs.
        params: Parameter set (see ``Policy.parameters_in``).
        memory: Most bytes of gradients to hold at once.
        projection: Number k of random directions to estimate the off-diagonal entries from;
            ``None`` is exact. The standard error, about ``1/√k``, is in the result.
        seed: Seed of the projection.
        batch_size: Pairs per forward pass (default 8).
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

    for name, value in (("memory", memory), ("projection", projection)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive whole number, received {value!r}")
    encoded, selected = [policy.encode(p) for p in as_list(pairs)], policy.parameters_in(params)
    groups = _response_gram.slices_for(selected, 2 * len(encoded), memory)
    rows = [sequences(batch) for batch in batches(encoded, batch_size)]
    estimate = _response_gram.Projection(projection, seed) if projection else None
    held = 8 * len(encoded) * max(sum(s.stop - s.start for s in g) for g in groups) / 2**30
    title = f"gram: {len(groups)} passes, {held:.2g} GiB of gradients held"
    with tqdm(total=len(groups) * len(rows), desc=title, disable=not progress) as bar:
        contract = estimate or _response_gram.exact
        found = _response_gram.response_gram(
            policy.model, selected, rows, groups, contract, bar.update
        )
    matrix = estimate.finish(found) if estimate else found
    ids = [enc.id for enc in encoded for _ in range(2)]
    sides = np.tile(["chosen", "rejected"], len(encoded))
    error = projection**-0.5 if projection else 0.0
    return Gram(ids, sides, (matrix + matrix.T).numpy() / 2, error, policy.labels(params))


def _measured(policy: Policy, plan, batch, labels: Labels) -> list[PairStats]:
    """Measure one batch, in halves where it does not fit into memory."""
    try:
        return [_measure(policy, plan, batch, labels)]
    except (torch.OutOfMemoryError, RuntimeError) as error:
        full = isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
        if not full or len(batch) == 1:
            raise
    half = len(batch) // 2
    parts = (batch[:half], batch[half:])
    return [stats for part in parts for stats in _measured(policy, plan, part, labels)]


def _measure(policy: Policy, plan, batch, labels: Labels) -> PairStats:
    rows = sequences(batch)
    parts = _passes.pair_products(policy.model, plan, rows)
    if plan.remainder:
        parts.update(_autograd.pair_products(policy.model, plan.remainder, rows))
    parts = {name: products.numpy() for name, products in parts.items()}
    logps = per_token_logps(policy, batch, batch_size=len(batch))
    return _to_stats(logps, parts, labels)


def _token_axis(policy: Policy, rows) -> tuple[np.ndarray, np.ndarray, list[str]]:
    texts = [token_texts(policy.tokenizer, *row) for row in rows]
    sides = np.repeat(["chosen", "rejected"], [len(t) for t in texts])
    return sides, np.concatenate([np.arange(len(t)) for t in texts]), texts[0] + texts[1]


def _to_stats(logps, parts: dict[str, np.ndarray], labels: Labels) -> PairStats:
    products = sum(parts.values()).T
    sums = [
        np.array([float(getattr(p, name).double().sum()) for p in logps])
        for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")
    ]
    lengths = [np.array([len(getattr(p, name)) for p in logps]) for name in ("chosen", "rejected")]
    return PairStats([p.id for p in logps], *sums, *lengths, *products, labels=labels, parts=parts)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b > 0)


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()


def _arrays() -> list[str]:
    """Names of the per-pair arrays of PairStats."""
    return [f.name for f in fields(PairStats) if f.name not in ("ids", "labels", "parts")]


def _part(name: str, by: str) -> str:
    module = name.rpartition(".")[0] or name
    block = re.search(r"\.(\d+)\.", name)
    if by == "parameter":
        return name
    if by == "layer":
        return f"block {int(block.group(1))}" if block else module
    if by == "kind":
        return module[block.end() :] if block else module
    raise ValueError(f"by={by!r} is unknown; allowed: 'layer', 'kind', 'parameter'")
