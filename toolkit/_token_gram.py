"""The matrix of all token-gradient inner products, by batched vjp and per-layer contraction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit._forward import Row, scored_logps
from toolkit._passes import Plan, joined, recording
from toolkit._rules import Linear, Use

BLOCK = 8  # tokens per batched backward: small buffers are used again, large ones are not
MEMORY = 1 << 30  # bytes of token-wise output gradients kept at once


class _Response:
    """One response's graph, and the gradients of its tokens at any layer."""

    def __init__(self, model: nn.Module, plan: Plan, row: Row):
        self.calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        self.head = model.get_output_embeddings()
        states: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda module, args: states.append(args[0]))
        try:
            # Batched backward has rules for plain attention, not for the fused kernels.
            with recording(model, plan, 1, self._keep), sdpa_kernel(SDPBackend.MATH):
                self.logps = scored_logps(model, [row])[0]
        finally:
            hook.remove()
        (self.state,) = states
        self._seed(row)

    def _keep(self, module, inputs, output) -> None:
        self.calls.setdefault(module, []).append((inputs, output))

    def _seed(self, row: Row) -> None:
        """Gradients at the head: each token touches one position, so one pass gives them all."""
        ids, mask = row
        at = mask.nonzero().squeeze(-1).to(self.state.device)
        own = at - 1 - (len(ids) - self.state.shape[1])
        outputs = [output for _, output in self.calls.pop(self.head, [])]
        state, *logits = torch.autograd.grad(
            self.logps.sum(), [self.state, *outputs], retain_graph=True
        )
        wide = torch.promote_types(state.dtype, torch.float32)
        self.hidden = self.state.detach()[0, own].to(wide)
        self.head_grads = logits[0][0, own].to(wide) if logits else None
        self.seeds = state.new_zeros(len(at), *state.shape)
        self.seeds[torch.arange(len(at)), 0, own] = state[0, own]

    def uses(self, modules: Sequence[nn.Module]) -> list[Use]:
        """Inputs ``[T, in]`` and per-token output gradients ``[tokens, T, out]`` of modules."""
        outputs = [output for m in modules for _, output in self.calls[m]]
        held = [output.new_empty(len(self.seeds), *output.shape) for output in outputs]
        for start in range(0, len(self.seeds), BLOCK):
            some = slice(start, start + BLOCK)
            parts = torch.autograd.grad(
                self.state, outputs, self.seeds[some], retain_graph=True, is_grads_batched=True
            )
            for whole, part in zip(held, parts, strict=True):
                whole[some] = part
        grads, found = iter(held), []
        for module in modules:
            use = joined([(inputs, next(grads)[:, 0]) for inputs, _ in self.calls[module]])
            found.append(Use(use.inputs[0], use.grads))
        return found

    def size(self, module: nn.Module) -> int:
        """Bytes of the per-token output gradients of a module."""
        outputs = (output for _, output in self.calls[module])
        return sum(len(self.seeds) * o.numel() * o.element_size() for o in outputs)


def token_gram(
    model: nn.Module, plan: Plan, rows: Sequence[Row], memory: int = MEMORY
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities and the Gram matrix of all token gradients of two responses.

    Layers are taken in groups whose per-token gradients fit into ``memory`` bytes, and a layer is
    contracted without ever forming a parameter gradient.
    """
    sides = [_Response(model, plan, row) for row in rows]
    gram = _Blocks([len(s.logps) for s in sides])
    with torch.no_grad():
        _add_head(gram, plan, sides)
    for group in _groups(plan, sides, memory):
        uses = list(zip(*(side.uses(group) for side in sides), strict=True))
        with torch.no_grad():
            for module, both in zip(group, uses, strict=True):
                gram.add(lambda i, j, m=module, u=both: plan.rules[m].gram(u[i], u[j]))
                if plan.tied and module is plan.tied[1]:
                    rule = plan.rules[module]
                    sums = [(u.inputs, rule.scaled(*u)) for u in both]
                    gram.add(lambda i, j, s=sums: _tied_block(sides, s, i, j))
    return torch.cat([s.logps.detach() for s in sides]), gram.whole()


class _Blocks:
    """The three distinct blocks of the matrix: both responses with themselves and each other."""

    def __init__(self, sizes: Sequence[int]):
        self.blocks = {
            (i, j): torch.zeros(sizes[i], sizes[j], dtype=torch.float64)
            for i, j in ((0, 0), (0, 1), (1, 1))
        }

    def add(self, part) -> None:
        for (i, j), block in self.blocks.items():
            block += part(i, j)

    def whole(self) -> Tensor:
        a, b, c = self.blocks.values()
        full = torch.cat([torch.cat([a, b], 1), torch.cat([b.T, c], 1)])
        return (full + full.T) / 2


def _add_head(gram: _Blocks, plan: Plan, sides: Sequence[_Response]) -> None:
    rule = plan.rules.get(sides[0].head)
    if not isinstance(rule, Linear):
        return

    def part(i: int, j: int) -> Tensor:
        grads = sides[i].head_grads @ sides[j].head_grads.T
        states = sides[i].hidden @ sides[j].hidden.T
        ones = states * bool(rule.weight) + bool(rule.bias)
        return (grads * ones).double().cpu()

    gram.add(part)


def _tied_block(sides: Sequence[_Response], sums, i: int, j: int) -> Tensor:
    """Head gradients of one side with embedding gradients of the other, both ways."""
    (ids_i, grads_i), (ids_j, grads_j) = sums[i], sums[j]
    one = torch.einsum("ps,pd,qsd->pq", sides[i].head_grads[:, ids_j], sides[i].hidden, grads_j)
    two = torch.einsum("qs,qd,psd->pq", sides[j].head_grads[:, ids_i], sides[j].hidden, grads_i)
    return (one + two).double().cpu()


def _groups(plan: Plan, sides: Sequence[_Response], memory: int) -> list[list[nn.Module]]:
    """Split the modules, last first, into groups under the memory bound (one at least)."""
    groups: list[list[nn.Module]] = []
    room = 0
    for module in reversed([m for m in plan.rules if m in sides[0].calls]):
        size = sum(side.size(module) for side in sides)
        if not groups or size > room:
            groups.append([])
            room = memory
        groups[-1].append(module)
        room -= size
    return groups
