"""Token contributions by forward-mode tangents injected layer by layer from stored factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit._forward import Row, evaluation, scored_logps
from toolkit._passes import Plan, backward, widened
from toolkit._rules import Embedding, Linear, Use

Uses = dict[nn.Module, Use]


def token_products(
    model: nn.Module, plan: Plan, rows: Sequence[Row]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return log-probabilities, ⟨∇log π_t, g_chosen⟩ and ⟨∇log π_t, g_rejected⟩ of every row.

    One pass stores each layer's factors; a second carries, for both directions at once, what
    moving all parameters along that gradient does to every activation. No gradient is formed,
    and the cost does not grow with the number of tokens.
    """
    uses: Uses = {}
    backward(model, plan, rows, uses.__setitem__)
    count = len(rows)
    # Copy d of row i moves along the gradient of side d of its own pair.
    source = torch.tensor([i // 2 * 2 + side for side in range(2) for i in range(count)])
    forwards = {m: _moving(m, plan, uses, source) for m in plan.rules if m in uses}
    hooks = widened(model, 2 * count)
    try:
        # The fused attention kernels have no forward-mode rule; the plain ones do.
        with (
            _replaced(forwards),
            evaluation(model),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            forward_ad.dual_level(),
        ):
            duals = [forward_ad.unpack_dual(x) for x in scored_logps(model, [*rows, *rows])]
    finally:
        for hook in hooks:
            hook.remove()
    moved = [torch.zeros_like(p) if t is None else t for p, t in duals]
    return [p for p, _ in duals[:count]], moved[:count], moved[count:]


def _moving(module: nn.Module, plan: Plan, uses: Uses, source: Tensor) -> Callable:
    """The module's forward with its parameters moving along row ``source[i]``'s gradient."""
    rule, use, plain = plan.rules[module], uses[module], type(module).forward

    def forward(inputs: Tensor) -> Tensor:
        primal, tangent = forward_ad.unpack_dual(inputs)
        if isinstance(rule, Linear):
            half = plain(module, primal[: len(primal) // 2])  # both copies of a row are equal
            output, moved = torch.cat([half, half]), _linear(module, rule, tangent, half)
        else:
            output, moved = forward_ad.unpack_dual(plain(module, inputs))
            moved = torch.zeros_like(output) if moved is None else moved
        with _replaced({module: None}):
            moved = moved + rule.tangent(use, source, primal).to(output.dtype)
        if plan.tied and module in plan.tied:
            moved = moved + _tied(module, plan, uses, source, primal).to(output.dtype)
        return forward_ad.make_dual(output, moved)

    return forward


def _linear(module: nn.Module, rule: Linear, tangent: Tensor | None, like: Tensor) -> Tensor:
    if tangent is None:
        return like.new_zeros(2 * len(like), *like.shape[1:])
    weight = module.weight.T if rule.transposed else module.weight
    return nn.functional.linear(tangent, weight)


def _tied(module, plan: Plan, uses: Uses, source: Tensor, inputs: Tensor) -> Tensor:
    """What the other use of a tied matrix adds to this one's tangent."""
    head, embedding = plan.tied
    rule: Embedding = plan.rules[embedding]
    if module is head:
        ids, sums = uses[embedding].inputs, rule.scaled(*uses[embedding])
        moved = inputs.new_zeros(*inputs.shape[:2], rule.size)
        for i, row in enumerate(source.tolist()):
            moved[i].index_add_(1, ids[row], inputs[i] @ sums[row].T)
        return moved
    h = uses[head]
    found = [h.grads[r][:, ids].T @ h.inputs[r] for ids, r in zip(inputs, source, strict=True)]
    return rule.scaled(inputs, torch.stack(found))


@contextmanager
def _replaced(forwards: dict[nn.Module, Callable | None]):
    """Give modules another ``forward`` inside the block; ``None`` gives back their class's own."""
    before = {m: vars(m).get("forward") for m in forwards}
    try:
        for module, forward in forwards.items():
            _set_forward(module, forward)
        yield
    finally:
        for module, forward in before.items():
            _set_forward(module, forward)


def _set_forward(module: nn.Module, forward: Callable | None) -> None:
    if forward is None:
        vars(module).pop("forward", None)
    else:
        module.forward = forward
