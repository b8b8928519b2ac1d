"""The table of a dataset explorer: all pairs, or the part of them that is asked for."""

from __future__ import annotations

import numpy as np

from toolkit.widgets import _dataset_text as text
from toolkit.widgets._dataset_state import DatasetState
from toolkit.widgets.panels.table import PairTable


class PartTable(PairTable):
    """A table of some of the pairs; a pair that is not among them is marked nowhere."""

    def __init__(self, pick, page: int):
        self.places = np.arange(0)
        # Numbers of five digits need the room of two buttons.
        super().__init__(lambda row: pick(int(self.places[row])), page, buttons=3)

    def show_part(self, state: DatasetState, part: str) -> None:
        """Show the pairs of a part."""
        self.places = state.part(part)
        self.show(text.table_frame(state, self.places), self._row_of(state.index))

    def mark(self, place: int) -> None:
        """Mark the row of this pair without calling back."""
        self.select(self._row_of(place))

    def place_beside(self, place: int, by: int) -> int | None:
        """Return the pair in the row beside this pair's, round the end; ``None`` without rows."""
        row = self._row_of(place)
        if row is None and len(self.places):  # as if it stood among them
            row = int(np.searchsorted(self.places, place)) - (by < 0)
            return int(self.places[row % len(self.places)])
        row = self.neighbour(row, by)
        return None if row is None else int(self.places[row])

    def _row_of(self, place: int) -> int | None:
        rows = np.flatnonzero(self.places == place)
        return int(rows[0]) if len(rows) else None
