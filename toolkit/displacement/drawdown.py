"""Drawdown: how far a response fell from an earlier high, displacement over a whole run."""

from __future__ import annotations

import numpy as np


def falls(values: np.ndarray) -> np.ndarray:
    """Return how far each value ``[T + 1, …]`` lies below the highest one up to its step.

    The largest of them is the drawdown: ``max over s ≤ e of values[s] − values[e]``.

    Example:
        >>> falls(np.array([1.0, 3.0, 2.0, 2.5])).tolist()
        [0.0, 0.0, 1.0, 0.5]
    """
    return np.maximum.accumulate(values) - values
