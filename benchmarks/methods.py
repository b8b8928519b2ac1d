"""The methods that are compared, each a function of a model and a batch of encoded pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from toolkit import _autograd, _passes, _tangents, _token_gram
from toolkit._forward import padded_ids, scored_logps, sequences

SAMPLE = 4  # tokens that the one-backward-per-token methods really do; the rest is scaled


@dataclass(frozen=True)
class Method:
    """One way to a quantity.

    Attributes:
        quantity: ``pairs``, ``tokens`` (contributions), ``matrix``, or empty for `plain`.
        call: Runs it and returns the quantity, ``None`` where only a sample is run.
        covers: What it computes, in words.
        slow: Run once only.
        scale: Factor from what was run to the whole.
    """

    quantity: str
    call: Callable
    covers: str
    slow: bool = False
    scale: Callable = lambda batch: 1.0


def parameters(model) -> dict[str, torch.nn.Parameter]:
    """All parameters by name."""
    return dict(model.named_parameters())


def plain(model, batch) -> None:
    """One training-style forward and backward with response logits only."""
    rows = sequences(batch)
    ids, start = padded_ids(rows), min(int(mask.nonzero()[0]) for _, mask in rows) - 1
    logits = model(ids, use_cache=False, logits_to_keep=ids.shape[1] - start).logits[:, :-1]
    targets = ids[:, start + 1 :].flatten()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").backward()
    model.zero_grad(set_to_none=True)


def toolkit_pairs(model, batch) -> np.ndarray:
    """The engine behind ``pair_stats``."""
    plan = _passes.plan_for(model, parameters(model))
    return sum(_passes.pair_products(model, plan, sequences(batch))[0].values()).numpy()


def official_pairs(model, batch) -> np.ndarray:
    """One backward per response, gradients materialised and compared."""
    return sum(_autograd.pair_products(model, parameters(model), sequences(batch)).values()).numpy()


def vmap_pairs(model, batch) -> np.ndarray:
    """``torch.func.vmap`` of ``grad`` over the responses, all gradients held at once."""
    rows = sequences(batch)
    ids, mask = padded_ids(rows), torch.stack([m for _, m in rows])
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def total(values, row, scored):
        logits = torch.func.functional_call(
            model, values, (row[None],), {"use_cache": False}
        ).logits
        logps = logits[0, :-1].log_softmax(-1).gather(-1, row[1:, None]).squeeze(-1)
        return (logps * scored[1:]).sum()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        grads = torch.func.vmap(torch.func.grad(total), (None, 0, 0))(weights, ids, mask)
    products = 0
    for g in grads.values():
        a, b = g.flatten(1)[::2], g.flatten(1)[1::2]
        products = products + torch.stack([(a * a).sum(1), (b * b).sum(1), (a * b).sum(1)], 1)
    return products.double().numpy()


def toolkit_tokens(model, batch) -> np.ndarray:
    """Pair products and all four contribution vectors."""
    plan = _passes.plan_for(model, parameters(model))
    _, *along = _tangents.token_products(model, plan, sequences(batch))
    return np.stack([torch.cat(list(v)).double().numpy() for v in along])


def jvp_tokens(model, batch) -> np.ndarray:
    """``torch.func.jvp`` along the two materialised gradients of each pair."""
    found = []
    for enc in batch:
        _, *along = _autograd.token_products(model, parameters(model), sequences([enc]))
        found.append(np.stack([torch.cat(list(v)).double().numpy() for v in along]))
    return np.concatenate(found, 1)


def official_tokens(model, batch) -> None:
    """One backward per token, each compared with both gradients; a sample of the tokens."""
    selected, rows = parameters(model), sequences(batch[:1])
    with _passes.only(model, selected):
        logps = scored_logps(model, rows)
        sides = [_autograd.gradient(side.sum(), selected, retain=True) for side in logps]
        for t in range(SAMPLE):
            token = _autograd.gradient(logps[0][t], selected, retain=True)
            for side in sides:
                sum(float(torch.sum(a * b)) for a, b in zip(token, side, strict=True))


def toolkit_matrix(model, batch) -> np.ndarray:
    """The token matrix of the first pair."""
    plan = _passes.plan_for(model, parameters(model))
    return _token_gram.token_gram(model, plan, sequences(batch[:1]))[1].numpy()


def official_matrix(model, batch) -> None:
    """One backward per token, all gradients held, one matrix product; a sample of the tokens."""
    selected, rows = parameters(model), sequences(batch[:1])
    with _passes.only(model, selected):
        logps = torch.cat(scored_logps(model, rows))
        held = [_autograd.gradient(logps[t], selected, retain=True) for t in range(SAMPLE)]
        for column in zip(*held, strict=True):
            flat = torch.stack([g.flatten() for g in column])
            flat @ flat.T


def _per_token(batch) -> float:
    return sum(e.chosen_length + e.rejected_length for e in batch) / SAMPLE


def _first_pair(batch) -> float:
    return (batch[0].chosen_length + batch[0].rejected_length) / SAMPLE


ALL = "all parameters, ‖g‖² and ⟨·,·⟩"
METHODS = {
    "plain": Method("", plain, "training step without the optimiser"),
    "pair_stats (toolkit)": Method("pairs", toolkit_pairs, ALL),
    "pair_stats (official)": Method("pairs", official_pairs, ALL),
    "pair_stats (vmap grad)": Method("pairs", vmap_pairs, ALL, slow=True),
    "token_contributions (toolkit)": Method("tokens", toolkit_tokens, "all four vectors"),
    "token_contributions (func.jvp)": Method("tokens", jvp_tokens, "all four vectors", slow=True),
    "token_contributions (official)": Method(
        "tokens", official_tokens, f"{SAMPLE} tokens, scaled to all", True, _per_token
    ),
    "token_matrix (toolkit)": Method("matrix", toolkit_matrix, "first pair", slow=True),
    "token_matrix (official)": Method(
        "matrix", official_matrix, f"first pair, {SAMPLE} tokens, scaled", True, _first_pair
    ),
}


def for_case(lengths: str) -> list[str]:
    """Methods of one case: long ones leave out what would take many minutes."""
    left_out = {"64+64": (), "512+16": ("vmap", "jvp"), "256+256": ("vmap", "jvp", "matrix")}
    return [m for m in METHODS if not any(word in m for word in left_out[lengths])]


class Oracle:
    """Plain autograd in float64 on a copy of the model."""

    def __init__(self, model, batch):
        self.batch = batch
        self.model = copy.deepcopy(model).double()
        self.grads = [self._gradients(enc) for enc in batch]

    def _gradients(self, enc) -> list[list[torch.Tensor]]:
        selected = parameters(self.model)
        with _passes.only(self.model, selected):
            return [
                _autograd.gradient(scored_logps(self.model, [row])[0].sum(), selected)
                for row in sequences([enc])
            ]

    def error(self, quantity: str, result) -> float | None:
        """Largest error relative to the sizes of the two gradients that are multiplied."""
        if result is None or quantity == "":
            return None
        return getattr(self, f"_{quantity}")(result)

    def _pairs(self, result: np.ndarray) -> float:
        worst = 0.0
        for got, (a, b) in zip(result, self.grads, strict=True):
            aa, bb, ab = (_dot(x, y) for x, y in ((a, a), (b, b), (a, b)))
            scale = np.array([aa, bb, (aa * bb) ** 0.5])
            worst = max(worst, float((np.abs(got - [aa, bb, ab]) / scale).max()))
        return worst

    def _tokens(self, result: np.ndarray) -> float:
        """Checked on the first two tokens of the first pair: each needs a backward in float64."""
        grads, worst = self.grads[0], 0.0
        for t, token in enumerate(self._some_tokens()):
            for side in range(2):
                scale = (_dot(token, token) * _dot(grads[side], grads[side])) ** 0.5
                worst = max(worst, abs(result[side, t] - _dot(token, grads[side])) / scale)
        return worst

    def _matrix(self, result: np.ndarray) -> float:
        a, b = self._some_tokens()
        exact = np.array([[_dot(x, y) for y in (a, b)] for x in (a, b)])
        scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
        return float((np.abs(result[:2, :2] - exact) / scale).max())

    def _some_tokens(self) -> list[list[torch.Tensor]]:
        selected = parameters(self.model)
        with _passes.only(self.model, selected):
            logps = scored_logps(self.model, sequences(self.batch[:1]))[0]
            return [_autograd.gradient(logps[t], selected, retain=True) for t in range(2)]


def _dot(a, b) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))
