"""How a column of scores is distributed: all pairs beside those kept, or boxes by group."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from toolkit.plots._figure import axes_of, column_words, finish, named, short
from toolkit.plots._frames import finite_values, flags, require
from toolkit.plots._numbers import number
from toolkit.plots._palette import OKABE_ITO
from toolkit.plots._score_axes import KEPT, add_cut, add_note, count_of, limits_of, move_cut

BINS = 40


def score_histogram(frame, column, *, by=None, cut=None, ax=None):
    """How a column is distributed: all pairs in grey, kept ones in blue; or boxes by group.

    Args:
        frame: the column; where it has it, ``kept`` (bool) says which pairs a filter keeps.
        column: a numeric column; values that are not finite are left out and counted.
        by: a text column: boxes with every pair as a dot, in place of bars; the groups are named
            on the axis, with their size and median.
        cut: highest kept value of this column, drawn as a line with the kept side shaded.
        ax: axes to draw on; a histogram that is there already is changed.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, no rows, a column that holds no numbers, or boxes without
            a finite value.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"ln_ches": [-1.0, 0.0, 2.0], "kept": [True, True, False]})
        >>> ax = score_histogram(frame, "ln_ches", cut=0.0)
        >>> ax.get_title(loc="left")
        'kept ≤ 0: 2 of 3'
    """
    values = finite_values(frame, column)
    finite = np.isfinite(values)
    if by is not None:
        return _boxes(frame, column, by, finite, ax)
    ax = axes_of(ax, (6.4, 3.4))
    if "all" not in named(ax):
        _prepare(ax)
        finish(ax, frame)
    artists, kept = named(ax), flags(frame, "kept", True)
    bins = int(np.clip(np.sqrt(finite.sum()) * 1.5, 5, BINS))
    limits = limits_of(values[finite])
    edges = np.linspace(*limits, bins + 1)
    counts = np.histogram(values[finite], edges)[0]
    artists["all"].set_data(counts, edges)
    artists["kept"].set_data(np.histogram(values[finite & kept], edges)[0], edges)
    # The note about missing values needs room above the bars.
    room = 1.08 if finite.all() else 1.2
    ax.set(xlim=limits, ylim=(0, room * max(counts.max(), 1)))
    ax.set_xlabel(column_words(column), parse_math=False)
    move_cut(artists, "x", limits, cut)
    up_to = "" if cut is None else f" ≤ {number(cut)}:"
    total = f"{int((finite & kept).sum()):,} of {int(finite.sum()):,}"
    filtered = "kept" in frame or cut is not None
    ax.set_title(f"kept{up_to} {total}" * filtered, loc="left", fontsize=9)
    lost = f"{count_of((~finite).sum())} without a value, not drawn"
    artists["note"].set(text=lost, visible=not finite.all())
    return ax


def _prepare(ax) -> None:
    """Draw what every histogram has, without its numbers."""
    add_cut(ax, "x")
    ax.stairs([0], [0, 1], fill=True, color="#C9C9C9", gid="all", zorder=2)
    ax.stairs([0], [0, 1], fill=True, color=KEPT, gid="kept", zorder=3)
    add_note(ax)
    ax.set_ylabel("pairs")
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def _boxes(frame, column, by, finite, ax):
    """A box and its dots per group; group names are written with their size and median."""
    require(frame, by)
    if not finite.any():
        raise ValueError(f"column {column!r} has no finite value in {len(frame)} rows")
    rows = frame[finite]
    data = pd.DataFrame({"value": rows[column].astype(float), "group": rows[by].astype(str)})
    groups = dict(iter(data.groupby("group", sort=False)["value"]))
    ax = axes_of(ax, (6.4, 1.6 + 0.7 * min(len(groups), 12)))
    style = {"x": "value", "y": "group", "order": list(groups), "ax": ax}
    sns.stripplot(data, size=3.2, alpha=0.5, jitter=0.25, color=OKABE_ITO["blue"], zorder=2,
                  **style)  # fmt: skip
    sns.boxplot(data, fill=False, fliersize=0, width=0.6, linewidth=1.3, color="#222222", zorder=3,
                **style)  # fmt: skip
    words = [
        f"{short(name, 22)}\nn = {len(part)}, median {number(part.median())}"
        for name, part in groups.items()
    ]
    ax.set_yticks(range(len(words)), words, fontsize=9, parse_math=False)
    ax.set_ylabel("")
    ax.set_xlabel(column_words(column), parse_math=False)
    if not finite.all():
        words = f"{(~finite).sum()} of {len(frame)} without a finite value left out"
        ax.set_title(words, loc="left", fontsize=9)
    return finish(ax, frame)
