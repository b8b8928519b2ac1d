"""Columns of scores: one against another, quick with ten thousand pairs, and how one is spread."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from toolkit.plots._figure import (
    axes_of,
    column_words,
    finish,
    group_colors,
    height_of,
    limits_of,
    name_lines,
    note,
    plain_legend,
    short,
    take_out,
)
from toolkit.plots._frames import finite_values, flags, require, row_of
from toolkit.plots._numbers import number
from toolkit.plots._palette import KEPT, OKABE_ITO
from toolkit.plots._words import REGIMES

BINS = 40
COLUMNS = 3  # of names above the axes
_MARKERS = "oXsPD^v*"  # of groups that are no regimes


def score_scatter(
    frame, *, x="ln_ches", y="cosine", hue=None, by=None, cut=None, picked=None, legend=True,
    ax=None,
):  # fmt: skip
    """One column against another, with their rank correlation; kept pairs in colour, others grey.

    Args:
        frame: the columns; ``pair_id`` where ``picked`` is given. Where there, ``kept`` (bool)
            says which pairs a filter keeps, ``selected`` (bool) which are framed.
        x: numeric column along the bottom.
        y: numeric column up the side.
        hue: a text column that gives colour and marker; None takes ``regime``, where there is one.
        by: the column that the filter ranks by; where it is ``x`` or ``y`` the cut is drawn.
        cut: highest kept value of ``by``.
        picked: the ``pair_id`` to ring.
        legend: name the markers, with counts, above the axes.
        ax: axes to draw on; a scatter that is there already is moved.

    Returns:
        The Axes. Pairs without two finite values are counted on it.

    Raises:
        ValueError: for a missing column, no rows, a column that holds no numbers, an unknown
            ``picked`` or too many groups.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"ln_ches": [-1.0, 0.5, 2], "cosine": [3.0, 2, 1]})
        >>> score_scatter(frame, legend=False).get_title(loc="left")
        'Spearman ρ = −1.00   (n = 3)'
    """
    across, up, row = finite_values(frame, x), finite_values(frame, y), row_of(frame, picked)
    shown = np.isfinite(across) & np.isfinite(up)
    styles, groups = _styles(frame, hue)
    kept, selected = flags(frame, "kept", True), flags(frame, "selected", False)
    ax = axes_of(ax)
    take_out(ax)
    for side, name, values in (("x", x, across), ("y", y, up)):
        ax.set(**{f"{side}lim": limits_of(values[shown])})
        getattr(ax, f"set_{side}label")(column_words(name), parse_math=False)
        mark_cut(ax, side, cut if name == by else None)
    size = 6.5 if len(frame) < 300 else 5 if len(frame) < 2000 else 3
    edge = {"mec": "white", "mew": 0.4} if size > 3 else {"mew": 0}
    layers = {gid: (shown & kept & (groups == gid), {"zorder": 3, "ms": size, **edge, **style})
              for gid, style in styles.items()}  # fmt: skip
    dropped = {"label": "dropped", "color": "#B0B0B0", "marker": "o", "ms": size, **edge}
    layers["dropped"] = shown & ~kept, {"zorder": 2, **dropped}
    layers["selected"] = shown & selected, _selected_style(size)
    for gid, (rows, style) in layers.items():
        style["label"] += f" {rows.sum():,}"
        ax.plot(across[rows], up[rows], ls="none", gid=gid, **style)
    ring = [row] if row is not None and shown[row] else []
    ax.plot(across[ring], up[ring], marker="o", ms=15, mew=2.2, mfc="none", mec="black", ls="none",
            gid="picked", zorder=6)  # fmt: skip
    lost = f"{pairs_count((~shown).sum())} without both values, not drawn"
    lost += "; the picked pair is one" if row is not None and not shown[row] else ""
    note(ax, 0.99, 0.98, lost * (not shown.all()))
    lines = _name(ax, [gid for gid, (rows, _) in layers.items() if rows.any()] * legend)
    ax.set_title(_spearman(across[shown], up[shown]), loc="left", fontsize=10, pad=6 + 14 * lines)
    return finish(ax, frame)


def length_confound(frame, *, ax=None):
    """CHES against the difference of the two lengths: what length alone explains.

    Args:
        frame: `similarity()`: ``ches, chosen_length, rejected_length``.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"ches": [1.0, 2, 3], "chosen_length": [5, 5, 5],
        ...                       "rejected_length": [4, 6, 9]})
        >>> ax = length_confound(frame)
    """
    require(frame, "ches", "chosen_length", "rejected_length")
    longer = (frame["rejected_length"] - frame["chosen_length"]).rename("length_difference")
    both = pd.concat([longer, frame["ches"]], axis=1)
    both.attrs = frame.attrs
    return score_scatter(both, x="length_difference", y="ches", legend=False, ax=ax)


def _styles(frame, hue) -> tuple[dict[str, dict], np.ndarray]:
    """The label, colour and marker of each group, by gid, and the gid of each row."""
    if hue is None or hue == "regime":
        regimes = frame["regime"] if "regime" in frame else np.full(len(frame), "")
        styles = {key: (key.replace("_", " "), r.color, r.marker) for key, r in REGIMES.items()}
        styles["other"] = "kept", KEPT, "o"
        gids = np.array([key if key in REGIMES else "other" for key in regimes], dtype=object)
    else:
        require(frame, hue)
        values = frame[hue].astype(str)
        colors = group_colors(values)
        styles = {f"group {key}": (short(key), colors[key], mark)
                  for key, mark in zip(sorted(colors), _MARKERS, strict=False)}  # fmt: skip
        gids = ("group " + values).to_numpy(object)
    names = ("label", "color", "marker")
    return {gid: dict(zip(names, style, strict=True)) for gid, style in styles.items()}, gids


def _spearman(x, y) -> str:
    """The rank correlation in words; it needs two different values on both axes."""
    both = pd.DataFrame({"x": x, "y": y}).rank()
    known = both.nunique().min() > 1
    rho = f"= {number(both['x'].corr(both['y']), places=2)}" if known else "undefined"
    return f"Spearman ρ {rho}   (n = {len(both)})"


def _selected_style(size: float) -> dict:
    """Frames around few points; thousands of frames would hide everything: they are filled."""
    if size > 3:
        style = {"marker": "s", "ms": 1 + size, "mew": 0.8, "mfc": "none", "mec": "black"}
    else:
        style = {"marker": "o", "ms": size, "mew": 0.8, "mfc": OKABE_ITO["purple"], "mec": "none"}
    return {"label": "selected", "zorder": 4, **style}


def _name(ax, gids) -> int:
    """Name these markers above the axes; in how many lines."""
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    if gids:
        handles = [line for line in ax.lines if line.get_gid() in gids]
        plain_legend(ax.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=COLUMNS, fontsize=8,
            frameon=False, borderaxespad=0.2, handletextpad=0.2, columnspacing=1.0,
        ))  # fmt: skip
    return -(-len(gids) // COLUMNS)


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
    take_out(ax)
    kept, limits = finite & flags(frame, "kept", True), limits_of(values[finite])
    edges = np.linspace(*limits, int(np.clip(np.sqrt(finite.sum()) * 1.5, 5, BINS)) + 1)
    shown = {"all": (finite, "#C9C9C9"), "kept": (kept, KEPT)}
    counts = {gid: np.histogram(values[rows], edges)[0] for gid, (rows, _) in shown.items()}
    for order, (gid, (_, color)) in enumerate(shown.items(), 2):
        ax.stairs(counts[gid], edges, fill=True, color=color, gid=gid, zorder=order)
    # The note about missing values needs room above the bars.
    room = 1.08 if finite.all() else 1.2
    ax.set(xlim=limits, ylim=(0, room * max(counts["all"].max(), 1)), ylabel="pairs")
    ax.set_xlabel(column_words(column), parse_math=False)
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    mark_cut(ax, "x", cut)
    up_to = "" if cut is None else f" ≤ {number(cut)}:"
    words = f"kept{up_to} {kept.sum():,} of {finite.sum():,}"
    ax.set_title(words * ("kept" in frame or cut is not None), loc="left", fontsize=9)
    lost = f"{pairs_count((~finite).sum())} without a value, not drawn"
    note(ax, 0.99, 0.98, lost * (not finite.all()))
    return finish(ax, frame)


def _boxes(frame, column, by, finite, ax):
    """A box and its dots per group; group names are written with their size and median."""
    require(frame, by)
    if not finite.any():
        raise ValueError(f"column {column!r} has no finite value in {len(frame)} rows")
    rows = frame[finite]
    data = pd.DataFrame({"value": rows[column].astype(float), "group": rows[by].astype(str)})
    groups = data.groupby("group", sort=False)["value"].agg(["size", "median"])
    ax = axes_of(ax, (6.4, height_of(min(len(groups), 12), 0, each=0.7)))
    style = {"x": "value", "y": "group", "order": list(groups.index), "ax": ax}
    sns.stripplot(data, size=3.2, alpha=0.5, jitter=0.25, color=KEPT, zorder=2, **style)
    sns.boxplot(data, fill=False, fliersize=0, width=0.6, linewidth=1.3, color="#222222", zorder=3,
                **style)  # fmt: skip
    name_lines(ax, [f"{short(name, 22)}\nn = {size}, median {number(median)}"
                    for name, size, median in groups.itertuples()], 9)  # fmt: skip
    ax.set_ylabel("")
    ax.set_xlabel(column_words(column), parse_math=False)
    lost = f"{(~finite).sum()} of {len(frame)} without a finite value left out"
    ax.set_title(lost * (not finite.all()), loc="left", fontsize=9)
    return finish(ax, frame)


def mark_cut(ax, side: str, cut) -> None:
    """Shade the part of an axis that a filter keeps, with a line at its end, where it has one."""
    visible = cut is not None and np.isfinite(cut)
    span, line = (ax.axvspan, ax.axvline) if side == "x" else (ax.axhspan, ax.axhline)
    least = (ax.get_xlim() if side == "x" else ax.get_ylim())[0]
    end = cut if visible else least
    span(least, end, color="#E4F0F8", lw=0, zorder=0, gid=f"shade-{side}", visible=visible)
    line(end, color="black", lw=1.2, ls=(0, (5, 3)), zorder=5, gid=f"cut-{side}", visible=visible)


def pairs_count(count: int) -> str:
    return f"{count:,} pair{'' if count == 1 else 's'}"
