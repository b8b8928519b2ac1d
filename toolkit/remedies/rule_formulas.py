"""The update rules themselves, each a function of five numbers that reads as its formula.

A loss pulls with ``u = d_chosen·g_chosen − d_rejected·g_rejected``. Every rule here stays in that
plane: it gives two other weights, made of those and of ``‖g_chosen‖``, ``‖g_rejected‖`` and
``⟨g_chosen, g_rejected⟩``. So no gradient of a single pair has to be kept: the step is one backward
pass through log-probabilities that are rescaled under a stop-gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

Weights = tuple[np.ndarray, np.ndarray]
Formula = Callable[..., Weights]


@dataclass(frozen=True)
class Row:
    """One rule of the table: its function, its formula, what it guarantees, where it is from."""

    function: Formula
    formula: str
    first_order: str
    source: str
    reads_gradients: bool = True


UPDATE_RULES: dict[str, Row] = {}


def _row(formula: str, first_order: str, source: str, reads_gradients: bool = True):
    def add(function: Formula) -> Formula:
        row = Row(function, formula, first_order, source, reads_gradients)
        UPDATE_RULES[function.__name__] = row
        return function

    return add


@_row("d_c·g_c − d_r·g_r", "as the loss has it", "arXiv 2410.13828, Eq. 5", False)
def plain(d_chosen, d_rejected, chosen_norm, rejected_norm, inner):
    return d_chosen, d_rejected


@_row(
    "c·(g_c/‖g_c‖ − g_r/‖g_r‖), c = (|d_c| + |d_r|)/2",
    "ideal: +c·‖g_c‖(1 − cos), −c·‖g_r‖(1 − cos)",
    "arXiv 2410.13828, Section 5, times the size of the loss weights",
)
def normalised(d_chosen, d_rejected, chosen_norm, rejected_norm, inner):
    size = (np.abs(d_chosen) + np.abs(d_rejected)) / 2
    chosen, rejected = normalised_unweighted(
        d_chosen, d_rejected, chosen_norm, rejected_norm, inner
    )
    return size * chosen, size * rejected


@_row(
    "g_c/‖g_c‖ − g_r/‖g_r‖",
    "ideal: +‖g_c‖(1 − cos), −‖g_r‖(1 − cos)",
    "arXiv 2410.13828, Section 5",
)
def normalised_unweighted(d_chosen, d_rejected, chosen_norm, rejected_norm, inner):
    return _over(np.sign(d_chosen), chosen_norm), _over(np.sign(d_rejected), rejected_norm)


@_row(
    "a·d_c·g_c − d_r·g_r/a, a = √(‖d_r·g_r‖/‖d_c·g_c‖)",
    "ideal: the normalised step, as long as the plain one on (geometric) average",
    "reward calibration in the code of arXiv 2410.13828, without its moving averages",
)
def balanced(d_chosen, d_rejected, chosen_norm, rejected_norm, inner):
    chosen, rejected = np.abs(d_chosen) * chosen_norm, np.abs(d_rejected) * rejected_norm
    size = np.sqrt(chosen * rejected)
    return (
        np.sign(d_chosen) * _over(size, chosen_norm),
        np.sign(d_rejected) * _over(size, rejected_norm),
    )


@_row("d_c·g_c", "chosen up by d_c·‖g_c‖²; rejected wherever it goes along", "NLL alone", False)
def chosen_only(d_chosen, d_rejected, chosen_norm, rejected_norm, inner):
    return d_chosen, np.zeros_like(d_rejected)


@_row(
    "d_c·g_c − d_r·(g_r without its part along g_c, where ⟨g_c, g_r⟩ > 0)",
    "chosen up by at least d_c·‖g_c‖²; rejected can rise with it",
    "the projection of arXiv 2001.06782 on the two terms of one loss",
)
def project_rejected(d_chosen, d_rejected, chosen_norm, rejected_norm, inner):
    return d_chosen + d_rejected * _over(np.maximum(inner, 0), chosen_norm**2), d_rejected


@_row(
    "d_c·(g_c without its part along g_r, where ⟨g_c, g_r⟩ > 0) − d_r·g_r",
    "rejected down by at least d_r·‖g_r‖²; chosen can fall with it",
    "the projection of arXiv 2001.06782 on the two terms of one loss",
)
def project_chosen(d_chosen, d_rejected, chosen_norm, rejected_norm, inner):
    return d_chosen, d_rejected + d_chosen * _over(np.maximum(inner, 0), rejected_norm**2)


@_row(
    "both terms without their part along the other's gradient, where ⟨g_c, g_r⟩ > 0",
    "ideal: +d_c·‖g_c‖²(1 − cos²), −d_r·‖g_r‖²(1 − cos²)",
    "the projection of arXiv 2001.06782 on the two terms of one loss",
)
def project_both(d_chosen, d_rejected, chosen_norm, rejected_norm, inner):
    chosen, _ = project_rejected(d_chosen, d_rejected, chosen_norm, rejected_norm, inner)
    _, rejected = project_chosen(d_chosen, d_rejected, chosen_norm, rejected_norm, inner)
    return chosen, rejected


def rule_table() -> pd.DataFrame:
    """Return one row per update rule: ``rule, formula, first_order, source``."""
    columns = ("formula", "first_order", "source")
    rows = [{"rule": key, **{c: getattr(row, c) for c in columns}}
            for key, row in UPDATE_RULES.items()]  # fmt: skip
    return pd.DataFrame(rows)


def _over(value, by):
    """Return value / by, and 0 where the gradient ``by`` measures vanishes."""
    by = np.asarray(by, dtype=float)
    return np.divide(value, by, out=np.zeros(by.shape), where=by > 0)
