"""The entanglement map: every pair over the band that separates the regimes."""

import numpy as np
import pandas as pd
from matplotlib.markers import MarkerStyle

from toolkit.plots._figure import (
    axes_of,
    color_bar,
    column_words,
    corner_label,
    families,
    finish,
    group_colors,
    note,
    plain_legend,
    ring,
    short,
    take_out,
    zero_lines,
)
from toolkit.plots._frames import require, row_of
from toolkit.plots._numbers import positive
from toolkit.plots._palette import SEQUENTIAL
from toolkit.plots._words import REGIMES, regime_of

# each region, and the corner of the axes that carries its name
_CORNERS = {"ideal": (0.02, 0.98), "both_up": (0.98, 0.98), "both_down": (0.98, 0.02)}


def entanglement_map(frame, *, picked=None, hue=None, ylim=None, annotate=True, ax=None):
    """Every pair by cosine and relative pull, over the band that separates the three regimes.

    The height is ``log(d_c‖g_c‖ / d_r‖g_r‖) = log_ratio − log(band_center)``: with it one band
    holds for all pairs, ideal ⇔ cos ≤ 0 or |height| < log(1/cos). For DPO (d_c = d_r) it is the
    log-ratio of the gradient norms.

    Args:
        frame: `Entanglement.to_frame()`; ``pair_id, cosine, d_chosen, d_rejected, band_center,
            regime`` are read.
        picked: the ``pair_id`` to ring.
        hue: another column to colour by (text or numbers); the marker still says the regime.
        ylim: half-height of the map; None fits the points and shows the band's edges beside
            them, between 0.35 and 6. Give it to keep one scale while a control moves. Points
            beyond it are drawn on the edge.
        annotate: write the picked id beside its ring.
        ax: axes to draw on; a map that is there already is moved, and keeps its limits unless
            ``ylim`` is given (``ax.figure.canvas.draw_idle()`` shows it).

    Returns:
        The Axes. Its points are one artist with gid ``"pairs"`` that fires pick events;
        ``event.ind`` are positions in ``frame`` (``frame.iloc[event.ind[0]]``).

    Raises:
        ValueError: for a missing column, no rows, an unknown ``picked`` or a bad ``ylim``.

    Source: arXiv 2410.13828, three cases; arXiv 2604.18239, band form.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"pair_id": ["a"], "cosine": [0.6], "d_chosen": [0.05],
        ...     "d_rejected": [0.05], "band_center": [2.0], "regime": ["both_down"]})
        >>> ax = entanglement_map(frame, picked="a")
    """
    heights, row = _heights(frame), row_of(frame, picked)
    if hue is not None:
        require(frame, hue)
    if ylim is not None:
        positive("ylim", ylim, "a positive number (half-height of the map)")
    ax = axes_of(ax, (7.2, 5.4))
    moved = take_out(ax)
    if not moved:
        ylim = ylim or _fitting_ylim(frame["cosine"].to_numpy(float), heights)
        _draw_regions(ax, ylim)
    if ylim is not None:
        ax.set_ylim(-ylim, ylim)
    points = _draw_pairs(ax, frame, heights, hue)
    if row is not None:
        _mark(ax, points.get_offsets()[row], picked if annotate else None)
    note(ax, 0.02, 0.02, _left_out(frame, heights, ax.get_ylim()[1], row))
    if hue is not None and not moved:
        _hue_key(ax, points, frame[hue])
    return finish(ax, frame, grid=False)


def _draw_pairs(ax, frame, heights, hue):
    """The points, markers by regime and colours by regime or by the hue column, and the counts."""
    edge = 0.97 * ax.get_ylim()[1]
    places = np.column_stack([frame["cosine"].astype(float), np.clip(heights, -edge, edge)])
    places[np.isnan(heights)] = np.nan
    size = 60 if len(frame) < 100 else 34 if len(frame) < 1000 else 14
    points = ax.scatter(*places.T, s=size, edgecolors="white", lw=0.5, zorder=4, picker=5,
                        gid="pairs")  # fmt: skip
    styles = {name: MarkerStyle(regime.marker) for name, regime in REGIMES.items()}
    shapes = {name: m.get_path().transformed(m.get_transform()) for name, m in styles.items()}
    points.set_paths([shapes.get(name, shapes["ideal"]) for name in frame["regime"]])
    if hue is None:
        points.set_facecolors([regime_of(name).color for name in frame["regime"]])
    elif pd.api.types.is_numeric_dtype(frame[hue]):
        points.set(cmap=SEQUENTIAL.reversed(), edgecolors="#444444",
                   array=frame[hue].to_numpy(float))  # fmt: skip
    else:
        points.set_facecolors(list(frame[hue].astype(str).map(group_colors(frame[hue]))))
    counts = frame["regime"].where(np.isfinite(heights)).value_counts()
    for region, corner in _CORNERS.items():
        corner_label(ax, region, *corner, f"   {counts.get(region, 0)}")
    return points


