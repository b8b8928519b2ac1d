"""What a function computes, as a hash: its code and every value that the code can reach."""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from toolkit.scoring._score_key import LENGTH, digest

MOST = 20_000  # values that are followed; a function that reaches more is refused
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), range)
# Types whose text says all that they hold.
TELLING = (enum.Enum, np.generic, np.dtype, torch.dtype, torch.device, re.Pattern, slice)
TELLING += (types.GenericAlias, types.UnionType)
# Values that cannot hold themselves, and that Python shares between equal uses or does not.
UNSHARED = (tuple, frozenset, types.CodeType, *TELLING)
NATIVE = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
CONTAINERS = (Mapping, set, frozenset, list, tuple)
# What installed classes a user's class may be built on, so that its attributes say all.
OPEN_BASES = {"object", "ABC", "Protocol", "Generic"}
UNTOLD = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slots__"}
UNTOLD |= {"__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__"}
UNTOLD |= {"__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__"}
ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM"}


class Unhashable(ValueError):
    """A function reaches a value that has no content to tell two runs apart by."""


def function_key(function: Callable) -> str:
    """Return a function's name with a hash of all that decides what it computes.

    That is its code, closure, defaults and the globals it uses, followed into whatever they are
    made of: tensors and arrays by content, functions and objects likewise, installed packages by
    name and version. A function with an attribute ``version`` is known by that in place of a hash.

    Raises:
        Unhashable: If something in it has no content that can be read.
    """
    name = getattr(function, "__name__", type(function).__name__)
    version = getattr(function, "version", None)
    if isinstance(version, str | int):
        return f"{name} version {version}"
    try:
        return f"{name} {digest(_Content().of(function))}"
    except RecursionError:
        raise Unhashable(f"{name} reaches values that are nested too deep") from None


class _Content:
    """Turns values into nested lists of text; what was met before is named by its number."""

    def __init__(self) -> None:
        self.count, self.met = 0, {}
        self.held: list[object] = []  # keeps the ids of what was met from being given twice

    def of(self, value: object) -> object:
        """Return the content of any value."""
        kind = type(value)
        self.count += 1
        if self.count > MOST:
            raise Unhashable(f"it reaches more than {MOST:,} values")
        if kind in PLAIN:
            return [kind.__name__, repr(value)]
        if not isinstance(value, UNSHARED):
            if id(value) in self.met:
                return ["met", self.met[id(value)]]
            self.met[id(value)] = len(self.met)
            self.held.append(value)
        named = f"{kind.__module__}.{kind.__qualname__}"
        return [named if _installed(kind.__module__) else self.of(kind), self._inside(value)]

    def _inside(self, value: object) -> object:
        if isinstance(value, torch.Tensor | np.ndarray):
            return _numbers(value)
        if isinstance(value, TELLING) or type(value).__module__ == "typing":
            return repr(value)
        if isinstance(value, types.ModuleType):
            return _package(value.__name__)
        if isinstance(value, np.ufunc):
            return value.__name__
        if isinstance(value, NATIVE):
            owner = getattr(value, "__self__", None)
            bound = owner is not None and not isinstance(owner, types.ModuleType | type)
            return [value.__qualname__, self.of(owner) if bound else _package(value.__module__)]
        if _importable(value):
            return [value.__qualname__, _package(value.__module__)]
        if isinstance(value, CONTAINERS):
            return self._items(value)
        return [self.of(part) for part in self._parts(value)]

    def _items(self, value: object) -> object:
        if isinstance(value, Mapping):
            return [[self.of(key), self.of(item)] for key, item in value.items()]
        if isinstance(value, set | frozenset):
            return sorted(digest(_Content().of(item)) for item in value)
        return [self.of(item) for item in value]

    def _parts(self, value: object) -> Iterator[object]:
        """Yield what a function, a class or an object is made of."""
        if isinstance(value, types.CodeType):
            arguments = value.co_varnames[: value.co_argcount + value.co_kwonlyargcount]
            yield from (value.co_code, value.co_names, value.co_consts, value.co_freevars)
            yield arguments
        elif isinstance(value, types.FunctionType):
            yield from (value.__code__, value.__defaults__, value.__kwdefaults__, vars(value))
            yield [_cell(cell) for cell in value.__closure__ or ()]
            yield from _globals(value.__code__, value.__globals__)
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, property):
            yield from (value.fget, value.fset)
        elif isinstance(value, staticmethod | classmethod | functools._lru_cache_wrapper):
            yield value.__wrapped__
        elif isinstance(value, type):
            own = {name: part for name, part in vars(value).items() if name not in UNTOLD}
            slots = types.MemberDescriptorType | types.GetSetDescriptorType
            yield value.__bases__
            yield {name: part for name, part in own.items() if not isinstance(part, slots)}
        else:
            yield _attributes(value)


def _globals(code: types.CodeType, known: Mapping[str, object]) -> Iterator[object]:
    """Yield the globals that some code names, and of the user's own modules what it takes there."""
    steps = [step for inner in _codes(code) for step in dis.get_instructions(inner)]
    taken = sorted({step.argval for step in steps if step.opname in ATTRIBUTES})
    imported = {step.argval for step in steps if step.opname == "IMPORT_NAME"}
    found = {name: sys.modules[name] for name in imported if name in sys.modules}
    named = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    found |= {name: known[name] for name in named if name in known}
    for name, value in sorted(found.items()):
        yield (name, value)
        if isinstance(value, types.ModuleType) and not _installed(value.__name__):
            yield from ((name, getattr(value, name)) for name in taken if hasattr(value, name))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _attributes(value: object) -> dict[str, object]:
    """Return all that an object of the user's own class, or a torch module, holds."""
    classes = type(value).__mro__
    for cls in classes:
        known = cls.__name__ in OPEN_BASES or cls.__module__ == "dataclasses"
        if _installed(cls.__module__) and not known and not issubclass(cls, nn.Module):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise Unhashable(f"it reaches a {kind}, which has no content that can be compared")
    slots = [vars(cls).get("__slots__", ()) for cls in classes]
    names = [n for group in slots for n in ((group,) if isinstance(group, str) else group)]
    found = {name: getattr(value, name) for name in names if hasattr(value, name)}
    return found | getattr(value, "__dict__", {})


def _numbers(value: torch.Tensor | np.ndarray) -> object:
    try:
        if isinstance(value, torch.Tensor):
            kind, raw = str(value.dtype), value.detach().cpu().contiguous().reshape(-1)
            raw = raw.view(torch.uint8).numpy()
        else:
            kind, raw = str(value.dtype), np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    except (RuntimeError, TypeError, ValueError) as error:  # sparse ones, arrays of objects
        raise Unhashable(f"it reaches an array whose bytes cannot be read: {error}") from None
    return [kind, list(value.shape), hashlib.sha256(raw).hexdigest()[:LENGTH]]


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def _installed(module: str | None) -> bool:
    """Whether a module is part of Python, of this package or of an installed one."""
    top = (module or "").split(".")[0]
    if top in sys.stdlib_module_names or top == "toolkit":
        return True
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _importable(value: object) -> bool:
    """Whether a value is a function or class that an installed module gives under its own name."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str) and _installed(module)):
        return False
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value


def _package(module: str | None) -> list[str]:
    """Return a module's name with its package's version."""
    top = sys.modules.get((module or "").split(".")[0])
    return [module or "", str(getattr(top, "__version__", ""))]
