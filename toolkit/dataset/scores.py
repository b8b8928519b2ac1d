"""The scores that a dataset explorer shows: given, read from a file, or measured; a row a pair."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from toolkit.checks import check_pair_id
from toolkit.model import Policy
from toolkit.pairs import PreferencePair
from toolkit.scoring import read_scores, score_pairs

MEASURES = ("similarity", "entanglement")
UNMEASURED = "not measured yet"
QUICK = 64  # pairs that are not worth a progress bar


class Scores:
    """The scores of every pair, one row each in the order of the pairs.

    Args:
        policy: The model, for what is to be measured.
        pairs: The pairs.
        scores: A frame with ``pair_id`` and columns of numbers, the path of one that
            ``score_pairs`` wrote, or ``None`` to measure them.

    Raises:
        ValueError: If ids repeat, a pair has no row, or there are no scores.
    """

    def __init__(
        self,
        policy: Policy,
        pairs: Sequence[PreferencePair],
        scores: pd.DataFrame | str | os.PathLike | None,
    ):
        self.policy, self.pairs = policy, list(pairs)
        self._folder: tempfile.TemporaryDirectory | None = None
        repeated = [id for id, n in Counter(p.id for p in self.pairs).items() if n > 1]
        if repeated:
            raise ValueError(f"pairs: id {repeated[0]!r} occurs twice; ids must be unique")
        if scores is None:
            self._folder = tempfile.TemporaryDirectory(prefix="scores-")
            self.measure()
        elif isinstance(scores, pd.DataFrame):
            self.frame = self._matched(scores)
        elif isinstance(scores, (str, os.PathLike)):
            self.frame = self._matched(_read(scores))
        else:
            raise ValueError(
                f"scores must be a frame of score_pairs, a path or None, got {type(scores)}"
            )

    @property
    def finished(self) -> bool:
        """Whether nothing is left to measure."""
        return not (self.frame["error"] == UNMEASURED).any()

    def measure(self) -> None:
        """Measure what is missing; interrupted, it keeps the parts that are done.

        Raises:
            KeyboardInterrupt: If nothing at all is measured yet.
        """
        if self._folder is None:
            return
        out = Path(self._folder.name) / "scores.parquet"
        options = {"measures": MEASURES, "progress": len(self.pairs) > QUICK}
        try:
            score_pairs(self.policy, self.pairs, out=out, **options)
        except KeyboardInterrupt:
            if not list(out.parent.rglob("*.parquet")):
                raise
        self.frame = self._matched(read_scores(out), partial=True)

    def _matched(self, scores: pd.DataFrame, partial: bool = False) -> pd.DataFrame:
        """Return the row of each pair, in the order of the pairs."""
        check_pair_id("scores", scores)
        rows, ids = scores.dropna(subset="pair_id"), [pair.id for pair in self.pairs]
        if rows["pair_id"].duplicated().any():
            id = rows.loc[rows["pair_id"].duplicated(), "pair_id"].iloc[0]
            raise ValueError(f"scores: id {id!r} is there twice")
        rows = rows.set_index("pair_id")
        lost = [id for id, known in zip(ids, pd.Index(ids).isin(rows.index), strict=True)
                if not known]  # fmt: skip
        if lost and not partial:
            raise ValueError(f"scores: no row for pair {lost[0]!r} ({len(lost):,} pairs have none)")
        frame = rows.reindex(ids).reset_index()
        errors = frame["error"].fillna("") if "error" in frame else pd.Series("", frame.index)
        frame["error"] = errors.where(~frame["pair_id"].isin(lost), UNMEASURED)
        if {"chosen_length", "rejected_length"} <= set(frame):
            longer = frame["rejected_length"] - frame["chosen_length"]
            frame["length_difference"] = longer.astype("float64")
        frame.attrs.update(scores.attrs)
        return frame


def check_columns(policy: Policy, pairs: Sequence[PreferencePair], asked: dict) -> None:
    """Measure one pair, and check that what is asked for is among its numbers.

    Raises:
        ValueError: If a column is not; all pairs would have been measured in vain.
    """
    if not any(asked.values()):
        return
    one = score_pairs(policy, pairs[:1], measures=MEASURES, progress=False)
    known = [*number_columns(one.fillna(0.0)), "length_difference"]
    for name, column in asked.items():
        if column is not None and column not in known:
            raise no_numbers(name, column, known)


def no_numbers(name: str, column: str, known: Sequence[str]) -> ValueError:
    """The error for a column that holds no numbers."""
    return ValueError(f"{name}={column!r} is no column of numbers; there are {', '.join(known)}")


def number_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that can be drawn and ranked by: numbers, at least one of them there."""
    kinds = pd.api.types
    return [
        name
        for name in frame
        if name != "row"
        and kinds.is_numeric_dtype(frame[name])
        and not kinds.is_bool_dtype(frame[name])
        and frame[name].notna().any()
    ]


def _read(path: str | os.PathLike) -> pd.DataFrame:
    try:
        return read_scores(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"scores: {str(path)!r} cannot be read: {error}") from error
