"""Look at a whole dataset by its scores: filter, select, export, and open any single pair."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as w
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.checks import share
from toolkit.dataset.choice import FORMATS, PARTS, DatasetChoice
from toolkit.dataset.scores import Scores, check_columns
from toolkit.model import Policy
from toolkit.model.inputs import check_pairs, check_policy
from toolkit.pairs import PreferencePair
from toolkit.scoring import FilteredPairs
from toolkit.widgets import _dataset_words as text
from toolkit.widgets.explorer import Explorer
from toolkit.widgets.pair_explorer import PairExplorer
from toolkit.widgets.panels.controls import WIDE, column, dropdown
from toolkit.widgets.panels.export import ExportRow
from toolkit.widgets.panels.figure import Picture, Still, image_html
from toolkit.widgets.panels.pair_tabs import PairTabs
from toolkit.widgets.panels.panel import Panel, Text
from toolkit.widgets.panels.pointer import Pointer

COLUMNS = {"x": "across", "y": "up", "by": "rank by"}


class DatasetExplorer(Explorer):
    """Explore the scores of a dataset: which pairs to train on, and what a filter would take away.

    Shown in a notebook it is a sortable, searchable table linked with a scatter of any two scores:
    a click or an arrow key picks a pair, which is then shown token by token; a dragged box or
    outline selects pairs. A slider keeps the share of the pairs that is lowest in a score and
    counts what it keeps, also by regime; the histograms show where it cuts, and Spearman's ρ with
    the length difference says whether the score ranks by length alone. The kept or the selected
    pairs are written to a file that ``load_pairs`` and TRL read.

    Everything is in reach of Python too, without a screen. A notebook keeps no widgets: whoever
    opens it without running it finds a still copy under the explorer.

    Args:
        policy: The model.
        pairs: Preference pairs, ids unique.
        scores: The frame of ``score_pairs`` for these pairs, or the path of its file; measured if
            not given (similarity and DPO's entanglement). Score a large dataset with
            ``score_pairs(..., out=path)`` first: that can be resumed. An interrupt keeps what is
            measured; ``measure()`` goes on.
        x: Column along the bottom of the scatter; ``"ln_ches"``, or the first one there is.
        y: Column up its side; ``"cosine"``, or the next one there is.
        by: Column that the filter ranks by; as ``x``.
        keep: Share of the scored pairs that the filter keeps, those lowest in ``by``.
        selection: Id of the pair to start with; by default the worst one, whose chosen response is
            predicted to fall most, where the scores say so, else the first.
        live: Use ipympl, where installed, so that the scatter can be clicked and dragged.

    Raises:
        ValueError: If an argument is not allowed, or a pair has no row in ``scores``.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=4)
        >>> explorer = tk.DatasetExplorer(policy, pairs)
        >>> explorer.keep = 0.5
        >>> len(explorer.kept())
        2
    """

    selection = traitlets.Any(help="id of the picked pair")
    selected_ids = traitlets.Any(help="ids of the selected pairs in their order")
    x = traitlets.Any(help="column along the bottom of the scatter")
    y = traitlets.Any(help="column up the side of the scatter")
    by = traitlets.Any(help="column that the filter ranks by")
    keep = traitlets.Any(help="share of the scored pairs that the filter keeps, in (0, 1]")

    def __init__(
        self,
        policy: Policy,
        pairs: Sequence[PreferencePair],
        *,
        scores: pd.DataFrame | str | os.PathLike | None = None,
        x: str | None = None,
        y: str | None = None,
        by: str | None = None,
        keep: float = 0.5,
        selection: str | None = None,
        live: bool = True,
    ):
        check_policy(policy)
        super().__init__(pairs)
        pairs, columns = check_pairs(pairs, text=True), {"x": x, "y": y, "by": by}
        share("keep", keep)
        if scores is None:
            check_columns(policy, pairs, columns)
        self.choice = DatasetChoice(policy, Scores(policy, pairs, scores), **columns, keep=keep)
        self.ids = self.choice.ids
        if selection is not None:
            self.choice.index = self.choice.place_of(selection)
        self._found: tuple[int, dict[str, str]] | None = None
        self.follow()
        self._build(live)

    # ----------------------------------------------------------------- traits

    def chosen(self) -> dict[str, object]:
        """Return what is picked and set, as the traits have it."""
        choice = self.choice
        return {**choice.columns, "keep": choice.keep, "selection": choice.pair.id,
                "selected_ids": choice.selected_ids()}  # fmt: skip

    @traitlets.validate("selection", "selected_ids", "x", "y", "by", "keep")
    def _check(self, proposal) -> object:
        name, value, choice = proposal["trait"].name, proposal["value"], self.choice
        if self.quiet:  # it follows the results
            return value
        if name == "selection":
            choice.index = choice.place_of(value)
        elif name == "selected_ids":
            choice.select_ids(value)
        elif name == "keep":
            choice.keep = value
        else:
            choice.set_column(name, value)
        return self.chosen()[name]

    @property
    def index(self) -> int:
        """Place of the picked pair."""
        return self.choice.index

    @property
    def pair(self) -> PreferencePair:
        """The picked pair."""
        return self.choice.pair

    def select_box(self, x: Sequence[float], y: Sequence[float]) -> list[str]:
        """Select the pairs inside a box of the scatter, as dragging one does; return their ids.

        Args:
            x: The two ends across, edges included.
            y: The two ends up.
        """
        for name, ends in (("x", x), ("y", y)):
            if isinstance(ends, str) or len(ends) != 2:
                raise ValueError(f"{name} must be two numbers, received {ends!r}")
        self.selected_ids = self.choice.ids_in_box(x, y)
        return self.selected_ids

    def select_outline(self, corners: Sequence[tuple[float, float]]) -> list[str]:
        """Select the pairs inside an outline, as drawing one does; return their ids."""
        self.selected_ids = self.choice.ids_in_outline(corners)
        return self.selected_ids

    def explore(self, **options) -> PairExplorer:
        """Return a :class:`PairExplorer` of the selected pairs, of the picked one if none is.

        Args:
            **options: Options of the PairExplorer.
        """
        places = self.choice.part("selected")
        places = places if len(places) else [self.index]
        return PairExplorer(self.choice.policy, [self.choice.pairs[i] for i in places], **options)

    def kept(self) -> FilteredPairs:
        """Return the kept pairs; ``.dropped`` names the others with the reason."""
        return self.choice.kept()

    @property
    def unscored(self) -> pd.DataFrame:
        """The pairs without a value of ``by``: ``pair_id, reason``."""
        return pd.DataFrame(self.choice.unscored(), columns=["pair_id", "reason"])

    def measure(self) -> DatasetExplorer:
        """Measure the pairs that an interrupt left out."""
        self.choice.scores.measure()
        self.choice.update()
        self._found = None
        self.follow()
        self.show()
        self.write_copy()
        return self

    def export(
        self,
        path: str | os.PathLike,
        *,
        format: str = "jsonl",
        which: str = "kept",
        overwrite: bool = False,
    ) -> Path:
        """Write the kept or the selected pairs as ``export_pairs`` does; return the path.

        Args:
            path: File to write.
            format: "jsonl" or "parquet".
            which: "kept" or "selected".
            overwrite: Replace a file that is already there.

        Raises:
            ValueError: If an argument is not allowed, the file is there already, or no pair is
                selected.
            OSError: If the file cannot be written.
        """
        return self.choice.export(path, format, which, overwrite)[0]

    # ----------------------------------------------------------------- panels

    def _build(self, live: bool) -> None:
        choice, columns = self.choice, list(COLUMNS)
        self.add_picker(page=10, buttons=3)  # numbers of five digits need the room of two buttons
        self.map, self.histograms = Picture(500, 430, live=live), Picture(500, 330, live=live)
        self.pointer = Pointer(
            self.map, self.event, places=choice.places, pick=self.pick,
            walk=lambda axis, by: self.pick(choice.neighbour(axis, by)),
            box=self.select_box, outline=self.select_outline,
            clear=lambda: setattr(self, "selected_ids", []),
        )  # fmt: skip
        self.exporter = ExportRow(choice.export, FORMATS, self.event)
        self._more, self._tabs = w.VBox(), None
        filtered = [*columns, "keep"]
        self.panels = {
            "header": Text(lambda: text.header(choice)),
            "note": Text(
                lambda: text.note(choice, self.skipped_before), on=filtered, widget=self.note
            ),
            "histograms": Panel(
                self._draw_histograms, on=filtered,
                widget=column(self.histograms.widget, flex="0 0 auto"),
            ),
            "map": Panel(
                self._draw_map, self._pictures_html, on=[*filtered, "selection", "selected_ids"],
                widget=column(self.map.widget, flex="0 0 auto"),
            ),
            "ranking": Text(lambda: text.ranking(choice), on=[*filtered, "selected_ids"]),
            **{
                name: Text(lambda name=name: self._details()[name], on=["selection"])
                for name in ("status", "prompt", "strips", "numbers")
            },
            "tabs": Panel(self._draw_tabs, on=["selection"], widget=self._more),
            "table": Panel(
                self._draw_table, on=["part", "selected_ids"], late=filtered,
                widget=column(self.table.widget, width="100%"),
            ),
            # Last, because turning to its page keeps the browser busy in a long table.
            "row": Panel(lambda _: self.table.select(self.index), on=["selection"]),
        }  # fmt: skip
        self._build_controls()
        self._lay_out()

    def _build_controls(self) -> None:
        names = {name: plots.visible_text(name.replace("_", " ")) for name in self.choice.numbers}
        for name, words in COLUMNS.items():
            self.bind(name, dropdown(words, names, 235))
        keep = w.FloatSlider(
            100, min=0.5, max=100, step=0.5, readout_format=".1f", style=WIDE,
            description="keep the lowest, %", layout={"width": "400px"},
        )  # fmt: skip
        self.bind(
            "keep", keep, show=lambda share: round(100 * share, 4),
            read=lambda percent: round(percent / 100, 6),
        )  # fmt: skip
        part = self.parts["part"] = dropdown("rows", PARTS, 128)
        part.observe(lambda _: self.event(self.show, "part"), "value")

    def _lay_out(self) -> None:
        top = {"align_items": "flex-start", "grid_gap": "4px 14px"}
        side = {"flex": "1 1 380px", "min_width": "0", "grid_gap": "6px"}
        wide = {"grid_gap": "4px 14px"}
        rows = self.beside("previous", "next", "choose", "part", grid_gap="4px 4px")
        scatter = self.below(
            "map", self.beside("x", "y", **wide), self.pointer.widget, flex="0 0 auto"
        )
        ranks = self.below(
            self.beside("by", "keep", **wide), "ranking", self.exporter.widget, **side
        )
        self.open(
            "header", "note",
            self.beside(self.below(rows, "table", **side), scatter, **top),
            self.beside(ranks, "histograms", **top),
            "status", "prompt", "tabs",
        )  # fmt: skip

    def _details(self) -> dict[str, str]:
        """The picked pair in words; made once for all panels that show it."""
        if self._found is None or self._found[0] != self.index:
            self._found = self.index, text.details_of(self.choice)
        return self._found[1]

    def _draw_tabs(self, changed: frozenset[str]) -> None:
        """Show the picked pair alone, or why there is nothing to show."""
        strips, numbers = (self.panels[name].widget for name in ("strips", "numbers"))
        try:
            self.choice.details()
        except ValueError:
            self._more.children = [strips]
            return
        if self._tabs is None:
            # Among others the scatter ranks the pair, no tab.
            self._tabs = PairTabs(
                self.choice.details, w.VBox([strips, numbers]), self.event, rank=False
            )
        self._more.children = [self._tabs.widget]
        self._tabs.show()

    def _draw_map(self, changed: frozenset[str]) -> None:
        frame = self.choice.plot_frame()
        with self.map.changing():
            axes = self.map.axes(anew=not changed)
            if not changed:
                plots.score_scatter(self._labelled(frame), x=self.x, y=self.y, ax=axes)
                self.pointer.attach(axes)
            plots.score_scatter(frame, **self._scatter, ax=axes)
            if not changed or "y" in changed:  # other labels need another room
                self.map.lay_out(w_pad=0.08)
            self.map.redraw()

    def _draw_histograms(self, changed: frozenset[str]) -> None:
        frame = self.choice.plot_frame()
        with self.histograms.changing():
            axes = self.histograms.axes(1, 2, anew=not changed)
            for side, ax in zip(("x", "y"), axes, strict=True):
                self._draw_histogram(frame, side, ax)
                ax.set_ylabel("pairs" if side == "x" else "")
                ax.xaxis.label.set_fontsize(9)
            if not changed or changed & {"x", "y"}:
                self.histograms.lay_out(w_pad=0.08)
            self.histograms.redraw()

    def _draw_histogram(self, frame: pd.DataFrame, side: str, ax) -> None:
        """Draw one column; the cut is where the filter ranks by it."""
        name = getattr(self, side)
        cut = self.choice.cut if name == self.by else None
        plots.score_histogram(frame, name, cut=cut, ax=ax)

    def _labelled(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with the labels of the scores, for a caption."""
        frame = frame.copy()
        frame.attrs.update(self.choice.frame.attrs)
        return frame

    @property
    def _scatter(self) -> dict[str, object]:
        return {**self.choice.columns, "cut": self.choice.cut, "picked": self.selection}

    def _draw_table(self, changed: frozenset[str]) -> None:
        """Show the rows of the part; a selection or a share may leave them as they are."""
        places = self.choice.part(self.parts["part"].value)
        if (
            changed
            and changed <= {"keep", "selected_ids"}
            and (np.array_equal(places, self.table.places))
        ):
            return
        self.table.show(text.table_frame(self.choice, places), self.index, places)

    # ----------------------------------------------------------------- results without a screen

    def to_frame(self) -> pd.DataFrame:
        """Return the scores, one row per pair, with ``kept`` and ``selected``."""
        return self.choice.to_frame()

    def figure(self) -> Figure:
        """Return a still figure: the scatter and the histograms of its two columns."""
        return self._paint(Still(figsize=(13, 6), layout="constrained"))

    def _pictures_html(self) -> str:
        figure = self._paint(Figure(figsize=(10, 5), layout="constrained"))
        return image_html(figure, "scatter and histograms of the scores")

    def _paint(self, figure: Figure) -> Figure:
        axes = figure.subplot_mosaic([["map", "x"], ["map", "y"]], width_ratios=[1.5, 1])
        frame = self.choice.plot_frame()
        plots.score_scatter(self._labelled(frame), **self._scatter, ax=axes["map"])
        for side in ("x", "y"):
            self._draw_histogram(frame, side, axes[side])
        return figure

    def __repr__(self) -> str:
        kept = f"{len(self.kept()):,} of {len(self.choice.pairs):,} pairs kept"
        return f"DatasetExplorer({kept} by {self.by}, picked {self.selection!r})"
