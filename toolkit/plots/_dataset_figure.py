"""Scores of a whole dataset: a scatter and a histogram that stay quick with ten thousand pairs."""

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from toolkit.plots._figure import (
    REGIME_COLORS,
    REGIME_MARKERS,
    axes_of,
    column_words,
    finish,
    row_of,
)
from toolkit.plots._palette import OKABE_ITO, require

KEPT, DROPPED, SHADE = OKABE_ITO["blue"], "#B0B0B0", "#E4F0F8"
_STYLES = {name: (REGIME_COLORS[name], REGIME_MARKERS[name]) for name in REGIME_MARKERS}
_STYLES["other"] = (KEPT, "o")
BINS = 40


def score_scatter(
    frame, *, x="ln_ches", y="cosine", by=None, cut=None, picked=None, legend=True, ax=None
):
    """One column of scores against another, kept pairs in colour, dropped ones grey.

    Args:
        frame: ``id`` and the columns; where it has them, ``regime`` (text) gives colour and marker,
            ``kept`` (bool) says which pairs a filter keeps, ``selected`` (bool) which are framed.
        x: numeric column along the bottom.
        y: numeric column up the side.
        by: the column that the filter ranks by; where it is ``x`` or ``y`` the cut is drawn.
        cut: highest kept value of ``by``.
        picked: the ``id`` to ring.
        legend: name the markers, with counts, above the axes.
        ax: axes to draw on.

    Returns:
        The Axes. Pairs without two finite values are counted on it.

    Raises:
        ValueError: for a missing column, no rows, a column that holds no numbers or an unknown
            ``picked``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": ["a", "b"], "ln_ches": [-1.0, 2.0], "cosine": [0.1, 0.4]})
        >>> ax = score_scatter(frame, by="ln_ches", cut=-1.0, picked="a")
    """
    _values(frame, x), _values(frame, y)
    ax = axes_of(ax)
    for side in ("x", "y"):
        _add_cut(ax, side)
    style = {"linestyle": "none", "zorder": 3}
    ax.plot([], [], color=DROPPED, marker="o", gid="dropped", **style | {"zorder": 2})
    for name, (color, marker) in _STYLES.items():
        ax.plot([], [], color=color, marker=marker, gid=name, **style)
    hollow = {"mfc": "none", "mec": "black", "linestyle": "none"}
    ax.plot([], [], marker="s", ms=7, mew=0.8, gid="selected", zorder=4, **hollow)
    ax.plot([], [], marker="o", ms=15, mew=2.2, gid="picked", zorder=6, **hollow)
    _add_note(ax)
    finish(ax, frame)
    options = {"x": x, "y": y, "by": by, "cut": cut, "picked": picked, "legend": legend}
    return update_score_scatter(ax, frame, **options)


def update_score_scatter(
    ax, frame, *, x="ln_ches", y="cosine", by=None, cut=None, picked=None, legend=True
):
    """Move what `score_scatter` drew; nothing is created but the legend.

    Args:
        ax: the Axes that `score_scatter` returned.
        frame: as there.
        x: as there.
        y: as there.
        by: as there.
        cut: as there.
        picked: as there.
        legend: as there.

    Returns:
        ``ax``.

    Raises:
        ValueError: as there, or when ``ax`` is not a score scatter.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": ["a", "b"], "ln_ches": [-1.0, 2.0], "cosine": [0.1, 0.4]})
        >>> ax = update_score_scatter(score_scatter(frame), frame, x="cosine", y="ln_ches")
    """
    artists = _artists(ax, "picked", "score_scatter")
    across, up, row = _values(frame, x), _values(frame, y), row_of(frame, picked)
    shown = np.isfinite(across) & np.isfinite(up)
    groups = _groups(frame, shown)
    size = 6.5 if len(frame) < 300 else 5 if len(frame) < 2000 else 3
    for name in ("dropped", *_STYLES):
        here = groups.get(name, np.zeros(len(frame), bool))
        edge = {"mec": "white", "mew": 0.4} if size > 3 else {"mew": 0}
        artists[name].set(data=(across[here], up[here]), markersize=size, **edge)
    selected = shown & _flags(frame, "selected", False)
    artists["selected"].set(data=(across[selected], up[selected]), **_selected_style(size))
    ring = [row] if row is not None and shown[row] else []
    artists["picked"].set_data(across[ring], up[ring])
    for side, name, values in (("x", x, across), ("y", y, up)):
        limits = _limits(values[shown])
        ax.set(**{f"{side}lim": limits})
        getattr(ax, f"set_{side}label")(column_words(name), parse_math=False)
        _move_cut(artists, side, limits, cut if name == by else None)
    lost = f"{_count(len(frame) - shown.sum())} without both values, not drawn"
    lost += "; the picked pair is one" if row is not None and not shown[row] else ""
    artists["note"].set(text=lost, visible=not shown.all())
    _legend(ax, artists, groups, int(selected.sum()) if legend else None)
    return ax


