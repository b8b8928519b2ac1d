"""What one step is predicted to do to chosen and rejected: as a plane, and as bars."""

import numpy as np

from toolkit.plots._figure import (
    axes_of,
    corner_label,
    finish,
    height_of,
    marked,
    plain_fonts,
    ring,
    take_out,
    title_lines,
    zero_lines,
)
from toolkit.plots._frames import require, row_of
from toolkit.plots._numbers import largest, number, positive, power_of_ten
from toolkit.plots._palette import SIDE_COLORS
from toolkit.plots._words import REGIMES, along_axis

_DELTAS = ["predicted_chosen_delta", "predicted_rejected_delta"]
_MARKS = {
    side: {"marker": mark, "s": size, "color": color, "edgecolors": "black", "lw": 0.7, "zorder": 3}
    for (side, color), mark, size in zip(SIDE_COLORS.items(), "os", (60, 24), strict=True)
}
_CORNERS = {"ideal": (0.02, 0.98), "both_up": (0.98, 0.98), "both_down": (0.02, 0.02),
            "reversed": (0.98, 0.02)}  # fmt: skip
_BEYOND = 1.3  # room beyond the largest change
_DECADES = 6  # of changes that the picture of changes tells apart


def delta_plane(frame, *, picked=None, half_width=None, ax=None):
    """Predicted change of chosen against rejected: each quadrant is a regime.

    Args:
        frame: ``pair_id, predicted_chosen_delta, predicted_rejected_delta, regime``, in nats.
        picked: the ``pair_id`` to ring.
        half_width: of both axes, nats; None fits it to the data, but to no more than
            three times the 95th percentile. Points beyond it are drawn on the edge and counted.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, no rows or an unknown ``picked``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"pair_id": ["a"], "predicted_chosen_delta": [0.1],
        ...     "predicted_rejected_delta": [-0.2], "regime": ["ideal"]})
        >>> ax = delta_plane(frame)
    """
    require(frame, "pair_id", "predicted_chosen_delta", "predicted_rejected_delta", "regime")
    row = row_of(frame, picked)
    x, y = (frame[f"predicted_{side}_delta"].to_numpy(float) for side in ("rejected", "chosen"))
    if half_width is None:
        half_width = min(1.15 * largest([x, y]), 3 * largest([x, y], 0.95))
    positive("half_width", half_width, "a positive number of nats")
    beyond = int(((np.abs(x) > half_width) | (np.abs(y) > half_width)).sum())
    x, y = (np.clip(values, -0.97 * half_width, 0.97 * half_width) for values in (x, y))
    ax = axes_of(ax, (6.2, 5.6))
    take_out(ax)
    for name, corner in _CORNERS.items():
        left, bottom = np.where(np.array(corner) < 0.5, -half_width, 0)
        ax.fill_between([left, left + half_width], bottom, bottom + half_width, lw=0, zorder=0,
                        color=REGIMES[name].tint, gid="quadrant")  # fmt: skip
        corner_label(ax, name, *corner, f"\n{(frame['regime'] == name).sum()} of {len(frame)}")
    for name, regime in REGIMES.items():
        here = (frame["regime"] == name).to_numpy()
        ax.scatter(x[here], y[here], s=40, marker=regime.marker, lw=0.5, color=regime.color,
                   edgecolors="white", zorder=4, gid=name)  # fmt: skip
    if row is not None:
        ring(ax, (x[row], y[row]))
    words = f"{beyond} of {len(frame)} pairs beyond the plane, drawn on its edge" * bool(beyond)
    ax.set_title(words, loc="left", fontsize=9)
    zero_lines(ax)
    ax.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width), aspect="equal")
    ax.set_xlabel(along_axis("predicted_rejected_delta"))
    ax.set_ylabel(along_axis("predicted_chosen_delta"))
    return finish(ax, frame, grid=False)


def delta_bars(frame, *, name="pair_id", picked=None, top=30, log=False, limits=None, ax=None):
    """Predicted change of chosen (●) and rejected (■), one line per pair or loss, sorted.

    Args:
        frame: ``predicted_chosen_delta, predicted_rejected_delta`` in nats, and ``name``.
        name: the column that names the lines: ``pair_id`` for pairs, ``loss_name`` for losses.
        picked: the name to mark.
        top: how many lines at most, those with the largest changes.
        log: a scale that is logarithmic on both sides of zero, for losses: they differ by orders
            of magnitude.
        limits: from `delta_limits`, to keep one scale; changes beyond it are drawn on its edge.
        ax: axes to draw on; bars that are there already, as many, are moved, and keep their scale
            unless ``limits`` is given.

    Returns:
        The Axes; line ``k`` from the top is ``delta_order(frame)[k]`` where all are shown.

    Raises:
        ValueError: for a missing column, no rows or an unknown ``picked``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"loss_name": ["dpo", "cpo"], "predicted_chosen_delta": [0.1, 2.0],
        ...     "predicted_rejected_delta": [-0.2, 1.0]})
        >>> [text.get_text() for text in delta_bars(frame, name="loss_name").texts[:2]]
        ['cpo', 'dpo']
    """
    require(frame, name, *_DELTAS)
    row_of(frame, picked, name)
    rows = _largest(frame, top)
    ax = axes_of(ax, (7.2, height_of(len(rows), 2.6)))
    fresh = sum(text.get_gid() == "name" for text in ax.texts) != len(rows)
    if not take_out(ax):
        _add_legend(ax)
    if fresh:
        limits = limits or (delta_limits(rows) if log else (0, largest(rows[_DELTAS])))
        ax.set(ylim=(len(rows) - 0.4, -0.6))
        ax.set_yticks(range(len(rows)), [""] * len(rows))
    if limits is not None:
        _scale(ax, log, *limits)
    _draw_changes(ax, rows, name, picked)
    _shade_beyond(ax, frame.attrs.get("first_order_nats"))
    sizes, edge = rows[_DELTAS].abs().max(axis=1), ax.get_xlim()[1] / _BEYOND * (1 + 1e-9)
    notes = [f"{len(rows)} of {len(frame)} shown"] * (len(rows) < len(frame))
    notes += [f"{(sizes > edge).sum()} beyond the scale, on its edge"] * bool((sizes > edge).any())
    title_lines(ax, frame, "; ".join(notes), 0.62)
    return finish(ax, frame)


