"""Slow, obvious oracles in float64: one unbatched forward per response, one backward per token.

Nothing here is shared with the package: no batching, no padding, no trick.
"""

from __future__ import annotations

import copy

import numpy as np
import torch


def double(model):
    """A float64 copy of the model in evaluation mode, with plain (eager) attention."""
    twin = copy.deepcopy(model).double().eval()
    twin.config._attn_implementation = "eager"
    for p in twin.parameters():
        p.requires_grad_(True)
    return twin


def token_logps(model, ids, mask):
    """Log-probability of each scored token, from the full logits of the bare sequence."""
    logits = model(ids[None]).logits[0]
    logps = []
    for t in range(len(ids)):
        if mask[t]:
            row = logits[t - 1]
            logps.append(row[ids[t]] - torch.logsumexp(row, 0))
    return torch.stack(logps)


def sides(encoded):
    return (
        (encoded.chosen_ids, encoded.chosen_mask),
        (encoded.rejected_ids, encoded.rejected_mask),
    )


def token_gradients(model, ids, mask, names=None):
    """Gradient of every scored token, flattened, ``[tokens, parameters]``."""
    named = dict(model.named_parameters())
    params = [named[n] for n in (names if names is not None else named)]
    rows = []
    for logp in token_logps(model, ids, mask):
        grads = torch.autograd.grad(logp, params, retain_graph=True, allow_unused=True)
        filled = [
            torch.zeros_like(p) if g is None else g for g, p in zip(grads, params, strict=True)
        ]
        rows.append(torch.cat([g.reshape(-1) for g in filled]))
    return torch.stack(rows)


def pair_token_gradients(model, encoded, names=None):
    return [token_gradients(model, *side, names) for side in sides(encoded)]


def pair_products(model, encoded, names=None):
    """‖g_chosen‖², ‖g_rejected‖², ⟨g_chosen, g_rejected⟩ from materialised gradients."""
    chosen, rejected = (g.sum(0) for g in pair_token_gradients(model, encoded, names))
    return np.array([float(chosen @ chosen), float(rejected @ rejected), float(chosen @ rejected)])


def response_gradients(model, pairs, names=None):
    """Materialised gradients of all responses, chosen before rejected, ``[2N, parameters]``."""
    return torch.stack([g.sum(0) for p in pairs for g in pair_token_gradients(model, p, names)])


def tangent_run(gradients, start, ref, batches, lr, momentum, loss):
    """Real gradient descent on the linear model ``log π(θ) = start + gradients·θ`` from θ = 0.

    ``loss(chosen, rejected, ref_chosen, ref_rejected)`` of ``[B]`` each; autograd and torch's own
    optimiser do the rest. Returns the log-probabilities at every step, ``[T + 1, 2N]``.
    """
    theta = torch.zeros(gradients.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=lr, momentum=momentum)
    found = [torch.tensor(start)]
    for batch in batches:
        optimizer.zero_grad()
        now = torch.tensor(start) + gradients @ theta
        both = now.view(-1, 2)[batch], torch.tensor(ref).view(-1, 2)[batch]
        loss(*(x[:, side] for x in both for side in range(2))).mean().backward()
        optimizer.step()
        found.append((torch.tensor(start) + gradients @ theta).detach())
    return torch.stack(found).numpy()


def hidden_states(model, ids):
    """Final post-norm states by the model's own bookkeeping, checked against its logits."""
    out = model(ids[None], output_hidden_states=True)
    states = out.hidden_states[-1][0]
    head = model.get_output_embeddings()
    assert torch.allclose(head(states), out.logits[0], atol=1e-8)
    return states


def ches(model, encoded):
    """CHES and length-normalised CHES by the definition, state by state."""
    sums, lengths = [], []
    with torch.no_grad():
        for ids, mask in sides(encoded):
            states = hidden_states(model, ids)
            scored = [t for t in range(len(ids)) if mask[t]]
            total = torch.zeros_like(states[0])
            for t in scored:
                total = total + states[t - 1]
            sums.append(total)
            lengths.append(len(scored))
    a, b = sums
    mean_a, mean_b = a / lengths[0], b / lengths[1]
    return float(a @ b - a @ a), float(mean_a @ mean_b - mean_a @ mean_a)


def last_hidden_inner(model, encoded):
    """Inner product of the states after the complete responses."""
    with torch.no_grad():
        last = [
            hidden_states(model, ids)[max(t for t in range(len(ids)) if mask[t])]
            for ids, mask in sides(encoded)
        ]
    return float(last[0] @ last[1])


