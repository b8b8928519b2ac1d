"""Parquet files that say what they hold, and that are whole on disk or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LABEL = b"toolkit.scores"
OPTIONS = {"compression": "zstd", "write_page_checksum": True}


def read_table(
    path: Path, columns: list[str] | None = None, group: int | None = None
) -> pa.Table | None:
    """Return a Parquet file's content or one row group; ``None`` where it is damaged or gone."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            groups = range(file.num_row_groups) if group is None else [group]
            return file.read_row_groups(groups, columns=columns)
    except (pa.ArrowException, OSError):
        return None


def write_whole(
    path: Path,
    passing: Path,
    schema: pa.Schema,
    label: dict[str, object],
    tables: Iterable[pa.Table],
) -> None:
    """Write tables, each a row group, under a passing name, and rename when all is on disk."""
    labelled = schema.with_metadata({LABEL: json.dumps(label, default=str).encode()})
    with pq.ParquetWriter(passing, labelled, **OPTIONS) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(), row_group_size=len(table))
    move(passing, path)


def label_of(path: Path) -> dict | None:
    """What a file says of itself; ``None`` where it is gone, damaged or holds no scores."""
    try:
        found = (pq.read_metadata(path).metadata or {}).get(LABEL)
        return None if found is None else json.loads(found)
    except (pa.ArrowException, OSError, ValueError):
        return None


def identity(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced; ``None`` where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def move(passing: Path, path: Path) -> None:
    """Rename once the content is on disk, and put the new name on disk too."""
    with open(passing, "rb") as file:
        os.fsync(file.fileno())
    os.replace(passing, path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
