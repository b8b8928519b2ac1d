"""One row of the loss table, and what its hyper-parameters may be."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pandas as pd
from torch import Tensor

FIELDS = (
    "chosen_logps",
    "rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_length",
    "rejected_length",
)
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
        function: Per-pair loss ``[B]`` from the fields it names (see ``FIELDS``) and its
            hyper-parameters.
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


def row(
    table: dict[str, Loss],
    formula: str,
    source: str,
    ratio: str,
    *,
    trl: str = "",
    trainer: str = "DPOTrainer",
    **limits: pd.Interval,
):
    """Enter a function in a table; its signature says what it reads and its defaults."""

    def enter(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        parameters, key = inspect.signature(function).parameters, function.__name__
        defaults = {n: p.default for n, p in parameters.items() if n not in FIELDS}
        own = {n: limits.get(n, LIMITS.get(n)) for n in defaults if n in {*limits, *LIMITS}}
        needs_ref = "ref_chosen_logps" in parameters
        where = trainer if trl else ""
        table[key] = Loss(
            key, function, defaults, needs_ref, formula, source, trl, where, ratio, own
        )
        return function

    return enter
