"""The entanglement map: every pair over the band that separates the regimes."""

import numpy as np
import pandas as pd
from matplotlib.markers import MarkerStyle

from toolkit.plots._figure import (
    axes_of,
    column_words,
    corner_label,
    families,
    finish,
    group_colors,
    named,
    plain_legend,
    short,
)
from toolkit.plots._frames import require, row_of
from toolkit.plots._palette import SEQUENTIAL
from toolkit.plots._words import REGIMES, regime_of

# each region, and the corner of the axes that carries its name
_REGIONS = {"ideal": (0.02, 0.98), "both_up": (0.98, 0.98), "both_down": (0.98, 0.02)}


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
    if ylim is not None and not 0 < ylim < np.inf:
        raise ValueError(f"ylim must be a positive number (half-height of the map), got {ylim!r}")
    ax = axes_of(ax, (7.2, 5.4))
    fresh = "pairs" not in named(ax)
    if fresh:
        fitting = _fitting_ylim(frame["cosine"].to_numpy(float), heights)
        _prepare(ax, fitting if ylim is None else ylim)
    elif ylim is not None:
        ax.set_ylim(-ylim, ylim)
    _move(ax, frame, heights, row, hue, picked if annotate else None)
    if not fresh:
        return ax
    if hue is not None:
        _hue_key(ax, named(ax)["pairs"], frame[hue])
    return finish(ax, frame, grid=False)


def _prepare(ax, ylim: float) -> None:
    """Draw what stays, and all that moves without its places."""
    _draw_regions(ax, ylim)
    ax.scatter([], [], edgecolors="white", linewidths=0.5, zorder=4, picker=5, gid="pairs")
    ax.scatter([], [], s=190, facecolors="none", edgecolors="black", linewidths=2, zorder=5,
               gid="ring")  # fmt: skip
    box = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": "#555555", "lw": 0.6}
    label = ax.annotate("", (0, 0), (0, 0), textcoords="offset points", bbox=box, zorder=6,
                        parse_math=False, gid="name", fontsize=9, va="center",
                        fontfamily=families())  # fmt: skip
    label.set_in_layout(False)
    ax.text(0.02, 0.02, "", transform=ax.transAxes, fontsize=8, color="#333333", gid="note",
            va="bottom", zorder=6,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 2})  # fmt: skip
    ax.set(xlim=(-1.02, 1.02), ylim=(-ylim, ylim), xlabel="cosine of the two gradients")
    ax.set_ylabel("relative pull on chosen\n" r"$\log\,(d_c\Vert g_c\Vert\,/\,d_r\Vert g_r\Vert)$")


def _move(ax, frame, heights, row, hue, name) -> None:
    """Move the points, the ring and the counts."""
    artists, limit = named(ax), ax.get_ylim()[1]
    edge = 0.97 * limit
    places = np.column_stack([frame["cosine"].astype(float), np.clip(heights, -edge, edge)])
    places[np.isnan(heights)] = np.nan
    points = artists["pairs"]
    points.set_offsets(places)
    points.set_sizes([60 if len(frame) < 100 else 34 if len(frame) < 1000 else 14])
    _paint(points, frame, hue)
    _mark(artists, places, row, name)
    counts = frame["regime"].where(np.isfinite(heights)).value_counts()
    for region in _REGIONS:
        words = f"{REGIMES[region].region}   {counts.get(region, 0)}"
        artists[f"label-{region}"].set_text(words)
    note = _left_out(frame, heights, limit, row)
    artists["note"].set(text=note, visible=bool(note))


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
    """The three tinted regions with their names, and the two curves between them."""
    top = max(8.0, 2 * ylim)
    cosine = np.geomspace(np.exp(-top), 1.0, 600)
    bound = -np.log(cosine)
    bound[-1] = 0.0
    style = {"linewidth": 0, "zorder": 0}
    x = np.concatenate([[-1.1, 0.0], cosine])
    half = np.concatenate([[top, top], bound])
    regions = {
        "ideal": ax.fill_between(x, -half, half, **style),
        "both_up": ax.fill_between([*cosine, 1.1], [*bound, 0], top, **style),
        "both_down": ax.fill_between([*cosine, 1.1], -top, [*-bound, 0], **style),
    }
    for name, region in regions.items():
        region.set(facecolor=REGIMES[name].tint, gid=f"region-{name}")
        corner_label(ax, name, *_REGIONS[name])
    for sign in (-1, 1):
        ax.plot(cosine, sign * bound, color="#666666", linewidth=1, zorder=1)
    ax.axhline(0, color="#999999", linewidth=0.7, linestyle=(0, (4, 4)), zorder=1)
    ax.axvline(0, color="#999999", linewidth=0.7, linestyle=(0, (4, 4)), zorder=1)


def _paint(points, frame, hue) -> None:
    """Markers by regime; colours by regime or by the hue column."""
    styles = {name: MarkerStyle(regime.marker) for name, regime in REGIMES.items()}
    shapes = {name: m.get_path().transformed(m.get_transform()) for name, m in styles.items()}
    points.set_paths([shapes.get(name, shapes["ideal"]) for name in frame["regime"]])
    if hue is None:
        points.set_facecolors([regime_of(name).color for name in frame["regime"]])
    elif pd.api.types.is_numeric_dtype(frame[hue]):
        points.set_cmap(SEQUENTIAL.reversed())
        points.set_edgecolors("#444444")
        points.set_array(frame[hue].to_numpy(float))
    else:
        points.set_facecolors([group_colors(frame[hue])[str(name)] for name in frame[hue]])


def _mark(artists, places, row, name) -> None:
    """Ring the picked row and write its name on the side that has room."""
    ring, label = artists["ring"], artists["name"]
    visible = row is not None and np.isfinite(places[row]).all()
    ring.set_visible(visible)
    label.set_visible(visible and name is not None)
    if visible:
        ring.set_offsets(places[row])
        label.xy = tuple(places[row])
        left = places[row][0] > 0
        label.set(position=(-15, 0) if left else (15, 0), ha="right" if left else "left")
        label.set_text(short(name))


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
        bar = ax.figure.colorbar(points, ax=ax, shrink=0.8)
        bar.ax.set_ylabel(name, parse_math=False)
        return
    for group, color in group_colors(values).items():
        ax.scatter([], [], color=color, label=short(group))
    plain_legend(ax.legend(title=name, loc="lower left", fontsize=8, framealpha=0.9))
