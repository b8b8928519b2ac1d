"""The methods that are compared, each a function of a model and a batch of encoded pairs."""

from __future__ import annotations

import copy
import functools
import importlib.util
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from toolkit.gradients import _autograd, _findings, _passes, _rules, _tangents, _token_gram
from toolkit.model.forward import padded_ids, scored_logps, sequences
from toolkit.model.parameters import only

SAMPLE = 4  # tokens whose contributions the one-backward-per-token method really finds
HELD = 8  # token gradients that the official token matrix really forms and holds
BOUND = 8 << 30  # bytes of token gradients in blocks
COLUMNS = 1 << 18  # parameters over which a product of gradients is timed


@dataclass(frozen=True)
class Method:
    """One way to a quantity.

    Attributes:
        quantity: What `Oracle.error` compares: ``pairs``, ``inner``, ``norms``, ``tokens``
            (contributions), ``matrix``, or empty.
        call: Runs it and returns the quantity, or `Estimate`.
        covers: What it computes, in words; a ``covers`` of what ``call`` returns takes its place.
        slow: Run once only.
        peak: Its peak memory tells something; not so where a sample stands for the whole.
    """

    quantity: str
    call: Callable
    covers: str
    slow: bool = False
    peak: bool = True


@dataclass(frozen=True)
class Estimate:
    """Seconds of a method that takes too long to be run whole, put together from its parts."""

    seconds: float
    covers: str


@dataclass(frozen=True)
class Norms:
    """‖g‖² of chosen and rejected, ``[pairs, 2]``, over the parameters ``names``."""

    values: np.ndarray
    names: set[str]
    covers: str


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
    plan = _findings.plan_for(model, parameters(model))
    return sum(_passes.pair_products(model, plan, sequences(batch))[0].values()).numpy()


def official_pairs(model, batch) -> np.ndarray:
    """One backward per response, gradients materialised and compared."""
    found = _autograd.pair_products(model, parameters(model), sequences(batch), {})
    return sum(found.values()).numpy()


def captum_inner(model, batch) -> np.ndarray:
    """``TracInCP`` with the model as it is for its one checkpoint, at learning rate 1."""
    from captum.influence import TracInCP

    def influence(enc) -> float:
        rows = sequences([enc])
        ids, mask = padded_ids(rows), torch.stack([m for _, m in rows])
        scorer = _Scorer(model, int(mask[0].nonzero()[0]))
        rejected = TensorDataset(ids[1:], mask[1:])
        tracin = TracInCP(scorer, rejected, ["now"], lambda *_: 1.0, loss_fn=_Total())
        return float(tracin.influence((ids[:1], mask[:1])))

    return np.array([influence(enc) for enc in batch])


class _Scorer(nn.Module):
    """Log-probabilities of all tokens from ``start`` on, as captum wants them: from the ids."""

    def __init__(self, model, start: int):
        super().__init__()
        self.model, self.start = model, start

    def forward(self, ids):
        kept = ids.shape[1] - self.start + 1
        logits = self.model(ids, use_cache=False, logits_to_keep=kept).logits[:, :-1]
        return logits.log_softmax(-1).gather(-1, ids[:, self.start :, None]).squeeze(-1)


class _Total(nn.Module):
    """The loss of each response: the sum over its scored tokens."""

    reduction = "none"

    def forward(self, logps, mask):
        return (logps * mask[:, -logps.shape[1] :]).sum(1)


