"""What every training pair does to every response: a heatmap whose rows and columns are sorted."""

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator
from scipy.cluster.hierarchy import leaves_list, linkage

from toolkit.plots._figure import axes_of, families, finish, short
from toolkit.plots._frames import require, row_of
from toolkit.plots._numbers import short_number, unit_text
from toolkit.plots._palette import DIVERGING, contrast_text

_NUMBERS = 12  # most rows and columns whose cells carry their number
_TICKS = 40


def influence_map(frame, *, side="chosen", value="influence", by=None, cluster=True, picked=None,
                  vmax=None, cbar=True, ax=None):  # fmt: skip
    """Training pairs (columns) by what they do to the responses of pairs (rows), alike ones near.

    Blue raises the response, orange lowers it; a pair's own cell has a black edge. Rows and
    columns are sorted by average-linkage clustering of their values.

    Args:
        frame: `Influence.to_frame()`: ``pair_id, side, train_pair_id, own`` and ``value``.
        side: ``"chosen"`` or ``"rejected"``: whose log-probability is moved.
        value: the column to show.
        by: ``"block"`` sorts by block first and draws lines between (``pair_block,
            train_block``); None sorts by clusters alone.
        cluster: sort by clusters; False keeps the order of the frame (within blocks).
        picked: a ``pair_id`` whose row to frame.
        vmax: end of the symmetric scale; None: the largest magnitude.
        cbar: draw the colour bar.
        ax: axes to draw on.

    Returns:
        The Axes. The image has gid ``"influence"`` and fires pick events; the pairs of its rows
        and columns are the tick labels' gids, in order.

    Raises:
        ValueError: for a missing column, no rows, or an unknown side, block or pair.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"pair_id": ["a", "a", "b", "b"], "side": "chosen", "own": False,
        ...     "train_pair_id": ["a", "b"] * 2, "influence": [2.0, -1, -1, 3]})
        >>> ax = influence_map(frame)
    """
    require(frame, "pair_id", "side", "train_pair_id", "own", value)
    if by not in (None, "block"):
        raise ValueError(f"by must be None or 'block', got {by!r}")
    rows = frame[frame["side"] == side]
    if rows.empty:
        raise ValueError(f"side={side!r} is not in the frame; it has {sorted(set(frame['side']))}")
    row_of(rows, picked, "pair_id")
    keys = {"index": "pair_id", "columns": "train_pair_id"}
    table = rows.pivot(**keys, values=value).astype(float)
    own = rows.pivot(**keys, values="own").astype(bool)
    sides = ("pair_id", "pair_block"), ("train_pair_id", "train_block")
    blocks = [_blocks(rows, *names, by) for names in sides]
    down, across = (_order(table if k == 0 else table.T, blocks[k], cluster) for k in range(2))
    table, own = table.loc[down, across], own.loc[down, across]
    wide, high = np.clip(0.42 * np.array([len(across), len(down)]), 3.2, 9.0)
    ax = axes_of(ax, (wide + 2.6, high + 1.6), "compressed")
    vmax = _limit(table.to_numpy(), vmax)
    image = ax.imshow(table, cmap=DIVERGING, vmin=-vmax, vmax=vmax, aspect="auto",
                      interpolation="nearest", picker=True, gid="influence")  # fmt: skip
    _write(ax, table.to_numpy(), own.to_numpy(), image, vmax)
    _ticks(ax.yaxis, down, blocks[0])
    _ticks(ax.xaxis, across, blocks[1], rotation=90)
    _lines(ax, down, across, blocks)
    if picked is not None:
        at = down.index(picked)
        ax.axhspan(at - 0.5, at + 0.5, fill=False, ec="black", lw=2.2, zorder=5, gid="picked")
    ax.set(xlabel="training pair", ylabel=f"{side} response of")
    if cbar:
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, fraction=0.05)
        bar.ax.set_ylabel("lowers it          raises it", fontsize=9)
        bar.outline.set_linewidth(0.5)
    if max(table.shape) <= _NUMBERS and unit_text(vmax):
        ax.set_title(f"numbers{unit_text(vmax)}", loc="left", fontsize=9)
    return finish(ax, frame, grid=False)


def _blocks(rows, name: str, block: str, by) -> dict:
    """The block of each pair along an axis, or nothing."""
    if by is None:
        return {}
    require(rows, block)
    return dict(zip(rows[name], rows[block].astype(str), strict=True))


def _order(table, blocks: dict, cluster: bool) -> list:
    """The rows in order of blocks as they first come, and of clusters within them."""
    groups: dict = {}
    for name in table.index:
        groups.setdefault(blocks.get(name), []).append(name)
    found = []
    for names in groups.values():
        if cluster and len(names) > 2:
            values = np.nan_to_num(table.loc[names].to_numpy())
            tree = linkage(values, "average", optimal_ordering=True)
            names = [names[k] for k in leaves_list(tree)]
        found += names
    return found


def _limit(values, vmax) -> float:
    if vmax is None:
        vmax = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    if not 0 < vmax < np.inf:
        raise ValueError(f"vmax must be a positive finite number, got {vmax!r}")
    return float(vmax)


def _write(ax, values, own, image, vmax) -> None:
    """The numbers of a small map, and the edges of the pairs' own cells."""
    for (row, column), value in np.ndenumerate(values):
        if max(values.shape) <= _NUMBERS:
            color = contrast_text(image.cmap(image.norm(value)))
            ax.text(column, row, short_number(value, vmax), ha="center", va="center", fontsize=7,
                    color=color)  # fmt: skip
        if own[row, column]:
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="black",
                                   lw=1.1, gid="own"))  # fmt: skip


def _ticks(axis, names, blocks: dict, rotation=0) -> None:
    step = -(-len(names) // _TICKS)
    axis.set_major_locator(FixedLocator(list(range(0, len(names), step))))
    words = [short(name, 16) + (f"  {short(blocks[name], 10)}" if blocks else "")
             for name in names[::step]]  # fmt: skip
    axis.set_ticklabels(words, rotation=rotation, fontsize=7.5, parse_math=False,
                        fontfamily=families())  # fmt: skip
    for label, name in zip(axis.get_ticklabels(), names[::step], strict=True):
        label.set_gid(name)
    axis.set_tick_params(length=2)


def _lines(ax, down, across, blocks) -> None:
    """A line wherever the block changes."""
    sides = ((down, blocks[0], ax.axhline), (across, blocks[1], ax.axvline))
    for names, block, line in sides:
        for k in range(1, len(names)):
            if block and block[names[k]] != block[names[k - 1]]:
                line(k - 0.5, color="black", linewidth=1.4)
