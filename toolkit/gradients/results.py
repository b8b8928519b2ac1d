"""What gradient measurements hold: frozen results that turn into labelled frames."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from toolkit.losses import FIELDS, PairLogSums
from toolkit.model import Provenance
from toolkit.model.inputs import Skipped, skipped_attrs, skipped_frame

PRODUCTS = ("chosen_sq_norm", "rejected_sq_norm", "inner")
ARRAYS = (*FIELDS, *PRODUCTS)  # of PairStats, one entry per pair


@dataclass(frozen=True)
class PairStats(PairLogSums):
    """What first-order theory needs of each pair: three products beside its log-probabilities.

    With ``g_chosen = ∇_θ log π(chosen | prompt)`` and ``g_rejected`` likewise, over one parameter
    set. All arrays are float64 of shape ``[N]``.

    Attributes:
        pair_ids: Pair ids; then ``chosen_logps``, ``rejected_logps``, ``ref_chosen_logps`` and
            ``ref_rejected_logps``, token sums in nats, and ``chosen_length`` and
            ``rejected_length``, scored tokens.
        chosen_sq_norm: ‖g_chosen‖², nats² per squared parameter unit.
        rejected_sq_norm: ‖g_rejected‖².
        inner: ⟨g_chosen, g_rejected⟩.
        labels: Model, parameter set, dtype, EOS policy, token mask, metric.
        parts: The three products of each parameter, ``[N, 3]`` by parameter name; they sum to
            ``chosen_sq_norm``, ``rejected_sq_norm`` and ``inner`` (see :meth:`split`).
        left_out: Row, id and reason of each pair that could not be scored (see :attr:`skipped`).
    """

    chosen_sq_norm: np.ndarray
    rejected_sq_norm: np.ndarray
    inner: np.ndarray
    labels: Provenance
    parts: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    left_out: Skipped = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs that ``on_error="skip"`` left out: ``row, pair_id, reason``."""
        return skipped_frame(self.left_out)

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
        at = np.arange(len(self))[list(index)]
        kept = {name: getattr(self, name)[at] for name in ARRAYS}
        parts = {name: products[at] for name, products in self.parts.items()}
        others = {"labels": self.labels, "parts": parts, "left_out": self.left_out}
        return PairStats([self.pair_ids[i] for i in at], **kept, **others)

    def split(self, by: str = "layer") -> pd.DataFrame:
        """Return the products of each part of the model; they sum to the pair's own.

        Args:
            by: ``"layer"`` (block number, or the module's own name outside the blocks),
                ``"kind"`` (the same module of all blocks together) or ``"parameter"``.

        Returns:
            Tidy: ``pair_id, part, chosen_sq_norm, rejected_sq_norm, inner``.

        Raises:
            ValueError: If ``by`` is none of these.
        """
        groups: dict[str, np.ndarray] = {}
        for name, products in self.parts.items():
            part = _part(name, by)
            groups[part] = groups.get(part, 0) + products
        frames = [
            pd.DataFrame(
                {"pair_id": self.pair_ids, "part": part, **dict(zip(PRODUCTS, p.T, strict=True))}
            )
            for part, p in groups.items()
        ]
        frame = pd.concat(frames, ignore_index=True)
        frame.attrs.update(self.labels.to_attrs())
        return frame

    def to_frame(self) -> pd.DataFrame:
        """Return one row per pair with the derived ``cosine`` and ``kappa``.

        Labels, and the pairs that were ``skipped`` if any, are in ``attrs``.
        """
        columns = {name: getattr(self, name) for name in ARRAYS}
        frame = pd.DataFrame({"pair_id": self.pair_ids, **columns})
        frame["cosine"], frame["kappa"] = self.cosine, self.kappa
        frame.attrs.update(self.labels.to_attrs(), **skipped_attrs(self.left_out))
        return frame


@dataclass(frozen=True)
class TokenAxis:
    """The scored tokens of one pair, chosen before rejected.

    Attributes:
        pair_id: Pair id.
        sides: ``"chosen"`` or ``"rejected"`` of each token.
        positions: Position within the completion, from 0.
        tokens: Token texts; of several tokens that are pieces of one character the first holds it,
            the others are empty.
        token_ids: Token ids, which tell such pieces apart.
    """

    pair_id: str
    sides: np.ndarray
    positions: np.ndarray
    tokens: list[str]
    token_ids: np.ndarray

    def _columns(self) -> dict[str, np.ndarray]:
        """Return ``side, position, token, token_id`` of each token."""
        texts = np.array(self.tokens, dtype=object)
        where = {"side": self.sides, "position": self.positions}
        return {**where, "token": texts, "token_id": self.token_ids}


