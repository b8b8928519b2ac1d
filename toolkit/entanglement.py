"""Loss weights and gradient products together: predicted changes, regimes and the band."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from toolkit.gradients import PairStats
from toolkit.losses import LossWeights, is_finite_number, loss_weights

REGIMES = ("ideal", "both_down", "both_up", "reversed", "unchanged")
# A change this small beside its own two terms is rounding, not a change.
ROUNDING = {"float64": 1e-12, "float32": 2e-6}


@dataclass(frozen=True)
class Entanglement:
    """What one gradient-descent step on each pair alone does to its two responses, at first order.

    ``Δ chosen_logps = lr·(d_chosen‖g_chosen‖² − d_rejected⟨g_chosen, g_rejected⟩)`` and
    ``Δ rejected_logps = lr·(d_chosen⟨g_chosen, g_rejected⟩ − d_rejected‖g_rejected‖²)``, in nats.
    Pairs in the same minibatch add their own terms, which are not in these numbers.

    Attributes:
        stats: The gradient products.
        weights: The loss weights.
        lr: Learning rate of the step.
    """

    stats: PairStats
    weights: LossWeights
    lr: float

    def __len__(self) -> int:
        return len(self.stats)

    @property
    def chosen_slack(self) -> np.ndarray:
        """``d_chosen‖g_chosen‖² − d_rejected⟨·,·⟩``: above 0, the chosen response rises."""
        w, s = self.weights, self.stats
        return w.d_chosen * s.chosen_sq_norm - w.d_rejected * s.inner

    @property
    def rejected_slack(self) -> np.ndarray:
        """``d_rejected‖g_rejected‖² − d_chosen⟨·,·⟩``: above 0, the rejected response falls."""
        w, s = self.weights, self.stats
        return w.d_rejected * s.rejected_sq_norm - w.d_chosen * s.inner

    @property
    def predicted_chosen_delta(self) -> np.ndarray:
        """Predicted change of the chosen log-probability, nats."""
        return self.lr * self.chosen_slack

    @property
    def predicted_rejected_delta(self) -> np.ndarray:
        """Predicted change of the rejected log-probability, nats."""
        return -self.lr * self.rejected_slack

    @property
    def ratio(self) -> np.ndarray:
        """``d_chosen / d_rejected``; 1 for DPO; NaN where ``d_rejected`` is 0."""
        w = self.weights
        empty = np.full(len(self), np.nan)
        return np.divide(w.d_chosen, w.d_rejected, out=empty, where=w.d_rejected != 0)

    @property
    def band_center(self) -> np.ndarray:
        """``‖g_rejected‖/‖g_chosen‖``, the ratio of loss weights at the middle of the band."""
        norms = np.sqrt(self.stats.rejected_sq_norm), np.sqrt(self.stats.chosen_sq_norm)
        empty = np.full(len(self), np.nan)
        return np.divide(*norms, out=empty, where=norms[1] > 0)

    @property
    def band_low(self) -> np.ndarray:
        """Ratio at or below which both responses fall: ``cos·band_center`` (0 where cos ≤ 0)."""
        return np.maximum(self.stats.cosine, 0.0) * self.band_center

    @property
    def band_high(self) -> np.ndarray:
        """Ratio at or above which both rise: ``band_center/cos`` (infinite where cos ≤ 0)."""
        cosine = self.stats.cosine
        empty = np.where(np.isnan(cosine), np.nan, np.inf)
        return np.divide(self.band_center, cosine, out=empty, where=cosine > 0)

    @property
    def band_position(self) -> np.ndarray:
        """``log(ratio/band_center)/log(1/cos)``: inside (−1, 1) is ideal; NaN where cos ≤ 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            offset = np.log(self.ratio / self.band_center)
            # Not −log(cos), which is −0 at cos = 1 and would turn the infinite position around.
            return np.where(self.stats.cosine > 0, offset / np.log(1 / self.stats.cosine), np.nan)

    @property
    def regime(self) -> np.ndarray:
        """Regime by the signs of the two changes.

        ``ideal`` (chosen up, rejected down), ``both_down``, ``both_up``, ``reversed`` (chosen down,
        rejected up: needs a negative loss weight), or ``unchanged`` (no first-order change).
        """
        w, s = self.weights, self.stats
        chosen, rejected = abs(w.d_chosen), abs(w.d_rejected)
        most = np.sqrt(s.chosen_sq_norm) * np.sqrt(s.rejected_sq_norm)  # |⟨·,·⟩| at its largest
        dtype = s.labels.dtype
        up = _sign(self.chosen_slack, chosen * s.chosen_sq_norm + rejected * most, dtype)
        down = _sign(self.rejected_slack, rejected * s.rejected_sq_norm + chosen * most, dtype)
        names = np.full(len(self), "ideal", dtype=object)
        # The band's own edge, where one change is zero, belongs outside it.
        edge = s.inner > 0
        names[(up < 0) & (down >= 0) | (up == 0) & (down > 0) & edge] = "both_down"
        names[(up >= 0) & (down < 0) | (up > 0) & (down == 0) & edge] = "both_up"
        names[(up < 0) & (down < 0)] = "reversed"
        names[(up == 0) & (down == 0)] = "unchanged"
        return names

    def take(self, index) -> Entanglement:
        """Return the pairs at these positions, in this order."""
        at, w = np.arange(len(self))[list(index)], self.weights
        weights = LossWeights(
            w.loss,
            w.hparams,
            w.losses[at],
            w.d_chosen[at],
            w.d_rejected[at],
            [w.ids[i] for i in at],
        )
        return Entanglement(self.stats.take(at), weights, self.lr)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a pair: the statistics, the weights, the band and the predictions."""
        frame = self.stats.to_frame()
        frame["loss"] = self.weights.losses
        frame["d_chosen"], frame["d_rejected"] = self.weights.d_chosen, self.weights.d_rejected
        frame["ratio"] = self.ratio
        with np.errstate(divide="ignore", invalid="ignore"):
            frame["log_ratio"] = np.log(frame["ratio"])
        columns = ("band_low", "band_center", "band_high", "band_position")
        columns += ("chosen_slack", "rejected_slack")
        columns += ("predicted_chosen_delta", "predicted_rejected_delta")
        for name in columns:
            frame[name] = getattr(self, name)
        delta = frame["predicted_chosen_delta"] - frame["predicted_rejected_delta"]
        frame["predicted_margin_delta"], frame["regime"] = delta, self.regime
        frame.attrs.update(loss=self.weights.loss, lr=self.lr, **self.weights.hparams)
        return frame


def entanglement(
    stats: PairStats,
    loss: str | Callable[..., Tensor] = "dpo",
    *,
    lr: float = 1.0,
    **hparams: float,
) -> Entanglement:
    """Predict what one gradient-descent step on each pair alone does to its two responses.

    Args:
        stats: From ``pair_stats``.
        loss: A key of ``LOSSES`` or a function (see ``loss_weights``).
        lr: Learning rate; predicted changes are proportional to it.
        **hparams: Hyper-parameters of the loss, such as ``beta``.

    Returns:
        :class:`Entanglement`; ``.to_frame()`` has one row a pair.

    Raises:
        ValueError: If ``lr`` is not a positive number, the loss or a hyper-parameter is unknown, or
            a gradient product is not finite.

    Source:
        arXiv 2410.13828, Section 3 (conditions on the inner product); the band form follows
        arXiv 2604.18239.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> stats = tk.pair_stats(policy, tk.load_pairs("long_suffix", limit=4), progress=False)
        >>> frame = tk.entanglement(stats, "dpo", beta=0.1, lr=1e-3).to_frame()
        >>> set(frame["regime"]) <= {"ideal", "both_down", "both_up"}
        True
    """
    if not is_finite_number(lr) or lr <= 0:
        raise ValueError(f"lr must be a positive number, received {lr!r}")
    _check_products(stats)
    return Entanglement(stats, loss_weights(loss, stats, **hparams), float(lr))


def _check_products(stats: PairStats) -> None:
    products = np.stack([stats.chosen_sq_norm, stats.rejected_sq_norm, stats.inner])
    bad = np.flatnonzero(~np.isfinite(products).all(0))
    if len(bad):
        raise ValueError(
            f"stats: the gradient products of pair {stats.ids[bad[0]]!r} are not finite; measure "
            "them again with a wider dtype, such as float32"
        )


def _sign(values: np.ndarray, terms: np.ndarray, dtype: str) -> np.ndarray:
    rounding = ROUNDING.get(dtype, ROUNDING["float32"])
    return np.where(np.abs(values) <= rounding * terms, 0.0, np.sign(values))
