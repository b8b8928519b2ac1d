"""Pairs on their way out: files and tables that TRL reads, the meta in a form that they hold."""

from __future__ import annotations

import bisect
import datetime
import decimal
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from toolkit.checks import choice, file_path, flag
from toolkit.extras import require
from toolkit.model.inputs import check_pairs
from toolkit.pairs import PreferencePair

FORMATS = ("jsonl", "parquet", "datasets")
SUFFIXES = {".jsonl": "jsonl", ".parquet": "parquet"}
NAMES = ("id", "prompt", "chosen", "rejected")


def export_pairs(
    pairs: Iterable[PreferencePair],
    path: str | os.PathLike | None = None,
    format: str | None = None,
    *,
    overwrite: bool = False,
) -> Any:
    """Write pairs as TRL reads them: ``id``, ``prompt``, ``chosen``, ``rejected`` and the meta.

    Messages stay messages. Reading the result with ``load_pairs`` gives the same ids, texts and,
    except for keys that only some pairs have (Parquet and datasets fill them), the same meta.
    JSON has text, numbers, lists and null alone: dates become ISO text, Decimals and numpy's values
    numbers and lists, and NaN null.

    Args:
        pairs: The pairs.
        path: File to write (a folder for "datasets"); ``None`` returns the content instead.
        format: "jsonl", "parquet" or "datasets" (extra ``hub``); ``None`` goes by the suffix of
            ``path``, and without a path it is "jsonl".
        overwrite: Replace a file that is already there.

    Returns:
        The path; without one, a list of dicts, a ``pyarrow.Table`` or a ``datasets.Dataset``.

    Raises:
        ValueError: If the format is unknown or is not that of the suffix, ``path`` exists, a pair's
            meta uses one of the four names, or the format cannot hold a value; the message names
            the pair and the column.
        ImportError: If "datasets" is missing; it gives the install command.

    Example:
        >>> export_pairs([PreferencePair("a", "Is it fine?", " Yes", " No")])
        [{'id': 'a', 'prompt': 'Is it fine?', 'chosen': ' Yes', 'rejected': ' No'}]
    """
    if path is not None:
        path = file_path("path", path)
    flag("overwrite", overwrite)
    format = _format_of(path, format)
    if path is not None and path.exists() and not overwrite:
        raise ValueError(
            f"path: {str(path)!r} exists already; give overwrite=True to replace it, or another"
        )
    rows = [_row(i, pair, format) for i, pair in enumerate(check_pairs(pairs, text=True))]
    if format == "jsonl":
        if path is None:
            return rows
        content = b"".join(_line(row) for row in rows)
        return _whole(path, lambda part: part.write_bytes(content))
    table = _table(rows)
    if format == "parquet":
        import pyarrow.parquet as pq

        return table if path is None else _whole(path, lambda part: pq.write_table(table, part))
    dataset = _dataset(table)
    if path is None:
        return dataset
    dataset.save_to_disk(os.fspath(path))
    return Path(path)


def _format_of(path: str | os.PathLike | None, format: str | None) -> str:
    choice("format", format, (None, *FORMATS))
    if path is None:
        return format or "jsonl"
    suffix = Path(path).suffix.lower()
    said = SUFFIXES.get(suffix, "datasets")
    if format is None and suffix not in SUFFIXES:
        allowed = " or ".join(SUFFIXES)
        raise ValueError(
            f"path: {str(path)!r} says no format; end it in {allowed}, or give format='datasets'"
        )
    if format not in (None, said):
        other = next((s for s, name in SUFFIXES.items() if name == format), "no such suffix")
        raise ValueError(
            f"format: got {format!r} for {str(path)!r}; the path of this format ends in {other}"
        )
    return said


def _row(index: int, pair: PreferencePair, format: str) -> dict[str, Any]:
    taken = sorted(set(pair.meta) & set(NAMES))
    if taken:
        raise ValueError(f"pair {pair.id!r}: its meta has a key {taken[0]!r}, which is a column")
    texts = (pair.prompt, pair.chosen, pair.rejected)
    plain = [t if isinstance(t, str) else [dict(message) for message in t] for t in texts]
    row = dict(zip(NAMES, (pair.id, *plain), strict=True))
    for name, value in pair.meta.items():
        try:
            if not isinstance(name, str):
                raise ValueError(f"a key must be text, got {name!r}")
            row[name] = _plain(value, json=format == "jsonl")
        except (ValueError, TypeError, RecursionError) as error:
            where = f"pairs[{index}] (id {pair.id!r}), column {name!r}"
            raise ValueError(f"{where}: {error}; change or drop it in the pair's meta") from None
    return row


def _plain(value: Any, json: bool) -> Any:
    """Turn numpy's and pandas' values into Python's, at any depth, or all into JSON's."""
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.dtype.kind not in "mM" else list(value)
    elif isinstance(value, np.generic):
        value = pd.Timestamp(value) if isinstance(value, np.datetime64) else value.item()
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, Mapping):
        odd = [key for key in value if json and not isinstance(key, str)]
        if odd:
            raise ValueError(f"a key must be text, got {odd[0]!r}")
        return {key: _plain(item, json) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, json) for item in value]
    return _in_json(value) if json else value


def _in_json(value: Any) -> Any:
    """Turn a single value into what standard JSON holds."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        value = int(value) if value.is_finite() and value == value.to_integral() else float(value)
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError("JSON has no infinity")
        return None if math.isnan(value) else value
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("a whole number of more than 64 bits is not read back by others")
    if value is None or isinstance(value, str | int):
        return value
    raise ValueError(f"JSON has no form for a {type(value).__name__}")


def _line(row: dict[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair has no UTF-8, but its JSON escape is the one that this makes.
    return (text + "\n").encode("utf-8", "backslashreplace")


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table({name: _column(name, values, rows) for name, values in columns.items()})


def _column(name: str, values: list[Any], rows: list[dict[str, Any]]) -> Any:
    import pyarrow as pa

    def failure(count: int) -> Exception | None:
        try:
            pa.array(values[:count])
        except (pa.ArrowException, OverflowError, UnicodeError, RecursionError) as error:
            return error
        return None

    error = failure(len(values))
    if error is None:
        return pa.array(values)
    at = bisect.bisect_left(range(1, len(values)), True, key=lambda n: failure(n) is not None)
    raise ValueError(
        f"pairs[{at}] (id {rows[at]['id']!r}), column {name!r}: Arrow cannot hold "
        f"{repr(values[at])[:60]} there, perhaps because the column holds values of several kinds "
        f"({error}); change it, or give format='jsonl'"
    )


def _dataset(table: Any) -> Any:
    require("hub", 'format="datasets"', "datasets")
    import datasets

    return datasets.Dataset(table)


def _whole(path: str | os.PathLike, write: Callable[[Path], Any]) -> Path:
    """Write beside the target and rename, so that it is never half there."""
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        write(Path(folder) / path.name)
        os.replace(Path(folder) / path.name, path)
    return path
