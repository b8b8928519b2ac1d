"""Margin losses as functions of scalar log-probabilities, and their weights by autograd."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit.checks import finite, shown
from toolkit.losses._loss_row import FIELDS, Loss
from toolkit.losses._margin_losses import BATCH_LOSSES, LOSSES

__all__ = [
    "FIELDS",
    "LOSSES",
    "Loss",
    "LossWeights",
    "check_loss",
    "loss_table",
    "loss_weights",
]


class HasLogps(Protocol):
    """Anything with the six per-pair arrays a loss may read, such as ``PairStats``."""

    chosen_logps: np.ndarray
    rejected_logps: np.ndarray
    ref_chosen_logps: np.ndarray
    ref_rejected_logps: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray


@dataclass(frozen=True)
class LossWeights:
    """How hard a loss pulls on each response: ``−∇ℓ = d_chosen·g_chosen − d_rejected·g_rejected``.

    Attributes:
        loss: Key of the loss, or the name of the user's function.
        hparams: Hyper-parameters used.
        losses: Loss value of each pair, shape ``[B]``.
        d_chosen: ``−∂ℓ/∂chosen_logps``, shape ``[B]``, per nat.
        d_rejected: ``+∂ℓ/∂rejected_logps``, shape ``[B]``, per nat.
    """

    loss: str
    hparams: Mapping[str, float]
    losses: np.ndarray
    d_chosen: np.ndarray
    d_rejected: np.ndarray
    ids: list[str] = field(default_factory=list)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a pair: ``id, loss, d_chosen, d_rejected``."""
        frame = pd.DataFrame(
            {"loss": self.losses, "d_chosen": self.d_chosen, "d_rejected": self.d_rejected}
        )
        if self.ids:
            frame.insert(0, "id", self.ids)
        frame.attrs.update(loss=self.loss, **self.hparams)
        return frame


