"""Plain autograd: the reference path, and the way for parameters that no layer rule covers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from toolkit.gradients._passes import Parameters, only
from toolkit.gradients._rules import flat_products, tensor_products
from toolkit.model._forward import Row, evaluation, scored_logps
from toolkit.model.turns import alone_in_process

Weights = list[Tensor] | None  # a diagonal metric, in parameter order
MEMORY = 1 << 30  # bytes of token gradients kept at once


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


def pair_products(
    model: nn.Module, selected: Parameters, rows: Sequence[Row], metric: Weights = None
) -> dict[str, Tensor]:
    """Return ``[pairs, 3]`` by parameter name, one backward per response."""
    pairs = []
    for i in range(0, len(rows), 2):
        with only(model, selected), evaluation(model):
            sides = [
                _scaled(gradient(scored_logps(model, [row])[0].sum(), selected), metric)
                for row in rows[i : i + 2]
            ]
        pairs.append([tensor_products(a, b) for a, b in zip(*sides, strict=True)])
    columns = zip(*pairs, strict=True)
    return {name: torch.stack(c) for name, c in zip(selected, columns, strict=True)}


def token_products(
    model: nn.Module, selected: Parameters, rows: Sequence[Row], metric: Weights = None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the rows' log-probabilities and their products with both gradients of one pair.

    Two forward-mode derivatives, along the materialised gradients of the two responses.
    """
    with only(model, selected), evaluation(model):
        logps = scored_logps(model, rows)
        directions = [gradient(side.sum(), selected, retain=True) for side in logps]
        directions = [_scaled(_scaled(d, metric), metric) for d in directions]
        along = [directional_logps(model, rows, selected, d) for d in directions]
    return [x.detach() for x in logps], *along


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
        logps = torch.cat(scored_logps(model, rows))
        size = sum(p.numel() * max(4, p.element_size()) for p in selected.values())
        block = max(1, memory // (2 * size))
        spans = [range(i, min(i + block, len(logps))) for i in range(0, len(logps), block)]
        gram = torch.zeros(len(logps), len(logps), dtype=torch.float64)
        for a, some in enumerate(spans):
            left = _stacked(logps, some, selected, metric)
            for others in spans[a:]:
                right = left if others is some else _stacked(logps, others, selected, metric)
                part = sum(flat_products(x, y) for x, y in zip(left, right, strict=True))
                gram[some.start : some.stop, others.start : others.stop] = part
                gram[others.start : others.stop, some.start : some.stop] = part.T
    return logps.detach(), (gram + gram.T) / 2


def _scaled(gradients: list[Tensor], metric: Weights) -> list[Tensor]:
    """√P·g: plain products of scaled gradients are products under P."""
    if metric is None:
        return gradients
    return [g * p.sqrt() for g, p in zip(gradients, metric, strict=True)]


def _stacked(logps: Tensor, rows: range, selected: Parameters, metric: Weights) -> list[Tensor]:
    gradients = [_scaled(gradient(logps[i], selected, retain=True), metric) for i in rows]
    return [torch.stack(column) for column in zip(*gradients, strict=True)]


@alone_in_process
def directional_logps(model, rows, selected: Parameters, direction: list[Tensor]) -> list[Tensor]:
    scorer = Scorer(model, rows)
    primals = {f"model.{name}": p.detach() for name, p in selected.items()}
    moves = zip(primals.items(), direction, strict=True)
    tangents = {name: d.to(p.dtype) for (name, p), d in moves}

    def scores(values):
        return tuple(torch.func.functional_call(scorer, values, ()))

    with _PlainAttention():
        return list(torch.func.jvp(scores, (primals,), (tangents,))[1])


class _PlainAttention(TorchFunctionMode):
    """Attention by plain operations: the fused kernels have no forward-mode rule.

    For this thread alone, where ``sdpa_kernel`` would change the kernels of all of them.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        return _attention(*args, **kwargs)


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        seen = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = seen.masked_fill(~attn_mask, float("-inf"))
    options = {"scale": scale, "enable_gqa": enable_gqa}
    given = query, key, value, attn_mask, dropout_p, is_causal
    return torch.ops.aten._scaled_dot_product_attention_math(*given, **options)[0]


class Scorer(nn.Module):
    """The scored forward pass as a module, so that its parameters can be replaced."""

    def __init__(self, model: nn.Module, rows: Sequence[Row]):
        super().__init__()
        self.model, self.rows = model, rows

    def forward(self) -> list[Tensor]:
        return scored_logps(self.model, self.rows)
