"""Where rows come from, and how a row's columns become prompt, chosen and rejected."""

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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

Message = dict[str, str]
Text = str | tuple[Message, ...]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")
IDENTICAL = "chosen and rejected are identical: training needs two different responses"
SHARED_TURN = "prompt cut at the last assistant turn both share"
NO_PROMPT = "chosen and rejected share no beginning: the prompt is empty"
ASSISTANT = "\n\nAssistant:"
PERSONA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
TEXT_COLUMNS = ("prompt", "chosen", "rejected")
MESSAGES_CELL = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DAMAGE = (OSError, EOFError, zlib.error, UnicodeDecodeError)


class RowError(ValueError):
    """The reason why one row gives no pair; the caller adds the row number."""


class Split(NamedTuple):
    """One row taken apart."""

    prompt: Text
    chosen: Text
    rejected: Text
    meta: dict[str, Any]
    notes: tuple[str, ...]


def data_folder() -> Path:
    """Return the repository's `data/` folder, which stands beside the package."""
    return Path(__file__).resolve().parents[2] / "data"


def shipped_names() -> list[str]:
    """Return the names of the shipped sets; `bad_rows` is for tests and opens by path only."""
    return sorted(p.stem for p in data_folder().glob("*.jsonl") if p.stem != "bad_rows")


# ---- sources: each reader yields (row number, columns) or (row number, RowError) ----

Rows = Iterator[tuple[int, Any]]


def read_rows(source: Any, split: str) -> Rows:
    """Return an iterator over the rows of any source that `load_pairs` names."""
    datasets = sys.modules.get("datasets")  # an object of it exists only where it is imported
    if isinstance(source, str):
        source = _resolve(source)
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


def _resolve(source: str) -> Path | str:
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
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # network, authentication, parsing: many unrelated classes
        raise ValueError(
            f"source: cannot load split {split!r} of hub dataset {name!r}: {error}"
        ) from error


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
            raise ValueError(f"source: '{path.name}' must hold a list of rows, got {_got(rows)}")
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


# ---- values ----


