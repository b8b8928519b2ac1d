"""Rows of files: JSON lines, JSON, CSV and Parquet, as far as they can be read."""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from toolkit.checks import one_line, shown

from ._values import LayoutError, RowError, got

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
DAMAGE = (OSError, EOFError, zlib.error, UnicodeDecodeError)
BOM = b"\xef\xbb\xbf"

# Each reader yields (row number, columns) or (row number, RowError).
Rows = Iterator[tuple[int, Any]]


def file_rows(path: Path) -> Rows:
    """Return an iterator over the rows of a file whose name ends in one of SUFFIXES."""
    if path.is_dir():
        raise ValueError(f"source: '{path}' is a folder; name one file in it")
    if not path.exists():
        raise ValueError(f"source: no file '{path}'")
    readers = {".jsonl": _jsonl, ".jsonl.gz": _jsonl, ".json": _json, ".csv": _csv}
    readers[".parquet"] = _parquet
    for suffix, reader in readers.items():
        if path.name.lower().endswith(suffix):
            return reader(path)
    raise ValueError(f"source: '{path.name}' must end in one of {', '.join(SUFFIXES)}")


def _jsonl(path: Path) -> Rows:
    row = 0
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(BOM) if number == 1 else line
                if line.strip():
                    yield row, _parse_line(line, number)
                    row += 1
    except DAMAGE as error:
        yield row, _damaged(row, error)


def _parse_line(line: bytes, number: int) -> Any:
    try:
        return parse_json(line.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowError(f"line {number} is not UTF-8 text: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        return RowError(f"bad JSON at line {number}, column {error.colno}: {error.msg}")
    except RowError as error:
        return RowError(f"bad JSON at line {number}: {error}")


def parse_json(text: str) -> Any:
    """Parse JSON and refuse what Python would take or drop in silence.

    Raises:
        JSONDecodeError: as ``json.loads``.
        RowError: a key is there twice, or a value is too deep or too long to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise RowError("a value is nested too deeply to be read") from None
    except (RowError, json.JSONDecodeError):
        raise
    except ValueError:
        raise RowError("a number has too many digits to be read") from None


def _json(path: Path) -> Rows:
    try:
        if _holds_lines(path):  # many files called .json on the hub do
            yield from _jsonl(path)
            return
        text = path.read_text(encoding="utf-8-sig")
        rows = parse_json(text) if text.strip() else []
    except json.JSONDecodeError as error:
        yield 0, LayoutError(f"bad JSON at line {error.lineno}, column {error.colno}: {error.msg}")
    except (RowError, *DAMAGE) as error:
        yield 0, LayoutError(str(_damaged(0, error)))
    else:
        yield from enumerate(_listed(rows, path))


def _holds_lines(path: Path) -> bool:
    """Return whether the first two lines that hold anything each begin an object."""
    with path.open("rb") as file:
        lines = (line.removeprefix(BOM).lstrip() for line in file)
        first_two = list(itertools.islice((line for line in lines if line), 2))
    return len(first_two) == 2 and all(line.startswith(b"{") for line in first_two)


def _listed(rows: Any, path: Path) -> list[Any]:
    """Return the rows of a parsed .json file: a list, or an object that is one row."""
    if isinstance(rows, list):
        return rows
    if not isinstance(rows, dict):
        raise ValueError(f"source: '{path.name}' must hold a list of rows, got {got(rows)}")
    lists = [name for name, value in rows.items() if isinstance(value, list)]
    if lists and {"chosen", "rejected"}.isdisjoint(rows):
        raise ValueError(
            f"source: '{path.name}' holds one object with the keys {shown(list(rows))}; give the "
            f"list in it: load_pairs(json.load(open({str(path)!r}))[{lists[0]!r}])"
        )
    return [rows]


def _csv(path: Path) -> Rows:
    row, old_limit = 0, csv.field_size_limit(2**31 - 1)  # a long dialogue passes the default
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for values in _csv_rows(csv.reader(file, strict=True)):
                yield row, values
                row += 1
    except (*DAMAGE, csv.Error) as error:
        yield row, _damaged(row, error)
    finally:
        csv.field_size_limit(old_limit)


def _csv_rows(reader: Any) -> Iterator[Any]:
    header = next(reader, [])
    unique_columns(header)
    while True:
        try:
            cells = next(reader)
            if cells:
                yield _csv_row(header, cells)
        except StopIteration:
            return
        except (csv.Error, RowError) as error:
            yield RowError(f"bad CSV at line {reader.line_num}: {error}")


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise RowError(f"{len(cells)} fields where the header names {len(header)}")
    return dict(zip(header, cells, strict=True))


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with contextlib.closing(pq.ParquetFile(path)) as file:
            unique_columns(file.schema_arrow.names)
            for batch in file.iter_batches():
                for values in _batch_rows(batch):
                    yield row, values
                    row += 1
    except (pa.ArrowException, *DAMAGE) as error:
        yield row, _damaged(row, error)


def _batch_rows(batch: Any) -> list[Any]:
    """Return the rows of an Arrow batch, one by one where a value of some row cannot be read."""
    try:
        return batch.to_pylist()
    except Exception as error:  # bytes that are no UTF-8, dates that Python cannot hold, …
        if batch.num_rows == 1:
            return [RowError(f"a value of this row cannot be read: {one_line(error)}")]
        half = batch.num_rows // 2
        return _batch_rows(batch.slice(0, half)) + _batch_rows(batch.slice(half))


def _damaged(row: int, error: Exception) -> RowError:
    return RowError(f"the file is damaged: {row} rows could be read, then: {one_line(error)}")


def unique_columns(names: Iterable[Any]) -> None:
    """Raise ValueError where two columns have one name."""
    twice = sorted({str(name) for name, count in Counter(names).items() if count > 1})
    if twice:
        raise ValueError(f"source: column {', '.join(twice)[:80]} is there more than once")


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(items) != len(dict(items)):
        twice = Counter(name for name, _ in items).most_common(1)[0][0]
        raise RowError(f"key {shown(twice)} is there twice")
    return dict(items)