def score_histogram(frame, column, *, cut=None, ax=None):
    """How a column is distributed: all pairs in grey, those that a filter keeps in blue.

    Args:
        frame: the column; where it has it, ``kept`` (bool) says which pairs are kept.
        column: a numeric column; values that are not finite are left out and counted.
        cut: highest kept value of this column, drawn as a line with the kept side shaded.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, no rows, or a column that holds no numbers.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"ln_ches": [-1.0, 0.0, 2.0], "kept": [True, True, False]})
        >>> ax = score_histogram(frame, "ln_ches", cut=0.0)
        >>> ax.get_title(loc="left")
        'kept ≤ 0: 2 of 3'
    """
    _values(frame, column)
    ax = axes_of(ax, (6.4, 3.4))
    _add_cut(ax, "x")
    ax.stairs([0], [0, 1], fill=True, color="#C9C9C9", gid="all", zorder=2)
    ax.stairs([0], [0, 1], fill=True, color=KEPT, gid="kept", zorder=3)
    _add_note(ax)
    ax.set_ylabel("pairs")
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    finish(ax, frame)
    return update_score_histogram(ax, frame, column, cut=cut)


def update_score_histogram(ax, frame, column, *, cut=None):
    """Change what `score_histogram` drew; nothing is created.

    Args:
        ax: the Axes that `score_histogram` returned.
        frame: as there.
        column: as there.
        cut: as there.

    Returns:
        ``ax``.

    Raises:
        ValueError: as there, or when ``ax`` is not a score histogram.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"ln_ches": [-1.0, 0.0, 2.0], "cosine": [0.1, 0.2, 0.3]})
        >>> ax = update_score_histogram(score_histogram(frame, "ln_ches"), frame, "cosine")
    """
    artists, values = _artists(ax, "all", "score_histogram"), _values(frame, column)
    finite, kept = np.isfinite(values), _flags(frame, "kept", True)
    bins = int(np.clip(np.sqrt(finite.sum()) * 1.5, 5, BINS))
    limits = _limits(values[finite])
    edges = np.linspace(*limits, bins + 1)
    counts = np.histogram(values[finite], edges)[0]
    artists["all"].set_data(counts, edges)
    artists["kept"].set_data(np.histogram(values[finite & kept], edges)[0], edges)
    # The note about missing values needs room above the bars.
    room = 1.08 if finite.all() else 1.2
    ax.set(xlim=limits, ylim=(0, room * max(counts.max(), 1)))
    ax.set_xlabel(column_words(column), parse_math=False)
    _move_cut(artists, "x", limits, cut)
    up_to = "" if cut is None else f" ≤ {cut:.3g}:".replace("-", "−")
    total = f"{int((finite & kept).sum()):,} of {int(finite.sum()):,}"
    ax.set_title(f"kept{up_to} {total}", loc="left", fontsize=9)
    artists["note"].set(
        text=f"{_count((~finite).sum())} without a value, not drawn", visible=not finite.all()
    )
    return ax