def _got(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return f"the {'bool' if isinstance(value, bool) else 'number'} {value!r}"
    return type(value).__name__


def plain(value: Any) -> Any:
    """Return numpy scalars and arrays as Python values, and every kind of missing value as None."""
    if isinstance(value, float) and value != value:
        return None
    if value is pd.NA or value is pd.NaT:
        return None
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
        raise RowError(f"{name} must be text or a list of messages, got {_got(value)}")
    return tuple(_message(f"{name}[{i}]", message) for i, message in enumerate(value))


def _message(name: str, value: Any) -> Message:
    if not isinstance(value, Mapping):
        raise RowError(f"{name} must be a message with role and content, got {_got(value)}")
    missing = [key for key in ("role", "content") if key not in value]
    if missing:
        raise RowError(f"{name} has no {' and no '.join(missing)}; its keys are {list(value)}")
    for key in ("role", "content"):
        if not isinstance(value[key], str):
            raise RowError(f"{name}: {key} must be text, got {_got(value[key])}")
        as_text(f"{name}: {key}", value[key])
    # Columnar sources fill the keys that only other messages have with nulls.
    return {key: item for key, item in value.items() if item is not None}


# ---- formats: explicit or implicit prompt, text or messages, transcripts, persona ----


def split_row(values: Any) -> Split:
    """Return the prompt, both responses and the other columns of one row."""
    if isinstance(values, RowError):
        raise values
    if not isinstance(values, Mapping):
        raise RowError(f"a row must be an object with named columns, got {_got(values)}")
    values = {str(name): plain(value) for name, value in values.items()}
    names = _text_columns(values)
    _require(values, names)
    texts = [as_text(name, values[name]) for name in names]
    _refuse_blank(names[-2:], texts[-2:])
    notes: tuple[str, ...] = ()
    if len(texts) == 3:
        prompt, chosen, rejected = _explicit(*texts)
    else:
        prompt, chosen, rejected, notes = _implicit(*texts)
    _refuse_blank(("chosen response", "rejected response"), (chosen, rejected))
    if chosen == rejected:
        raise RowError(IDENTICAL)
    meta = {name: value for name, value in values.items() if name not in {*names, "id"}}
    return Split(prompt, chosen, rejected, meta, notes)


def _text_columns(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns to read: persona's, TRL's three, or two with an implicit prompt."""
    if not {"chosen", "rejected"} & set(values) and any(n.startswith("answer_") for n in values):
        return PERSONA
    if "prompt" in values:
        return TEXT_COLUMNS
    for name in values:
        # 0.82 catches 'promt', 'Prompt ' and 'propmt', and lets 'prompt_id' (0.80) be.
        if difflib.SequenceMatcher(None, name.strip().lower(), "prompt").ratio() >= 0.82:
            raise RowError(f"column {name!r} looks like a misspelt 'prompt'; rename it")
    return TEXT_COLUMNS[1:]


def _require(values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name in values:
            continue
        folded = {other.strip().lower(): other for other in values if other not in names}
        close = difflib.get_close_matches(name, folded, n=1)
        hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
        raise RowError(f"column {name!r} is missing; the columns are {list(values)}{hint}")


def _refuse_blank(names: Sequence[str], texts: Sequence[Text]) -> None:
    for name, text in zip(names, texts, strict=True):
        content = text if isinstance(text, str) else "".join(m["content"] for m in text)
        if not content.strip():
            raise RowError(f"{name} is empty")


def _explicit(prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    kinds = [isinstance(text, str) for text in (prompt, chosen, rejected)]
    if all(kinds):
        return prompt, chosen, rejected
    if kinds == [True, False, False]:  # text beside two whole conversations that hold it
        shared, chosen, rejected, _ = _cut_messages(chosen, rejected)
        if shared[-1]["content"] != prompt:
            raise RowError("prompt is text that the messages of chosen and rejected do not repeat")
        return shared, chosen, rejected
    if any(kinds):
        raise RowError("prompt, chosen and rejected must all be text or all lists of messages")
    if not prompt:
        raise RowError("prompt is an empty list of messages")
    chosen, rejected = (
        text[len(prompt) :] if text[: len(prompt)] == prompt else text
        for text in (chosen, rejected)
    )
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if text and text[0]["role"] != "assistant":
            raise RowError(
                f"{name} must go on with an assistant message after the prompt, "
                f"got role {text[0]['role']!r}"
            )
    return prompt, chosen, rejected


def _implicit(chosen: Text, rejected: Text) -> tuple[Text, Text, Text, tuple[str, ...]]:
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("chosen and rejected must both be text or both lists of messages")
    if not isinstance(chosen, str):
        return _cut_messages(chosen, rejected)
    both = (chosen, rejected)
    shared = shared_length(chosen, rejected)
    transcripts = all(text.lstrip().startswith("Human:") for text in both)
    if transcripts and any(ASSISTANT in text for text in both):
        start = chosen.rfind(ASSISTANT, 0, shared)
        if start < 0:
            raise RowError(f"the two transcripts share no assistant turn ({ASSISTANT!r})")
        cut = start + len(ASSISTANT)
        notes = (SHARED_TURN,) if any(ASSISTANT in text[cut:] for text in both) else ()
    else:
        cut = _word_cut(chosen, rejected, shared)
        notes = () if cut else (NO_PROMPT,)
    return chosen[:cut], chosen[cut:], rejected[cut:], notes


def _word_cut(chosen: str, rejected: str, shared: int) -> int:
    """Return the last place up to `shared` that is inside no word and leaves two responses.

    Words are runs without white space. One space before the cut goes to the responses, as in
    TRL's `extract_prompt`: byte-level tokenizers join it to the word that follows.
    """

    def good(cut: int, text: str) -> bool:
        between = cut == 0 or text[cut - 1].isspace() or text[cut : cut + 1].isspace()
        return between and bool(text[cut:].strip())

    for cut in range(shared, 0, -1):
        if good(cut, chosen) and good(cut, rejected):
            return cut - 1 if chosen[cut - 1] == " " else cut
    return 0


def _cut_messages(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Text, Text, Text, tuple[str, ...]]:
    shared = shared_length(chosen, rejected)
    for cut in range(min(shared, len(chosen) - 1, len(rejected) - 1), 0, -1):
        if chosen[cut]["role"] == rejected[cut]["role"] == "assistant":
            several = len(chosen) > cut + 1 or len(rejected) > cut + 1
            notes = (SHARED_TURN,) if several else ()
            return chosen[:cut], chosen[cut:], rejected[cut:], notes
    raise RowError("the two conversations share no message before an assistant message")
