"""Plain autograd: the reference path, and the way for parameters that no layer rule covers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from toolkit.gradients._activations import AttentionBy, eager_experts
from toolkit.gradients.products import dot, flat_products, tensor_products
from toolkit.model.forward import Row, Scorer, evaluation, scored_logps
from toolkit.model.parameters import Parameters, only
from toolkit.model.turns import alone_in_process

Weights = list[Tensor] | None  # a diagonal metric, in parameter order
MEMORY = 1 << 30  # bytes of token gradients kept at once
GROUP = 1 << 28  # bytes of one gradient held at once, or a single parameter's


def gradient(scalar: Tensor, selected: Parameters, retain: bool = False) -> list[Tensor]:
    """Return the gradient by parameter, zeros where a parameter is not used."""
    found = torch.autograd.grad(
        scalar,
        list(selected.values()),
        retain_graph=retain,
        allow_unused=True,
        materialize_grads=True,
    )
    return [g.to(torch.promote_types(g.dtype, torch.float32)) for g in found]


def groups_of(selected: Parameters) -> list[Parameters]:
    """Split parameters into groups whose gradient takes at most ``GROUP`` bytes, or into ones."""
    groups: list[Parameters] = []
    room = 0
    for name, p in selected.items():
        size = p.numel() * max(4, p.element_size())
        if not groups or size > room:
            groups.append({})
            room = GROUP
        groups[-1][name] = p
        room -= size
    return groups


def pair_products(
    model: nn.Module, selected: Parameters, rows: Sequence[Row], metric: Weights = None
) -> dict[str, Tensor]:
    """Return ``[pairs, 3]`` by parameter name: a backward per response and group of parameters.

    Two gradients of one group are held at a time.
    """
    weights, groups = _by_name(selected, metric), groups_of(selected)
    found: dict[str, list[Tensor]] = {name: [] for name in selected}
    for i in range(0, len(rows), 2):
        sums: list[Tensor | None] = [None, None]
        for group in groups:
            more, sides = group is not groups[-1], []
            for side, row in enumerate(rows[i : i + 2]):
                with only(model, selected), evaluation(model):
                    if sums[side] is None:
                        sums[side] = scored_logps(model, [row])[0].sum()
                    sides.append(_scaled(gradient(sums[side], group, retain=more), group, weights))
                if not more:
                    sums[side] = None  # with one group, only one response's graph is ever held
            for name, a, b in zip(group, *sides, strict=True):
                found[name].append(tensor_products(a, b))
    return {name: torch.stack(products) for name, products in found.items()}


def weighted_products(
    model: nn.Module,
    selected: Parameters,
    rows: Sequence[Row],
    left: Tensor,
    right: Tensor | None = None,
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return ⟨u, v⟩, ‖u‖ and ‖v‖ by parameter name, for gradients of weighted sums of tokens.

    ``u = ∇ Σ left_t log π_t`` and ``v = ∇ Σ right_t log π_t`` over all tokens of the rows. One
    group of the parameters is held at a time.

    Args:
        model: The model.
        selected: Parameters to differentiate.
        rows: Each run by itself: what mixes rows shows.
        left: One weight per scored token, rows one after the other.
        right: The same; ``None``: ``left``.
    """
    found = {}
    with only(model, selected), evaluation(model):
        logps = torch.cat([scored_logps(model, [row])[0] for row in rows])
        sums = [(w.to(logps) * logps).sum() for w in (left, right) if w is not None]
        for group in groups_of(selected):
            sides = [gradient(x, group, retain=True) for x in sums]
            for name, u, v in zip(group, sides[0], sides[-1], strict=True):
                found[name] = dot(u, v), dot(u, u).sqrt(), dot(v, v).sqrt()
    return found


