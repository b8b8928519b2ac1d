"""What an optimiser's step is made of: gradient, momentum, weight decay and projection."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BUFFERS = ("momentum_buffer", "exp_avg", "momentum")  # where older gradients live
Factor = Tensor | float


@dataclass(frozen=True)
class StepParts:
    """What moved one parameter, as factors of the gradient, the momentum buffer and the weights.

    ``Δθ = −scale·g − past·m − decoupled·θ + projection`` with ``g = ∇ℓ + l2·θ``, and
    ``m ← keep·m + take·g``. All of it is linear in g and m under the step's own factors, so that
    every part of g and m moves the parameter by its own share.

    Attributes:
        scale: The diagonal P times the learning rate, as the step really used it (second moments
            after their update; the gradient itself for sign descent).
        past: The same for the momentum buffer as it was before the step.
        keep: Share of the old buffer in the new one.
        take: Share of the gradient in the new buffer; ``None`` if there is no buffer.
        l2: Weight decay that enters the gradient.
        decoupled: Weight decay that does not.
        projection: Radial part that AdamP and SGDP take out again, or ``None`` for zero.
    """

    scale: Factor
    past: Factor = 0.0
    keep: Factor = 0.0
    take: Factor | None = None
    l2: float = 0.0
    decoupled: float = 0.0
    projection: Tensor | None = None


def buffer_of(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> Tensor | None:
    """Return a parameter's momentum buffer, ``None`` where there is none yet."""
    state = optimizer.state.get(p, {})
    return next((state[name] for name in BUFFERS if state.get(name) is not None), None)


def step_parts(optimizer, p, theta: Tensor, grad: Tensor, old: Tensor | None) -> StepParts | None:
    """Return the parts of the step that was just taken on one parameter, or ``None``.

    Args:
        optimizer: After its step.
        p: The parameter, as the optimiser holds it.
        theta: Its value before the step.
        grad: Its gradient after clipping.
        old: Its momentum buffer before the step.
    """
    key = (type(optimizer).__module__.split(".")[0], type(optimizer).__name__)
    group = next(g for g in optimizer.param_groups if any(q is p for q in g["params"]))
    odd = ("maximize", "cautious", "adanorm", "use_gc", "adam_debias", "differentiable")
    if key not in _PARTS or any(group.get(k) for k in odd) or getattr(optimizer, "maximize", 0):
        return None
    return _PARTS[key](group, optimizer.state.get(p, {}), old, theta, grad)


def _sgd(group, new, old, theta, grad) -> StepParts:
    lr, mu, l2 = float(group["lr"]), group["momentum"], group["weight_decay"]
    if not mu:
        return StepParts(lr, l2=l2)
    # The first buffer is the gradient itself, undamped.
    keep, take = (0.0, 1.0) if old is None else (mu, 1.0 - group["dampening"])
    if group["nesterov"]:
        return StepParts(lr * (1 + mu * take), lr * mu * keep, keep, take, l2)
    return StepParts(lr * take, lr * keep, keep, take, l2)


def _adam(group, new, old, theta, grad) -> StepParts:
    t, (beta1, beta2) = float(new["step"]), map(float, group["betas"])
    moments = new["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    denominator = (moments / (1 - beta2**t)).sqrt() + group["eps"]
    lr, decay = float(group["lr"]), group["weight_decay"]
    each = lr / (1 - beta1**t) / denominator
    found = (1 - beta1) * each, beta1 * each, beta1, 1 - beta1
    if group.get("decoupled_weight_decay", False):
        return StepParts(*found, decoupled=lr * decay)
    return StepParts(*found, l2=decay)


def _rmsprop(group, new, old, theta, grad) -> StepParts:
    moments = new["square_avg"]
    if group["centered"]:
        moments = moments - new["grad_avg"] ** 2
    lr, mu, l2 = float(group["lr"]), group["momentum"], group["weight_decay"]
    each = 1 / (moments.sqrt() + group["eps"])
    return StepParts(lr * each, lr * mu, mu, each if mu else None, l2)


def _sign(group, new, old, theta, grad) -> StepParts:
    # P = 1/|∇ℓ|: every part of the gradient has its share in the sign of the whole.
    size = grad.abs()
    scale = float(group["lr"]) / size.clamp(min=torch.finfo(size.dtype).tiny) * (size > 0)
    return StepParts(scale, decoupled=group["lr"] * group["weight_decay"])


def _adamp(group, new, old, theta, grad) -> StepParts | None:
    t, (beta1, beta2) = group["step"], group["betas"]
    each = float(group["lr"]) / (1 - beta1**t) * math.sqrt(1 - beta2**t)
    each = each / (new["exp_avg_sq"].sqrt() + group["eps"])
    share, past = 1 - beta1, beta1
    if group["nesterov"]:
        share, past = share + beta1 * share, beta1 * past
    found = share * each, past * each, beta1, 1 - beta1
    return _projected(group, found, old, theta, grad, 1.0)


def _sgdp(group, new, old, theta, grad) -> StepParts | None:
    lr, mu, take, past = float(group["lr"]), group["momentum"], 1 - group["dampening"], 1.0
    share = take
    if group["nesterov"]:
        share, past = 1 + mu * take, mu
    return _projected(group, (lr * share, lr * mu * past, mu, take), old, theta, grad, 1 / (1 - mu))


def _projected(group, factors, old, theta, grad, more: float) -> StepParts | None:
    """Add what projection takes out, and decay as AdamP does it (arXiv 2006.08217)."""
    if not group["weight_decouple"]:
        return None
    scale, past = factors[:2]
    move = -scale * grad if old is None else -scale * grad - past * old
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
    decay = lr * ratio * group["weight_decay"]
    return StepParts(*factors, decoupled=decay, projection=removed)


_PARTS: dict[tuple[str, str], Callable[..., StepParts | None]] = {
    ("torch", "SGD"): _sgd,
    ("torch", "Adam"): _adam,
    ("torch", "AdamW"): _adam,
    ("torch", "RMSprop"): _rmsprop,
    ("toolkit", "SignDescent"): _sign,
    ("pytorch_optimizer", "AdamP"): _adamp,
    ("pytorch_optimizer", "SGDP"): _sgdp,
}
