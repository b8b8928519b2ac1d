"""The table of a dataset explorer: all pairs, or the part of them that is asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd

from toolkit.widgets import _dataset_text as text
from toolkit.widgets._dataset_state import DatasetState
from toolkit.widgets._parts import PairTable


class PartTable(PairTable):
    """A table of some of the pairs; a pair that is not among them is marked nowhere."""

    def __init__(self, pick, page: int):
        self.places = np.arange(0)
        super().__init__(lambda row: pick(int(self.places[row])), page)

    def show_part(self, state: DatasetState, part: str) -> None:
        """Show the pairs of a part."""
        self.places = state.part(part)
        frame, rows = text.table_frame(state, self.places), self._rows_of(state.index)
        if self._table is None:
            self.show(frame, rows[0])
            return
        self._quiet = True
        with pd.option_context("display.float_format", "{:.3g}".format):
            self._table.update(frame, selected_rows=rows, **self._options())
        self._quiet = False

    def mark(self, place: int) -> None:
        """Mark the row of this pair without calling back."""
        self._quiet = True
        self._table.selected_rows = self._rows_of(place)
        self._quiet = False

    def _options(self) -> dict:
        # Numbers of five digits need the room of two buttons.
        paging = {"bottomEnd": {"paging": {"type": "simple_numbers", "buttons": 3}}}
        options = super()._options()
        return {**options, "layout": {**options["layout"], **paging}}

    def _rows_of(self, place: int) -> list[int]:
        return np.flatnonzero(self.places == place).tolist()
