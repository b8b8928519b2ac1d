"""Values of a row: numpy and missing ones made plain, text and messages checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from toolkit.checks import shown

Message = dict[str, str]
Text = str | tuple[Message, ...]


class RowError(ValueError):
    """The reason why one row gives no pair; the caller adds the row number."""


class LayoutError(RowError):
    """What leaving rows out would not mend: other columns than these, or a file that is no list."""


def got(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"the {'bool' if isinstance(value, bool) else 'number'} {shown(value)}"
    return type(value).__name__


def plain(value: Any) -> Any:
    """Return numpy values as Python ones and every kind of missing value as None, at any depth."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value != value:
        return None
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(plain(item) for item in value)
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many leading items two sequences share."""
    longest = min(len(one), len(other))
    return next((i for i in range(longest) if one[i] != other[i]), longest)


def as_text(name: str, value: Any) -> Text:
    """Return plain text or a tuple of messages, or say why `value` is neither."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(f"{name} holds a lone surrogate at character {error.start}") from None
        return str(value)
    if not isinstance(value, list | tuple):
        raise RowError(f"{name} must be text or a list of messages, got {got(value)}")
    return tuple(_message(f"{name}[{i}]", message) for i, message in enumerate(value))


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(f"{name} must be a message with role and content, got {got(value)}")
    missing = [key for key in ("role", "content") if key not in value]
    if missing:
        keys = shown(list(value))
        raise RowError(f"{name} has no {' and no '.join(missing)}; its keys are {keys}")
    for key in ("role", "content"):
        if not isinstance(value[key], str):
            raise RowError(f"{name}: {key} must be text, got {got(value[key])}")
        as_text(f"{name}: {key}", value[key])
    # Columnar sources fill the keys that only other messages have with nulls.
    return {key: item for key, item in value.items() if item is not None}
