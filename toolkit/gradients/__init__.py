"""Exact gradient products of log-probabilities: norms, inner products, token contributions."""

from toolkit.gradients.per_pair import iter_pair_stats, pair_stats
from toolkit.gradients.per_token import token_contributions, token_matrix
from toolkit.gradients.preconditioner import Preconditioner
from toolkit.gradients.response_gram import contracted, gram
from toolkit.gradients.results import (
    Gram,
    PairStats,
    TokenContributions,
    TokenMatrix,
    concat_stats,
)

__all__ = [
    "Gram",
    "PairStats",
    "Preconditioner",
    "TokenContributions",
    "TokenMatrix",
    "concat_stats",
    "contracted",
    "gram",
    "iter_pair_stats",
    "pair_stats",
    "token_contributions",
    "token_matrix",
]
