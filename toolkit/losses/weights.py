"""How hard a loss pulls on each response of a pair: its weights, by autograd."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit.checks import finite, shown
from toolkit.losses.quantities import FIELDS, PairLogSums, evaluate, hyper_parameters
from toolkit.losses.table import LOSSES

# TRL's losses that are no function of one pair; asking for one says why.
BATCH_LOSSES = {
    "aot": "it sorts the chosen − rejected differences of the whole batch, and those of the "
    "reference, before it compares them",
    "aot_unpaired": "it sorts the chosen and the rejected log-ratios of the whole batch before it "
    "compares them",
}


@dataclass(frozen=True)
class LossWeights:
    """How hard a loss pulls on each response: ``−∇ℓ = d_chosen·g_chosen − d_rejected·g_rejected``.

    Attributes:
        loss_name: Key of the loss, or the name of the user's function.
        hparams: Hyper-parameters used.
        losses: Loss value of each pair, shape ``[B]``.
        d_chosen: ``−∂ℓ/∂chosen_logps``, shape ``[B]``, per nat.
        d_rejected: ``+∂ℓ/∂rejected_logps``, shape ``[B]``, per nat.
    """

    loss_name: str
    hparams: Mapping[str, float]
    losses: np.ndarray
    d_chosen: np.ndarray
    d_rejected: np.ndarray
    pair_ids: list[str] = field(default_factory=list)

    def take(self, index: Sequence[int]) -> LossWeights:
        """Return the weights of the pairs at these positions, in this order."""
        arrays = {name: getattr(self, name)[index] for name in ("losses", "d_chosen", "d_rejected")}
        ids = [self.pair_ids[i] for i in index] if self.pair_ids else []
        return replace(self, **arrays, pair_ids=ids)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per pair: ``pair_id, loss, d_chosen, d_rejected``."""
        frame = pd.DataFrame(
            {"loss": self.losses, "d_chosen": self.d_chosen, "d_rejected": self.d_rejected}
        )
        if self.pair_ids:
            frame.insert(0, "pair_id", self.pair_ids)
        frame.attrs.update(loss_name=self.loss_name, **self.hparams)
        return frame


def loss_weights(
    stats: PairLogSums, loss: str | Callable[..., Tensor], **hparams: float
) -> LossWeights:
    """Return ``d_chosen = −∂ℓ/∂chosen_logps``, ``d_rejected = +∂ℓ/∂rejected_logps`` of each pair.

    The loss is summed over pairs and differentiated by autograd in float64, so that any function
    of the log-probabilities has its weights without a line of algebra.

    Args:
        stats: ``PairStats``, or anything with the six arrays of ``FIELDS``.
        loss: A key of ``LOSSES``, or a function that returns ``[B]`` and names what it reads:
            ``chosen_logps``, ``rejected_logps``, ``ref_chosen_logps``, ``ref_rejected_logps``,
            ``chosen_length``, ``rejected_length``, or what follows from them (``delta``,
            ``chosen_logratio``, ``chosen_mean``, …; see docs/formulas.md), float64 tensors
            ``[B]`` in nats and tokens. What stands after its ``*`` is a hyper-parameter.
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
        >>> float(tk.loss_weights(stats, "dpo", beta=0.1).d_chosen[0])
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
    ids = list(getattr(stats, "pair_ids", []))
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


_MADE_UP = PairLogSums(["a", "b"], *[np.array([-2.0, -1.0])] * 4, *[np.array([1.0, 2.0])] * 2)


def _leaves(stats: PairLogSums) -> dict[str, Tensor]:
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
    losses, count = evaluate(function, leaves, hparams), len(leaves["chosen_logps"])
    if not isinstance(losses, Tensor) or losses.shape != (count,):
        got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(f"loss {key} must return one value per pair, shape ({count},); got {got}")
    if not losses.requires_grad:
        raise ValueError(f"loss {key} does not depend on chosen_logps or rejected_logps")
    return losses


def _resolve(loss, hparams) -> tuple[str, Callable[..., Tensor], dict[str, float]]:
    """The loss's name, its function, and all of its hyper-parameters, checked."""
    row = LOSSES.get(loss) if isinstance(loss, str) else None
    if row is None and not callable(loss):
        raise ValueError(_why_unknown(loss))
    key = row.key if row else getattr(loss, "__name__", "custom")
    function, limits = (row.function, row.limits) if row else (loss, {})
    try:
        own = hyper_parameters(function)
    except (TypeError, ValueError):  # built-in types and some C functions have none
        raise ValueError(
            f"loss={shown(loss)} has no signature to read; give a Python function"
        ) from None
    defaults = {n: p.default for n, p in own.items() if isinstance(p.default, numbers.Real)}
    merged = {**defaults, **hparams}
    for name, value in merged.items():
        if name not in own:
            raise ValueError(
                f"{key} has no hyper-parameter {name!r}; allowed: {', '.join(own) or 'none'}"
            )
        finite(name, value)
        if name in limits and value not in limits[name]:
            raise ValueError(f"{name} of {key} must lie in {limits[name]}, received {value!r}")
    for name, parameter in own.items():
        if parameter.default is parameter.empty and name not in merged:
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


def _check_finite(key: str, what: str, *columns: Tensor) -> None:
    for values in columns:
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).nonzero()[0])
            raise ValueError(f"loss {key} has the {what} {values[bad].item()} at pair {bad}")
