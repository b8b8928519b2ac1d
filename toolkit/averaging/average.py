"""Averages of the weights of two models of one architecture, whole or part by part."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.checks import is_finite_number, is_iterable, shown, whole
from toolkit.model import Policy
from toolkit.model.inputs import check_policy
from toolkit.model.turns import alone

Weights = float | Sequence[float]


@alone
def average(before: Policy, after: Policy, weight_on_after: Weights, *, parts: int = 1) -> Policy:
    """Return the policy ``θ_k = (1 − w_k)·θ_before + w_k·θ_after``, part k by part k.

    Weights 0 and 1 give the two models bit for bit; tied weights stay tied.

    Args:
        before: The policy before training; the result's tokenizer, options and reference are its.
        after: The policy after training, of the same architecture.
        weight_on_after: Share of the trained weights, from 0 to 1: one number, or one per part.
            (The paper's formula has its α here too; its published code puts it on ``before``.)
        parts: Parts of the network, of equally many layers, from the input on. What stands before
            the first layer belongs to the first part, what stands after the last layer to the last
            one; a tied embedding to the first.

    Returns:
        A new :class:`Policy`; nothing is shared with the two.

    Raises:
        ValueError: If the models differ in architecture or dtype, or an argument is not allowed;
            before any work.

    Source:
        arXiv 2309.06256, Section 3 (model averaging, heterogeneous model averaging).

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> tk.average(policy, policy, 0.5).name
        'tiny (shipped), 0.5 after'
    """
    check_alike(before, after)
    weights = check_weights(weight_on_after, parts)
    check_parts(before, parts)
    found = working_copy(before)
    place(found.model, before, after, by_name(before, weights))
    shares = ", ".join(f"{w:.3g}" for w in ([weights[0]] if parts == 1 else weights))
    found.name = f"{before.name}, {shares} after"
    return found


def working_copy(policy: Policy) -> Policy:
    """Return a policy with weights of its own whose reference is the policy given."""
    found = copy.copy(policy)
    found.model, found.ref_model = copy.deepcopy(policy.model), policy.model
    return found


@torch.no_grad()
def place(model: nn.Module, before: Policy, after: Policy, weights: Mapping[str, float]) -> None:
    """Set a model to a point between two: every parameter, and every buffer that is a float."""
    ends = _state(before.model), _state(after.model)
    for name, values in _state(model).items():
        start, end = ends[0][name], ends[1][name].to(ends[0][name].device)
        values.copy_(mixed(start, end, weights[name]))


def mixed(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Return ``(1 − w)·start + w·end`` in at least float32; exactly the ends at 0 and 1."""
    if not start.is_floating_point():
        return end if weight > 0.5 else start
    wide = torch.promote_types(start.dtype, torch.float32)
    return torch.lerp(start.to(wide), end.to(wide), weight)


def by_name(policy: Policy, weights: Sequence[float]) -> dict[str, float]:
    """Return each tensor's weight by name."""
    return {name: weights[part] for name, part in part_of(policy.model, len(weights)).items()}


def part_of(model: nn.Module, parts: int) -> dict[str, int]:
    """Return the part of every parameter and buffer by name."""
    found, layers, seen = {}, layer_count(model), False
    for name in _state(model):
        block = _BLOCK.search(name)
        seen = seen or block is not None
        last = parts - 1 if seen else 0
        found[name] = int(block[1]) * parts // layers if block else last
    return found


def layer_count(model: nn.Module) -> int:
    """Return the number of layers: numbered modules of the outermost list."""
    blocks = [int(found[1]) for found in map(_BLOCK.search, _state(model)) if found]
    return max(blocks, default=-1) + 1


def check_alike(before: Policy, after: Policy) -> None:
    """Refuse two policies whose weights cannot be averaged, in one sentence.

    Raises:
        ValueError: If one is no policy, or they differ in a parameter's name, shape or dtype.
    """
    check_policy(before, "before")
    check_policy(after, "after")
    for name, policy in (("before", before), ("after", after)):
        if hasattr(policy.model, "merge_and_unload"):
            raise ValueError(
                f"{name} has an adapter beside its weights: merge it first, with "
                "model.merge_and_unload()"
            )
    ends = _state(before.model), _state(after.model)
    for name in sorted({*ends[0], *ends[1]}):
        kinds = [_kind(state.get(name)) for state in ends]
        if kinds[0] != kinds[1]:
            classes = [type(policy.model).__name__ for policy in (before, after)]
            raise ValueError(
                "before and after must be two states of one architecture; "
                f"{name} is {kinds[0]} in before ({classes[0]}) and {kinds[1]} in after "
                f"({classes[1]}): average a model with what it became in training"
            )


def check_weights(weights: Weights, parts: int, name: str = "weight_on_after") -> list[float]:
    """Return one weight per part.

    Raises:
        ValueError: If one is not from 0 to 1, or there are not as many as parts.
    """
    whole("parts", parts)
    single = is_finite_number(weights)
    if not single and (isinstance(weights, str) or not is_iterable(weights)):
        weights = [weights]
    given = [weights] * parts if single else list(weights)
    for weight in given:
        if not is_finite_number(weight) or not 0 <= weight <= 1:
            raise ValueError(f"{name} must be from 0 to 1, received {shown(weight)}")
    if len(given) != parts:
        raise ValueError(
            f"{name} has {len(given)} numbers for parts={parts}: give one number, or one per part"
        )
    return list(map(float, given))


def check_parts(policy: Policy, parts: int) -> None:
    """Refuse more parts than there are layers."""
    layers = layer_count(policy.model)
    if parts > max(layers, 1):
        raise ValueError(f"parts must be at most {layers}, the model's layers, received {parts}")


def mean_weight(weights: Sequence[float]) -> float:
    """Return the mean over parts."""
    return float(np.mean(weights))


_BLOCK = re.compile(r"\.(\d+)\.")


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _kind(values: Tensor | None) -> str:
    if values is None:
        return "absent"
    return f"{'×'.join(map(str, values.shape)) or 'a number'} of {str(values.dtype)[6:]}"