def token_products(
    model: nn.Module, selected: Parameters, rows: Sequence[Row], metric: Weights = None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the rows' log-probabilities and their products with both gradients of one pair.

    Two forward-mode derivatives, along the materialised gradients of the two responses.
    """
    weights = _by_name(selected, metric)
    with only(model, selected), evaluation(model):
        logps = scored_logps(model, rows)
        directions = [gradient(side.sum(), selected, retain=True) for side in logps]
        for _ in range(2):
            directions = [_scaled(d, selected, weights) for d in directions]
        along = [directional_logps(model, rows, selected, d) for d in directions]
    return [x.detach() for x in logps], *along


def token_products_by_backward(
    model: nn.Module, selected: Parameters, rows: Sequence[Row], metric: Weights = None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the same by one backward per token and group of parameters: no other derivative."""
    weights = _by_name(selected, metric)
    with only(model, selected), evaluation(model):
        logps = scored_logps(model, rows)
        every, sizes = torch.cat(logps), [len(x) for x in logps]
        along = torch.zeros(2, len(every), dtype=torch.float64)
        for group in groups_of(selected):

            def scaled(scalar: Tensor, group: Parameters = group) -> list[Tensor]:
                return _scaled(gradient(scalar, group, retain=True), group, weights)

            directions = [scaled(side.sum()) for side in logps]
            for t, logp in enumerate(every):
                own = scaled(logp)
                for side, direction in enumerate(directions):
                    along[side, t] += sum(dot(a, b) for a, b in zip(own, direction, strict=True))
    return [x.detach() for x in logps], *(list(x.split(sizes)) for x in along)


def token_gram(
    model: nn.Module,
    selected: Parameters,
    rows: Sequence[Row],
    memory: int = MEMORY,
    metric: Weights = None,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities and the Gram matrix of all token gradients of the rows.

    One backward per token, two blocks of gradients in memory at a time.
    """
    with only(model, selected), evaluation(model):
        logps, weights = torch.cat(scored_logps(model, rows)), _by_name(selected, metric)
        size = sum(p.numel() * max(4, p.element_size()) for p in selected.values())
        block = max(1, memory // (2 * size))
        spans = [range(i, min(i + block, len(logps))) for i in range(0, len(logps), block)]
        gram = torch.zeros(len(logps), len(logps), dtype=torch.float64)
        for a, some in enumerate(spans):
            left = _stacked(logps, some, selected, weights)
            for others in spans[a:]:
                right = left if others is some else _stacked(logps, others, selected, weights)
                part = sum(flat_products(x, y) for x, y in zip(left, right, strict=True))
                gram[some.start : some.stop, others.start : others.stop] = part
                gram[others.start : others.stop, some.start : some.stop] = part.T
    return logps.detach(), (gram + gram.T) / 2


def _by_name(selected: Parameters, metric: Weights) -> dict[str, Tensor]:
    return {} if metric is None else dict(zip(selected, metric, strict=True))


def _scaled(gradients: list[Tensor], names: Iterable[str], weights: dict[str, Tensor]):
    """√P·g: plain products of scaled gradients are products under P; {} is the plain metric."""
    if not weights:
        return gradients
    return [g * weights[name].sqrt() for name, g in zip(names, gradients, strict=True)]


def _stacked(
    logps: Tensor, rows: range, selected: Parameters, weights: dict[str, Tensor]
) -> list[Tensor]:
    found = [gradient(logps[i], selected, retain=True) for i in rows]
    gradients = [_scaled(g, selected, weights) for g in found]
    return [torch.stack(column) for column in zip(*gradients, strict=True)]


@alone_in_process
def directional_logps(
    model: nn.Module, rows: Sequence[Row], at: Parameters, direction: list[Tensor]
) -> list[Tensor]:
    """Return ⟨∇log π_t, direction⟩ of each row's tokens at the weights ``at``, by forward mode."""
    scorer = Scorer(model, rows)
    primals = {f"model.{name}": p.detach() for name, p in at.items()}
    moves = zip(primals.items(), direction, strict=True)
    tangents = {name: d.to(p.dtype) for (name, p), d in moves}

    def scores(values):
        return tuple(torch.func.functional_call(scorer, values, ()))

    with AttentionBy(_attention), eager_experts(model):
        return list(torch.func.jvp(scores, (primals,), (tangents,))[1])


def directional_by_backward(
    model: nn.Module, rows: Sequence[Row], at: Parameters, direction: list[Tensor]
) -> list[Tensor]:
    """Return the same by one backward per token."""
    leaves = {f"model.{name}": p.detach().requires_grad_() for name, p in at.items()}
    with torch.enable_grad():
        logps = torch.func.functional_call(Scorer(model, rows), leaves, ())
        every, sizes = torch.cat(logps), [len(x) for x in logps]
        found = torch.zeros(len(every), dtype=torch.float64)
        for t, logp in enumerate(every):
            own = gradient(logp, leaves, retain=True)
            found[t] = sum(dot(g, d.to(g.dtype)) for g, d in zip(own, direction, strict=True))
    return list(found.split(sizes))


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    """Attention by plain operations."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        seen = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = seen.masked_fill(~attn_mask, float("-inf"))
    options = {"scale": scale, "enable_gqa": enable_gqa}
    given = query, key, value, attn_mask, dropout_p, is_causal
    return torch.ops.aten._scaled_dot_product_attention_math(*given, **options)[0]
