"""Token contributions by forward-mode tangents injected layer by layer from stored factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn import functional

from toolkit.gradients._activations import AttentionBy, eager_experts, elementwise, replaced, sloped
from toolkit.gradients._passes import backward, widened
from toolkit.gradients._plan import Plan
from toolkit.gradients._rules import Linear, Use
from toolkit.model.forward import Row, evaluation, head_inputs, response_logits
from toolkit.model.turns import alone_in_process

Uses = dict[nn.Module, Use]


@alone_in_process
def token_products(
    model: nn.Module, plan: Plan, rows: Sequence[Row]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return log-probabilities, ⟨∇log π_t, g_chosen⟩ and ⟨∇log π_t, g_rejected⟩ of every row.

    One pass stores each layer's factors; a second carries, for both directions at once, what
    moving all parameters along that gradient does to every activation. No gradient is formed,
    and the cost does not grow with the number of tokens.
    """
    uses: Uses = {}
    logps, at_head = backward(model, plan, rows, uses.__setitem__)
    head, count = model.get_output_embeddings(), len(rows)
    # The batch is run as two copies: in the first every row moves along its pair's chosen gradient,
    # in the second along its rejected one. ``source[i]`` is the row that row i's gradient is of.
    source = torch.tensor([i // 2 * 2 + side for side in range(2) for i in range(count)])
    forwards: dict[nn.Module, Callable | None] = {
        m: _moving(m, plan, uses, source) for m in plan.rules if m in uses and m is not head
    }
    forwards |= {m: _elementwise(m) for m in elementwise(model)}
    forwards[head] = lambda inputs: inputs[..., :1]  # what moves there is found without logits
    with (
        widened(model, 2 * count),
        replaced(forwards),
        eager_experts(model),
        evaluation(model),
        torch.no_grad(),
        forward_ad.dual_level(),
        AttentionBy(_attention),
        head_inputs(model) as states,
    ):
        response_logits(model, [*rows, *rows])
        primal, tangent = forward_ad.unpack_dual(states[0])
    moved = 0 if tangent is None else (_twice(at_head) * tangent).sum(-1)
    with torch.no_grad():
        moved = moved + _at_head(plan, uses, head, source, primal)
    return logps, *_scored(moved, rows)


def _at_head(plan: Plan, uses: Uses, head: nn.Module, source: Tensor, states: Tensor) -> Tensor:
    """What moving the head itself does to each token: ``Σ_s (h_t·h_s)(D_t·D_s)``.

    ``D_t`` is the token's gradient at the logits. Nothing as wide as the vocabulary is formed.
    """
    rule, use = plan.rules.get(head), uses.get(head)
    if rule is None or use is None:
        return states.new_zeros(states.shape[:2])
    inputs, grads = (x.repeat(2, 1, 1) for x in use)
    same = grads @ use.backprops[source].mT
    alike = same.new_zeros(())
    if rule.weight:
        alike = alike + inputs @ use.activations[source].mT
    if rule.bias:
        alike = alike + 1
    moved = (same * alike).sum(-1)
    if plan.tied:
        moved = moved + plan.tied.head_tangent(use, uses[plan.tied.embedding], source)
    return moved


def _scored(moved: Tensor, rows: Sequence[Row]) -> tuple[list[Tensor], list[Tensor]]:
    """Pick the scored tokens out of ``[2 rows, kept]``, by direction."""
    width = moved.shape[1] - 1
    masks = nn.utils.rnn.pad_sequence([mask for _, mask in rows], batch_first=True)[:, -width:]
    masks = masks.to(moved.device)
    halves = moved[:, :-1].unflatten(0, (2, -1))
    return tuple([values[mask] for values, mask in zip(h, masks, strict=True)] for h in halves)


def _moving(module: nn.Module, plan: Plan, uses: Uses, source: Tensor) -> Callable:
    """The module's forward with its parameters moving along row ``source[i]``'s gradient."""
    rule, use, plain = plan.rules[module], uses[module], type(module).forward

    def forward(inputs: Tensor) -> Tensor:
        primal, tangent = forward_ad.unpack_dual(inputs)
        if isinstance(rule, Linear):
            output = _twice(plain(module, _half(primal)))
            moved = _linear(module, rule, tangent, output)
        else:
            output, moved = forward_ad.unpack_dual(plain(module, inputs))
            moved = torch.zeros_like(output) if moved is None else moved
        with replaced({module: None}):
            moved = moved + rule.tangent(use, source, primal).to(output.dtype)
        if plan.tied and module is plan.tied.embedding:
            added = plan.tied.embedding_tangent(uses[plan.tied.head], source, primal)
            moved = moved + added.to(output.dtype)
        return forward_ad.make_dual(output, moved)

    return forward


def _half(both: Tensor) -> Tensor:
    """The first of the two copies of a batch; away from the tangents they are equal."""
    return both[: len(both) // 2]


def _twice(half: Tensor) -> Tensor:
    return torch.cat([half, half])


def _linear(module: nn.Module, rule: Linear, tangent: Tensor | None, like: Tensor) -> Tensor:
    if tangent is None:
        return torch.zeros_like(like)
    weight = module.weight.T if rule.transposed else module.weight
    return functional.linear(tangent, weight)


def _elementwise(module: nn.Module) -> Callable:
    """An activation's forward: its derivative is taken once for both copies of the batch."""

    def forward(inputs: Tensor) -> Tensor:
        primal, tangent = forward_ad.unpack_dual(inputs)
        if tangent is None:
            return type(module).forward(module, primal)
        output, slope = sloped(module, _half(primal))
        moved = (tangent.view(2, *slope.shape) * slope).view_as(tangent)
        return forward_ad.make_dual(_twice(output), moved)

    return forward


def _attention(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
) -> Tensor:
    """Attention with its tangent; both copies of the batch share the weights P.

    ``Ṡ = (Q̇Kᵀ + QK̇ᵀ)·scale``, ``Ṗ = P ⊙ (Ṡ − Σ P ⊙ Ṡ)``, ``Ȯ = Ṗ V + P V̇``.
    """
    groups = query.shape[1] // key.shape[1] if enable_gqa else 1
    (q, dq), (k, dk), (v, dv) = (
        _parts(x, g) for x, g in ((query, 1), (key, groups), (value, groups))
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = (q @ k.mT) * scale
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if attn_mask is not None:
        scores = _masked(scores, _half(attn_mask) if len(attn_mask) > len(q) else attn_mask)
    weights = scores.softmax(-1)
    moved = (dq @ k.mT).add_(q @ dk.mT).mul_(scale).mul_(weights)
    moved.sub_(weights * moved.sum(-1, keepdim=True))
    tangent = (moved @ v).add_(weights @ dv)
    return forward_ad.make_dual(_twice(weights @ v), tangent.flatten(0, 1))


def _parts(both: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Values ``[rows, heads, T, d]`` once, and tangents ``[2, rows, heads, T, d]``."""
    primal, tangent = forward_ad.unpack_dual(both)
    primal = _half(primal)
    tangent = torch.zeros_like(both) if tangent is None else tangent
    tangent = tangent.view(2, *primal.shape)
    if groups > 1:
        primal, tangent = (x.repeat_interleave(groups, -3) for x in (primal, tangent))
    return primal, tangent


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
