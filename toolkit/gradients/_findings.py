"""What was found out about a model: which rules are exact on it, which faster ways failed.

Kept for each model until anything in it is another object than when it was found.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from toolkit.gradients._autograd import weighted_products
from toolkit.gradients._passes import pair_products
from toolkit.gradients._plan import Plan, draft
from toolkit.model.batching import is_out_of_memory
from toolkit.model.forward import Row
from toolkit.model.parameters import Parameters

PLAIN = (bool, int, float, str, type(None))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
SIDES = (1.0, -0.7)  # weights of the probe's rows: no error of one product hides another's


@dataclass
class Findings:
    """Of one model, in the state that ``signature`` describes.

    Attributes:
        signature: What the model consisted of.
        by_rule: Whether a parameter's rule gives autograd's products, by name.
        failed: Why a way of computing does not serve a set of parameters; "" where it does.
        position_bytes: What one position of one row keeps for the backward pass.
    """

    signature: tuple
    by_rule: dict[str, bool] = field(default_factory=dict)
    failed: dict[tuple[str, frozenset[str]], str] = field(default_factory=dict)
    position_bytes: int = 0


_FOUND: weakref.WeakKeyDictionary[nn.Module, Findings] = weakref.WeakKeyDictionary()


def findings(model: nn.Module) -> Findings:
    """Return what is known about the model as it is now; nothing where it was changed since."""
    signature = _signature(model)
    known = _FOUND.get(model)
    if known is None or not _same(known.signature, signature):
        _FOUND[model] = Findings(signature)
    return _FOUND[model]


def plan_for(model: nn.Module, selected: Parameters) -> Plan:
    """Return the plan of these parameters, checked against plain autograd once for each model.

    Every selected parameter's products by the rules are compared with autograd's on two short
    rows; a parameter that a rule gets wrong (used elsewhere, shared in an unknown way, a module
    that mixes rows) goes to the remainder.
    """
    known = findings(model)
    fresh = {name: p for name, p in selected.items() if name not in known.by_rule}
    if fresh:
        _examine(model, fresh, known)
    plan = draft(model, {name: p for name, p in selected.items() if known.by_rule[name]})
    left = {n: p for n, p in selected.items() if n in plan.remainder or not known.by_rule[n]}
    return Plan(plan.rules, plan.tied, left, known.position_bytes, checked=True)


def slack(selected: Parameters) -> float:
    """Return the largest relative difference that is put down to rounding.

    Many norms compute in float32 whatever the weights are, so float64 gets no smaller one.
    """
    return max(1e-6, *(torch.finfo(p.dtype).eps ** 0.5 for p in selected.values()))


def probe_rows(model: nn.Module) -> list[Row]:
    """Return two short rows of random tokens, one of them twice in its row."""
    size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (2, 8), generator=generator)
    ids[:, 5] = ids[:, 2]
    mask = torch.arange(8) >= 3
    return [(row, mask) for row in ids]


def _examine(model: nn.Module, fresh: Parameters, known: Findings) -> None:
    rows, kept = probe_rows(model), _Kept(model)
    found, whole = {}, True
    try:
        with kept:
            found, _ = pair_products(model, draft(model, fresh), rows)
        known.position_bytes = kept.total // sum(len(ids) for ids, _ in rows)
    except Exception as error:  # a model may go against the rules in any way
        if is_out_of_memory(error):
            raise
        whole = False
    weights = torch.tensor(SIDES, dtype=torch.float64).repeat_interleave(int(rows[0][1].sum()))
    a, b = SIDES
    mix = torch.tensor([a * a, b * b, 2 * a * b], dtype=torch.float64)
    squares = weighted_products(model, fresh, rows, weights)
    expected = {name: float(square) for name, (square, *_) in squares.items()}
    # A gradient that is zero but for rounding (the bias of attention's keys) is no rule's fault.
    noise = torch.finfo(model.dtype).eps ** 1.5 * sum(expected.values())
    for name, size in expected.items():
        got = float(found[name][0] @ mix) if name in found else 0.0
        close = abs(got - size) <= slack({name: fresh[name]}) * size + noise
        known.by_rule[name] = whole and close
    known.signature = _signature(model)  # a first forward pass may set things up


def _signature(model: nn.Module) -> tuple[list[weakref.ref], list]:
    """All modules and parameters, and what else decides how they are used."""
    parts, state = [], []
    for module in model.modules():
        own = vars(module)
        parts += [module, *(p for p in own["_parameters"].values() if p is not None)]
        parts += [own["forward"]] if "forward" in own else []
        state += [type(module), [tuple(own[hooks]) for hooks in HOOKS]]
        state.append({k: v for k, v in own.items() if k != "training" and _plain(v)})
        named = [(k, p) for k, p in own["_parameters"].items() if p is not None]
        state += [(k, p.dtype, p.shape, tuple(p._backward_hooks or ())) for k, p in named]
    config = getattr(model, "config", None)
    kinds = ("_attn_implementation", "_experts_implementation")
    state.append([str(getattr(config, name, None)) for name in kinds])
    return [weakref.ref(part) for part in parts], state


def _plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(x, PLAIN) for x in value)
    return isinstance(value, PLAIN)


def _same(one: tuple, other: tuple) -> bool:
    (parts, state), (others, other_state) = one, other
    alike = len(parts) == len(others) and state == other_state
    return alike and all(a() is b() for a, b in zip(parts, others, strict=True))


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a graph keeps for its backward pass, the parameters left out."""

    def __init__(self, model: nn.Module):
        self.total = 0
        self.seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