def opacus_norms(model, batch) -> Norms:
    """The norms of Opacus' ghost clipping: its first backward pass."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    head.weight.requires_grad_(not tied)  # Opacus refuses a weight that is used twice
    # Hooks of Opacus run in training mode only. Dropout and attention hold no parameters of
    # their own: they stay in evaluation mode.
    holders = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    for module in holders:
        module.training = True
    ghost = Ghost(model, loss_reduction="sum", strict=False)
    try:
        _summed_logps(ghost, batch).backward()
        found = {n: p._norm_sample for n, p in model.named_parameters() if p.requires_grad}
    finally:
        ghost.to_standard_module()
        model.requires_grad_(True).eval().zero_grad(set_to_none=True)
    values = sum(norm.double() ** 2 for norm in found.values()).reshape(-1, 2).numpy()
    kinds = [m for m in holders if not (tied and m in (embedding, head))]
    return Norms(values, set(found), _opacus_covers(Ghost, kinds, tied))


def _summed_logps(model, batch) -> torch.Tensor:
    """Sum over all responses, which start at the same position here."""
    ids = padded_ids(sequences(batch))
    mask = torch.stack([m for _, m in sequences(batch)])
    start = int(mask[0].nonzero()[0])
    # One row of positions for each response: GPT-2 makes a single one, which Opacus cannot split.
    places = torch.arange(ids.shape[1]).repeat(len(ids), 1)
    logits = model(
        ids, position_ids=places, use_cache=False, logits_to_keep=ids.shape[1] - start + 1
    ).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(-1, ids[:, start:, None]).squeeze(-1)
    return (logps * mask[:, start:]).sum()


def _opacus_covers(ghost, modules, tied: bool) -> str:
    kinds = Counter((type(m) in ghost.NORM_SAMPLERS, type(m).__name__) for m in modules)
    parts = [
        ", ".join(f"{count} {name}" for (known, name), count in kinds.items() if known == wanted)
        for wanted in (True, False)
    ]
    scope = "all parameters but the tied embedding and head" if tied else "all parameters"
    return f"‖g‖² only, {scope}; ghost norms of {parts[0]}; one gradient per response of {parts[1]}"


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
    plan = _findings.plan_for(model, parameters(model))
    _, *along = _tangents.token_products(model, plan, sequences(batch))
    return np.stack([torch.cat(list(v)).double().numpy() for v in along])


def jvp_tokens(model, batch) -> np.ndarray:
    """``torch.func.jvp`` along the two materialised gradients of each pair."""
    found, forward = [], _autograd.directional_logps
    for enc in batch:
        given = model, parameters(model), sequences([enc]), {}
        _, *along = _autograd.token_products(*given, forward)
        found.append(np.stack([torch.cat(list(v)).double().numpy() for v in along]))
    return np.concatenate(found, 1)


def official_tokens(model, batch) -> Estimate:
    """One backward per token, each compared with both gradients."""
    selected, rows = parameters(model), sequences(batch[:1])
    with only(model, selected):
        start = time.perf_counter()
        logps = scored_logps(model, rows)
        sides = [_autograd.gradient(side.sum(), selected, retain=True) for side in logps]
        fixed = time.perf_counter() - start
        for t in range(SAMPLE):
            token = _autograd.gradient(logps[0][t], selected, retain=True)
            for side in sides:
                sum(float(torch.sum(a * b)) for a, b in zip(token, side, strict=True))
        each = (time.perf_counter() - start - fixed) / SAMPLE
    tokens = sum(e.chosen_length + e.rejected_length for e in batch)
    covers = f"all four vectors; estimated: {tokens} backward passes from {SAMPLE}"
    return Estimate(len(batch) * fixed + tokens * each, covers)


def toolkit_matrix(model, batch) -> np.ndarray:
    """The token matrix of the first pair."""
    plan = _findings.plan_for(model, parameters(model))
    return _token_gram.token_gram(model, plan, sequences(batch[:1]))[1].numpy()


def official_matrix(model, batch) -> Estimate:
    """One backward per token, all gradients held, one matrix product."""
    fixed, each = _gradient_costs(model, batch[0])
    tokens, size = _first_pair(batch), model.num_parameters()
    rows = torch.randn(tokens, COLUMNS)
    product = _seconds(lambda: rows @ rows.T) * size / COLUMNS
    covers = (
        f"first pair; estimated: {tokens} backward passes from {HELD} ({tokens * each:.0f} s), "
        f"products of {tokens} rows from {COLUMNS} of the parameters ({product:.0f} s); "
        f"all gradients at once would take {tokens * size * 4 / 2**30:.0f} GiB"
    )
    return Estimate(fixed + tokens * each + product, covers)


def official_matrix_in_blocks(model, batch) -> Estimate:
    """The same with two blocks of gradients held: blocks beyond the bound are run again."""
    fixed, each = _gradient_costs(model, batch[0])
    tokens, size = _first_pair(batch), model.num_parameters()
    block = min(tokens, max(1, BOUND // (2 * 4 * size)))
    lengths = [min(block, tokens - start) for start in range(0, tokens, block)]
    runs = sum(length * (i + 1) for i, length in enumerate(lengths))
    entries = sum(a * b for i, a in enumerate(lengths) for b in lengths[i:])
    rows = torch.randn(2, block, COLUMNS)
    product = _seconds(lambda: _rules.flat_products(*rows)) * size / COLUMNS * entries / block**2
    covers = (
        f"first pair, {BOUND >> 30} GiB of gradients; estimated: {runs} backward passes from "
        f"{HELD} ({runs * each:.0f} s), products of blocks of {block} ({product:.0f} s)"
    )
    return Estimate(fixed + runs * each + product, covers)


@functools.lru_cache(maxsize=1)  # both official matrices form the same gradients
def _gradient_costs(model, enc) -> tuple[float, float]:
    """Seconds of the forward passes, and of one token's gradient, formed, held and stacked."""
    selected, rows = parameters(model), sequences([enc])
    with only(model, selected):
        start = time.perf_counter()
        logps = torch.cat(scored_logps(model, rows))
        fixed = time.perf_counter() - start
        held = [_autograd.gradient(logps[t], selected, retain=True) for t in range(HELD)]
        for column in zip(*held, strict=True):
            torch.stack(column)
        each = (time.perf_counter() - start - fixed) / HELD
    return fixed, each


