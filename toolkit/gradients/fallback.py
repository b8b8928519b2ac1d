"""The fastest exact way for a model, tried on it: from layer rules down to plain autograd.

A faster way serves only where it gives on two short rows what plain autograd gives; where it fails
there or later, the next one is taken, and the reason goes into the labels of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from toolkit.gradients import _autograd, _passes, _tangents, _token_gram
from toolkit.gradients._findings import SIDES, findings, plan_for, probe_rows, slack
from toolkit.gradients._scope import Scope
from toolkit.model.batching import is_out_of_memory
from toolkit.model.forward import Row, evaluation, scored_logps
from toolkit.model.parameters import Parameters

Run = Callable[[Sequence[Row], _autograd.Roots], tuple]
FORWARD, BACKWARD = "forward derivatives", "one backward per token"


def pair_products(scope: Scope, rows: Sequence[Row]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return ``[pairs, 3]`` by parameter name, and the rows' token log-probabilities."""
    if scope.plan.rules:
        found, logps = _by_rules(scope, rows)
    else:
        with evaluation(scope.model), torch.no_grad():
            found, logps = {}, scored_logps(scope.model, rows)
    if rest := scope.plan.remainder:
        found |= _autograd.pair_products(scope.model, rest, rows, scope.roots)
    return found, logps


def _by_rules(scope: Scope, rows: Sequence[Row]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A rule that meets a call it was not made for gives its parameters to autograd for good."""
    try:
        return _passes.pair_products(scope.model, scope.plan, rows)
    except Exception as error:
        if is_out_of_memory(error) or not scope.plan.rules:
            raise
        rule = scope.plan.rules[error.module] if isinstance(error, _passes.NotByRows) else None
    known = findings(scope.model)
    before = scope.plan, dict(known.by_rule)
    lost = (rule.weight, rule.bias) if rule else scope.selected
    known.by_rule.update({name: False for name in lost if name})
    try:
        scope.plan = plan_for(scope.model, scope.selected)
        return _by_rules(scope, rows)
    except Exception:  # then it was no fault of the rules
        scope.plan, known.by_rule = before
        raise


def token_products(scope: Scope, rows: Sequence[Row]) -> tuple[tuple, str]:
    """Return log-probabilities and products with both gradients by token, and how they came."""
    ways: dict[str, Run] = {}
    if not scope.plan.remainder:
        ways["layer tangents"] = lambda rows, _: _tangents.token_products(
            scope.model, scope.plan, rows
        )
    ways[FORWARD] = _along(scope.model, scope.selected, _autograd.directional_logps)
    ways[BACKWARD] = _along(scope.model, scope.selected, _autograd.directional_by_backward)
    return _first_exact(scope, ways, _tokens_agree, rows)


def token_gram(
    scope: Scope, rows: Sequence[Row], done: Callable[[int, int], None]
) -> tuple[tuple, str]:
    """Return log-probabilities and the Gram matrix of token gradients, and how they came."""
    ways: dict[str, Run] = {}
    if not scope.plan.remainder:
        ways["token gradients by layer"] = lambda some, _: _token_gram.token_gram(
            scope.model, scope.plan, some, done=done if some is rows else lambda level, count: None
        )
    ways[BACKWARD] = lambda rows, roots: _autograd.token_gram(
        scope.model, scope.selected, rows, roots
    )
    return _first_exact(scope, ways, _gram_agrees, rows)


def directional_logps(
    model: nn.Module, rows: Sequence[Row], at: dict[str, Tensor], direction: list[Tensor]
) -> list[Tensor]:
    """Return ⟨∇log π_t, direction⟩ of each row's tokens at the weights ``at``."""
    selected = {name: p for name, p in model.named_parameters() if name in at}
    forward = _along(model, selected, _autograd.directional_logps)
    why = _why_not(model, selected, FORWARD, forward, _tokens_agree)
    way = _autograd.directional_by_backward if why else _autograd.directional_logps
    return way(model, rows, at, [direction])[0]


def _along(model: nn.Module, selected: Parameters, directional: Callable) -> Run:
    return lambda rows, roots: _autograd.token_products(model, selected, rows, roots, directional)


def _first_exact(scope: Scope, ways: dict[str, Run], agree, rows) -> tuple[tuple, str]:
    """Return what the first way that serves finds, and a note where it is not the first."""
    *fast, (last, slow) = ways.items()
    note = ""
    for name, run in fast:
        why = _why_not(scope.model, scope.selected, name, run, agree)
        if not why:
            try:
                return run(rows, scope.roots), note and f"{name} ({note})"
            except Exception as error:
                why = _refused(scope.model, scope.selected, name, error)
        note = note or f"{name}: {why}"
    try:
        return slow(rows, scope.roots), note and f"{last} ({note})"
    except Exception:  # then it was no fault of the faster ways: they are tried again next time
        findings(scope.model).failed.clear()
        raise


def _why_not(model: nn.Module, selected: Parameters, name: str, run: Run, agree) -> str:
    """Return why a way does not serve, "" where it does: it is tried once on short rows."""
    known, key = findings(model), (name, frozenset(selected))
    if key not in known.failed:
        try:
            known.failed[key] = "" if agree(model, selected, run) else "not exact on this model"
        except Exception as error:
            return _refused(model, selected, name, error)
    return known.failed[key]


def _refused(model: nn.Module, selected: Parameters, name: str, error: Exception) -> str:
    """Remember why a way failed, in few words; running out of memory says nothing about it."""
    if is_out_of_memory(error):
        raise error
    first = (str(error).strip().splitlines() or [""])[0]
    reason = f"{type(error).__name__}: {first[:80]}"
    findings(model).failed[name, frozenset(selected)] = reason
    return reason


def _tokens_agree(model: nn.Module, selected: Parameters, run: Run) -> bool:
    """Whether ``Σ w_t d_s ⟨∇log π_t, g_s⟩`` is autograd's: random weights hide no error."""
    rows = probe_rows(model)
    _, *along = run(rows, {})
    values = sum(d * torch.cat(list(v)).double() for d, v in zip(SIDES, along, strict=True))
    weights = _random_weights(len(values), 1)
    sides = torch.tensor(SIDES, dtype=torch.float64).repeat_interleave(len(values) // 2)
    return _close(model, selected, rows, (weights, sides), weights @ values.cpu())


def _gram_agrees(model: nn.Module, selected: Parameters, run: Run) -> bool:
    """Whether ``Σ u_i v_j ⟨∇log π_i, ∇log π_j⟩`` is autograd's, for random u and v."""
    rows = probe_rows(model)
    _, gram = run(rows, {})
    weights = _random_weights(len(gram), 1), _random_weights(len(gram), 2)
    return _close(model, selected, rows, weights, weights[0] @ gram @ weights[1])


def _random_weights(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64)


def _close(model, selected: Parameters, rows, weights: tuple[Tensor, Tensor], got: Tensor) -> bool:
    found = _autograd.weighted_products(model, selected, rows, *weights)
    u, v, inner = sum(found.values())
    return bool((got - inner).abs() <= slack(selected) * (u * v).sqrt())
