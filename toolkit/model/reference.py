"""The reference of the log-ratios: another model, an adapter's base model, or the policy itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from toolkit.model.forward import Row, evaluation, scored_logps

if TYPE_CHECKING:
    from toolkit.model.policy import Policy


@contextlib.contextmanager
def reference(policy: Policy) -> Iterator[nn.Module | None]:
    """Yield the reference model in evaluation mode, or ``None`` when it is the policy itself."""
    if policy.ref_model is not None:
        with evaluation(policy.ref_model) as ref_model:
            yield ref_model
    elif has_adapter(policy.model):
        with evaluation(policy.model) as model, _adapter_off(model):
            yield model
    else:
        yield None


def reference_logps(policy: Policy, rows: Sequence[Row], own: list[Tensor]) -> list[Tensor]:
    """Return the rows' log-probabilities under the reference; ``own`` where that is the policy."""
    with reference(policy) as ref_model, torch.no_grad():
        return own if ref_model is None else scored_logps(ref_model, rows)


def has_adapter(model) -> bool:
    """Return whether this is a PEFT model, whose base model serves as its reference."""
    return hasattr(model, "disable_adapter")


@contextlib.contextmanager
def _adapter_off(model) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        # On its way out peft makes every adapter weight trainable, frozen ones too.
        for p, flag in flags:
            p.requires_grad_(flag)
