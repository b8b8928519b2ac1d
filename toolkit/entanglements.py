"""Loss weights and gradient products together: predicted changes, regimes and the band."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from torch import Tensor

from toolkit.checks import positive
from toolkit.gradients import PairStats
from toolkit.losses import LossWeights, loss_weights

REGIMES = ("ideal", "both_down", "both_up", "reversed", "unchanged")
# A change this small beside its own two terms is rounding, not a change.
ROUNDING = {"float64": 1e-12, "float32": 2e-6}
# Predicted changes up to this many nats are stated as numbers. Beside 450 real steps of plain
# gradient descent (the shipped model and sets, DPO, IPO and CPO, one pair alone) predictions of
# this size were off by 5 % in the median and 14 % at worst, every sign was right; at 1 nat it was
# up to 40 %, at 3 nats 113 %, and signs began to fail.
FIRST_ORDER_NATS = 0.3
COVERED = 0.95  # share of the pairs that a suggested learning rate keeps within reach


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
    def first_order_lr(self) -> np.ndarray:
        """Learning rate up to which neither response moves more than ``FIRST_ORDER_NATS``."""
        return _within_reach(self.chosen_slack, self.rejected_slack)

    @property
    def first_order(self) -> np.ndarray:
        """Whether the step is small enough for first order; if not, read directions alone.

        True where both predicted changes stay within ``FIRST_ORDER_NATS`` (0.3 nats). Predictions
        of this size were off by 5 % in the median and 14 % at worst on the shipped model, with
        every sign right; ``predict_step`` says how it is on another model.
        """
        return self.lr <= self.first_order_lr * (1 + 1e-9)

    @property
    def worst(self) -> int:
        """Place of the pair whose chosen response is predicted to fall most, or rise least."""
        slack = self.chosen_slack
        return int(np.argmin(np.where(np.isnan(slack), np.inf, slack)))

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
        # The band's own edge, where one change is zero, belongs outside it.
        return regimes(up, -down, edge=s.inner > 0)

    def take(self, index) -> Entanglement:
        """Return the pairs at these positions, in this order."""
        at = np.arange(len(self))[list(index)]
        return Entanglement(self.stats.take(at), self.weights.take(at), self.lr)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per pair: statistics, weights, band, predictions and their reach."""
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
        frame["first_order"], frame["first_order_lr"] = self.first_order, self.first_order_lr
        frame.attrs.update(loss_name=self.weights.loss_name, lr=self.lr, **self.weights.hparams)
        frame.attrs["first_order_nats"] = FIRST_ORDER_NATS
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
        lr: Learning rate; predicted changes are proportional to it. At 1.0 most of them are
            slopes, far beyond what first order can mean; ``suggest_lr`` gives a rate at which
            they are changes.
        **hparams: Hyper-parameters of the loss, such as ``beta``.

    Returns:
        :class:`Entanglement`; ``.to_frame()`` has one row per pair, ``first_order`` says which
        steps are small enough to be believed and ``first_order_lr`` up to which rate.

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
    lr = positive("lr", lr)
    _check_products(stats)
    return Entanglement(stats, loss_weights(stats, loss, **hparams), lr)


def suggest_lr(chosen_slack: ArrayLike, rejected_slack: ArrayLike) -> float:
    """Return a learning rate at which a first-order prediction means something for these pairs.

    The largest rate of one significant digit, at most 1, at which 95 % of the pairs (all, of
    fewer than 20) are predicted to move neither response by more than ``FIRST_ORDER_NATS``.

    Args:
        chosen_slack: ``Entanglement.chosen_slack``, predicted change of chosen per unit of rate.
        rejected_slack: ``Entanglement.rejected_slack``.

    Example:
        >>> suggest_lr([80.0, -40.0], [20.0, 100.0])
        0.003
    """
    rates = _within_reach(np.asarray(chosen_slack, float), np.asarray(rejected_slack, float))
    rates = np.sort(rates[~np.isnan(rates)])
    if not len(rates):
        return 1.0
    rate = min(float(rates[int(len(rates) * (1 - COVERED) + 1e-9)]), 1.0)
    if rate <= 0:
        return float(np.finfo(float).tiny)
    power = math.floor(math.log10(rate) + 1e-9)
    return float(f"{max(1, math.floor(rate / 10.0**power + 1e-9))}e{power}")


def regimes(
    chosen: ArrayLike, rejected: ArrayLike, *, edge: ArrayLike | bool = False
) -> np.ndarray:
    """Return the regime by the signs of two changes, of any shape; ``None`` where one is NaN.

    Args:
        chosen: Change of the chosen response.
        rejected: Change of the rejected one.
        edge: Where a change of zero counts with the other one (``both_up``, ``both_down``) instead
            of being as good as ideal.

    Example:
        >>> regimes([1, -1, 1, -1, 0], [-1, -1, 1, 1, 0]).tolist()
        ['ideal', 'both_down', 'both_up', 'reversed', 'unchanged']
        >>> regimes([0, 0], [-1, -1], edge=[True, False]).tolist()
        ['both_down', 'ideal']
    """
    up, over = np.asarray(chosen, float), np.asarray(rejected, float)
    names, edge = np.full(up.shape, "ideal", dtype=object), np.asarray(edge)
    names[(up < 0) & (over <= 0) | (up == 0) & (over < 0) & edge] = "both_down"
    names[(up >= 0) & (over > 0) | (up > 0) & (over == 0) & edge] = "both_up"
    names[(up < 0) & (over > 0)] = "reversed"
    names[(up == 0) & (over == 0)] = "unchanged"
    names[np.isnan(up) | np.isnan(over)] = None
    return names


def _within_reach(chosen_slack: np.ndarray, rejected_slack: np.ndarray) -> np.ndarray:
    most = np.maximum(np.abs(chosen_slack), np.abs(rejected_slack))
    with np.errstate(divide="ignore", over="ignore"):
        return np.divide(FIRST_ORDER_NATS, most)


def _check_products(stats: PairStats) -> None:
    if not isinstance(stats, PairStats):
        raise ValueError(
            f"stats must be PairStats, received {type(stats).__name__}: give what "
            "tk.pair_stats(policy, pairs) returns"
        )
    products = np.stack([stats.chosen_sq_norm, stats.rejected_sq_norm, stats.inner])
    bad = np.flatnonzero(~np.isfinite(products).all(0))
    if len(bad):
        raise ValueError(
            f"stats: the gradient products of pair {stats.pair_ids[bad[0]]!r} are not finite; "
            "measure them again with a wider dtype, such as float32"
        )


def _sign(values: np.ndarray, terms: np.ndarray, dtype: str) -> np.ndarray:
    rounding = ROUNDING.get(dtype, ROUNDING["float32"])
    return np.where(np.abs(values) <= rounding * terms, 0.0, np.sign(values))
