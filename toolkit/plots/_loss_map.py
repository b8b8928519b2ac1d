"""All losses of one pair on the entanglement map."""

import textwrap

import numpy as np
from matplotlib.collections import LineCollection

from toolkit.plots._entanglement_map import entanglement_map
from toolkit.plots._figure import marked, plain_fonts, short, take_out, title_lines
from toolkit.plots._frames import require

_SIZE = 8.0  # points, of the labels on the map


def loss_map(frame, *, picked=None, ylim=None, ax=None):
    """One pair's losses on the entanglement map: the cosine is the pair's, the height the loss's.

    Losses that pull alike share a point and a label. A loss with a weight ≤ 0 has no place on a
    logarithmic axis: it is named above the map.

    Args:
        frame: one row per loss: ``loss_name, cosine, d_chosen, d_rejected, band_center, regime``.
        picked: the ``loss_name`` to ring.
        ylim: half-height of the map; None fits the points.
        ax: axes to draw on; a map of losses that is there already is moved, and keeps its limits
            unless ``ylim`` is given. Points beyond them are drawn on the edge.

    Returns:
        The Axes. Its points are one artist with gid ``"pairs"``, in the order of the rows.

    Raises:
        ValueError: for a missing column, no rows, an unknown ``picked`` or a bad ``ylim``.

    Source: arXiv 2410.13828, three cases; arXiv 2604.18239, band form.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"loss_name": ["dpo", "cpo"], "regime": ["both_down", "both_up"],
        ...     "cosine": 0.6, "d_chosen": [0.05, 1.05], "d_rejected": 0.05, "band_center": 2.0})
        >>> ax = loss_map(frame, picked="dpo")
    """
    require(frame, "loss_name")
    ax = entanglement_map(_by_loss(frame), picked=picked, ylim=ylim, annotate=False, ax=ax)
    take_out(ax, "note")  # its words are for pairs; the title has those for losses
    places = next(a for a in ax.collections if a.get_gid() == "pairs").get_offsets()
    shown = np.isfinite(np.ma.filled(places, np.nan)).all(1)
    groups = _groups(places, frame["loss_name"].tolist(), shown, picked, ax)
    ax.add_collection(LineCollection(_label(ax, groups, picked), colors="#777777", linewidths=0.7,
                                     zorder=3, gid="leaders"), autolim=False)  # fmt: skip
    names = [short(loss, 20) for loss in frame["loss_name"][~shown]]
    title_lines(ax, frame, f"not on a log axis (a weight ≤ 0): {', '.join(names)}" * bool(names))
    return ax


def _by_loss(frame):
    """The frame as the entanglement map reads it; its caption leaves out what cannot matter."""
    rows = frame.assign(pair_id=frame["loss_name"])
    rows.attrs = {name: value for name, value in frame.attrs.items() if name != "lr"}
    return rows


def _groups(places, losses, shown, picked, ax) -> list[tuple[float, float, list[str]]]:
    """Losses that share a point: ``(cosine, height, names)`` by rising height."""
    near = 0.012 * np.ptp(ax.get_ylim())
    groups: list[tuple[float, float, list[str]]] = []
    for k in sorted(np.flatnonzero(shown), key=lambda k: places[k][1]):
        x, y = map(float, places[k])
        if groups and y - groups[-1][1] < near:
            groups[-1][2].append(losses[k])
        else:
            groups.append((x, y, [losses[k]]))
    for _, _, names in groups:
        names.sort(key=lambda name: (name != picked, losses.index(name)))
    return groups


def _label(ax, groups, picked) -> list:
    """Write each group's names beside its point, without overlap; return the lines between."""
    if not groups:
        return []
    box, (low, high) = ax.get_window_extent(), ax.get_ylim()
    scale = ax.figure.dpi / 72
    x = groups[0][0]
    right = x <= 0  # labels go where there is room
    start = x + 0.16 if right else x - 0.16
    room = (1.0 - start if right else start + 1.0) / 2.04 * box.width
    letters = int(np.clip(room / (0.56 * _SIZE * scale), 14, 44))
    words = [textwrap.wrap(", ".join(marked(n, picked) for n in names), letters)
             for _, _, names in groups]  # fmt: skip
    unit = (high - low) / box.height
    tall = [(1.25 * _SIZE * scale * len(lines) + 3 * scale) * unit for lines in words]
    at = _apart(
        [y for _, y, _ in groups], tall, low + 0.09 * (high - low), high - 0.1 * (high - low)
    )
    segments = []
    for (_, y, names), lines, level in zip(groups, words, at, strict=True):
        ax.text(start, level, "\n".join(lines), fontsize=_SIZE, va="center",
                ha="left" if right else "right", linespacing=1.1, parse_math=False, gid="losses",
                fontweight="bold" if picked in names else "normal", zorder=6, in_layout=False,
                **plain_fonts(lines), bbox={"fc": "white", "ec": "none", "alpha": 0.6, "pad": 0.5},
                )  # fmt: skip
        segments.append([(x, y), (start + (-0.015 if right else 0.015), level)])
    return segments


def _apart(wanted: list[float], tall: list[float], low: float, high: float) -> list[float]:
    """Middles of labels of these heights, near where they are wanted and without overlap."""
    at, floor = [], low
    for y, size in zip(wanted, tall, strict=True):
        at.append(max(y, floor + size / 2))
        floor = at[-1] + size / 2
    ceiling = high
    for k in reversed(range(len(at))):
        at[k] = min(at[k], ceiling - tall[k] / 2)
        ceiling = at[k] - tall[k] / 2
    return at
