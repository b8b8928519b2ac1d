"""Scores on disk: parts that are whole or absent, merged into one Parquet file at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from filelock import FileLock, Timeout

from toolkit.checks import file_path
from toolkit.scoring._score_files import identity, label_of, read_table, write_whole
from toolkit.scoring._score_input import InputLog
from toolkit.scoring._score_key import differences

log = logging.getLogger("toolkit.scoring")
INPUT = "input.hashes"
OWN = re.compile(r"part-\d{8,}\.(parquet|tmp)|merged\.tmp|input\.(hashes|tmp)")
READINGS = 20  # of files that change meanwhile
START_OVER = "give resume=False (--no-resume) to start over, or another out"


class Store:
    """The finished file and, while a run is under way, its parts in a folder beside it.

    A part is written under a passing name, forced to disk and renamed, so that a killed process
    leaves either a whole part or none; the finished file comes about in the same way. Nothing is
    removed that no run wrote.

    Args:
        out: The Parquet file that the run ends with.

    Raises:
        ValueError: If ``out`` does not end in .parquet, or is a file that holds no scores.
    """

    def __init__(self, out: str | os.PathLike) -> None:
        self.out = file_path("out", out)
        if self.out.suffix != ".parquet":
            raise ValueError(f"out must end in .parquet, received {str(out)!r}")
        self.folder = self.out.with_name(self.out.name + ".parts")
        self.input, self.begun = InputLog(self.folder / INPUT), False
        if self.out.exists() and label_of(self.out) is None:
            raise ValueError(f"out: {str(self.out)!r} exists and holds no scores; give another")

    def check(self, settings: dict[str, object], resume: bool) -> None:
        """Refuse before there is a model what ``begin`` would refuse with one.

        Raises:
            ValueError: If the folder holds anything foreign, or the scores that are there were
                made with other settings.
            OSError: If the file cannot be written.
        """
        self._refuse_foreign()
        place = next(path for path in self.out.absolute().parents if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK)):
            raise OSError(f"out: {str(self.out)!r} cannot be written: no access to {str(place)!r}")
        for path in (self.out, *list(self.parts().values())[:1]) if resume else ():
            if label := label_of(path):
                made = {name: label["key"].get(name) for name in settings}
                self._compare(path, made, _in_json(settings))

    def begin(self, key: dict[str, object], attrs: dict[str, object], resume: bool) -> None:
        """Make the folder, or refuse what another run with other settings left there.

        Raises:
            ValueError: If the scores that are there were made with another key, or the folder
                holds anything foreign.
        """
        self._refuse_foreign()
        self.key, self.labels = _in_json(key), attrs
        if not resume:
            for path in (self.out, *self._own()):
                path.unlink(missing_ok=True)
        for path in (self.out, *self.parts().values()):
            self._check(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.begun = True
        self.finished = (label_of(self.out) or {}).get("parts", [])
        self.input.begin(self.finished)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second run from writing the same file; the lock ends with the process.

        Its file stays where it is: two runs that lock two files of one name do not see each other.

        Raises:
            ValueError: If another run holds it.
        """
        self.out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.out.with_name(f".{self.out.name}.lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(f"out: another run is writing {str(self.out)!r}") from None
        try:
            yield
        finally:
            if self.begun and not self.parts():
                self._clear()
            lock.release()

    def parts(self) -> dict[int, Path]:
        """Return the files of the parts by index, in order."""
        paths = [path for path in self._own() if path.suffix == ".parquet"]
        return {int(path.stem.removeprefix("part-")): path for path in paths}

    def has(self, index: int, digest: str) -> bool:
        """Whether this part is there, whole, and holds the scores of these very rows."""
        self.input.note(index, digest)
        path = self._path(index)
        self._check(path)
        whole = self._table(index, digest) is not None
        if not whole and path.exists():
            log.warning("part %d is damaged or holds other rows: it is computed again", index)
            path.unlink()
        return whole

    def put(self, index: int, digest: str, table: pa.Table) -> None:
        """Write one part, whole or not at all."""
        label = {"key": self.key, "part": digest, "attrs": self.labels}
        path = self._path(index)
        write_whole(path, path.with_suffix(".tmp"), table.schema, label, [table])
        first, last = (table["row"][place].as_py() for place in (0, -1))
        log.info("part %d stored, rows %d to %d", index, first, last)

    def finish(self, digests: list[str], schema: pa.Schema) -> None:
        """Merge the parts row group by row group, and remove them."""
        self.input.end(len(digests))
        if self.finished != digests or self.parts():
            label = {"key": self.key, "parts": digests, "attrs": self.labels}
            tables = (self._stored(index, digest) for index, digest in enumerate(digests))
            write_whole(self.out, self.folder / "merged.tmp", schema, label, tables)
        self._clear()

    def read(
        self, columns: list[str] | None = None
    ) -> tuple[list[pa.Table], dict[str, object], bool]:
        """Return what is there of one input, its labels, and whether it is all of it.

        Raises:
            ValueError: If other runs keep changing it meanwhile.
        """
        for _ in range(READINGS):
            out, parts = self._state()
            found = self._read(columns)
            out_now, parts_now = self._state()
            if out == out_now and parts <= parts_now:  # more parts do no harm
                return found
        raise ValueError(f"out: {str(self.out)!r} keeps changing while it is read; try again")

    def _read(self, columns: list[str] | None) -> tuple[list[pa.Table], dict[str, object], bool]:
        known = self.input.read()
        labels = [label_of(path) or {} for path in (self.out, *self.parts().values())]
        self.finished = labels[0].get("parts", [])
        current = self.finished if known is None else known
        found = (self._table(index, digest, columns) for index, digest in enumerate(current))
        tables = [table for table in found if table is not None]
        attrs = next((label["attrs"] for label in labels if label), {})
        return tables, attrs, self.finished == current and len(tables) == len(current)

    def _state(self) -> tuple[tuple | None, set[tuple]]:
        """What shows whether files were replaced or removed while others were read."""
        return identity(self.out), {(i, identity(path)) for i, path in self.parts().items()}

    def _stored(self, index: int, digest: str) -> pa.Table:
        table = self._table(index, digest)
        if table is None:
            raise ValueError(f"out: part {index} was damaged during the run; run it again")
        return table

    def _table(self, index: int, digest: str, columns: list[str] | None = None) -> pa.Table | None:
        """The scores of these rows: a part, or the finished file's row group of that number."""
        path, table = self._path(index), None
        if (label_of(path) or {}).get("part") == digest:
            table = read_table(path, columns)
        if table is None and self.finished[index : index + 1] == [digest]:
            table = read_table(self.out, columns, index)
        return table

    def _path(self, index: int) -> Path:
        return self.folder / f"part-{index:08d}.parquet"

    def _check(self, path: Path) -> None:
        if label := label_of(path):
            self._compare(path, label["key"], self.key)

    def _compare(self, path: Path, made: dict[str, object], key: dict[str, object]) -> None:
        if made != key:
            changed = differences(made, key)
            raise ValueError(f"out: {path.name} was made otherwise ({changed}); {START_OVER}")

    def _entries(self) -> list[Path]:
        with contextlib.suppress(FileNotFoundError):  # another run may remove it at any time
            return sorted(self.folder.iterdir())
        return []

    def _own(self) -> list[Path]:
        """The files in the folder that have the names of what runs write, in order."""
        if not self.folder.is_dir():
            return []
        return [path for path in self._entries() if OWN.fullmatch(path.name)]

    def _refuse_foreign(self) -> None:
        """Refuse a folder that holds anything but a run's files: it is the user's."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out: {str(self.folder)!r} is a file where a folder of parts must go")
        own = self._own()
        foreign = [path for path in self._entries() if path not in own or path.is_dir()]
        if not self.input.path.exists():  # no run began here: damaged parts are no run's either
            foreign += [p for p in self.parts().values() if label_of(p) is None and p.exists()]
        if foreign:
            raise ValueError(
                f"out: {str(self.folder)!r} must hold the parts of the run, and there is "
                f"{foreign[0].name!r}, which no run wrote; move it away, or give another out"
            )

    def _clear(self) -> None:
        """Remove what runs wrote, what says so last, and the folder if nothing else is in it."""
        for path in sorted(self._own(), key=lambda path: path.name == INPUT):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def _in_json(key: dict[str, object]) -> dict[str, object]:
    """A key as it comes back from a file."""
    return json.loads(json.dumps(key))
