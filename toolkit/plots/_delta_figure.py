"""What one step is predicted to do to chosen and rejected: as a plane, and as bars."""

import numpy as np
from matplotlib.collections import LineCollection

from toolkit.plots._figure import (
    axes_of,
    caption_lines,
    corner_label,
    finish,
    marked,
    named,
    plain_fonts,
    title_lines,
)
from toolkit.plots._frames import require, row_of
from toolkit.plots._numbers import number, power_of_ten
from toolkit.plots._palette import SIDE_COLORS
from toolkit.plots._words import REGIMES, along_axis

_DELTAS = ("predicted_chosen_delta", "predicted_rejected_delta")
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
    half_width = _plane_limit(np.concatenate([x, y])) if half_width is None else half_width
    if not 0 < half_width < np.inf:
        raise ValueError(f"half_width must be a positive number of nats, got {half_width!r}")
    beyond = int(((np.abs(x) > half_width) | (np.abs(y) > half_width)).sum())
    x, y = (np.clip(values, -0.97 * half_width, 0.97 * half_width) for values in (x, y))
    ax = axes_of(ax, (6.2, 5.6))
    corners = {"ideal": (0.02, 0.98), "both_up": (0.98, 0.98), "both_down": (0.02, 0.02),
               "reversed": (0.98, 0.02)}  # fmt: skip
    for name, (across, up) in corners.items():
        left, bottom = (-half_width if across < 0.5 else 0), (0 if up > 0.5 else -half_width)
        right, top = left + half_width, bottom + half_width
        ax.fill_between([left, right], bottom, top, color=REGIMES[name].tint, lw=0, zorder=0)
        count = (frame["regime"] == name).sum()
        name_text = f"{REGIMES[name].region}\n{count} of {len(frame)}"
        corner_label(ax, name, across, up).set_text(name_text)
    for name, regime in REGIMES.items():
        here = (frame["regime"] == name).to_numpy()
        ax.scatter(x[here], y[here], s=40, marker=regime.marker, linewidths=0.5,
                   color=regime.color, edgecolors="white", zorder=4)  # fmt: skip
    if row is not None:
        ax.scatter(x[row], y[row], s=190, facecolors="none", edgecolors="black", lw=2, zorder=5)
    if beyond:
        ax.set_title(f"{beyond} of {len(frame)} pairs beyond the plane, drawn on its edge",
                     loc="left", fontsize=9)  # fmt: skip
    ax.axhline(0, color="#666666", linewidth=0.8, zorder=1)
    ax.axvline(0, color="#666666", linewidth=0.8, zorder=1)
    ax.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width), aspect="equal")
    ax.set_xlabel(along_axis("predicted_rejected_delta"))
    ax.set_ylabel(along_axis("predicted_chosen_delta"))
    return finish(ax, frame, grid=False)


def _plane_limit(values) -> float:
    sizes = np.abs(values[np.isfinite(values)])
    if not sizes.any():
        return 1.0
    robust = 3 * np.quantile(sizes, 0.95)
    return float(min(1.15 * sizes.max(), robust) if robust > 0 else 1.15 * sizes.max())


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
    ax = axes_of(ax, (7.2, float(np.clip(1.6 + 0.24 * len(rows), 2.6, 9))))
    here = sum(text.get_gid() == "name" for text in ax.texts)
    if here != len(rows):
        if here:
            ax.clear()
        _prepare_bars(ax, len(rows))
        finish(ax, frame)
        limits = limits or (delta_limits(rows) if log else (0, _largest_change(rows)))
    if limits is not None:
        _scale(ax, log, *limits)
    _move_bars(ax, rows, name, picked)
    artists = named(ax)
    _shade_beyond(ax, artists, frame.attrs.get("first_order_nats"))
    artists["caption"].set_text(caption_lines(ax, frame))
    sizes, edge = rows[list(_DELTAS)].abs().max(axis=1), ax.get_xlim()[1] / _BEYOND * (1 + 1e-9)
    notes = [f"{len(rows)} of {len(frame)} shown"] * (len(rows) < len(frame))
    notes += [f"{(sizes > edge).sum()} beyond the scale, on its edge"] * bool((sizes > edge).any())
    title_lines(ax, frame, "; ".join(notes), 0.62)
    return ax


