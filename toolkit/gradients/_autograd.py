"""Plain autograd: the reference path, and the way for parameters that no layer rule covers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from toolkit.gradients._activations import AttentionBy, eager_experts
from toolkit.gradients.products import dot, flat_products, grouped, tensor_products
from toolkit.model.forward import Row, Scorer, evaluation, scored_logps
from toolkit.model.parameters import Parameters, only
from toolkit.model.turns import alone_in_process

Roots = Mapping[str, Tensor]  # √P of a diagonal metric P by parameter name; {} is the plain one
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
    sizes = {name: p.numel() * max(4, p.element_size()) for name, p in selected.items()}
    return [{name: selected[name] for name in names} for names in grouped(sizes, GROUP)]


def pair_products(
    model: nn.Module, selected: Parameters, rows: Sequence[Row], roots: Roots
) -> dict[str, Tensor]:
    """Return ``[pairs, 3]`` by parameter name: a backward per response and group of parameters."""

    def total(row: Row) -> Tensor:
        return scored_logps(model, [row])[0].sum()

    pairs = zip(rows[::2], rows[1::2], strict=True)
    found = [_products(model, selected, total, pair, roots) for pair in pairs]
    return {name: torch.stack([products[name] for products in found]) for name in selected}


def weighted_products(
    model: nn.Module, selected: Parameters, rows: Sequence[Row], *weights: Tensor
) -> dict[str, Tensor]:
    """Return ‖u‖², ‖v‖² and ⟨u, v⟩ by parameter name, for two weighted sums of tokens.

    ``u = ∇ Σ w_t log π_t`` over all tokens of the rows, one after the other, and v the same with
    the second weights; with one set of weights v is u. Each row is run by itself: what mixes rows
    shows.
    """

    def total(weight: Tensor) -> Tensor:
        logps = torch.cat([scored_logps(model, [row])[0] for row in rows])
        return (weight.to(logps) * logps).sum()

    return _products(model, selected, total, weights, {})


def _products(
    model: nn.Module, selected: Parameters, total: Callable, sides: Sequence, roots: Roots
) -> dict[str, Tensor]:
    """‖u‖², ‖v‖², ⟨u, v⟩ with u and v the gradients of ``total`` of the first and last side.

    Two gradients of one group of parameters are held at a time.
    """
    found, graphs, groups = {}, [None] * len(sides), groups_of(selected)
    with only(model, selected), evaluation(model):
        for group in groups:
            more, grads = group is not groups[-1], []
            for i, side in enumerate(sides):
                scalar = total(side) if graphs[i] is None else graphs[i]
                graphs[i] = scalar if more else None  # one group: one graph at a time
                grads.append(_scaled(gradient(scalar, group, retain=more), group, roots))
            for name, u, v in zip(group, grads[0], grads[-1], strict=True):
                found[name] = tensor_products(u, v)
    return found


def token_products(
    model: nn.Module,
    selected: Parameters,
    rows: Sequence[Row],
    roots: Roots,
    directional: Callable[..., list[list[Tensor]]],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the rows' log-probabilities and their products with both gradients of one pair.

    The gradients of the two responses are materialised; ``directional`` goes along them.
    """
    with only(model, selected), evaluation(model):
        logps = scored_logps(model, rows)
        directions = [gradient(side.sum(), selected, retain=True) for side in logps]
        for _ in range(2):
            directions = [_scaled(d, selected, roots) for d in directions]
        logps = [x.detach() for x in logps]
        return logps, *directional(model, rows, selected, directions)


def token_gram(
    model: nn.Module, selected: Parameters, rows: Sequence[Row], roots: Roots
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities and the Gram matrix of all token gradients of the rows.

    One backward per token, two blocks of gradients in memory at a time.
    """

    def stacked(some: range) -> list[Tensor]:
        found = [gradient(logps[i], selected, retain=True) for i in some]
        scaled = [_scaled(g, selected, roots) for g in found]
        return [torch.stack(column) for column in zip(*scaled, strict=True)]

    with only(model, selected), evaluation(model):
        logps = torch.cat(scored_logps(model, rows))
        size = sum(p.numel() * max(4, p.element_size()) for p in selected.values())
        block = max(1, MEMORY // (2 * size))
        spans = [range(i, min(i + block, len(logps))) for i in range(0, len(logps), block)]
        gram = torch.zeros(len(logps), len(logps), dtype=torch.float64)
        for a, some in enumerate(spans):
            left = stacked(some)
            for others in spans[a:]:
                right = left if others is some else stacked(others)
                part = sum(flat_products(x, y) for x, y in zip(left, right, strict=True))
                gram[some.start : some.stop, others.start : others.stop] = part
                gram[others.start : others.stop, some.start : some.stop] = part.T
    return logps.detach(), (gram + gram.T) / 2


def _scaled(gradients: list[Tensor], names: Iterable[str], roots: Roots) -> list[Tensor]:
    """√P·g: plain products of scaled gradients are products under P."""
    if not roots:
        return gradients
    return [g * roots[name] for name, g in zip(names, gradients, strict=True)]


@alone_in_process
def directional_logps(
    model: nn.Module, rows: Sequence[Row], at: Parameters, directions: Sequence[list[Tensor]]
) -> list[list[Tensor]]:
    """Return ⟨∇log π_t, direction⟩ of each row's tokens at the weights ``at``, by forward mode.

    One list of rows for each direction.
    """
    scorer, found = Scorer(model, rows), []
    primals = {f"model.{name}": p.detach() for name, p in at.items()}

    def scores(values):
        return tuple(torch.func.functional_call(scorer, values, ()))

    with AttentionBy(_attention), eager_experts(model):
        for direction in directions:
            moves = zip(primals.items(), direction, strict=True)
            tangents = {name: d.to(p.dtype) for (name, p), d in moves}
            found.append(list(torch.func.jvp(scores, (primals,), (tangents,))[1]))
    return found


def directional_by_backward(
    model: nn.Module, rows: Sequence[Row], at: Parameters, directions: Sequence[list[Tensor]]
) -> list[list[Tensor]]:
    """Return the same by one backward per token and group of parameters: no other derivative."""
    leaves = {f"model.{name}": p.detach().requires_grad_() for name, p in at.items()}
    moves = [dict(zip(leaves, direction, strict=True)) for direction in directions]
    with torch.enable_grad():
        logps = torch.func.functional_call(Scorer(model, rows), leaves, ())
        every, sizes = torch.cat(logps), [len(x) for x in logps]
        found = torch.zeros(len(moves), len(every), dtype=torch.float64)
        for group in groups_of(leaves):
            for t, logp in enumerate(every):
                own = gradient(logp, group, retain=True)
                for k, move in enumerate(moves):
                    found[k, t] += sum(
                        dot(g, move[n].to(g.dtype)) for n, g in zip(group, own, strict=True)
                    )
    return [list(values.split(sizes)) for values in found]


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
