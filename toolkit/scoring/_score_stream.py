"""Rows to score, one after another: files of any size are never held whole."""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.checks import is_iterable, whole
from toolkit.pairs import (
    EncodedPair,
    PairList,
    PreferencePair,
    RowError,
    read_pair,
    read_rows,
    resolve,
    row_id,
)
from toolkit.scoring._score_key import part_hash, row_hash


class Row(NamedTuple):
    """One row: its place in the input, its id, and the pair or the reason why there is none."""

    row: int
    id: str | None
    item: PreferencePair | EncodedPair | str


class Chunk(NamedTuple):
    """The consecutive rows of one part, with the hash of their content."""

    index: int
    rows: list[Row]
    digest: str


class PairStream:
    """The rows of a source, read anew on every pass and never held whole.

    Bad rows are kept in their place, with the reason in words instead of a pair.

    Args:
        source: Whatever ``load_pairs`` reads (.json is read whole), pairs, or any iterable of
            pairs or rows; an iterator gives one pass.
        split: As in ``load_pairs``.
        limit: As in ``load_pairs``.

    Raises:
        ValueError: If the source or ``limit`` is not one of these.

    Example:
        >>> stream = PairStream("long_suffix", limit=3)
        >>> [row.id for row in stream], len(stream)
        (['sentiment-000', 'sentiment-001', 'sentiment-002'], 3)
    """

    def __init__(self, source: Any, *, split: str = "train", limit: int | None = None) -> None:
        whole("limit", limit, optional=True)
        self.source, self.split, self.limit = source, split, limit
        if isinstance(source, PreferencePair | EncodedPair):
            self.source = [source]
        self._open()  # an unknown source fails here, before any model is loaded

    @property
    def one_pass(self) -> bool:
        """Whether the source is an iterator, which can be read once only."""
        return isinstance(self.source, Iterator)

    def __iter__(self) -> Iterator[Row]:
        return map(_storable, itertools.islice(self._rows(), self.limit))

    def __len__(self) -> int:
        """Return the number of rows, counted without parsing them.

        Raises:
            TypeError: If they cannot be counted without reading the source.
        """
        count = _count(self.source, self.split)
        if count is None:
            raise TypeError("the rows of this source cannot be counted beforehand")
        return count if self.limit is None else min(count, self.limit)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yield ``size`` rows at a time; which rows stand together depends on their places only."""
        rows = iter(self)
        for index in itertools.count():
            part = list(itertools.islice(rows, size))
            if not part:
                return
            yield Chunk(index, part, part_hash([row_hash(r.id, r.item) for r in part]))

    def _rows(self) -> Iterator[Row]:
        rows_of_ids: dict[str, int] = {}
        for row, values in self._open():
            if isinstance(values, PreferencePair | EncodedPair):
                yield Row(row, values.id, values)
                continue
            if isinstance(values, Row):  # a row that loading skipped
                yield values._replace(row=row)
                continue
            id = row_id(row, values)
            try:
                yield Row(row, id, read_pair(row, id, values, rows_of_ids))
            except RowError as error:
                yield Row(row, id, str(error))

    def _open(self) -> Iterable[tuple[int, Any]]:
        source = self.source
        if isinstance(source, PairList):
            return enumerate(_with_skipped(source))
        try:
            return read_rows(source, self.split)
        except ValueError:
            if isinstance(source, str | os.PathLike) or not is_iterable(source):
                raise
        return enumerate(source)


def _with_skipped(pairs: PairList) -> Iterator[Any]:
    """Yield the pairs, and the rows that loading skipped in their place."""
    places = list(pairs.skipped.itertuples(index=False))
    for pair in pairs:
        while places and pair.row is not None and places[0].row < pair.row:
            yield Row(0, *places.pop(0)[1:])
        yield pair
    yield from (Row(0, *place[1:]) for place in places)


def _storable(row: Row) -> Row:
    """Refuse an id that no file can hold, and keep it in a form that one can."""
    id = None if row.id is None else _escaped(row.id)
    reason = _escaped(row.item) if isinstance(row.item, str) else None
    if id == row.id:
        return row if reason is None else row._replace(item=reason)
    half = "its id holds half of a surrogate pair, which no file can hold; give it another id"
    return Row(row.row, id, reason or half)


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _count(source: Any, split: str) -> int | None:
    if isinstance(source, PairList):
        return len(source) + len(source.skipped)
    if isinstance(source, str):
        source = resolve(source)
    if isinstance(source, Mapping):  # a DatasetDict: its own length is the number of splits
        source = source[split]
    if not isinstance(source, os.PathLike):
        return len(source) if hasattr(source, "__len__") and not isinstance(source, str) else None
    path = Path(source).expanduser()
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            return pq.read_metadata(path).num_rows
        if name.endswith((".jsonl", ".jsonl.gz")):
            with (gzip.open if name.endswith(".gz") else open)(path, "rb") as file:
                return sum(1 for line in file if line.strip())
    except (OSError, EOFError, ValueError):
        return None  # damage is reported as a row when the file is read
    return None
