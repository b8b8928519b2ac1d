"""Where rows come from: shipped sets, files, frames, datasets and the hub."""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from toolkit.hub import in_reach, no_answer

from ._values import RowError, got

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
TEXT_COLUMNS = ("prompt", "chosen", "rejected")
MESSAGES_CELL = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DAMAGE = (OSError, EOFError, zlib.error, UnicodeDecodeError)

# Each reader yields (row number, columns) or (row number, RowError).
Rows = Iterator[tuple[int, Any]]


def data_folder() -> Path:
    """Return the repository's `data/` folder, which stands beside the package."""
    return Path(__file__).resolve().parents[2] / "data"


def shipped_names() -> list[str]:
    """Return the names of the shipped sets; `bad_rows` is for tests and opens by path only."""
    return sorted(p.stem for p in data_folder().glob("*.jsonl") if p.stem != "bad_rows")


def read_rows(source: Any, split: str) -> Rows:
    """Return an iterator over the rows of any source that `load_pairs` names."""
    datasets = sys.modules.get("datasets")  # an object of it exists only where it is imported
    if isinstance(source, str):
        source = resolve(source)
        if isinstance(source, str):
            source = _from_hub(source, split)
            return enumerate(source)
    if datasets and isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in source:
            raise ValueError(f"split: {split!r} is not in this dataset; available: {list(source)}")
        return enumerate(source[split])
    if split != "train":
        raise ValueError(
            f"split: {split!r} means nothing for this source; only a DatasetDict and a hub id "
            "have splits"
        )
    if isinstance(source, os.PathLike):
        return _from_file(Path(source).expanduser())
    if isinstance(source, pd.DataFrame):
        _unique_columns(source.columns)
        return enumerate(source.to_dict("records"))
    if isinstance(source, list | tuple):
        return enumerate(source)
    if datasets and isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return enumerate(source)
    raise ValueError(
        f"source: got {type(source).__name__}; allowed are a shipped name, a path "
        f"({', '.join(SUFFIXES)}), a DataFrame, a list of dicts, a datasets.Dataset or "
        "DatasetDict, or a hub id 'owner/name'"
    )


def resolve(source: str) -> Path | str:
    """Return the file that a string names, or the string itself where it is a hub id."""
    names = shipped_names()
    if source in names:
        return data_folder() / f"{source}.jsonl"
    path = os.path.expanduser(source)
    if os.path.exists(path):
        return Path(path)
    if source.endswith(SUFFIXES):
        raise ValueError(f"source: no file {source!r}")
    if HUB_ID.fullmatch(source):
        return source
    close = difflib.get_close_matches(source, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"source: {source!r} is neither a shipped set, nor a file, nor a hub id 'owner/name'."
        f"{hint} Shipped sets: {', '.join(names) or f'none found in {data_folder().name}/'}"
    )


def _from_hub(name: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"source: {name!r} is not a local file, and reading it from the hub needs the package "
            'datasets: pip install "preference-entanglement-toolkit[hub]"'
        ) from error
    if not in_reach(name) and not _cached(datasets.config.HF_DATASETS_CACHE, name):
        raise ValueError(f"source: {no_answer(name)}")
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # network, authentication, parsing: many unrelated classes
        raise ValueError(
            f"source: cannot load split {split!r} of hub dataset {name!r}: {error}"
        ) from error


def _cached(folder: os.PathLike, name: str) -> bool:
    """Whether datasets may have this hub dataset on disk; it spells names its own way."""
    return any(Path(folder).glob(f"{name.split('/')[0]}___*"))


def _from_file(path: Path) -> Rows:
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
    with opener(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield row, _parse_line(line, number)
                    row += 1
        except DAMAGE as error:
            yield row, _damaged(row, error)


def _parse_line(line: bytes, number: int) -> Any:
    try:
        return json.loads(line.rstrip(b"\r\n").decode("utf-8"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        return RowError(f"line {number} is not UTF-8 text: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        return RowError(f"bad JSON at line {number}, column {error.colno}: {error.msg}")
    except (RowError, RecursionError, ValueError) as error:
        return RowError(f"bad JSON at line {number}: {error}")


def _json(path: Path) -> Rows:
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"{"):  # many files called .json on the hub hold JSON lines
        yield from _jsonl(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text, object_pairs_hook=_unique_keys) if text.strip() else []
    except json.JSONDecodeError as error:
        yield 0, RowError(f"bad JSON at line {error.lineno}, column {error.colno}: {error.msg}")
    except (RecursionError, ValueError, OSError) as error:
        yield 0, _damaged(0, error)
    else:
        if not isinstance(rows, list):
            raise ValueError(f"source: '{path.name}' must hold a list of rows, got {got(rows)}")
        yield from enumerate(rows)


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
    _unique_columns(header)
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
    values = dict(zip(header, cells, strict=True))
    for name in TEXT_COLUMNS:
        if MESSAGES_CELL.match(values.get(name, "")):
            try:
                values[name] = json.loads(values[name])
            except json.JSONDecodeError:
                raise RowError(
                    f"{name} looks like a list of messages but is not JSON; write such cells "
                    "with json.dumps, or use .jsonl or .parquet"
                ) from None
    return values


def _parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with contextlib.closing(pq.ParquetFile(path)) as file:
            _unique_columns(file.schema_arrow.names)
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    yield row, values
                    row += 1
    except (pa.ArrowException, OSError) as error:
        yield row, _damaged(row, error)


def _damaged(row: int, error: Exception) -> RowError:
    return RowError(f"the file is damaged: {row} rows could be read, then: {error}")


def _unique_columns(names: Any) -> None:
    names = list(names)
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"source: column {', '.join(twice)} is there more than once")


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(items) != len(dict(items)):
        names = [name for name, _ in items]
        raise RowError(f"key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return dict(items)
