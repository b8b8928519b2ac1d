"""Scores on disk: parts that are whole or absent, merged into one Parquet file at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.scoring._score_key import differences

log = logging.getLogger("toolkit.scoring")
LABEL = b"toolkit.scores"
START_OVER = "give resume=False (--no-resume) to start over, or another out"


class Store:
    """The finished file and, while a run is under way, its parts in a folder beside it.

    A part is written under a passing name, forced to disk and renamed, so that a killed process
    leaves either a whole part or none; the finished file comes about in the same way.

    Args:
        out: The Parquet file that the run ends with.

    Raises:
        ValueError: If ``out`` does not end in .parquet, or is a file that holds no scores.
    """

    def __init__(self, out: str | os.PathLike) -> None:
        self.out = Path(out).expanduser()
        if self.out.suffix != ".parquet":
            raise ValueError(f"out must end in .parquet, received {str(out)!r}")
        self.folder = self.out.with_name(self.out.name + ".parts")
        if self.out.exists() and _label(self.out) is None:
            raise ValueError(f"out: {str(self.out)!r} exists and holds no scores; give another")

    def begin(self, key: dict[str, object], attrs: dict[str, object], resume: bool) -> None:
        """Make the folder, or refuse what another run with other settings left there.

        Raises:
            ValueError: If the scores that are there were made with another key.
        """
        if not resume:
            for path in (self.out, *self.parts().values()):
                path.unlink(missing_ok=True)
        self.key, self.labels = json.loads(json.dumps(key)), attrs
        for path in (self.out, *self.parts().values()):
            self._check(path, _label(path) if path.exists() else None)
        self.folder.mkdir(parents=True, exist_ok=True)
        finished = _label(self.out) if self.out.exists() else None
        self.finished = finished["parts"] if finished else []

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run from writing the same file; the lock ends with the process.

        Raises:
            ValueError: If another run holds it.
        """
        try:
            import fcntl
        except ImportError:  # Windows: nothing is lost but the warning
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"out: another run is writing {str(self.out)!r}") from None
            try:
                yield
            finally:
                if not self.parts():
                    shutil.rmtree(self.folder, ignore_errors=True)

    def parts(self) -> dict[int, Path]:
        """Return the files of the parts by index, in order."""
        paths = sorted(self.folder.glob("part-*.parquet"))
        return {int(path.stem.removeprefix("part-")): path for path in paths}

    def has(self, index: int, digest: str) -> bool:
        """Whether this part is there, whole, and holds the scores of these very rows."""
        path = self._path(index)
        if path.exists():
            label = _label(path)
            self._check(path, label)
            if label and label["part"] == digest and read_table(path) is not None:
                return True
            log.warning("part %d is damaged or holds other rows: it is computed again", index)
            path.unlink()
        return self.finished[index : index + 1] == [digest] and self._group(index) is not None

    def put(self, index: int, digest: str, table: pa.Table) -> None:
        """Write one part, whole or not at all."""
        label = {"key": self.key, "part": digest, "attrs": self.labels}
        path = self._path(index)
        passing = path.with_suffix(".tmp")
        with pq.ParquetWriter(passing, _labelled(table.schema, label), **OPTIONS) as writer:
            writer.write_table(table.replace_schema_metadata(), row_group_size=len(table))
        _move(passing, path)
        log.info("part %d stored, rows %d to %d", index, *_ends(table))

    def finish(self, digests: list[str], schema: pa.Schema) -> None:
        """Merge the parts row group by row group, and remove them."""
        if self.finished != digests or self.parts():
            label = {"key": self.key, "parts": digests, "attrs": self.labels}
            passing = self.folder / "merged.tmp"
            with pq.ParquetWriter(passing, _labelled(schema, label), **OPTIONS) as writer:
                for index in range(len(digests)):
                    table = self._stored(index)
                    writer.write_table(table, row_group_size=len(table))
            _move(passing, self.out)
        shutil.rmtree(self.folder, ignore_errors=True)

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield what is there so far, part by part; damaged parts are left out."""
        label = _label(self.out) if self.out.exists() else None
        self.finished = label["parts"] if label else []
        parts = self.parts()
        for index in sorted({*parts, *range(len(self.finished))}):
            table = read_table(parts[index], columns) if index in parts else None
            table = self._group(index, columns) if table is None else table
            if table is not None:
                yield table

    def attrs(self) -> dict[str, object]:
        """Return the labels that the scores were stored with; empty where there are none yet."""
        files = [path for path in (self.out, *self.parts().values()) if path.exists()]
        return next((label["attrs"] for label in map(_label, files) if label), {})

    def _stored(self, index: int) -> pa.Table:
        path = self._path(index)
        table = read_table(path) if path.exists() else self._group(index)
        if table is None:
            raise ValueError(f"out: part {index} was damaged during the run; run it again")
        return table.replace_schema_metadata()

    def _group(self, index: int, columns: list[str] | None = None) -> pa.Table | None:
        """One part of the finished file: it is that file's row group of the same number."""
        if index >= len(self.finished):
            return None
        try:
            with pq.ParquetFile(self.out, page_checksum_verification=True) as file:
                return file.read_row_group(index, columns=columns)
        except (pa.ArrowException, OSError):
            return None

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index:08d}.parquet"

    def _check(self, path: Path, label: dict | None) -> None:
        if label is not None and label["key"] != self.key:
            changed = differences(label["key"], self.key)
            raise ValueError(f"out: {path.name} was made otherwise ({changed}); {START_OVER}")


OPTIONS = {"compression": "zstd", "write_page_checksum": True}


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table | None:
    """Return a Parquet file's content, ``None`` where it is damaged or gone."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=columns)
    except (pa.ArrowException, OSError):
        return None


def _labelled(schema: pa.Schema, label: dict[str, object]) -> pa.Schema:
    return schema.with_metadata({LABEL: json.dumps(label, default=str).encode()})


def _label(path: Path) -> dict | None:
    """What a file says of itself; ``None`` where it is damaged or holds no scores."""
    try:
        found = (pq.read_metadata(path).metadata or {}).get(LABEL)
        return None if found is None else json.loads(found)
    except (pa.ArrowException, OSError, ValueError):
        return None


def _move(passing: Path, path: Path) -> None:
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


def _ends(table: pa.Table) -> tuple[int, int]:
    return table["row"][0].as_py(), table["row"][-1].as_py()
