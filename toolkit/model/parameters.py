"""Sets of parameters: which ones a value is about, and gradients for these alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import torch
from torch import nn

from toolkit.checks import shown

Params = str | Callable[[str, nn.Parameter], bool]  # as users name a set
Parameters = dict[str, nn.Parameter]  # the set itself


def select(model: nn.Module, params: Params) -> Parameters:
    """Return the parameters of a set by name (see ``Policy.parameters_in``).

    Raises:
        ValueError: If nothing matches, ``params`` is malformed, or a parameter is no float.
    """
    named = dict(model.named_parameters())
    predicate = _predicate(model, params)
    found = {n: p for n, p in named.items() if predicate(n, p)}
    if not found:
        some = ", ".join(list(named)[:3])
        raise ValueError(
            f"params={params!r} matches no parameter; allowed: 'all', 'head', 'lora', a "
            f"regular expression on names such as {some}, or a predicate on (name, parameter)"
        )
    for name, p in found.items():
        if not p.is_floating_point():
            raise ValueError(f"params: {name} is {p.dtype}; gradients need a float dtype")
    return found


def check_params(params: Params) -> None:
    """Refuse what is no parameter set of any model (see ``Policy.parameters_in``).

    Raises:
        ValueError: If it is neither a string nor a predicate, or no valid expression.
    """
    if callable(params):
        return
    if not isinstance(params, str):
        raise ValueError(f"params must be a string or a predicate, received {shown(params)}")
    try:
        re.compile(params)
    except re.error as error:
        raise ValueError(f"params={params!r} is not a valid regular expression: {error}") from None


@contextlib.contextmanager
def only(model: nn.Module, selected: Parameters) -> Iterator[None]:
    """Let gradients flow to the selected parameters alone, and restore every flag after."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    wanted = {id(p) for p in selected.values()}
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in wanted)
        with torch.enable_grad():
            yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def _predicate(model: nn.Module, params: Params) -> Callable[[str, nn.Parameter], bool]:
    check_params(params)
    if callable(params):
        return lambda name, p: _answer(params, name, p)
    if params == "all":
        return lambda name, p: p.requires_grad
    if params == "head":
        head = {id(p) for p in model.get_output_embeddings().parameters()}
        return lambda name, p: id(p) in head
    if params == "lora":
        return lambda name, p: "lora_" in name
    return lambda name, p: re.search(params, name) is not None


def _answer(predicate: Callable, name: str, p: nn.Parameter) -> bool:
    """Ask a user's predicate about one parameter.

    Raises:
        ValueError: If it fails, or its answer is neither True nor False.
    """
    known = getattr(predicate, "__name__", type(predicate).__name__)
    called = f"params: {known}({name!r}, parameter)"
    try:
        found = predicate(name, p)
    except Exception as error:  # it is the caller's code and can fail in any way
        raise ValueError(
            f"{called} failed with {type(error).__name__}: {error}; a predicate takes the name "
            "and the parameter and returns True or False"
        ) from error
    if not isinstance(found, bool):
        raise ValueError(f"{called} must return True or False, received {shown(found)}")
    return found
