"""One column of scores against another: quick with ten thousand pairs, and moved in place."""

import numpy as np
import pandas as pd

from toolkit.plots._figure import (
    axes_of,
    column_words,
    finish,
    group_colors,
    named,
    plain_legend,
    short,
)
from toolkit.plots._frames import finite_values, flags, require, row_of
from toolkit.plots._numbers import number
from toolkit.plots._palette import OKABE_ITO
from toolkit.plots._score_axes import KEPT, add_cut, add_note, count_of, limits_of, move_cut
from toolkit.plots._words import REGIMES

DROPPED = "#B0B0B0"
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
    styles, gids = _styles(frame, hue)
    kept = flags(frame, "kept", True)
    groups = {gid: shown & kept & (gids == gid) for gid in styles} | {"dropped": shown & ~kept}
    ax = axes_of(ax)
    if "dropped" not in named(ax):
        _prepare(ax)
        finish(ax, frame)
    for gid, (_, color, marker) in styles.items():
        if gid not in named(ax):
            ax.plot([], [], color=color, marker=marker, ls="none", gid=gid, zorder=3)
    artists = named(ax)
    size = 6.5 if len(frame) < 300 else 5 if len(frame) < 2000 else 3
    edge = {"mec": "white", "mew": 0.4} if size > 3 else {"mew": 0}
    for gid, points in artists.items():
        if gid in groups or gid in REGIMES or gid == "other" or gid.startswith("group "):
            here = groups.get(gid, np.zeros(len(frame), bool))
            points.set(data=(across[here], up[here]), markersize=size, **edge)
    selected = shown & flags(frame, "selected", False)
    artists["selected"].set(data=(across[selected], up[selected]), **_selected_style(size))
    ring = [row] if row is not None and shown[row] else []
    artists["picked"].set_data(across[ring], up[ring])
    for side, name, values in (("x", x, across), ("y", y, up)):
        limits = limits_of(values[shown])
        ax.set(**{f"{side}lim": limits})
        getattr(ax, f"set_{side}label")(column_words(name), parse_math=False)
        move_cut(artists, side, limits, cut if name == by else None)
    lost = f"{count_of(len(frame) - shown.sum())} without both values, not drawn"
    lost += "; the picked pair is one" if row is not None and not shown[row] else ""
    artists["note"].set(text=lost, visible=not shown.all())
    counts = {gid: int(here.sum()) for gid, here in (groups | {"selected": selected}).items()}
    words = _spearman(across[shown], up[shown])
    _write(ax, artists, styles, counts, words, legend)
    return ax


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


def _prepare(ax) -> None:
    """Draw what every scatter has, without its places."""
    for side in ("x", "y"):
        add_cut(ax, side)
    ax.plot([], [], color=DROPPED, marker="o", ls="none", gid="dropped", zorder=2)
    hollow = {"mfc": "none", "mec": "black", "ls": "none"}
    ax.plot([], [], marker="s", ms=7, mew=0.8, gid="selected", zorder=4, **hollow)
    ax.plot([], [], marker="o", ms=15, mew=2.2, gid="picked", zorder=6, **hollow)
    add_note(ax)


def _styles(frame, hue) -> tuple[dict[str, tuple], np.ndarray]:
    """The name, colour and marker of each group, by gid, and the gid of each row."""
    if hue is None or hue == "regime":
        regimes = frame["regime"] if "regime" in frame else np.full(len(frame), "")
        styles = {key: (key.replace("_", " "), r.color, r.marker) for key, r in REGIMES.items()}
        gids = np.array([key if key in REGIMES else "other" for key in regimes], dtype=object)
        return styles | {"other": ("kept", KEPT, "o")}, gids
    require(frame, hue)
    values = frame[hue].astype(str)
    colors = group_colors(values)
    styles = {f"group {key}": (short(key), colors[key], mark)
              for key, mark in zip(sorted(colors), _MARKERS, strict=False)}  # fmt: skip
    return styles, ("group " + values).to_numpy(object)


def _spearman(x, y) -> str:
    """The rank correlation in words; it needs two different values on both axes."""
    both = pd.DataFrame({"x": x, "y": y}).rank()
    known = both.nunique().min() > 1
    rho = f"= {number(both['x'].corr(both['y']), places=2)}" if known else "undefined"
    return f"Spearman ρ {rho}   (n = {len(both)})"


def _selected_style(size: float) -> dict:
    """Frames around few points; thousands of frames would hide everything: they are filled."""
    if size > 3:
        return {"marker": "s", "markersize": 1 + size, "mfc": "none", "mec": "black"}
    return {"marker": "o", "markersize": size, "mfc": OKABE_ITO["purple"], "mec": "none"}


def _write(ax, artists, styles, counts, title: str, legend: bool) -> None:
    """Name the markers that are there, with their counts, and say the rank correlation."""
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    names = {gid: name for gid, (name, *_) in styles.items()}
    names |= {"dropped": "dropped", "selected": "selected"}
    here = [gid for gid in names if counts[gid]]
    lines = -(-len(here) // COLUMNS) if legend else 0
    ax.set_title(title, loc="left", fontsize=10, pad=6 + 14 * lines)  # above the names
    if not lines:
        return
    ax.legend(
        [artists[gid] for gid in here],
        [f"{names[gid]} {counts[gid]:,}" for gid in here],
        loc="lower left", bbox_to_anchor=(0, 1), ncols=COLUMNS, fontsize=8, frameon=False,
        borderaxespad=0.2, handletextpad=0.2, columnspacing=1.0,
    )  # fmt: skip
    plain_legend(ax.get_legend())