def loss_table() -> pd.DataFrame:
    """Return the table of losses, one row a loss.

    Keys follow the papers. Where TRL uses the same word for another loss, this table keeps the
    paper's: ``ipo`` sums over tokens, and TRL's ``"ipo"`` is ``ipo_avg``. TRL's losses over a whole
    batch (``"aot"``, ``"aot_unpaired"``) have no weights of a pair and are not in it.

    Returns:
        A frame with ``formula``, ``ratio`` (what ``d_chosen / d_rejected`` does), ``defaults``,
        ``needs_ref``, ``source``, ``trl_loss_type`` and ``trl_trainer``, indexed by ``loss``.

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
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("loss")


def loss_weights(
    loss: str | Callable[..., Tensor], stats: HasLogps, **hparams: float
) -> LossWeights:
    """Return ``d_chosen = −∂ℓ/∂chosen_logps``, ``d_rejected = +∂ℓ/∂rejected_logps`` of each pair.

    The loss is summed over pairs and differentiated by autograd in float64, so that any function
    of the log-probabilities has its weights without a line of algebra.

    Args:
        loss: A key of ``LOSSES`` or a function of any of the fields ``chosen_logps``,
            ``rejected_logps``, ``ref_chosen_logps``, ``ref_rejected_logps``, ``chosen_length``,
            ``rejected_length`` (float64 tensors ``[B]``, nats and tokens) that returns ``[B]``.
        stats: ``PairStats``, or anything with those six arrays.
        **hparams: Hyper-parameters of the loss; the table's defaults where not given.

    Returns:
        :class:`LossWeights` in pair order.

    Raises:
        ValueError: If the loss or a hyper-parameter is unknown, a value is no finite number or
            outside its limits, or the function does not return one finite value a pair. For one of
            TRL's words, the message names the key of this table.

    Source:
        arXiv 2410.13828, Eqs. 3-5 (``−∇ℓ = d_w ∇log π(y_w) − d_l ∇log π(y_l)``).

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> stats = tk.pair_stats(policy, tk.load_pairs("single_token", limit=1), progress=False)
        >>> float(tk.loss_weights("dpo", stats, beta=0.1).d_chosen[0])
        0.05
    """
    key, function, hparams = _resolve(loss, hparams)
    leaves = _leaves(stats)
    with torch.enable_grad():
        losses = _losses(key, function, leaves, hparams)
        _check_finite(key, "value", losses)
        on = [leaves["chosen_logps"], leaves["rejected_logps"]]
        grads = torch.autograd.grad(losses.sum(), on, allow_unused=True, materialize_grads=True)
    _check_finite(key, "gradient", *grads)
    ids = list(getattr(stats, "ids", []))
    d_chosen, d_rejected = -grads[0].numpy(), grads[1].numpy()
    return LossWeights(key, hparams, losses.detach().numpy(), d_chosen, d_rejected, ids)


def check_loss(loss: str | Callable[..., Tensor], hparams: Mapping[str, float]) -> dict[str, float]:
    """Check a loss before any log-probability is known; return its hyper-parameters, all of them.

    A user's function is tried on two made-up pairs. Whether its values are finite shows only on
    real ones.

    Raises:
        ValueError: As :func:`loss_weights` does.
    """
    key, function, merged = _resolve(loss, hparams)
    if callable(loss):
        with torch.enable_grad():
            _losses(key, function, _leaves(_MADE_UP), merged)
    return merged


_MADE_UP = SimpleNamespace(**{name: np.array([-2.0, -1.0]) for name in FIELDS[:4]},
                           **{name: np.array([1.0, 2.0]) for name in FIELDS[4:]})  # fmt: skip


def _leaves(stats: HasLogps) -> dict[str, Tensor]:
    """Return the fields as float64 tensors, those of the policy with a gradient."""
    missing = [name for name in FIELDS if not hasattr(stats, name)]
    if missing:
        raise ValueError(
            f"stats has no {missing[0]}, received {type(stats).__name__}: give what "
            "tk.pair_stats(policy, pairs) returns"
        )
    leaves = {name: torch.tensor(np.asarray(getattr(stats, name)).astype(float)) for name in FIELDS}
    for name in ("chosen_logps", "rejected_logps"):
        leaves[name].requires_grad_()
    return leaves


def _losses(key: str, function: Callable, leaves: Mapping[str, Tensor], hparams) -> Tensor:
    wanted = {n: leaves[n] for n in inspect.signature(function).parameters if n in FIELDS}
    losses = function(**wanted, **hparams)
    _check_values(key, losses, len(leaves["chosen_logps"]))
    return losses


def _resolve(loss, hparams) -> tuple[str, Callable[..., Tensor], dict[str, float]]:
    if callable(loss):
        key, function = getattr(loss, "__name__", "custom"), loss
        allowed, defaults = _options_of(loss)
        limits = {}
    else:
        if not isinstance(loss, str) or loss not in LOSSES:
            raise ValueError(_why_unknown(loss))
        row = LOSSES[loss]
        key, function, defaults, limits = loss, row.function, row.defaults, row.limits
        allowed = dict.fromkeys(defaults, False)
    merged = {**defaults, **hparams}
    for name, value in merged.items():
        if name not in allowed:
            raise ValueError(
                f"{key} has no hyper-parameter {name!r}; allowed: {', '.join(allowed) or 'none'}"
            )
        finite(name, value)
        if name in limits and value not in limits[name]:
            raise ValueError(f"{name} of {key} must lie in {limits[name]}, received {value!r}")
    for name, required in allowed.items():
        if required and name not in merged:
            raise ValueError(f"{key} needs a value for {name}: give it as {name}=…")
    return key, function, merged


def _why_unknown(loss) -> str:
    if isinstance(loss, str) and loss in BATCH_LOSSES:
        return f"loss={loss!r} has no weights of one pair: {BATCH_LOSSES[loss]}"
    ours = [row for row in LOSSES.values() if row.trl_loss_type and row.trl_loss_type == str(loss)]
    if ours:
        named = " or ".join(f"{row.key!r} ({row.trl_trainer})" for row in ours)
        return f"loss={loss!r} is TRL's word; here it is {named}"
    return f"loss={shown(loss)} is unknown; allowed: {', '.join(LOSSES)}, or a function"


def _options_of(function) -> tuple[dict[str, bool], dict[str, float]]:
    """A user's hyper-parameters: whether each must be given, and the defaults that are numbers."""
    every = inspect.signature(function).parameters.values()
    own = [p for p in every if p.name not in FIELDS and p.kind is not p.VAR_KEYWORD]
    defaults = {p.name: p.default for p in own if isinstance(p.default, numbers.Real)}
    return {p.name: p.default is p.empty for p in own}, defaults


def _check_values(key: str, losses, count: int) -> None:
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss {key} must return one value a pair, shape ({count},); got {got}")
    if not losses.requires_grad:
        raise ValueError(f"loss {key} does not depend on chosen_logps or rejected_logps")


def _check_finite(key: str, what: str, *columns: Tensor) -> None:
    for values in columns:
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).nonzero()[0])
            raise ValueError(f"loss {key} has the {what} {values[bad].item()} at pair {bad}")
