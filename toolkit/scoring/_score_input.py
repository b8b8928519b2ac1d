"""Which input the stored parts belong to: the hashes of its parts, kept beside them."""

from __future__ import annotations

import os
from pathlib import Path

from toolkit.scoring._score_key import LENGTH

STEP = LENGTH + 1  # a hash and its line's end


class InputLog:
    """The hashes of the input's parts in order, as far as any run has read it.

    A run notes each part as it passes it. While the input is the one of before, nothing changes;
    at the first part that differs everything behind it is cut off, so that scores of the old input
    are never taken for scores of the new one, wherever the run stops.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, []

    def read(self) -> list[str] | None:
        """Return the hashes, or ``None`` where there is no file."""
        try:
            lines = self.path.read_text(encoding="ascii", errors="replace").split("\n")
        except FileNotFoundError:
            return None
        return lines[:-1]  # what follows the last line's end is half a line

    def begin(self, finished: list[str]) -> None:
        """Go on with what is known; at first that is the input of the finished file."""
        known = self.read()
        if known is None:
            passing = self.path.with_suffix(".tmp")
            passing.write_text("".join(f"{digest}\n" for digest in finished), encoding="ascii")
            os.replace(passing, self.path)
        self.known = list(finished) if known is None else known

    def note(self, index: int, digest: str) -> None:
        """Note the part that the run has reached."""
        if self.known[index : index + 1] != [digest]:
            self.known[index:] = [digest]
            self._write(index, f"{digest}\n")

    def end(self, count: int) -> None:
        """Note that the input holds no more parts than these."""
        if len(self.known) > count:
            del self.known[count:]
            self._write(count, "")

    def _write(self, index: int, line: str) -> None:
        """Cut the file off before a line and write that line anew."""
        with open(self.path, "ab") as file:
            file.truncate(index * STEP)
            file.write(line.encode("ascii"))
