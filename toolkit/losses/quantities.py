"""What a loss may read: a pair's log-probabilities and lengths, and what follows from them.

A loss names what it reads in its signature, and its hyper-parameters after the ``*``::

    def dpo(delta, *, beta=0.1):
        return -logsigmoid(beta * delta)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class PairLogSums:
    """What a loss may read of each pair, arrays ``[N]``: log-probabilities in nats, and lengths.

    Attributes:
        pair_ids: Pair ids.
        chosen_logps: log π(chosen | prompt), the sum over its scored tokens.
        rejected_logps: log π(rejected | prompt).
        ref_chosen_logps: The same under the reference.
        ref_rejected_logps: The same under the reference.
        chosen_length: Scored tokens of the chosen response.
        rejected_length: Scored tokens of the rejected response.
    """

    pair_ids: list[str]
    chosen_logps: np.ndarray
    rejected_logps: np.ndarray
    ref_chosen_logps: np.ndarray
    ref_rejected_logps: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray


FIELDS = tuple(f.name for f in fields(PairLogSums) if f.name != "pair_ids")

# Each reads fields, or what stands above it.
DERIVED: Mapping[str, Callable[..., Tensor]] = {
    "chosen_logratio": lambda chosen_logps, ref_chosen_logps: chosen_logps - ref_chosen_logps,
    "rejected_logratio": (
        lambda rejected_logps, ref_rejected_logps: rejected_logps - ref_rejected_logps
    ),
    "delta": lambda chosen_logratio, rejected_logratio: chosen_logratio - rejected_logratio,
    "chosen_mean": lambda chosen_logps, chosen_length: chosen_logps / chosen_length,
    "rejected_mean": lambda rejected_logps, rejected_length: rejected_logps / rejected_length,
    "chosen_mean_logratio": (
        lambda chosen_logratio, chosen_length: chosen_logratio / chosen_length
    ),
    "rejected_mean_logratio": (
        lambda rejected_logratio, rejected_length: rejected_logratio / rejected_length
    ),
}


def reads(function: Callable) -> list[str]:
    """Return the quantities that a loss reads, by the names in its signature.

    A derived name that is keyword-only or has a default is a hyper-parameter: SLiC's margin is
    called ``delta`` too.
    """
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.name in FIELDS or _is_derived(p)]


def hyper_parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """Return a loss's hyper-parameters: everything in its signature that is no quantity."""
    every = inspect.signature(function).parameters.values()
    own = (p for p in every if p.name not in FIELDS and not _is_derived(p))
    return {p.name: p for p in own if p.kind is not p.VAR_KEYWORD}


def needs_reference(function: Callable) -> bool:
    """Return whether a reference log-probability enters a loss."""
    pending, names = reads(function), set()
    while pending:
        name = pending.pop()
        names.add(name)
        pending += reads(DERIVED[name]) if name in DERIVED else []
    return any(name.startswith("ref_") for name in names)


def evaluate(
    function: Callable[..., Tensor], fields: Mapping[str, Tensor], hparams: Mapping[str, float]
) -> Tensor:
    """Return a loss's values ``[B]`` from the six fields, each ``[B]``."""
    known = dict(fields)

    def value(name: str) -> Tensor:
        if name not in known:
            made = DERIVED[name]
            known[name] = made(*(value(part) for part in reads(made)))
        return known[name]

    return function(**{name: value(name) for name in reads(function)}, **hparams)


def _is_derived(parameter: inspect.Parameter) -> bool:
    free = parameter.kind is not parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    return parameter.name in DERIVED and free