def _largest(frame, top: int):
    """The rows with the largest changes, in the order of the frame, its labels kept."""
    if len(frame) <= top:
        return frame
    sizes = frame[_DELTAS].abs().max(axis=1).to_numpy(float)
    return frame.iloc[np.sort(np.argsort(-sizes, kind="stable")[:top])]


def _add_legend(ax) -> None:
    """Which mark is which side: it stays while the marks move."""
    for side, mark in _MARKS.items():
        ax.scatter([], [], label=side, gid="key", **mark)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.1,
              fontsize=8, handletextpad=0.2, columnspacing=1)  # fmt: skip


def _draw_changes(ax, rows, name: str, picked) -> None:
    """The lines from the top, by falling change of chosen: two marks, what joins them, a name."""
    order, names = delta_order(rows), rows[name].tolist()
    most, lines = ax.get_xlim()[1] / _BEYOND, np.arange(len(rows))
    ends = [np.clip(rows[delta].to_numpy(float)[order], -most, most) for delta in _DELTAS]
    for (side, mark), values in zip(_MARKS.items(), ends, strict=True):
        ax.scatter(values, lines, clip_on=False, gid=side, **mark)
    ax.hlines(lines, *ends, colors="#9A9A9A", lw=2, zorder=2, gid="spans")
    zero_lines(ax, "x", color="black", zorder=2)
    for line, k in enumerate(order):
        here = names[k] == picked
        if here:
            ax.axhspan(line - 0.5, line + 0.5, color="#E3E3E3", lw=0, zorder=0, gid="picked")
        words = marked(names[k], picked)
        ax.text(-0.012, line, words, transform=ax.get_yaxis_transform(), fontsize=8, ha="right",
                va="center", fontweight="bold" if here else "normal", parse_math=False,
                gid="name", **plain_fonts([words]))  # fmt: skip


def _shade_beyond(ax, nats) -> None:
    """Hatch the changes that are too large for first order, where the bound is known."""
    for sign in () if nats is None else (-1, 1):
        edges = sorted([sign * nats, sign * 10 * ax.get_xlim()[1]])
        ax.axvspan(*edges, facecolor="#F2F2F2", hatch="///", edgecolor="#CFCFCF", lw=0, zorder=0,
                   gid=f"beyond{sign:+d}")  # fmt: skip


def delta_order(frame) -> np.ndarray:
    """The rows of a frame by falling predicted change of the chosen response.

    Example:
        >>> import pandas as pd
        >>> delta_order(pd.DataFrame({"predicted_chosen_delta": [0.1, 2.0]})).tolist()
        [1, 0]
    """
    return np.argsort(-frame[_DELTAS[0]].to_numpy(float), kind="stable")


def delta_limits(frame) -> tuple[float, float]:
    """The smallest and the largest change, in whole decades, that hold a frame's changes.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"predicted_chosen_delta": [0.02],
        ...                       "predicted_rejected_delta": [-3.0]})
        >>> delta_limits(frame)
        (0.01, 10.0)
    """
    sizes = np.abs(frame[_DELTAS].to_numpy(float))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not len(sizes):
        return 1e-3, 1.0
    top = np.ceil(np.log10(sizes.max()))
    low = np.clip(np.floor(np.log10(sizes.min())), top - _DECADES, top - 1)
    return float(10.0**low), float(10.0**top)


def _scale(ax, log: bool, least: float, most: float) -> None:
    """A scale that is logarithmic on both sides of zero, with few enough marks to read."""
    ax.set_xlabel("predicted change of the log-probability, nats"
                  + " (log scale both ways)" * log, fontsize=9)  # fmt: skip
    if not log:
        ax.set_xlim(-_BEYOND * most, _BEYOND * most)
        return
    ax.set_xscale("symlog", linthresh=least, linscale=0.6)
    ax.set_xlim(-_BEYOND * most, _BEYOND * most)
    powers = np.arange(round(np.log10(least)), round(np.log10(most)) + 1)
    powers = powers[:: -max(1, int(np.ceil(len(powers) / 3)))][::-1]
    ticks = [*(-(10.0 ** powers[::-1])), 0.0, *(10.0**powers)]
    ax.set_xticks(ticks, [_power(t) for t in ticks], fontsize=8)
    ax.set_xticks([], minor=True)


def _power(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1000:
        return number(value)
    return f"{'−' if value < 0 else ''}{power_of_ten(round(np.log10(abs(value))))}"
