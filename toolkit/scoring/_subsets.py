"""Subsets by score: quantile windows, filters, the length confound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from toolkit.checks import check_pair_id, is_finite_number, share as check_share, shown
from toolkit.model.inputs import check_pairs
from toolkit.pairs import PairList, PreferencePair


class FilteredPairs(PairList):
    """The pairs that a filter kept, in input order; ``dropped`` says which went, and why.

    Attributes:
        dropped: One row per pair: ``row``, ``pair_id``, ``score``, ``reason``.

    Example:
        >>> pair = PreferencePair("a", "Is it fine?", " Yes", " No")
        >>> scores = pd.DataFrame({"pair_id": ["a"], "ln_ches": [-1.0]})
        >>> len(filter_pairs([pair], scores, keep=1.0).dropped)
        0
    """

    def __init__(self, pairs: Iterable[PreferencePair], dropped: pd.DataFrame) -> None:
        super().__init__(pairs)
        self.dropped = dropped


def quantile_subsets(
    scores: pd.DataFrame,
    by: str = "ln_ches",
    quantiles: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
    size: int = 512,
) -> dict[float, pd.DataFrame]:
    """Return the rows around each quantile q: ranks ``round(q(n−1)) ± size/2``, clipped to 0…n.

    At the ends the clipped window holds half as many rows. Rows without a score are left out, and
    ``attrs["without_score"]`` of each subset lists their ids.

    Args:
        scores: A frame with the column ``by``, such as that of ``score_pairs``.
        by: Column to rank by, ascending.
        quantiles: Shares in [0, 1].
        size: Rows in a window that is not clipped.

    Returns:
        A frame for each quantile, ranked by ``by``; equal scores keep their order.

    Raises:
        ValueError: If ``by`` is no column of numbers, no row has a score, or a quantile or
            ``size`` is out of range.

    Source:
        arXiv 2410.08847, Figure 2.

    Example:
        >>> scores = pd.DataFrame({"pair_id": list("abcde"), "ln_ches": [4.0, 0.0, 1.0, 3.0, 2.0]})
        >>> subsets = quantile_subsets(scores, quantiles=(0.5,), size=2)
        >>> subsets[0.5]["ln_ches"].tolist()
        [1.0, 2.0]
    """
    values = _values(scores, by)
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise ValueError(f"size must be a whole number from 2 up, received {shown(size)}")
    if not isinstance(quantiles, list | tuple | range | np.ndarray):
        raise ValueError(f"quantiles must be a list of numbers, received {shown(quantiles)}")
    bad = [q for q in quantiles if not is_finite_number(q) or not 0 <= q <= 1]
    if bad:
        raise ValueError(f"quantiles must lie in [0, 1], received {shown(bad[0])}")
    ranked = scores.loc[values.dropna().sort_values(kind="stable").index]
    lost = scores.loc[values.isna(), "pair_id"].tolist() if "pair_id" in scores else []
    subsets = {}
    for q in quantiles:
        center = round(q * (len(ranked) - 1))
        subset = ranked.iloc[max(center - size // 2, 0) : center + size // 2].copy()
        subset.attrs.update(scores.attrs, quantile=q, by=by, without_score=lost)
        subsets[q] = subset
    return subsets


def filter_pairs(
    pairs: Sequence[PreferencePair],
    scores: pd.DataFrame,
    by: str = "ln_ches",
    keep: float = 0.05,
    stratify: str | None = None,
) -> FilteredPairs:
    """Keep the ``⌈keep·n⌉`` pairs with the lowest scores, in input order.

    A pair without a score is never kept: ``.dropped`` names it, as it names all the others.

    Args:
        pairs: The pairs.
        scores: Frame with ``pair_id`` and ``by``; pairs and rows are matched by id.
        by: Column to rank by; "ln_ches" keeps the pairs whose responses are least alike.
        keep: Share of the scored pairs to keep, in (0, 1].
        stratify: Column of ``scores`` or key of the pairs' ``meta``: the share is then kept within
            each of its values.

    Returns:
        :class:`FilteredPairs`.

    Raises:
        ValueError: If an argument is not allowed, an id is there twice, or a pair has no row.

    Source:
        arXiv 2410.08847, Section 6.3 (the lowest 5 % by length-normalised CHES).

    Example:
        >>> pairs = [PreferencePair(id, "Is it fine?", " Yes", " No") for id in "abcd"]
        >>> scores = pd.DataFrame({"pair_id": list("abcd"), "ln_ches": [0.0, -2.0, None, -1.0]})
        >>> kept = filter_pairs(pairs, scores, keep=0.5)
        >>> [pair.id for pair in kept], kept.dropped["pair_id"].tolist()
        (['b', 'd'], ['a', 'c'])
    """
    pairs = check_pairs(pairs, text=True)
    check_share("keep", keep)
    table = _matched(pairs, scores, by)
    strata = _strata(pairs, table, stratify)
    kept: set[int] = set()
    for _, group in table["score"].dropna().groupby(strata, sort=False, dropna=False):
        # Rounded first: 0.1 * 30 is a hair above 3.
        count = math.ceil(round(keep * len(group), 9))
        kept.update(group.sort_values(kind="stable").index[:count])
    share = f"{by} is not among the lowest {keep:.4g} of "
    share += "the pairs" if stratify is None else f"its {stratify}"
    table["reason"] = [
        f"no {by}: {error or 'it is missing'}" if math.isnan(score) else share
        for score, error in zip(table["score"], table["error"], strict=True)
    ]
    gone = table.loc[
        [i for i in table.index if i not in kept], ["row", "pair_id", "score", "reason"]
    ]
    return FilteredPairs([pairs[i] for i in sorted(kept)], gone.reset_index(drop=True))


def length_confound(scores: pd.DataFrame, by: str = "ln_ches") -> float:
    """Return Spearman's ρ of a score with ``rejected_length − chosen_length``.

    A ρ near ±1 means that the score ranks pairs by length alone. NaN where fewer than three pairs
    have a score, or all are equal.

    Args:
        scores: Frame with ``by``, ``chosen_length`` and ``rejected_length``.
        by: The score.

    Raises:
        ValueError: If a column is missing.

    Example:
        >>> columns = {"ches": [1.0, 2.0, 3.0], "chosen_length": [1, 1, 1]}
        >>> length_confound(pd.DataFrame(columns | {"rejected_length": [2, 3, 4]}), by="ches")
        1.0
    """
    values = _values(scores, by)
    longer = _values(scores, "rejected_length") - _values(scores, "chosen_length")
    both = values.notna() & longer.notna()
    one, other = values[both].rank(), longer[both].rank()
    if both.sum() < 3 or one.nunique() < 2 or other.nunique() < 2:
        return math.nan
    return float(one.corr(other))


def _values(scores: pd.DataFrame, by: str) -> pd.Series:
    if not isinstance(scores, pd.DataFrame):
        raise ValueError(f"scores must be a frame, such as score_pairs gives; got {shown(scores)}")
    numbers = [str(name) for name in scores if pd.api.types.is_numeric_dtype(scores[name])]
    if not isinstance(by, str) or by not in numbers:
        raise ValueError(f"by: {shown(by)} is no column of numbers; there are {', '.join(numbers)}")
    values = scores[by].astype("float64").reset_index(drop=True)
    values.index = scores.index
    if not values.notna().any():
        raise ValueError(f"by: no pair has a value of {by!r}")
    return values


def _matched(pairs: list[PreferencePair], scores: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return row, id, score and error of each pair, by its place in the list."""
    values, ids = _values(scores, by), [pair.id for pair in pairs]
    check_pair_id("scores", scores)
    for name, found in (("pairs", pd.Index(ids)), ("scores", pd.Index(scores["pair_id"].dropna()))):
        if found.has_duplicates:
            raise ValueError(f"{name}: id {found[found.duplicated()][0]!r} is there twice")
    rows = scores.assign(score=values).dropna(subset="pair_id").set_index("pair_id")
    lost = [id for id in ids if id not in rows.index]
    if lost:
        raise ValueError(f"scores: no row for pair {lost[0]!r} ({len(lost)} pairs have none)")
    table = rows.loc[ids].reset_index()
    table["row"] = [i if pair.row is None else pair.row for i, pair in enumerate(pairs)]
    table["error"] = table.get("error", "")
    return table


def _strata(pairs: list[PreferencePair], table: pd.DataFrame, name: str | None) -> pd.Series:
    if name is None:
        return pd.Series(0, index=table.index)
    if not isinstance(name, str):
        raise ValueError(f"stratify must be None or a name, received {shown(name)}")
    if name in table:
        return table[name]
    if not any(name in pair.meta for pair in pairs):
        raise ValueError(f"stratify: {name!r} is neither a column of scores nor a key of meta")
    return pd.Series([repr(pair.meta.get(name)) for pair in pairs], index=table.index)
