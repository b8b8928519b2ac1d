"""What an optimiser's step is made of: gradient, momentum, weight decay and projection."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BUFFERS = ("momentum_buffer", "exp_avg", "momentum")  # where older gradients live


@dataclass(frozen=True)
class StepParts:
    """What moved one parameter: ``Δθ = −scale·∇ℓ + momentum + weight_decay + projection``.

    Attributes:
        scale: The diagonal P times the learning rate, as the step really used it (second moments
            after their update); ``None`` where the step is not linear in the gradient.
        momentum: Share of older gradients, or ``None`` for zero.
        weight_decay: Share of weight decay, or ``None`` for zero.
        projection: Radial part that AdamP and SGDP take out again, or ``None`` for zero.
    """

    scale: Tensor | float | None
    momentum: Tensor | None = None
    weight_decay: Tensor | None = None
    projection: Tensor | None = None


def buffers(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, dict[str, Tensor]]:
    """Return copies of the momentum buffers, to be read after the step."""
    return {
        p: {k: v.clone() for k, v in state.items() if k in BUFFERS and v is not None}
        for p, state in optimizer.state.items()
    }


def step_parts(optimizer, p, theta: Tensor, grad: Tensor, old: Mapping) -> StepParts | None:
    """Return the parts of the step that was just taken on one parameter, or ``None``.

    Args:
        optimizer: After its step.
        p: The parameter, as the optimiser holds it.
        theta: Its value before the step.
        grad: Its gradient after clipping.
        old: Its momentum buffers before the step.
    """
    key = (type(optimizer).__module__.split(".")[0], type(optimizer).__name__)
    group = next(g for g in optimizer.param_groups if any(q is p for q in g["params"]))
    odd = ("maximize", "cautious", "adanorm", "use_gc", "adam_debias", "differentiable")
    if key not in _PARTS or any(group.get(k) for k in odd) or getattr(optimizer, "maximize", 0):
        return None
    return _PARTS[key](group, optimizer.state.get(p, {}), old, theta, grad)


def _sgd(group, new, old, theta, grad) -> StepParts:
    lr, mu, buffer = float(group["lr"]), group["momentum"], old.get("momentum_buffer")
    keep, past = 1.0, None
    if mu:
        keep = 1.0 if buffer is None else 1.0 - group["dampening"]  # the first one is undamped
        past = None if buffer is None else mu * buffer
        if group["nesterov"]:
            keep, past = 1 + mu * keep, None if past is None else mu * past
    return StepParts(lr * keep, _times(-lr, past), _decay(lr * keep, group, theta))


def _adam(group, new, old, theta, grad) -> StepParts:
    t, (beta1, beta2) = float(new["step"]), map(float, group["betas"])
    moments = new["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    denominator = (moments / (1 - beta2**t)).sqrt() + group["eps"]
    each = float(group["lr"]) / (1 - beta1**t) / denominator
    scale = (1 - beta1) * each
    decoupled = group.get("decoupled_weight_decay", False)
    decay = _decay(float(group["lr"]) if decoupled else scale, group, theta)
    return StepParts(scale, _times(-beta1 * each, old.get("exp_avg")), decay)


def _rmsprop(group, new, old, theta, grad) -> StepParts:
    moments = new["square_avg"]
    if group["centered"]:
        moments = moments - new["grad_avg"] ** 2
    scale = float(group["lr"]) / (moments.sqrt() + group["eps"])
    past = _times(-float(group["lr"]) * group["momentum"], old.get("momentum_buffer"))
    return StepParts(scale, past if group["momentum"] else None, _decay(scale, group, theta))


def _sign(group, new, old, theta, grad) -> StepParts:
    return StepParts(None, None, _decay(group["lr"], group, theta))


def _adamp(group, new, old, theta, grad) -> StepParts | None:
    t, (beta1, beta2) = group["step"], group["betas"]
    each = float(group["lr"]) / (1 - beta1**t) * math.sqrt(1 - beta2**t)
    each = each / (new["exp_avg_sq"].sqrt() + group["eps"])
    keep, past = 1 - beta1, beta1
    if group["nesterov"]:
        keep, past = keep + beta1 * keep, beta1 * past
    momentum = _times(-past * each, old.get("exp_avg"))
    return _projected(group, keep * each, momentum, theta, grad, 1.0)


def _sgdp(group, new, old, theta, grad) -> StepParts | None:
    lr, mu, keep, past = float(group["lr"]), group["momentum"], 1 - group["dampening"], 1.0
    if group["nesterov"]:
        keep, past = 1 + mu * keep, mu
    momentum = _times(-lr * mu * past, old.get("momentum"))
    return _projected(group, lr * keep, momentum, theta, grad, 1 / (1 - mu))


def _projected(group, scale, momentum, theta, grad, more: float) -> StepParts | None:
    """Add what projection takes out, and decay as AdamP does it (arXiv 2006.08217)."""
    if not group["weight_decouple"]:
        return None
    move = -scale * grad if momentum is None else -scale * grad + momentum
    ratio, removed = more, None
    for view in ((len(theta), -1), (1, -1)) if theta.dim() > 1 else ():
        rows, pull = theta.reshape(view), grad.reshape(view)
        cosines = nn.functional.cosine_similarity(pull, rows, dim=1, eps=group["eps"]).abs()
        if cosines.max() < group["delta"] / math.sqrt(rows.shape[1]):
            unit = rows / (rows.norm(dim=1, keepdim=True) + group["eps"])
            along = (unit * move.reshape(view)).sum(1, keepdim=True)
            removed, ratio = (-unit * along).reshape(theta.shape), more * group["wd_ratio"]
            break
    lr = 1.0 if group["fixed_decay"] else float(group["lr"])
    return StepParts(scale, momentum, _decay(lr * ratio, group, theta), removed)


def _decay(scale, group, theta: Tensor) -> Tensor | None:
    return -scale * group["weight_decay"] * theta if group["weight_decay"] else None


def _times(factor, values: Tensor | None) -> Tensor | None:
    return None if values is None else factor * values


_PARTS: dict[tuple[str, str], Callable[..., StepParts | None]] = {
    ("torch", "SGD"): _sgd,
    ("torch", "Adam"): _adam,
    ("torch", "AdamW"): _adam,
    ("torch", "RMSprop"): _rmsprop,
    ("toolkit", "SignDescent"): _sign,
    ("pytorch_optimizer", "AdamP"): _adamp,
    ("pytorch_optimizer", "SGDP"): _sgdp,
}
