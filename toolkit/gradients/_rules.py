"""Per-layer rules: gradient products from a layer's activations and backprops alone.

Activations are what a layer was given, backprops the gradients of what it returned. A batch holds
rows (responses), chosen and rejected of each pair next to each other. For a row with activations
``A [T, in]`` and backprops ``D [T, out]`` a linear layer's weight gradient is ``DᵀA``; its norms
and inner products need either that product or the two Gram matrices, ``Σ (A Aᵀ) ⊙ (D Dᵀ)``,
whichever is cheaper (docs/formulas.md, section 5). Nothing here keeps a gradient of a whole model.

A new kind of layer is a ``Rule`` under ``@rule_of(its type)``; every rule is compared with plain
autograd on the model before it serves. Besides ``takes`` it answers four questions: ``products``
(‖·‖² and ⟨·,·⟩ of the two rows of each pair), ``gradient`` (of one row), ``tangent`` (what moving
the parameters along a row's gradient adds to the layer's output), and ``gram`` (inner products of
the token gradients of several rows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from toolkit.gradients.products import flat_products, tensor_products


class Use(NamedTuple):
    """What one module saw in one pass: its activations and the gradients of its outputs.

    T counts all vectors of a row: tokens, or tokens times heads.
    """

    activations: Tensor  # [rows, T, in], or ids [rows, T]
    backprops: Tensor  # [rows, T, out]


class Rule:
    """A layer's share of the products; of vectors (biases, norms) each row's gradient is at hand.

    ``vectors(use)`` returns those gradients, ``[rows, n]`` by parameter name.
    """

    weight: str | None = None  # their names, where they are selected
    bias: str | None = None

    def products(self, use: Use) -> dict[str, Tensor]:
        """Return ``[pairs, 3]`` by parameter name."""
        return {name: vector_products(rows) for name, rows in self.vectors(use).items()}

    def gradient(self, use: Use, row: int) -> dict[str, Tensor]:
        """Return the gradient of one row by parameter name."""
        return {name: rows[row] for name, rows in self.vectors(use).items()}

    def gram(self, uses: Sequence[Use]) -> Tensor:
        """Return the inner products of all token gradients of the rows, a token per row of each."""
        by_name = zip(*(self.vectors(use).values() for use in uses), strict=True)
        return sum(flat_products(v, v) for v in map(torch.cat, by_name))


RULES: dict[type[nn.Module], type[Rule]] = {}  # by a module's type, or the nearest base of it


def rule_of(*kinds: type[nn.Module]) -> Callable[[type[Rule]], type[Rule]]:
    """Register a class as the rule of these module types and of those derived from them."""

    def register(rule: type[Rule]) -> type[Rule]:
        RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


@rule_of(nn.Linear, Conv1D)
class Linear(Rule):
    """``y = x Wᵀ + b``, or ``x W + b`` for GPT-2's Conv1D."""

    def __init__(self, module: nn.Module, names: dict[str, str]):
        self.weight, self.bias = names.get("weight"), names.get("bias")
        self.transposed = isinstance(module, Conv1D)

    @staticmethod
    def takes(module: nn.Module, names: dict[str, str]) -> bool:
        """Return whether the module computes what its base class does."""
        return type(module).forward in (nn.Linear.forward, Conv1D.forward)

    def vectors(self, use: Use) -> dict[str, Tensor]:
        """Return the gradient of the bias."""
        return {self.bias: use.backprops.sum(1)} if self.bias else {}

    def products(self, use: Use) -> dict[str, Tensor]:
        """Return ``[pairs, 3]`` by parameter name, of the weight by the cheaper of two ways."""
        found = {self.weight: _linear_products(*use)} if self.weight else {}
        return found | super().products(use)

    def gradient(self, use: Use, row: int) -> dict[str, Tensor]:
        """Return the gradient of one row, ``DᵀA`` for the weight."""
        inputs, grads, found = use.activations[row], use.backprops[row], super().gradient(use, row)
        if self.weight:
            found[self.weight] = inputs.T @ grads if self.transposed else grads.T @ inputs
        return found

    def tangent(self, use: Use, source: Tensor, inputs: Tensor) -> Tensor:
        """Return ``x Gᵀ + b`` with G and b the gradients of row ``source[i]``, without making G."""
        length, width, height = *use.activations.shape[1:], use.backprops.shape[2]
        shape, inputs = (*inputs.shape[:-1], height), inputs.flatten(1, -2)
        moved = inputs.new_zeros(*inputs.shape[:2], height)
        if self.weight:
            # Both rows of a pair move along the same gradient: they are multiplied together.
            a, d = (_by_side(x) for x in use)
            both = inputs.reshape(len(a), -1, width)
            if 2 * length * (width + height) < 3 * width * height:
                moved = ((both @ a.mT) @ d).view_as(moved)
            else:
                moved = (both @ (a.mT @ d)).view_as(moved)
        if self.bias:
            moved = moved + use.backprops.sum(1, keepdim=True)[source]
        return moved.view(shape)

    def gram(self, uses: Sequence[Use]) -> Tensor:
        """Return ``Σ (A Aᵀ) ⊙ (D_i D_jᵀ)`` over all tokens i and j of the rows."""

        def block(i: int, j: int) -> Tensor:
            a, b = uses[i], uses[j]
            return flat_products(a.backprops, (a.activations @ b.activations.T) @ b.backprops)

        total = super().gram(uses)
        return total + symmetric(len(uses), block) if self.weight else total


