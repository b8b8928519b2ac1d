"""A whole explorer in a few lines: the histogram of one column, and where a picked row stands.

In a notebook::

    frame = tk.pair_stats(policy, pairs).to_frame()
    HistogramExplorer(frame, "cosine")
"""

from __future__ import annotations

import ipywidgets as w
import pandas as pd
import seaborn as sns
import traitlets
from matplotlib.figure import Figure

from toolkit.checks import choice, whole
from toolkit.measurement import place_in
from toolkit.plots import html_text, number, visible_token
from toolkit.widgets import words
from toolkit.widgets.explorer import Explorer
from toolkit.widgets.panels.controls import dropdown
from toolkit.widgets.panels.figure import Picture, image_html
from toolkit.widgets.panels.panel import Panel, Text


class HistogramExplorer(Explorer):
    """Show how one column of a frame is spread, and where the picked row stands.

    Args:
        frame: One row per pair, with ``pair_id``.
        column: The column to begin with.
        bins: Number of bars.
        live: Use ipympl, where installed.

    Raises:
        ValueError: If the column is none of the frame's numbers, or an option is out of range.
    """

    # 1. What can be picked and set: a trait each, and what is allowed.
    selection = traitlets.Any(help="id of the picked row")
    column = traitlets.Any(help="the column that is shown")
    bins = traitlets.Any(20, help="number of bars")

    def __init__(self, frame: pd.DataFrame, column: str, *, bins: int = 20, live: bool = True):
        super().__init__()
        self.frame, self.ids = frame, frame["pair_id"].tolist()
        self.column, self.bins, self.selection = column, bins, self.ids[0]
        self._build(live)

    @traitlets.validate("selection")
    def _check_selection(self, proposal) -> str:
        place_in(self.ids, proposal["value"])
        return proposal["value"]

    @traitlets.validate("column")
    def _check_column(self, proposal) -> str:
        return choice("column", proposal["value"], self.frame.select_dtypes("number"))

    @traitlets.validate("bins")
    def _check_bins(self, proposal) -> int:
        return whole("bins", proposal["value"])

    # 2. What follows from them, without a screen.
    def figure(self) -> Figure:
        """Return a still figure of what is shown."""
        return self._drawn(Figure(figsize=(5, 3.2), layout="constrained"))

    def _drawn(self, figure: Figure) -> Figure:
        figure.clear()
        axes = sns.histplot(self.frame, x=self.column, bins=self.bins, ax=figure.subplots())
        axes.axvline(self.frame[self.column].iloc[self.index], color="black", ls="--")
        return figure

    def _sentence(self) -> str:
        values = self.frame[self.column]
        value, below = values.iloc[self.index], (values < values.iloc[self.index]).mean()
        name, id = html_text(self.column), html_text(visible_token(self.selection))
        text = f"<b>{id}</b>: {name} {number(value)}, above {below:.0%} of the pairs."
        return words.say(None, text)

    # 3. What is shown: each panel says what it depends on, and what stands for it in a still copy.
    def _build(self, live: bool) -> None:
        self.picture = Picture(500, 320, live=live)
        self.add_picker()
        self.panels = {
            "note": Text(lambda: "", widget=self.note),
            "status": Text(self._sentence, on=["selection", "column"]),
            "histogram": Panel(
                self._draw,
                lambda: image_html(self.figure(), "histogram"),
                on=["selection", "column", "bins"],
                widget=self.picture.widget,
            ),
            "table": Panel(
                lambda changed: self.table.show(self.frame[["pair_id", self.column]], self.index),
                on=["column"],
                widget=self.table.widget,
            ),
            "row": Panel(lambda changed: self.table.select(self.index), on=["selection"]),
        }
        names = {name: name for name in self.frame.select_dtypes("number")}
        self.bind("column", dropdown("column", names, 200))
        self.bind("bins", w.IntSlider(min=2, max=60))
        arrows = self.beside("previous", "next", "choose", "column", "bins")
        self.open("note", "status", arrows, self.beside("table", "histogram"))

    def _draw(self, changed: frozenset[str]) -> None:
        with self.picture.changing():
            self._drawn(self.picture.figure)
            self.picture.redraw()
