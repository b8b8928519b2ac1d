"""What is chosen in a scored dataset: two columns, what a filter keeps, pairs, one of them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.path import Path as Outline

from toolkit.checks import choice as one_of, share
from toolkit.dataset.scores import Scores, no_numbers, number_columns
from toolkit.entanglements import suggest_lr
from toolkit.measurement import (
    SCORES,
    Cache,
    Measurement,
    PairResult,
    PairResults,
    place_in,
)
from toolkit.model import Policy
from toolkit.pairs import PairList, PreferencePair
from toolkit.scoring import FilteredPairs, export_pairs, filter_pairs, length_confound

FIRST = ("ln_ches", "ches", "cosine", "length_difference", "kappa", "neg_edit_distance",
         "last_hidden_inner")  # fmt: skip
PARTS = ("all", "kept", "dropped", "selected", "unscored")
FORMATS = ("jsonl", "parquet")
BETA = 0.1  # of the DPO step that the picked pair's predictions are for
SLACKS = ("chosen_slack", "rejected_slack")


class DatasetChoice:
    """Two columns to look at, a filter, selected pairs and a picked one.

    Args:
        policy: The model.
        scores: The scores of every pair.
        x: Column along the bottom.
        y: Column up the side.
        by: Column that the filter ranks by; for each of the three ``None`` takes the first there is
            of those usually looked at.
        keep: Share to keep.

    Raises:
        ValueError: If a column holds no numbers or ``keep`` is out of range.
    """

    def __init__(
        self,
        policy: Policy,
        scores: Scores,
        *,
        x: str | None,
        y: str | None,
        by: str | None,
        keep: float,
    ):
        self.policy, self.scores, self.pairs = policy, scores, scores.pairs
        self.ids = [pair.id for pair in self.pairs]
        self._at = {id: i for i, id in enumerate(self.ids)}
        self.selected = np.zeros(len(self.pairs), bool)
        self._confounds, self.columns = {}, {}
        self._kept: FilteredPairs | None = None
        self.update()
        first, second = self._usual()
        for name, value, usual in (("x", x, first), ("y", y, second), ("by", by, first)):
            self.set_column(name, usual if value is None else value)
        self.keep = keep
        self.index = self._worst()

    def update(self) -> None:
        """Take in the scores as they are now."""
        self.frame = self.scores.frame
        found = number_columns(self.frame)
        self.numbers = sorted(found, key=lambda n: FIRST.index(n) if n in FIRST else len(FIRST))
        if not found:
            raise ValueError("scores: no pair has a number in any column")
        self._values = {name: self.frame[name].astype("float64").to_numpy() for name in found}
        self._confounds.clear()
        self._details, self.lr = Cache(32), self._suggested_lr()
        for name, column in list(self.columns.items()):
            self.set_column(name, column)

    def _usual(self) -> tuple[str, str]:
        """Two columns to begin with: lnCHES and the cosine, or what there is in their place."""
        first, *others = self.numbers
        return first, next((n for n in ("cosine", *others) if n in others), first)

    def _worst(self) -> int:
        """The drawn pair whose chosen response is predicted to fall most; the first, if unknown."""
        drawn = np.isfinite(self.places()).all(1)
        slack = self._values.get("chosen_slack", np.zeros(len(drawn)))
        return int(np.argmin(np.where(drawn & np.isfinite(slack), slack, np.inf)))

    def _suggested_lr(self) -> float | None:
        """A learning rate for a DPO step on any of the pairs; ``None`` if the scores are others."""
        attrs, ours = self.frame.attrs, self.policy.labels("all").model
        found = attrs.get("loss_name"), attrs.get("beta"), attrs.get("model")
        if found != ("dpo", BETA, ours) or not set(SLACKS) <= set(self._values):
            return None
        return suggest_lr(*(self._values[name] for name in SLACKS))

    # ----------------------------------------------------------------- columns and filter

    def set_column(self, name: str, column: str) -> None:
        """Set ``x``, ``y`` or ``by``."""
        if column not in self.numbers:
            raise no_numbers(name, column, self.numbers)
        self.columns[name] = column
        if name == "by":
            self._kept = None
            # Ranked once, so that a slider moves smoothly through ten thousand pairs.
            values = pd.Series(self._values[column]).dropna()
            self._ranked = values.sort_values(kind="stable").index.to_numpy()

    @property
    def keep(self) -> float:
        """Share of the scored pairs that the filter keeps, those lowest in ``by``."""
        return self._keep

    @keep.setter
    def keep(self, value: float) -> None:
        self._keep, self._kept = share("keep", value), None

    def kept(self) -> FilteredPairs:
        """Return the pairs that the filter keeps."""
        if self._kept is None:
            self._kept = filter_pairs(self.pairs, self.frame, self.columns["by"], self._keep)
        return self._kept

    @property
    def mask(self) -> np.ndarray:
        """Which pairs ``kept`` holds."""
        mask = np.zeros(len(self.pairs), bool)
        mask[self._ranked[: math.ceil(round(self._keep * len(self._ranked), 9))]] = True
        return mask

    @property
    def cut(self) -> float:
        """Highest kept value of ``by``."""
        return float(self._values[self.columns["by"]][self.mask].max())

    def counts(self) -> dict[str, int]:
        """How many pairs are kept, dropped and unscored."""
        kept, scored = int(self.mask.sum()), len(self._ranked)
        unscored = len(self.pairs) - scored
        return {"kept": kept, "dropped": scored - kept, "unscored": unscored}

    def regimes(self) -> pd.DataFrame | None:
        """How many pairs of each regime are kept and in all; ``None`` without regimes."""
        if "regime" not in self.frame or not self.frame["regime"].notna().any():
            return None
        every = self.frame["regime"].value_counts()
        kept = self.frame.loc[self.mask, "regime"].value_counts()
        return pd.DataFrame({"kept": kept.reindex(every.index, fill_value=0), "all": every})

    def confound(self) -> float | None:
        """Spearman's ρ of ``by`` with the length difference; ``None`` without lengths."""
        by = self.columns["by"]
        if "length_difference" not in self.frame:
            return None
        if by not in self._confounds:
            self._confounds[by] = length_confound(self.frame, by)
        return self._confounds[by]

    def unscored(self) -> list[tuple[str, str]]:
        """The id and the reason of each pair without a value of ``by``."""
        lost = np.isnan(self._values[self.columns["by"]])
        rows = self.frame.loc[lost, ["pair_id", "error"]]
        return [(row.pair_id, row.error or "its value is missing") for row in rows.itertuples()]

    # ----------------------------------------------------------------- picking and selecting

    @property
    def pair(self) -> PreferencePair:
        """The picked pair."""
        return self.pairs[self.index]

    def place_of(self, id: str) -> int:
        """Return where the pair with this id stands.

        Raises:
            ValueError: If no pair has it; the message names close ones.
        """
        return self._at[id] if id in self._at else place_in(self.ids, id)

    def selected_ids(self) -> list[str]:
        """Return the ids of the selected pairs in their order."""
        return self._ids(self.selected)

    def places(self) -> np.ndarray:
        """Return the two drawn values of every pair, (n, 2), NaN where there is none."""
        both = np.column_stack([self._values[self.columns[side]] for side in ("x", "y")])
        both[~np.isfinite(both).all(1)] = np.nan
        return both

    def neighbour(self, axis: int, by: int) -> int:
        """Return the pair next to the picked one along an axis of the scatter; stop at its end."""
        values = self.places()[:, axis]
        order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]
        if not len(order):
            return self.index
        at = np.flatnonzero(order == self.index)
        if not len(at):
            return int(order[0])
        return int(order[np.clip(at[0] + by, 0, len(order) - 1)])

    def ids_in_box(self, x: Sequence[float], y: Sequence[float]) -> list[str]:
        """Return the ids of the pairs inside a box of the scatter, its edges included."""
        (left, right), (low, high) = sorted(x), sorted(y)
        across, up = self.places().T
        return self._ids((left <= across) & (across <= right) & (low <= up) & (up <= high))

    def ids_in_outline(self, corners: Sequence[tuple[float, float]]) -> list[str]:
        """Return the ids of the pairs inside a drawn outline."""
        places = self.places()
        inside = Outline(corners).contains_points(np.nan_to_num(places))
        return self._ids(inside & ~np.isnan(places[:, 0]))

    def _ids(self, mask: np.ndarray) -> list[str]:
        return [self.ids[place] for place in np.flatnonzero(mask)]

    def select_ids(self, ids: Iterable[str]) -> None:
        """Select pairs by id.

        Raises:
            ValueError: If an id is unknown.
        """
        ids = [ids] if isinstance(ids, str) else list(ids)
        lost = [id for id in ids if id not in self._at]
        if lost:
            raise ValueError(f"selected_ids: {lost[0]!r} is no id of these pairs")
        self.selected = np.zeros(len(self.pairs), bool)
        self.selected[[self._at[id] for id in ids]] = True

    def part(self, name: str) -> np.ndarray:
        """Return the places of the pairs of a part: one of ``PARTS``."""
        lost, kept = np.isnan(self._values[self.columns["by"]]), self.mask
        masks = {"all": np.ones(len(lost), bool), "kept": kept, "unscored": lost,
                 "dropped": ~kept & ~lost, "selected": self.selected}  # fmt: skip
        return np.flatnonzero(masks[name])

    # ----------------------------------------------------------------- results

    def plot_frame(self) -> pd.DataFrame:
        """Return what the figures read: the drawn columns, regime, kept and selected."""
        names = list(dict.fromkeys([*self.columns.values()]))
        columns = {"pair_id": self.ids} | {name: self._values[name] for name in names}
        if "regime" in self.frame:
            columns["regime"] = self.frame["regime"].to_numpy(object)
        return pd.DataFrame(columns | {"kept": self.mask, "selected": self.selected})

    def to_frame(self) -> pd.DataFrame:
        """Return the scores with ``kept`` and ``selected``."""
        return self.frame.assign(kept=self.mask, selected=self.selected)

    def export(
        self, path: str | os.PathLike, format: str, which: str, overwrite: bool = False
    ) -> tuple[Path, int]:
        """Write the kept or the selected pairs; return where, and how many.

        Raises:
            ValueError: If an argument is not allowed, the file is there already and not to be
                replaced, or no pair is selected.
            OSError: If the file cannot be written.
        """
        one_of("which", which, ("kept", "selected"))
        one_of("format", format, FORMATS)
        if not str(path).strip():
            raise ValueError("path is empty; give the name of a file to write")
        pairs = PairList(self.pairs[i] for i in self.part(which))
        if not pairs:
            raise ValueError(f"which={which!r}: no pair is {which}")
        path = Path(path).expanduser()
        return Path(export_pairs(pairs, path, format=format, overwrite=overwrite)), len(pairs)

    def details(self) -> PairResult:
        """Return the state of the picked pair alone: tokens, predictions; measured when asked.

        Raises:
            ValueError: If the pair cannot be scored.
        """
        return self._details.get(self.index, self._measure_picked)

    def _measure_picked(self) -> PairResult:
        row = self.frame.iloc[[self.index]]
        known = all(name in row and not math.isnan(row[name].iloc[0]) for name in SCORES)
        alone = Measurement(self.policy, [self.pair], "all", scores=row if known else None)
        alone.step(1)
        return PairResults(alone, "dpo", BETA, self.lr, {}).at(0)
