"""The fastest exact way for a model, tried on it: from layer rules down to plain autograd.

A faster way serves only where it gives on two short rows what plain autograd gives; where it fails
there or later, the next one is taken, and the reason goes into the labels of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from toolkit.gradients import _autograd, _tangents, _token_gram
from toolkit.gradients._findings import SIDES, findings, plan_for, probe_rows, reason, slack
from toolkit.gradients._passes import NotByRows, pair_products
from toolkit.gradients._plan import Plan
from toolkit.model.batching import is_out_of_memory
from toolkit.model.forward import Row
from toolkit.model.parameters import Parameters

Weights = list[Tensor] | None  # a diagonal metric, in parameter order
Run = Callable[[Sequence[Row], Weights], tuple]
FORWARD = "forward derivatives"


def pair_products_by(
    model: nn.Module, plan: Plan, selected: Parameters, rows: Sequence[Row]
) -> tuple[dict[str, Tensor], list[Tensor], Plan]:
    """Return the rules' products, the log-probabilities and the plan that held for these rows.

    A rule that meets a call it was not made for gives its parameters to plain autograd for good.
    """
    try:
        return *pair_products(model, plan, rows), plan
    except Exception as error:
        if is_out_of_memory(error) or not plan.rules:
            raise
        rule = plan.rules[error.module] if isinstance(error, NotByRows) else None
    known = findings(model)
    own = (rule.weight, getattr(rule, "bias", None)) if rule else selected
    lost = [name for name in own if name]
    before = dict(known.by_rule)
    known.by_rule.update(dict.fromkeys(lost, False))
    try:
        return pair_products_by(model, plan_for(model, selected), selected, rows)
    except Exception:  # then it was no fault of the rules
        known.by_rule = before
        raise


def token_products(
    model: nn.Module, plan: Plan, selected: Parameters, rows: Sequence[Row], metric: Weights
) -> tuple[tuple, str]:
    """Return log-probabilities and products with both gradients by token, and how they came."""
    ways: dict[str, Run] = {}
    if not plan.remainder:
        ways["layer tangents"] = lambda rows, _: _tangents.token_products(model, plan, rows)
    ways[FORWARD] = _forward_way(model, selected)
    ways["one backward per token"] = lambda rows, metric: _autograd.token_products_by_backward(
        model, selected, rows, metric
    )
    return _first_exact(model, selected, ways, _tokens_agree, rows, metric)


def token_gram(
    model: nn.Module,
    plan: Plan,
    selected: Parameters,
    rows: Sequence[Row],
    metric: Weights,
    done: Callable[[int, int], None],
) -> tuple[tuple, str]:
    """Return log-probabilities and the Gram matrix of token gradients, and how they came."""
    ways: dict[str, Run] = {}
    if not plan.remainder:
        ways["token gradients by layer"] = lambda some, _: _token_gram.token_gram(
            model, plan, some, done=done if some is rows else lambda level, count: None
        )
    ways["one backward per token"] = lambda rows, metric: _autograd.token_gram(
        model, selected, rows, metric=metric
    )
    return _first_exact(model, selected, ways, _gram_agrees, rows, metric)


def directional_logps(
    model: nn.Module, rows: Sequence[Row], at: dict[str, Tensor], direction: list[Tensor]
) -> list[Tensor]:
    """Return ⟨∇log π_t, direction⟩ of each row's tokens at the weights ``at``."""
    selected = {name: p for name, p in model.named_parameters() if name in at}
    forward = _why_not(model, selected, FORWARD, _forward_way(model, selected), _tokens_agree)
    way = _autograd.directional_by_backward if forward else _autograd.directional_logps
    return way(model, rows, at, direction)


def _forward_way(model: nn.Module, selected: Parameters) -> Run:
    return lambda rows, metric: _autograd.token_products(model, selected, rows, metric)


def _first_exact(model, selected, ways: dict[str, Run], agree, rows, metric) -> tuple[tuple, str]:
    """Return what the first way that serves finds, and a note where it is not the first."""
    *fast, (last, slow) = ways.items()
    note = ""
    for name, run in fast:
        why = _why_not(model, selected, name, run, agree)
        if not why:
            try:
                return run(rows, metric), note and f"{name} ({note})"
            except Exception as error:
                why = _refused(model, selected, name, error)
        note = note or f"{name}: {why}"
    try:
        return slow(rows, metric), note and f"{last} ({note})"
    except Exception:  # then it was no fault of the faster ways: they are tried again next time
        findings(model).failed.clear()
        raise


def _why_not(model: nn.Module, selected: Parameters, name: str, run: Run, agree) -> str:
    """Return why a way does not serve, "" where it does: it is tried once on short rows."""
    known, key = findings(model), (name, frozenset(selected))
    if key not in known.failed:
        try:
            known.failed[key] = "" if agree(model, selected, run) else "not exact on this model"
        except Exception as error:
            _refused(model, selected, name, error)
    return known.failed[key]


def _refused(model: nn.Module, selected: Parameters, name: str, error: Exception) -> str:
    """Remember why a way failed; running out of memory says nothing about it."""
    if is_out_of_memory(error):
        raise error
    found = findings(model).failed
    found[name, frozenset(selected)] = reason(error)
    return reason(error)


def _tokens_agree(model: nn.Module, selected: Parameters, run: Run) -> bool:
    """Whether ``Σ w_t d_s ⟨∇log π_t, g_s⟩`` is autograd's: random weights hide no error."""
    rows = probe_rows(model)
    _, *along = run(rows, None)
    values = sum(d * torch.cat(list(v)).double() for d, v in zip(SIDES, along, strict=True))
    weights = _random_weights(len(values), 1)
    sides = torch.tensor(SIDES, dtype=torch.float64).repeat_interleave(len(values) // 2)
    return _close(model, selected, rows, (weights, sides), weights @ values.cpu())


def _gram_agrees(model: nn.Module, selected: Parameters, run: Run) -> bool:
    """Whether ``Σ u_i v_j ⟨∇log π_i, ∇log π_j⟩`` is autograd's, for random u and v."""
    rows = probe_rows(model)
    _, gram = run(rows, None)
    weights = _random_weights(len(gram), 1), _random_weights(len(gram), 2)
    return _close(model, selected, rows, weights, weights[0] @ gram @ weights[1])


def _random_weights(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64)


def _close(model, selected: Parameters, rows, weights: tuple[Tensor, Tensor], got: Tensor) -> bool:
    found = _autograd.weighted_products(model, selected, rows, *weights).values()
    inner, u, v = (torch.stack(list(x)) for x in zip(*found, strict=True))
    return bool((got - inner.sum()).abs() <= slack(selected) * u.norm() * v.norm())