@rule_of(nn.Embedding)
class Embedding(Rule):
    """``y = scale · E[id]``; the row of ``padding_idx`` gets no gradient."""

    def __init__(self, module: nn.Embedding, names: dict[str, str]):
        self.weight, self.padding = names["weight"], module.padding_idx
        self.size = module.num_embeddings
        self.scale = float(getattr(module, "embed_scale", 1.0))

    @staticmethod
    def takes(module: nn.Embedding, names: dict[str, str]) -> bool:
        """Return whether a row's gradient is the sum of what its occurrences get."""
        return not (module.scale_grad_by_freq or module.sparse) and module.max_norm is None

    def scaled(self, ids: Tensor, grads: Tensor) -> Tensor:
        """Return what each occurrence of an id adds to its row of the matrix."""
        grads = grads * self.scale
        return grads if self.padding is None else grads * (ids != self.padding)[..., None]

    def products(self, use: Use) -> dict[str, Tensor]:
        """Return ``[pairs, 3]`` by parameter name."""
        grads, found = self.scaled(*use), []
        for row in range(0, len(grads), 2):
            unique, where = use.activations[row : row + 2].unique(return_inverse=True)
            sums = grads.new_zeros(2, len(unique), grads.shape[-1])
            for side in range(2):
                sums[side].index_add_(0, where[side], grads[row + side])
            found.append(vector_products(sums.flatten(1)))
        return {self.weight: torch.cat(found)}

    def gradient(self, use: Use, row: int) -> dict[str, Tensor]:
        """Return the gradient of one row by parameter name."""
        grads = self.scaled(*use)[row]
        full = grads.new_zeros(self.size, grads.shape[-1])
        return {self.weight: full.index_add_(0, use.activations[row], grads)}

    def tangent(self, use: Use, source: Tensor, inputs: Tensor) -> Tensor:
        """Return the rows of the gradient of row ``source[i]`` that the ids look up, scaled."""
        grads, same = self.scaled(*use), use.activations[source][:, None] == inputs[..., None]
        return same.to(grads.dtype) @ grads[source] * self.scale

    def gram(self, uses: Sequence[Use]) -> Tensor:
        """Return ``Σ ⟨e_i, e_j⟩`` over equal ids, for all tokens i and j of the rows."""
        sums = [self.scaled(*use) for use in uses]

        def block(i: int, j: int) -> Tensor:
            same = (uses[i].activations[:, None] == uses[j].activations).to(sums[i].dtype)
            return flat_products(sums[i], same @ sums[j])

        return symmetric(len(uses), block)


