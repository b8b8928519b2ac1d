"""Where the probability went: the tokens that gained and lost most, as bars."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from toolkit.plots._figure import (
    axes_of,
    beside,
    change_bars,
    finish,
    height_of,
    name_lines,
    short,
)
from toolkit.plots._frames import require, rows_of
from toolkit.plots._numbers import largest, number


def mass_flow(frame, *, position=None, top=8, ax=None):
    """Tokens that gained (blue) and lost (vermillion, hatched) probability at one position.

    The chosen and the rejected token are named and drawn with a black edge wherever they rank;
    beside every bar stand its change and the probability before and after.

    Args:
        frame: `mass_flow()`: ``position, token, prob_before, prob_after, delta, role``.
        position: the position to show when the frame holds several.
        top: at most this many gains and as many losses, beside the two named tokens.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, no rows, or an unknown or unsaid position.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"position": 0, "token": [" Yes", " No"], "delta": [0.2, -0.3],
        ...     "prob_before": [0.1, 0.6], "prob_after": [0.3, 0.3], "role": ["", "chosen"]})
        >>> ax = mass_flow(frame)
    """
    require(frame, "position", "token", "prob_before", "prob_after", "delta", "role")
    rows = _shown(rows_of(frame, "position", position, "position"), top)
    ax = axes_of(ax, (6.6, height_of(len(rows), 2.6, each=0.3, around=1.5)))
    delta, known = rows["delta"].to_numpy(float), (rows["role"] != "").to_numpy()
    change_bars(ax, delta, known)
    texts = zip(delta, rows["prob_before"], rows["prob_after"], strict=True)
    beside(ax, [f"{number(change, 2, sign=True)}  ({before:.2g} → {after:.2g})"
                for change, before, after in texts], 1.02)  # fmt: skip
    names = zip(rows["token"], rows["role"], strict=True)
    name_lines(ax, [short(token, 22) + f" ({role})" * bool(role) for token, role in names], 9)
    for label, bold in zip(ax.get_yticklabels(), known, strict=True):
        label.set_fontweight("bold" if bold else "normal")
    room = 0.05 * largest(delta)
    ax.set_xlim(min(delta.min() - room, 0), max(delta.max() + room, 0))
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="x", labelsize=8.5)
    ax.set_xlabel("change of the probability of the next token")
    return finish(ax, frame)


def _shown(rows, top: int):
    """The largest gains and losses and the two named tokens, by falling change."""
    rows = rows.sort_values("delta", ascending=False, kind="stable")
    change = rows["delta"].to_numpy(float)
    kept = (rows["role"] != "").to_numpy(copy=True)
    kept[np.flatnonzero(change > 0)[:top]] = True
    kept[np.flatnonzero(change < 0)[::-1][:top]] = True
    return rows[kept] if kept.any() else rows[:top]
