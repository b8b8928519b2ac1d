"""Modules that run another way for a while, and activations whose slope is taken only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

ELEMENTWISE = (nn.SiLU, nn.GELU, nn.ReLU, nn.Tanh, nn.Sigmoid)


def elementwise(model: nn.Module) -> list[nn.Module]:
    """Return the model's activation modules: elementwise functions without parameters."""

    def known(module: nn.Module) -> bool:
        kind = type(module)
        named = kind.__module__ == "transformers.activations" or kind.__name__ == "BloomGelu"
        return named or kind in ELEMENTWISE

    return [m for m in model.modules() if known(m) and not any(True for _ in m.parameters())]


def sloped(module: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return an activation's output and its derivative at each entry."""
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        output = type(module).forward(module, leaf)
        (slope,) = torch.autograd.grad(output.sum(), leaf)
    return output.detach(), slope


@contextmanager
def slopes_kept(model: nn.Module) -> Iterator[None]:
    """Let a graph keep each activation's slope: many backward passes then cost one product each."""

    def forward_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda inputs: _Sloped.apply(inputs, module)

    with replaced({m: forward_of(m) for m in elementwise(model)}):
        yield


class _Sloped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, module):
        output, slope = sloped(module, inputs)
        ctx.save_for_backward(slope)
        return output

    @staticmethod
    def backward(ctx, grads):
        (slope,) = ctx.saved_tensors
        return grads * slope, None


class AttentionBy(TorchFunctionMode):
    """Let attention run by another function inside the block: its fused kernels have no tangents.

    For this thread alone, where ``sdpa_kernel`` would change the kernels of all of them.
    """

    def __init__(self, attention: Callable[..., Tensor]):
        super().__init__()
        self.attention = attention

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call the function, or attention in its place."""
        if function is functional.scaled_dot_product_attention:
            function = self.attention
        return function(*args, **(kwargs or {}))


@contextmanager
def eager_experts(model: nn.Module) -> Iterator[None]:
    """Let mixtures of experts run as plain products, which have derivatives of every kind."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [(c, getattr(c, "_experts_implementation", None)) for c in configs.values()]
    before = [(c, kind) for c, kind in before if kind is not None]
    try:
        for config, _ in before:
            config._experts_implementation = "eager"
        yield
    finally:
        for config, kind in before:
            config._experts_implementation = kind


@contextmanager
def replaced(forwards: dict[nn.Module, Callable | None]) -> Iterator[None]:
    """Give modules another ``forward`` inside the block; ``None`` gives back their class's own."""
    before = {m: vars(m).get("forward") for m in forwards}

    def give(forwards: dict[nn.Module, Callable | None]) -> None:
        for module, forward in forwards.items():
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward

    try:
        give(forwards)
        yield
    finally:
        give(before)