@rule_of(nn.LayerNorm, nn.RMSNorm)
class Norm(Rule):
    """A layer affine in a vector weight (LayerNorm, RMSNorm): ``∂y/∂w = f(x; 1) − f(x; 0)``."""

    def __init__(self, module: nn.Module, names: dict[str, str]):
        self.module, self.weight, self.bias = module, names.get("weight"), names.get("bias")

    @staticmethod
    def takes(module: nn.Module, names: dict[str, str]) -> bool:
        """Return whether the parameters are a vector weight and perhaps a bias, and no others."""
        own = dict(module.named_parameters(recurse=False))
        affine = "weight" in own and all(p.dim() == 1 for p in own.values())
        return affine and set(names) <= {"weight", "bias"}

    def normed(self, inputs: Tensor) -> Tensor:
        """Return ``∂y/∂w`` at each entry of the output."""
        shape = self.module.weight
        fills = torch.ones_like(shape), torch.zeros_like(shape)
        with torch.no_grad():
            one, zero = (functional_call(self.module, {"weight": w}, (inputs,)) for w in fills)
        return one - zero

    def vectors(self, use: Use) -> dict[str, Tensor]:
        """Return the gradient of every row, ``[rows, n]``, by parameter name."""
        found = {}
        if self.weight:
            scaled = use.backprops * self.normed(use.activations)
            found[self.weight] = scaled.flatten(1, -2).sum(1)
        if self.bias:
            found[self.bias] = use.backprops.flatten(1, -2).sum(1)
        return found

    def tangent(self, use: Use, source: Tensor, inputs: Tensor) -> Tensor:
        """Return ``(∂y/∂w) v + v_bias`` with v the gradient of row ``source[i]``."""
        shape = (len(source), *[1] * (inputs.dim() - 2), -1)
        rows, moved = self.vectors(use), torch.zeros_like(inputs)
        if self.weight:
            moved = moved + self.normed(inputs) * rows[self.weight][source].view(shape)
        return moved + rows[self.bias][source].view(shape) if self.bias else moved


def rule_for(module: nn.Module, names: dict[str, str]) -> Rule | None:
    """Return the rule of a module whose own selected parameters are ``names``, if it has one."""
    kind = type(module)
    rule = next((RULES[base] for base in kind.__mro__ if base in RULES), None)
    # Every family writes a norm of its own, which has the name alone in common with torch's.
    if rule is None and kind.__name__.endswith("Norm"):
        rule = Norm
    return rule(module, names) if rule and rule.takes(module, names) else None


def vector_products(rows: Tensor) -> Tensor:
    """Return ``[pairs, 3]`` for neighbouring rows of ``[rows, n]``."""
    return torch.stack([tensor_products(*rows[i : i + 2]) for i in range(0, len(rows), 2)])


def symmetric(count: int, block: Callable[[int, int], Tensor]) -> Tensor:
    """Return the whole of a symmetric matrix from its blocks ``(i, j)`` with i ≤ j."""
    upper = {(i, j): block(i, j) for i in range(count) for j in range(i, count)}
    rows = [[upper[i, j] if i <= j else upper[j, i].T for j in range(count)] for i in range(count)]
    return torch.cat([torch.cat(row, 1) for row in rows])


def _by_side(rows: Tensor) -> Tensor:
    """Put all chosen rows before all rejected ones."""
    return rows.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)


def _linear_products(inputs: Tensor, grads: Tensor) -> Tensor:
    length, width, height = *inputs.shape[1:], grads.shape[2]
    if 3 * length * (width + height) < 2 * width * height:
        return _gram_products(inputs, grads)
    rows = range(0, len(inputs), 2)
    return torch.stack(
        [tensor_products(*(grads[i].T @ inputs[i] for i in (row, row + 1))) for row in rows]
    )


def _gram_products(inputs: Tensor, grads: Tensor) -> Tensor:
    a, b, d, e = inputs[::2], inputs[1::2], grads[::2], grads[1::2]
    sides = ((a, a, d, d), (b, b, e, e), (a, b, d, e))
    terms = [(x @ y.mT).mul_(u @ v.mT) for x, y, u, v in sides]
    return torch.stack([t.sum((1, 2), dtype=torch.float64) for t in terms], 1).cpu()