@dataclass(frozen=True)
class TokenContributions(TokenAxis):
    """Gradient products of every token with both responses of one pair.

    Their sums are exact: over chosen tokens ``with_chosen`` gives ‖g_chosen‖² and
    ``with_rejected`` gives ⟨g_chosen, g_rejected⟩ (arXiv 2410.13828; the token decomposition).

    Attributes, besides those of the tokens:
        logps: log π of each token, nats.
        with_chosen: ⟨∇log π_t, g_chosen⟩ of each token.
        with_rejected: ⟨∇log π_t, g_rejected⟩ of each token.
        labels: What it was measured with.
    """

    logps: np.ndarray
    with_chosen: np.ndarray
    with_rejected: np.ndarray
    labels: Provenance

    def to_frame(
        self, *, d_chosen: float = 1.0, d_rejected: float = 1.0, lr: float = 1.0
    ) -> pd.DataFrame:
        """Return one row per token with its predicted change in nats.

        Args:
            d_chosen: Loss weight of the chosen response (see ``loss_weights``).
            d_rejected: Loss weight of the rejected response.
            lr: Learning rate of the gradient-descent step.

        Returns:
            Columns ``pair_id, side, position, token, token_id, logp, with_chosen, with_rejected``
            and ``predicted_delta = lr·(d_chosen·with_chosen − d_rejected·with_rejected)``.
        """
        frame = pd.DataFrame({"pair_id": self.pair_id, **self._columns(), "token": self.tokens})
        frame["logp"] = self.logps
        frame["with_chosen"], frame["with_rejected"] = self.with_chosen, self.with_rejected
        delta = d_chosen * self.with_chosen - d_rejected * self.with_rejected
        frame["predicted_delta"] = lr * delta
        attrs = {"d_chosen": float(d_chosen), "d_rejected": float(d_rejected), "lr": float(lr)}
        frame.attrs.update(self.labels.to_attrs(), **attrs)
        return frame


class _Products:
    """A symmetric matrix of inner products of gradients."""

    matrix: np.ndarray

    @property
    def cosine(self) -> np.ndarray:
        """Cosines of the gradients, of the matrix's shape; NaN where a gradient vanishes."""
        norms = np.sqrt(np.clip(np.diag(self.matrix), 0, None))
        return np.clip(_divide(self.matrix, np.outer(norms, norms)), -1.0, 1.0)

    def _cells(self, axis: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """One row per cell, with the columns of the axis once for i and once for j."""
        n = len(self.matrix)
        places = zip("ij", np.divmod(np.arange(n * n), n), strict=True)
        columns = {f"{name}_{k}": values[at] for k, at in places for name, values in axis.items()}
        products = {"inner": self.matrix.ravel(), "cosine": self.cosine.ravel()}
        return pd.DataFrame({**columns, **products})


@dataclass(frozen=True)
class TokenMatrix(_Products, TokenAxis):
    """Inner products of all token gradients of one pair, chosen tokens before rejected ones.

    Attributes, besides those of the tokens:
        matrix: ⟨∇log π_i, ∇log π_j⟩, shape ``[n, n]``, symmetric and positive semi-definite.
        labels: What it was measured with.
    """

    matrix: np.ndarray
    labels: Provenance

    def to_frame(self) -> pd.DataFrame:
        """Return one row per cell: ``side_i, position_i, token_i, token_id_i, side_j, …``.

        ``inner`` and ``cosine`` are its values.
        """
        frame = self._cells(self._columns())
        frame.attrs.update(self.labels.to_attrs(), pair_id=self.pair_id)
        return frame


@dataclass(frozen=True)
class Gram(_Products):
    """Inner products of all response gradients of a set of pairs: the empirical kernel.

    Attributes:
        pair_ids: Pair id of each row, every pair twice.
        sides: ``"chosen"`` or ``"rejected"`` of each row; chosen first within a pair.
        matrix: ⟨g_i, g_j⟩, shape ``[2N, 2N]``, float64, symmetric.
        relative_error: Standard error of an off-diagonal entry relative to ‖g_i‖‖g_j‖; 0 when
            exact, about ``1/√k`` for a projection. The diagonal is always exact.
        labels: What it was measured with.
        left_out: Row, id and reason of each pair that could not be scored (see :attr:`skipped`).
    """

    pair_ids: list[str]
    sides: np.ndarray
    matrix: np.ndarray
    relative_error: float
    labels: Provenance
    left_out: Skipped = field(default_factory=list, repr=False)

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs that ``on_error="skip"`` left out: ``row, pair_id, reason``."""
        return skipped_frame(self.left_out)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per entry: ``pair_id_i, side_i, pair_id_j, side_j, inner, cosine``."""
        ids = np.array(self.pair_ids, dtype=object)
        frame = self._cells({"pair_id": ids, "side": self.sides})
        frame.attrs.update(self.labels.to_attrs(), relative_error=self.relative_error)
        frame.attrs.update(skipped_attrs(self.left_out))
        return frame


def concat_stats(parts: Sequence[PairStats]) -> PairStats:
    """Join statistics measured with the same labels, in order.

    Raises:
        ValueError: If there are none, or their labels differ.
    """
    if not parts or any(p.labels != parts[0].labels for p in parts):
        raise ValueError("parts must be one or more PairStats with the same labels")
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ARRAYS}
    names = parts[0].parts
    by_name = {name: np.concatenate([p.parts[name] for p in parts]) for name in names}
    ids = [i for p in parts for i in p.pair_ids]
    left_out = [pair for p in parts for pair in p.left_out]
    others = {"labels": parts[0].labels, "parts": by_name, "left_out": left_out}
    return PairStats(ids, **joined, **others)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b > 0)


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