def _heights(frame) -> np.ndarray:
    """log(d_c‖g_c‖ / d_r‖g_r‖) per row; NaN where a loss weight is not positive."""
    require(frame, "pair_id", "cosine", "d_chosen", "d_rejected", "band_center", "regime")
    names = ["d_chosen", "d_rejected", "band_center", "cosine"]
    chosen, rejected, center, cosine = frame[names].to_numpy(float).T
    shown = (chosen > 0) & (rejected > 0) & (center > 0) & np.isfinite(center * cosine)
    heights = np.full(len(frame), np.nan)
    ratio = chosen[shown] / rejected[shown]
    heights[shown] = np.log(ratio) - np.log(center[shown])
    return heights


def _fitting_ylim(cosine, heights) -> float:
    """A half-height that holds the points, and twice the band's half-width where they lie."""
    shown = np.isfinite(heights)
    points = 1.15 * np.abs(heights[shown]).max(initial=0.0)
    positive = cosine[shown & (cosine > 0)]
    band = -2 * np.log(np.median(positive)) if len(positive) else 1.0
    return float(np.clip(max(points, min(band, 1.0)), 0.35, 6.0))


def _draw_regions(ax, ylim: float) -> None:
    """The three tinted regions, the two curves between them, and the words along the axes."""
    top = max(8.0, 2 * ylim)
    cosine = np.geomspace(np.exp(-top), 1.0, 600)
    bound = -np.log(cosine)
    bound[-1] = 0.0
    half = np.concatenate([[top, top], bound])
    regions = {
        "ideal": ([-1.1, 0, *cosine], -half, half),
        "both_up": ([*cosine, 1.1], [*bound, 0], top),
        "both_down": ([*cosine, 1.1], -top, [*-bound, 0]),
    }
    for name, region in regions.items():
        ax.fill_between(*region, facecolor=REGIMES[name].tint, lw=0, zorder=0, gid=f"region-{name}")
    for sign in (-1, 1):
        ax.plot(cosine, sign * bound, color="#666666", lw=1, zorder=1)
    zero_lines(ax, color="#999999", lw=0.7, ls=(0, (4, 4)), gid=None)
    ax.set(xlim=(-1.02, 1.02), xlabel="cosine of the two gradients")
    ax.set_ylabel("relative pull on chosen\n" r"$\log\,(d_c\Vert g_c\Vert\,/\,d_r\Vert g_r\Vert)$")


def _mark(ax, place, name) -> None:
    """Ring the picked point, and write its name on the side that has room."""
    ring(ax, place)
    if name is None or np.ma.is_masked(place):
        return
    left = place[0] > 0
    box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": "#555555", "lw": 0.6}
    ax.annotate(short(name), place, (-15 if left else 15, 0), textcoords="offset points",
                ha="right" if left else "left", va="center", fontsize=9, zorder=6, bbox=box,
                gid="name", in_layout=False, parse_math=False, fontfamily=families())  # fmt: skip


def _left_out(frame, heights, limit, row) -> str:
    """What the map does not show, in words."""
    negative = int(((frame["d_chosen"] <= 0) | (frame["d_rejected"] <= 0)).sum())
    undefined = int(np.isnan(heights).sum()) - negative
    beyond = int((np.abs(heights) > limit).sum())
    notes = [(negative, "with a loss weight ≤ 0 not shown"),
             (undefined, "with no cosine (a zero gradient) not shown"),
             (beyond, "beyond the map, drawn on its edge")]  # fmt: skip
    lines = [f"{count} pair{'s' * (count > 1)} {words}" for count, words in notes if count > 0]
    if row is not None and np.isnan(heights[row]):
        lines.append("the picked pair is one of them")
    return "\n".join(lines)


def _hue_key(ax, points, values) -> None:
    name = column_words(values.name)
    if pd.api.types.is_numeric_dtype(values):
        color_bar(points, name)
        return
    for group, color in group_colors(values).items():
        ax.scatter([], [], color=color, label=short(group))
    plain_legend(ax.legend(title=name, loc="lower left", fontsize=8, framealpha=0.9))