def _seconds(action: Callable) -> float:
    """Seconds of the second call: the first one sets up the kernels."""
    action()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _first_pair(batch) -> int:
    return batch[0].chosen_length + batch[0].rejected_length


ALL = "all parameters, ‖g‖² and ⟨·,·⟩"
OPACUS = "pair_stats (Opacus ghost norms)"
METHODS = {
    "plain": Method("", plain, "training step without the optimiser"),
    "pair_stats (toolkit)": Method("pairs", toolkit_pairs, ALL),
    "pair_stats (official)": Method("pairs", official_pairs, ALL),
    "pair_stats (vmap grad)": Method("pairs", vmap_pairs, ALL, slow=True),
    "pair_stats (captum TracIn)": Method(
        "inner", captum_inner, "⟨·,·⟩ only, all parameters", slow=True
    ),
    OPACUS: Method("norms", opacus_norms, "‖g‖² only"),
    "token_contributions (toolkit)": Method("tokens", toolkit_tokens, "all four vectors"),
    "token_contributions (func.jvp)": Method("tokens", jvp_tokens, "all four vectors", slow=True),
    "token_contributions (official)": Method("tokens", official_tokens, "", slow=True),
    "token_matrix (toolkit)": Method("matrix", toolkit_matrix, "first pair", slow=True),
    "token_matrix (official)": Method("matrix", official_matrix, "", slow=True, peak=False),
    "token_matrix (official, in blocks)": Method(
        "matrix", official_matrix_in_blocks, "", slow=True, peak=False
    ),
}
# Words in the names of the methods that a longer case goes without, for its time: the token matrix
# of 512 tokens with up to 512 positions takes more than four minutes on two cores.
LEFT_OUT = {"256+256": ("vmap", "jvp", "matrix (toolkit)"), "512+16": ("vmap", "jvp")}


def for_case(lengths: str) -> list[str]:
    """Methods of one case: without those that would take many minutes or are not installed."""
    left_out = LEFT_OUT.get(lengths, ()) + (() if has_opacus() else (OPACUS,))
    return [method for method in METHODS if not any(word in method for word in left_out)]


def has_opacus() -> bool:
    """Whether Opacus is installed (the extra ``bench``)."""
    return importlib.util.find_spec("opacus") is not None


class Oracle:
    """Plain autograd in float64 on a copy of the model."""

    def __init__(self, model, batch):
        self.batch = batch
        self.model = copy.deepcopy(model).double()
        self.grads = [self._gradients(enc) for enc in batch]

    def _gradients(self, enc) -> list[list[torch.Tensor]]:
        selected = parameters(self.model)
        with only(self.model, selected):
            return [
                _autograd.gradient(scored_logps(self.model, [row])[0].sum(), selected)
                for row in sequences([enc])
            ]

    def error(self, quantity: str, result) -> float | None:
        """Largest error relative to the sizes of the two gradients that are multiplied."""
        if result is None or isinstance(result, Estimate):
            return None
        return getattr(self, f"_{quantity}")(result)

    def _pairs(self, result: np.ndarray) -> float:
        worst = 0.0
        for got, (a, b) in zip(result, self.grads, strict=True):
            aa, bb, ab = (_dot(x, y) for x, y in ((a, a), (b, b), (a, b)))
            scale = np.array([aa, bb, (aa * bb) ** 0.5])
            worst = max(worst, float((np.abs(got - [aa, bb, ab]) / scale).max()))
        return worst

    def _inner(self, result: np.ndarray) -> float:
        worst = 0.0
        for got, (a, b) in zip(result, self.grads, strict=True):
            worst = max(worst, abs(got - _dot(a, b)) / (_dot(a, a) * _dot(b, b)) ** 0.5)
        return worst

    def _norms(self, result: Norms) -> float:
        """Compared over the parameters that it covers."""
        at = [i for i, name in enumerate(parameters(self.model)) if name in result.names]
        kept = [[[side[i] for i in at] for side in pair] for pair in self.grads]
        exact = np.array([[_dot(side, side) for side in pair] for pair in kept])
        return float((np.abs(result.values - exact) / exact).max())

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
        with only(self.model, selected):
            logps = scored_logps(self.model, sequences(self.batch[:1]))[0]
            return [_autograd.gradient(logps[t], selected, retain=True) for t in range(2)]


def _dot(a, b) -> float:
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))