def _largest(frame, top: int):
    """The rows with the largest changes, in the order of the frame, its labels kept."""
    if len(frame) <= top:
        return frame
    sizes = frame[list(_DELTAS)].abs().max(axis=1).to_numpy(float)
    return frame.iloc[np.sort(np.argsort(-sizes, kind="stable")[:top])]


def _largest_change(rows) -> float:
    sizes = rows[list(_DELTAS)].abs().to_numpy(float)
    return float(sizes[np.isfinite(sizes)].max(initial=0.0)) or 1.0


def _prepare_bars(ax, count: int) -> None:
    """Draw what stays, and all that moves without its places."""
    style = {"edgecolors": "black", "linewidths": 0.7, "zorder": 3, "clip_on": False}
    for side, mark, size in zip(SIDE_COLORS, "os", (60, 24), strict=True):
        ax.scatter([], [], s=size, marker=mark, color=SIDE_COLORS[side], label=side, gid=side,
                   **style)  # fmt: skip
    ax.add_collection(LineCollection([], colors="#9A9A9A", linewidths=2, zorder=2, gid="spans"))
    ax.axhspan(-9, -8, color="#E3E3E3", lw=0, zorder=0, gid="picked")
    ax.axvline(0, color="black", linewidth=0.8)
    for sign in (-1, 1):
        ax.axvspan(sign, sign, facecolor="#F2F2F2", hatch="///", edgecolor="#CFCFCF", lw=0,
                   zorder=0, gid=f"beyond{sign:+d}")  # fmt: skip
    ax.set_yticks(range(count), [""] * count)
    for line in range(count):
        ax.text(-0.012, line, "", transform=ax.get_yaxis_transform(), fontsize=8, ha="right",
                va="center", parse_math=False, gid="name")  # fmt: skip
    ax.set_ylim(count - 0.4, -0.6)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.1,
              fontsize=8, handletextpad=0.2, columnspacing=1)  # fmt: skip


def _move_bars(ax, rows, name: str, picked) -> None:
    """Sort the lines anew, and move their marks and names."""
    artists, order, names = named(ax), delta_order(rows), rows[name].tolist()
    most, lines = ax.get_xlim()[1] / _BEYOND, np.arange(len(rows))
    ends = [np.clip(rows[delta].to_numpy(float)[order], -most, most) for delta in _DELTAS]
    for side, values in zip(SIDE_COLORS, ends, strict=True):
        artists[side].set_offsets(np.column_stack([values, lines]))
    artists["spans"].set_segments(np.stack([np.column_stack([v, lines]) for v in ends], axis=1))
    shown = picked is not None and picked in names
    artists["picked"].set_visible(shown)
    if shown:
        artists["picked"].set_y(order.tolist().index(names.index(picked)) - 0.5)
    labels = [text for text in ax.texts if text.get_gid() == "name"]
    for label, k in zip(labels, order, strict=True):
        words, weight = marked(names[k], picked), "bold" if names[k] == picked else "normal"
        label.set(text=words, fontweight=weight, **plain_fonts([words]))


def _shade_beyond(ax, named, nats) -> None:
    """Hatch the changes that are too large for first order, where the bound is known."""
    for sign in (-1, 1):
        edges = sorted([sign * (nats or 0), sign * 10 * ax.get_xlim()[1]])
        span = named[f"beyond{sign:+d}"]
        span.set(x=edges[0], width=edges[1] - edges[0], visible=nats is not None)


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
    sizes = np.abs(frame[list(_DELTAS)].to_numpy(float))
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