def _selected_style(size: float) -> dict:
    """Frames around few points; thousands of frames would hide everything: they are filled."""
    if size > 3:
        return {"marker": "s", "markersize": 1 + size, "mfc": "none", "mec": "black"}
    return {"marker": "o", "markersize": size, "mfc": OKABE_ITO["purple"], "mec": "none"}


def _count(number) -> str:
    return f"{int(number):,} pair{'' if number == 1 else 's'}"


def _values(frame, column) -> np.ndarray:
    """The column as floats, NaN where it has no finite value."""
    require(frame, column)
    if not pd.api.types.is_numeric_dtype(frame[column]):
        raise ValueError(f"column {column!r} holds no numbers but {frame[column].dtype}")
    values = frame[column].astype("float64").to_numpy(copy=True)
    values[~np.isfinite(values)] = np.nan
    return values


def _flags(frame, column: str, default: bool) -> np.ndarray:
    return frame[column].to_numpy(bool) if column in frame else np.full(len(frame), default)


def _groups(frame, shown) -> dict[str, np.ndarray]:
    """Which drawn rows are dropped, and which are kept in each regime."""
    kept = _flags(frame, "kept", True)
    regime = frame["regime"].to_numpy(object) if "regime" in frame else np.full(len(frame), "")
    groups = {name: shown & kept & (regime == name) for name in REGIME_MARKERS}
    groups["other"] = shown & kept & ~np.any(list(groups.values()), axis=0)
    groups["dropped"] = shown & ~kept
    return groups


def _limits(values) -> tuple[float, float]:
    """The range of the values with a margin, also where there is one value or none."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin


def _artists(ax, needed: str, made_by: str) -> dict:
    artists = {artist.get_gid(): artist for artist in ax.get_children() if artist.get_gid()}
    if needed not in artists:
        raise ValueError(f"ax must be the Axes that {made_by} returned")
    return artists


def _add_cut(ax, side: str) -> None:
    span, line = (ax.axvspan, ax.axvline) if side == "x" else (ax.axhspan, ax.axhline)
    span(0, 1, color=SHADE, lw=0, zorder=0, gid=f"shade-{side}")
    line(0, color="black", lw=1.2, ls=(0, (5, 3)), zorder=5, gid=f"cut-{side}")


def _move_cut(artists, side: str, limits, cut) -> None:
    """Shade the side of the axis that is kept, with a line at its end."""
    shade, line = artists[f"shade-{side}"], artists[f"cut-{side}"]
    visible = cut is not None and np.isfinite(cut)
    shade.set_visible(visible)
    line.set_visible(visible)
    if visible:
        extent = {"x": limits[0], "width": cut - limits[0]}
        if side == "y":
            extent = {"y": limits[0], "height": cut - limits[0]}
        shade.set(**extent)
        line.set_data(*(([cut, cut], [0, 1]) if side == "x" else ([0, 1], [cut, cut])))


def _add_note(ax) -> None:
    place = blended_transform_factory(ax.transAxes, ax.transAxes)
    box = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 2}
    ax.text(0.99, 0.98, "", transform=place, ha="right", va="top", fontsize=8, color="#333333",
            gid="note", zorder=7, bbox=box)  # fmt: skip


def _legend(ax, artists, groups, selected: int | None) -> None:
    """Name the markers that are there, with their counts."""
    old = ax.get_legend()
    if old is not None:
        old.remove()
    if selected is None:
        return
    counts = {name: int(groups[name].sum()) for name in (*_STYLES, "dropped")}
    names = {name: name.replace("_", " ") for name in counts} | {"other": "kept"}
    counts, names = counts | {"selected": selected}, names | {"selected": "selected"}
    here = [name for name in counts if counts[name]]
    ax.legend(
        [artists[name] for name in here],
        [f"{names[name]} {counts[name]:,}" for name in here],
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, frameon=False,
        borderaxespad=0.2, handletextpad=0.2, columnspacing=1.0,
    )  # fmt: skip
