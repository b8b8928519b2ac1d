"""Losses and optimisers written by hand, as their papers (and torch) write them."""

from __future__ import annotations

import hashlib

import pytest
import reference
import torch

from toolkit.dynamics import _optimizers

BETA, DECAY = 0.3, 0.02
RATES = {"sgd": 2e-3, "momentum": 2e-3, "sgdp": 2e-3}


def oracle_losses(model, pairs, refs):
    """DPO of each pair by plain, unbatched autograd."""
    found = []
    for pair, (ref_chosen, ref_rejected) in zip(pairs, refs, strict=True):
        chosen, rejected = logps(model, pair)
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        found.append(torch.log1p(torch.exp(-BETA * margin)))
    return found


def logps(model, pair):
    return [reference.token_logps(model, *side).sum() for side in reference.sides(pair)]


def values(model, pairs):
    with torch.no_grad():
        return [[float(x) for x in logps(model, pair)] for pair in pairs]


def gradients(scalar, model):
    found = torch.autograd.grad(scalar, list(model.parameters()), allow_unused=True)
    named = zip(model.named_parameters(), found, strict=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in named}


class Hand:
    """The optimisers' formulas as their papers (and torch) write them; L2 decay unless decoupled.

    ``step(theta, grad)`` returns Δθ of one parameter.
    """

    def __init__(self, name, lr, decay):
        self.name, self.lr, self.decay, self.t = name, lr, decay, 0
        self.m, self.v, self.d = 0.0, 0.0, None

    def step(self, theta, grad):
        self.t += 1
        lr, name = self.lr, self.name
        if name not in ("adamw", "sign", "adamp", "sgdp"):
            grad = grad + self.decay * theta
        if name == "sgd":
            return -lr * grad
        if name == "momentum":
            self.m = 0.9 * self.m + grad
            return -lr * self.m
        if name == "rmsprop":
            self.v = 0.99 * self.v + 0.01 * grad**2
            return -lr * grad / (self.v.sqrt() + 1e-8)
        if name == "sign":
            return -lr * grad.sign() - lr * self.decay * theta
        if name == "sgdp":
            return self.projected(theta, grad, grad, lr)
        self.m = 0.9 * self.m + 0.1 * grad
        self.v = 0.999 * self.v + 0.001 * grad**2
        # The package adds AdamP's ε before the bias correction, torch adds Adam's after it.
        after, before = (0, 1e-8) if name == "adamp" else (1e-8, 0)
        q = self.m / ((self.v.sqrt() + before) / (1 - 0.999**self.t) ** 0.5 + after)
        lr = lr / (1 - 0.9**self.t)
        if name == "adamp":
            return self.projected(theta, grad, q, lr)
        return -lr * q - (self.lr * self.decay * theta if name == "adamw" else 0)

    def projected(self, theta, grad, q, lr):
        """Take the part along the weights out of an update, as AdamP does (arXiv 2006.08217)."""
        factor = 1.0
        if theta.dim() > 1:
            for rows in (list(range(len(theta))), [slice(None)]):
                cosines = [
                    torch.nn.functional.cosine_similarity(
                        grad[r].flatten(), theta[r].flatten(), dim=0
                    )
                    for r in rows
                ]
                if max(abs(float(c)) for c in cosines) < 0.1 / theta[rows[0]].numel() ** 0.5:
                    q, factor = q.clone(), 0.1
                    for r in rows:
                        unit = theta[r] / theta[r].norm()
                        q[r] = q[r] - unit * (unit * q[r]).sum()
                    break
        return -lr * q - self.lr * self.decay * factor * theta


def weights_hash(model):
    """Weights, buffers, modes, flags and gradients of a model."""
    digest = hashlib.sha256()
    for name, x in model.state_dict().items():
        digest.update(name.encode() + x.detach().contiguous().view(torch.uint8).numpy().tobytes())
    flags = [(n, p.requires_grad, p.grad is None) for n, p in model.named_parameters()]
    digest.update(repr((flags, [m.training for m in model.modules()])).encode())
    return digest.hexdigest()


def live_optimizer(name, params, lr):
    """The same optimisers built by their own packages."""
    if name in ("adamp", "sgdp"):
        package = pytest.importorskip("pytorch_optimizer")
        kind = {"adamp": package.AdamP, "sgdp": package.SGDP}[name]
        return kind(params, lr=lr, weight_decay=DECAY)
    if name == "sign":
        return _optimizers.SignDescent(params, lr=lr, weight_decay=DECAY)
    kind = {"rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW"}.get(name, "SGD")
    more = {"momentum": 0.9} if name == "momentum" else {}
    return getattr(torch.optim, kind)(params, lr=lr, weight_decay=DECAY, **more)
