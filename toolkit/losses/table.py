"""The table of losses: what a row says, and what its hyper-parameters may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd
from torch import Tensor

from toolkit.losses.quantities import hyper_parameters, needs_reference

POSITIVE = pd.Interval(0, math.inf, closed="neither")
NOT_NEGATIVE = pd.Interval(0, math.inf, closed="left")
FLIPPED = pd.Interval(0, 0.5, closed="left")
LIMITS = {
    **dict.fromkeys(("beta", "tau"), POSITIVE),
    **dict.fromkeys(("lam", "alpha"), NOT_NEGATIVE),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), NOT_NEGATIVE),
    "epsilon": FLIPPED,
}


@dataclass(frozen=True)
class Loss:
    """One row of the loss table.

    Attributes:
        key: Name of the loss, as its paper writes it.
        function: Per-pair loss ``[B]`` from the quantities it names and its hyper-parameters.
        defaults: Hyper-parameters and their default values: those that TRL uses or recommends,
            where it has the loss.
        needs_ref: Whether the reference log-probabilities enter.
        formula: The loss in one line.
        source: arXiv id.
        trl_loss_type: TRL's spelling, empty where TRL has none.
        trl_trainer: The TRL trainer that has it, empty where none has.
        ratio: What ``d_chosen / d_rejected`` does.
        limits: The values each hyper-parameter may take, where not all.
    """

    key: str
    function: Callable[..., Tensor]
    defaults: Mapping[str, float]
    needs_ref: bool
    formula: str
    source: str
    trl_loss_type: str = ""
    trl_trainer: str = ""
    ratio: str = ""
    limits: Mapping[str, pd.Interval] = field(default_factory=dict)


LOSSES: dict[str, Loss] = {}


def loss_row(
    formula: str,
    source: str,
    ratio: str,
    *,
    trl: str = "",
    trainer: str = "DPOTrainer",
    **limits: pd.Interval,
):
    """Enter a function in the table; its signature says what it reads and its defaults."""

    def enter(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        key = function.__name__
        function.__doc__ = f"``{formula}`` ({source})."
        defaults = {name: p.default for name, p in hyper_parameters(function).items()}
        own = {n: limits.get(n, LIMITS.get(n)) for n in defaults if n in {*limits, *LIMITS}}
        LOSSES[key] = Loss(
            key=key,
            function=function,
            defaults=defaults,
            needs_ref=needs_reference(function),
            formula=formula,
            source=source,
            trl_loss_type=trl,
            trl_trainer=trainer if trl else "",
            ratio=ratio,
            limits=own,
        )
        return function

    return enter


def loss_table() -> pd.DataFrame:
    """Return the table of losses, one row per loss.

    Keys follow the papers. Where TRL uses the same word for another loss, this table keeps the
    paper's: ``ipo`` sums over tokens, and TRL's ``"ipo"`` is ``ipo_avg``. TRL's losses over a whole
    batch (``"aot"``, ``"aot_unpaired"``) have no weights of a pair and are not in it.

    Returns:
        A frame with ``formula``, ``ratio`` (what ``d_chosen / d_rejected`` does), ``defaults``,
        ``needs_ref``, ``source``, ``trl_loss_type`` and ``trl_trainer``, indexed by ``loss_name``.

    Source:
        Each row's own; the weights are those of arXiv 2410.13828, Table 1.

    Example:
        >>> import toolkit as tk
        >>> tk.loss_table().loc["dpo", "formula"]
        '−log σ(β·Δ), Δ = chosen logratio − rejected logratio'
    """
    columns = ["formula", "ratio", "defaults", "needs_ref", "source"]
    columns += ["trl_loss_type", "trl_trainer"]
    rows = {key: [getattr(row, c) for c in columns] for key, row in LOSSES.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("loss_name")