def levenshtein(a, b):
    """Edit distance by the recursion itself, one row of the table at a time."""
    row = list(range(len(b) + 1))
    for i in range(len(a)):
        previous, row = row, [i + 1]
        for j in range(len(b)):
            row.append(min(previous[j + 1] + 1, row[j] + 1, previous[j] + (a[i] != b[j])))
    return row[-1]


def prompt_path_integral(model, ids, mask, prompt, baseline, points):
    """Integrated gradients of one response by the midpoint rule, and f(prompt) − f(baseline).

    ``baseline [d]`` stands in for every prompt embedding; completion embeddings stay.
    """
    embedded = model.get_input_embeddings()(ids).detach()
    start = baseline.expand(prompt, -1)

    def logp(inputs):
        scores = model(inputs_embeds=torch.cat([inputs, embedded[prompt:]])[None]).logits[0]
        scores = scores.log_softmax(-1)
        return sum(scores[t - 1, ids[t]] for t in range(len(ids)) if mask[t])

    away = embedded[:prompt] - start
    total = torch.zeros_like(away)
    for k in range(points):
        at = (start + (k + 0.5) / points * away).requires_grad_()
        total += torch.autograd.grad(logp(at), at)[0] / points
    change = float((logp(embedded[:prompt]) - logp(start)).detach())
    return (total * away).sum(-1).numpy(), change


class SplitMoments:
    """An optimiser on one parameter, its moments kept apart by what built them.

    The gradient is a sum of named parts (of the chosen terms and of the rejected terms), and every
    moment that is linear in it is kept once per part; the second moment, which is not, is shared.
    ``weight_decay`` is decoupled for AdamW and sign descent, else an L2 term in the gradient: a
    part of its own. For AdamP and SGDP decay hangs on the projection, and both are left out.
    """

    def __init__(self, name, lr, decay=0.0):
        self.name, self.lr, self.decay = name, lr, decay
        self.t, self.square, self.moments = 0, 0.0, {}

    def step(self, theta, parts):
        """Return Δθ by name: each part of this step, ``earlier_…`` of those before, ``decay``."""
        self.t += 1
        parts = dict(parts)
        coupled = self.name in ("sgd", "momentum", "rmsprop", "adam")
        if coupled:
            parts["decay"] = self.decay * theta
        keep, take, factor = self._scales(sum(parts.values()))
        found = {}
        for name, part in parts.items():
            old = self.moments.get(name, torch.zeros_like(theta))
            self.moments[name] = keep * old + take * part
            found[name], found[f"earlier_{name}"] = factor * take * part, factor * keep * old
        if coupled:
            found["decay"] = found["decay"] + found.pop("earlier_decay")
        elif self.name in ("adamw", "sign"):
            found["decay"] = -self.lr * self.decay * theta
        return found

    def _scales(self, grad):
        """How much of the old moment stays, how much of the gradient enters, Δθ per moment."""
        if self.name in ("sgd", "sgdp"):
            return 0.0, 1.0, -self.lr
        if self.name == "sign":
            return 0.0, 1.0, torch.where(grad == 0, 0.0, -self.lr / grad.abs())
        if self.name == "momentum":
            return 0.9, 1.0, -self.lr
        if self.name == "rmsprop":
            self.square = 0.99 * self.square + 0.01 * grad**2
            return 0.0, 1.0, -self.lr / (self.square.sqrt() + 1e-8)
        self.square = 0.999 * self.square + 0.001 * grad**2
        corrected = 1 - 0.999**self.t
        denominator = (self.square / corrected).sqrt() + 1e-8
        if self.name == "adamp":  # ε before the bias correction
            denominator = (self.square.sqrt() + 1e-8) / corrected**0.5
        return 0.9, 0.1, -self.lr / (1 - 0.9**self.t) / denominator


def remedied(rule, chosen, rejected, d_chosen=1.0, d_rejected=1.0):
    """The direction an update rule moves the weights in, from two whole gradient vectors."""

    def along(a, b):
        return torch.clamp(a @ b, min=0) / (b @ b) * b

    c, r, size = d_chosen * chosen, d_rejected * rejected, (abs(d_chosen) + abs(d_rejected)) / 2
    apart = chosen / chosen.norm() - rejected / rejected.norm()
    return {
        "plain": lambda: c - r,
        "normalised": lambda: size * apart,
        "normalised_unweighted": lambda: apart,
        "balanced": lambda: (c.norm() * r.norm()).sqrt() * apart,
        "chosen_only": lambda: c,
        "project_rejected": lambda: c - (r - along(r, chosen)),
        "project_chosen": lambda: c - along(c, rejected) - r,
        "project_both": lambda: c - along(c, rejected) - (r - along(r, chosen)),
    }[rule]()
