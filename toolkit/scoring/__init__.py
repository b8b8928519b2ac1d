"""Whole datasets: scores of every pair, streamed to disk, resumed after any interruption."""

from toolkit.scoring._export import export_pairs
from toolkit.scoring._score_pairs import read_scores, score_pairs
from toolkit.scoring._score_run import ScoringRun
from toolkit.scoring._score_settings import Settings
from toolkit.scoring._score_stream import PairStream
from toolkit.scoring._subsets import (
    FilteredPairs,
    filter_pairs,
    length_confound,
    quantile_subsets,
)

__all__ = [
    "FilteredPairs",
    "PairStream",
    "ScoringRun",
    "Settings",
    "export_pairs",
    "filter_pairs",
    "length_confound",
    "quantile_subsets",
    "read_scores",
    "score_pairs",
]
