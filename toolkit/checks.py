"""The checks of plain arguments: numbers, whole numbers, flags and choices.

Each returns the value, or raises a ``ValueError`` that names the parameter, what was received and
what is allowed.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SHOWN = 80  # characters of a value that an error shows


def is_finite_number(value: object) -> bool:
    """Return whether a value is one real number: no bool, NaN, infinity, text or array.

    A whole number beyond the range of floats, such as ``10**400``, is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def finite(name: str, value: Any) -> float:
    """Return a finite number as a float."""
    if not is_finite_number(value):
        raise ValueError(f"{name} must be a finite number, received {shown(value)}")
    return float(value)


def positive(name: str, value: Any, *, optional: bool = False) -> float | None:
    """Return a number above zero as a float; ``None`` as it is where that is allowed."""
    if optional and value is None:
        return None
    # A fraction can be above zero and yet be no float above zero.
    if not is_finite_number(value) or float(value) <= 0:
        kind = "None or a positive number" if optional else "a positive number"
        raise ValueError(f"{name} must be {kind}, received {shown(value)}")
    return float(value)


def not_negative(name: str, value: Any) -> float:
    """Return a number from zero up as a float."""
    if not is_finite_number(value) or value < 0:
        raise ValueError(f"{name} must be zero or positive, received {shown(value)}")
    return float(value)


def share(name: str, value: Any) -> float:
    """Return a share above zero, at most one, as a float."""
    if not is_finite_number(value) or not 0 < value <= 1:
        raise ValueError(f"{name} must be a share in (0, 1], received {shown(value)}")
    return float(value)


def whole(name: str, value: Any, *, optional: bool = False, unit: str = "integer") -> int | None:
    """Return a whole number from 1 up; ``None`` as it is where that is allowed."""
    if optional and value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        kind = f"None or a positive {unit}" if optional else f"a positive {unit}"
        raise ValueError(f"{name} must be {kind}, received {shown(value)}")
    return value


def is_iterable(value: Any) -> bool:
    """Return whether a value can be gone through; an array without a dimension only looks so."""
    try:
        iter(value)
    except TypeError:
        return False
    return True


def check_seed(value: Any) -> int:
    """Return the seed of a random generator, a whole number of 63 bits."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"seed must be an integer from 0 to 2**63 − 1, received {shown(value)}")
    return value


def flag(name: str, value: Any) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, received {shown(value)}")
    return value


def choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return one of the allowed values."""
    allowed = list(allowed)
    if not any(type(value) is type(known) and value == known for known in allowed):
        names = ", ".join(str(known) for known in allowed)
        raise ValueError(f"{name}={shown(value)} is unknown; allowed: {names}")
    return value


def mapping(name: str, value: Any) -> Mapping | None:
    """Return a dictionary, or ``None``."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name} must be None or a dictionary, received {shown(value)}")
    return value


def file_path(name: str, value: Any) -> Path:
    """Return the path of a file, with ``~`` spelt out."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ValueError(f"{name} must be a path, received {shown(value)}")
    return Path(os.path.expanduser(value))


def check_pair_id(name: str, frame: Any) -> None:
    """Refuse a frame that does not name its pairs, and say how to rename a column ``id``."""
    if "pair_id" in frame:
        return
    said = f"{name}: no column 'pair_id'; there are {list(frame.columns)}"
    if "id" in frame:
        said += f'; rename it: {name}.rename(columns={{"id": "pair_id"}})'
    raise ValueError(said)


def shown(value: object, most: int = SHOWN) -> str:
    """Return a value as an error shows it: in one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a repr is the caller's code; Python's own refuses huge integers
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}… ({type(value).__name__})"


def one_line(error: Exception, most: int = 300) -> str:
    """Return what an error of another library says, in one line, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}…"
