"""Look at a whole dataset by its scores: filter, select, export, and open any single pair."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure

from toolkit.model import Policy
from toolkit.model.inputs import check_pairs, check_policy
from toolkit.pairs import PreferencePair
from toolkit.scoring import FilteredPairs
from toolkit.widgets import _dataset_text as text
from toolkit.widgets._dataset_scores import Scores, check_columns
from toolkit.widgets._dataset_state import DatasetState, share
from toolkit.widgets._dataset_view import DatasetView
from toolkit.widgets.pair_explorer import PairExplorer
from toolkit.widgets.panels.figure import Still
from toolkit.widgets.words import TWIN


class DatasetExplorer:
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
        self._skipped_before = len(getattr(pairs, "skipped", ()))
        pairs, columns = check_pairs(pairs, text=True), {"x": x, "y": y, "by": by}
        share(keep)
        if scores is None:
            check_columns(policy, pairs, columns)
        self._state = DatasetState(policy, Scores(policy, pairs, scores), **columns, keep=keep)
        if selection is not None:
            self._state.index = self._place_of(selection)
        self._view = DatasetView(self._state, self._skipped_before, live)
        self.widget = self._view.widget
        self._twin = None
        self._view.show_all()

    # ----------------------------------------------------------------- picking and selecting

    @property
    def selection(self) -> str:
        """Id of the picked pair; setting it picks another one.

        Raises:
            ValueError: If no pair has this id; the message names close ones.
        """
        return self._state.pair.id

    @selection.setter
    def selection(self, id: str) -> None:
        self._view.pick(self._place_of(id))

    def _place_of(self, id: str) -> int:
        place = self._state.place_of(id)
        if place is None:
            near = difflib.get_close_matches(str(id), self._state.ids, 3, 0.4)
            near = near or self._state.ids[:3]
            raise ValueError(
                f"selection={id!r} is no id of these pairs; ids close to it: {', '.join(near)}"
            )
        return place

    @property
    def pair(self) -> PreferencePair:
        """The picked pair."""
        return self._state.pair

    @property
    def selected_ids(self) -> list[str]:
        """Ids of the selected pairs in their order; settable."""
        return [self._state.ids[i] for i in self._state.part("selected")]

    @selected_ids.setter
    def selected_ids(self, ids: Iterable[str]) -> None:
        self._state.select_ids(ids)
        self._view.selected()

    def select_box(self, x: Sequence[float], y: Sequence[float]) -> list[str]:
        """Select the pairs inside a box of the scatter, as dragging one does; return their ids.

        Args:
            x: The two ends across, edges included.
            y: The two ends up.
        """
        for name, ends in (("x", x), ("y", y)):
            if isinstance(ends, str) or len(ends) != 2:
                raise ValueError(f"{name} must be two numbers, received {ends!r}")
        self._state.select_box(x, y)
        self._view.selected()
        return self.selected_ids

    def explore(self, **options) -> PairExplorer:
        """Return a :class:`PairExplorer` of the selected pairs, of the picked one if none is.

        Args:
            **options: Options of the PairExplorer.
        """
        places = self._state.part("selected")
        places = places if len(places) else [self._state.index]
        return PairExplorer(self._state.policy, [self._state.pairs[i] for i in places], **options)

    # ----------------------------------------------------------------- the filter

    @property
    def x(self) -> str:
        """Column along the bottom of the scatter; settable."""
        return self._state.columns["x"]

    @x.setter
    def x(self, column: str) -> None:
        self._view.set_column("x", column)

    @property
    def y(self) -> str:
        """Column up the side of the scatter; settable."""
        return self._state.columns["y"]

    @y.setter
    def y(self, column: str) -> None:
        self._view.set_column("y", column)

    @property
    def by(self) -> str:
        """Column that the filter ranks by; settable."""
        return self._state.columns["by"]

    @by.setter
    def by(self, column: str) -> None:
        self._view.set_column("by", column)

    @property
    def keep(self) -> float:
        """Share of the scored pairs that the filter keeps, in (0, 1]; settable."""
        return self._state.keep

    @keep.setter
    def keep(self, share: float) -> None:
        self._view.set_keep(share)

    def kept(self) -> FilteredPairs:
        """Return the kept pairs; ``.dropped`` names the others with the reason."""
        return self._state.kept()

    @property
    def unscored(self) -> pd.DataFrame:
        """The pairs without a value of ``by``: ``id, reason``."""
        return pd.DataFrame(self._state.unscored(), columns=["id", "reason"])

    def measure(self) -> DatasetExplorer:
        """Measure the pairs that an interrupt left out."""
        self._state.scores.measure()
        self._state.update()
        self._view.show_all()
        self._update_twin()
        return self

    def export(
        self, path: str | os.PathLike, *, format: str = "jsonl", which: str = "kept"
    ) -> Path:
        """Write the kept or the selected pairs as ``export_pairs`` does; return the path.

        Args:
            path: File to write.
            format: "jsonl" or "parquet".
            which: "kept" or "selected".

        Raises:
            ValueError: If an argument is not allowed, or no pair is selected.
            OSError: If the file cannot be written.
        """
        return self._view.exporter.export(path, format, which)

    # ----------------------------------------------------------------- what is shown

    def to_frame(self) -> pd.DataFrame:
        """Return the scores, one row a pair, with ``kept`` and ``selected``."""
        return self._state.to_frame()

    def figure(self) -> Figure:
        """Return a still figure: the scatter and the histograms of its two columns."""
        figure = Still(figsize=(13, 6), layout="constrained")
        text.draw(figure, self._state)
        return figure

    def to_html(self) -> str:
        """Return the dataset and the picked pair as self-contained HTML."""
        return text.still(self._state, self._skipped_before)

    def snapshot(self) -> HTML:
        """Return ``to_html()`` as an output that stays in the saved notebook."""
        return HTML(self.to_html())

    def close(self) -> None:
        """Take the widgets away."""
        self._view.close()

    def __repr__(self) -> str:
        s = self._state
        kept, picked = f"{len(s.kept()):,} of {len(s.pairs):,} pairs kept", f"picked {s.pair.id!r}"
        return f"DatasetExplorer({kept} by {self.by}, {picked})"

    def _ipython_display_(self) -> None:
        display({**self.widget._repr_mimebundle_(), "text/plain": repr(self)}, raw=True)
        self._twin = display(HTML(TWIN % self.to_html()), display_id=True)

    def _update_twin(self) -> None:
        if self._twin is not None:
            self._twin.update(HTML(TWIN % self.to_html()))
