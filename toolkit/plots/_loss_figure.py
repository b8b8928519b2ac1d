"""All losses side by side for one pair: their places on the map, and what a step of each does."""

import textwrap

import numpy as np
from matplotlib.collections import LineCollection

from toolkit.plots._entanglement_map import entanglement_map, update_entanglement_map
from toolkit.plots._figure import SIDE_COLORS, axes_of, caption_lines, families, finish, short
from toolkit.plots._palette import require

_MOVING = {
    *("pairs", "ring", "losses", "leaders", "label-ideal", "label-both_up", "label-both_down"),
    *("chosen", "rejected", "spans", "picked", "name", "title", "caption"),
}
_DELTAS = ("predicted_chosen_delta", "predicted_rejected_delta")
_SIZE = 8.0  # points, of the labels on the map
_PICKED = "▸ "
_BEYOND = 1.3  # room beyond the largest change
_DECADES = 6  # of changes that the picture of changes tells apart


def loss_map(frame, *, picked=None, ylim=None, ax=None):
    """One pair's losses on the entanglement map: the cosine is the pair's, the height the loss's.

    Losses that pull alike share a point and a label. A loss with a weight ≤ 0 has no place on a
    logarithmic axis: it is named above the map.

    Args:
        frame: one row per loss: ``loss, cosine, d_chosen, d_rejected, band_center, regime``.
        picked: the ``loss`` to ring.
        ylim: half-height of the map; None fits the points.
        ax: axes to draw on.

    Returns:
        The Axes. Its points are one artist with gid ``"pairs"``, in the order of the rows.

    Raises:
        ValueError: for a missing column, no rows, an unknown ``picked`` or a bad ``ylim``.

    Source: arXiv 2410.13828, three cases; arXiv 2604.18239, band form.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"loss": ["dpo", "cpo"], "cosine": 0.6, "d_chosen": [0.05, 1.05],
        ...     "d_rejected": 0.05, "band_center": 2.0, "regime": ["both_down", "both_up"]})
        >>> ax = loss_map(frame, picked="dpo")
    """
    require(frame, "loss")
    ax = entanglement_map(_by_loss(frame), picked=picked, ylim=ylim, annotate=False, ax=ax)
    ax.add_collection(LineCollection([], colors="#777777", linewidths=0.7, zorder=3, gid="leaders"))
    return update_loss_map(ax, frame, picked=picked)


def update_loss_map(ax, frame, *, picked=None, ylim=None):
    """Move the points and the labels of a `loss_map`.

    Args:
        ax: the Axes that `loss_map` returned.
        frame: as there.
        picked: as there.
        ylim: a new half-height; None keeps the limits, and draws points beyond them on the edge.

    Returns:
        ``ax``.

    Raises:
        ValueError: as there, or when ``ax`` is no entanglement map.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"loss": ["dpo"], "cosine": [0.6], "d_chosen": [0.05],
        ...     "d_rejected": [0.05], "band_center": [2.0], "regime": ["both_down"]})
        >>> ax = update_loss_map(loss_map(frame), frame, picked="dpo")
    """
    require(frame, "loss")
    if ylim is not None:
        ax.set_ylim(-ylim, ylim)
    update_entanglement_map(ax, _by_loss(frame), picked=picked, annotate=False)
    named = {artist.get_gid(): artist for artist in ax.get_children() if artist.get_gid()}
    named["note"].set_visible(False)  # its words are for pairs; the title has those for losses
    for text in [t for t in ax.texts if t.get_gid() == "losses"]:
        text.remove()
    places = named["pairs"].get_offsets()
    shown = np.isfinite(np.ma.filled(places, np.nan)).all(1)
    groups = _groups(places, frame["loss"].tolist(), shown, picked, ax)
    named["leaders"].set_segments(_label(ax, groups, picked))
    names = [_name(loss) for loss in frame["loss"][~shown]]
    left_out = f"not on a log axis (a weight ≤ 0): {', '.join(names)}" if names else ""
    _title(ax, frame, left_out)
    return ax


def loss_bars(frame, *, picked=None, limits=None, ax=None):
    """Predicted change of chosen (●) and rejected (■), one line per loss, by the chosen one.

    The scale is logarithmic on both sides of zero, because losses differ by orders of magnitude.

    Args:
        frame: one row per loss: ``loss, predicted_chosen_delta, predicted_rejected_delta``, nats.
        picked: the ``loss`` to mark.
        limits: from `loss_limits`, to keep one scale; changes beyond it are drawn on its edge.
        ax: axes to draw on.

    Returns:
        The Axes; line ``k`` from the top is ``loss_order(frame)[k]``.

    Raises:
        ValueError: for a missing column, no rows or an unknown ``picked``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"loss": ["dpo", "cpo"], "predicted_chosen_delta": [0.1, 2.0],
        ...     "predicted_rejected_delta": [-0.2, 1.0]})
        >>> [text.get_text() for text in loss_bars(frame).texts[:2]]
        ['cpo', 'dpo']
    """
    require(frame, "loss", *_DELTAS)
    ax = axes_of(ax, (7.2, float(np.clip(1.6 + 0.24 * len(frame), 2.6, 9))))
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
    ax.set_yticks(range(len(frame)), [""] * len(frame))
    for line in range(len(frame)):
        ax.text(-0.012, line, "", transform=ax.get_yaxis_transform(), fontsize=8, ha="right",
                va="center", parse_math=False, gid="name")  # fmt: skip
    ax.set_ylim(len(frame) - 0.4, -0.6)
    ax.set_xlabel("predicted change of the log-probability, nats (log scale both ways)", fontsize=9)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.1,
              fontsize=8, handletextpad=0.2, columnspacing=1)  # fmt: skip
    finish(ax, frame)
    limits = loss_limits(frame) if limits is None else limits
    return update_loss_bars(ax, frame, picked=picked, limits=limits)


def update_loss_bars(ax, frame, *, picked=None, limits=None):
    """Move the marks of a `loss_bars` and sort its lines anew.

    Args:
        ax: the Axes that `loss_bars` returned.
        frame: as there, with as many rows.
        picked: as there.
        limits: as there; None keeps the scale.

    Returns:
        ``ax``.

    Raises:
        ValueError: as there, or for another number of rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"loss": ["dpo"], "predicted_chosen_delta": [0.1],
        ...     "predicted_rejected_delta": [-0.2]})
        >>> ax = update_loss_bars(loss_bars(frame), frame, picked="dpo")
    """
    require(frame, "loss", *_DELTAS)
    losses = frame["loss"].tolist()
    labels = [text for text in ax.texts if text.get_gid() == "name"]
    if picked is not None and picked not in losses:
        raise ValueError(f"picked={picked!r} is not in the frame's {len(losses)} losses")
    if len(labels) != len(losses):
        raise ValueError(f"frame has {len(losses)} losses, but ax was drawn for {len(labels)}")
    if limits is not None:
        _decades(ax, *limits)
    most, order = ax.get_xlim()[1] / _BEYOND, loss_order(frame)
    changes = {side: frame[name].to_numpy(float)[order]
               for side, name in zip(SIDE_COLORS, _DELTAS, strict=True)}  # fmt: skip
    edge = most * (1 + 1e-9)
    beyond = int((np.max([np.abs(c) for c in changes.values()], axis=0) > edge).sum())
    named = {artist.get_gid(): artist for artist in ax.get_children() if artist.get_gid()}
    lines = np.arange(len(order))
    ends = [np.clip(values, -most, most) for values in changes.values()]
    for side, values in zip(changes, ends, strict=True):
        named[side].set_offsets(np.column_stack([values, lines]))
    named["spans"].set_segments(np.stack([np.column_stack([v, lines]) for v in ends], axis=1))
    named["picked"].set_visible(picked is not None)
    if picked is not None:
        named["picked"].set_y(order.tolist().index(losses.index(picked)) - 0.5)
    words = [_marked(losses[k], picked) for k in order]
    for label, k, name in zip(labels, order, words, strict=True):
        weight = "bold" if losses[k] == picked else "normal"
        label.set(text=name, fontweight=weight, **_fonts(name))
    _shade_beyond(ax, named, frame.attrs.get("first_order_nats"))
    named["caption"].set_text(caption_lines(ax, frame))
    _title(ax, frame, f"{beyond} beyond the scale, on its edge" if beyond else "", 0.62)
    return ax


def _shade_beyond(ax, named, nats) -> None:
    """Hatch the changes that are too large for first order, where the bound is known."""
    for sign in (-1, 1):
        edges = sorted([sign * (nats or 0), sign * 10 * ax.get_xlim()[1]])
        span = named[f"beyond{sign:+d}"]
        span.set(x=edges[0], width=edges[1] - edges[0], visible=nats is not None)


def moving_parts(ax) -> list:
    """The artists that `update_loss_map` and `update_loss_bars` change; all others stay.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"loss": ["dpo"], "predicted_chosen_delta": [0.1],
        ...     "predicted_rejected_delta": [-0.2]})
        >>> len(moving_parts(loss_bars(frame)))
        7
    """
    return [artist for artist in ax.get_children() if artist.get_gid() in _MOVING]


def loss_order(frame) -> np.ndarray:
    """The rows of a frame by falling predicted change of the chosen response.

    Example:
        >>> import pandas as pd
        >>> loss_order(pd.DataFrame({"predicted_chosen_delta": [0.1, 2.0]})).tolist()
        [1, 0]
    """
    return np.argsort(-frame[_DELTAS[0]].to_numpy(float), kind="stable")


def loss_limits(frame) -> tuple[float, float]:
    """The smallest and the largest change, in whole decades, that hold a frame's changes.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"predicted_chosen_delta": [0.02],
        ...                       "predicted_rejected_delta": [-3.0]})
        >>> loss_limits(frame)
        (0.01, 10.0)
    """
    sizes = np.abs(frame[list(_DELTAS)].to_numpy(float))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not len(sizes):
        return 1e-3, 1.0
    top = np.ceil(np.log10(sizes.max()))
    low = np.clip(np.floor(np.log10(sizes.min())), top - _DECADES, top - 1)
    return float(10.0**low), float(10.0**top)


def _by_loss(frame):
    """The frame as the entanglement map reads it; its caption leaves out what cannot matter."""
    rows = frame.assign(id=frame["loss"])
    rows.attrs = {name: value for name, value in frame.attrs.items() if name != "lr"}
    return rows


def _fonts(words) -> dict:
    """Fonts for other scripts, only where they are needed: looking for them takes time."""
    plain = "".join(words).replace(_PICKED, "").isascii()
    return {} if plain else {"fontfamily": families()}


def _name(loss) -> str:
    return short(loss, 20)


def _title(ax, frame, words: str, share: float = 1.0) -> None:
    """Write what the picture leaves out; first of all, that its numbers are hypothetical."""
    letters = max(30, int(15.5 * share * ax.get_window_extent().width / ax.figure.dpi))
    hypothetical = frame.attrs.get("hypothetical", "")
    lines = textwrap.wrap(f"HYPOTHETICAL: {hypothetical}", letters) if hypothetical else []
    lines += textwrap.wrap(words, letters, max_lines=4, placeholder=" …")
    style = {"color": "#8A3C00", "fontweight": "bold"} if hypothetical else {"color": "black"}
    ax.set_title("\n".join(lines), loc="left", fontsize=8, parse_math=False, gid="title", **style)


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
    words = [textwrap.wrap(", ".join(_marked(n, picked) for n in names), letters)
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
                **_fonts(lines), bbox={"fc": "white", "ec": "none", "alpha": 0.6, "pad": 0.5},
                )  # fmt: skip
        segments.append([(x, y), (start + (-0.015 if right else 0.015), level)])
    return segments


def _marked(name: str, picked) -> str:
    return (_PICKED if name == picked else "") + _name(name)


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


def _decades(ax, least: float, most: float) -> None:
    """A scale that is logarithmic on both sides of zero, with few enough marks to read."""
    ax.set_xscale("symlog", linthresh=least, linscale=0.6)
    ax.set_xlim(-_BEYOND * most, _BEYOND * most)
    powers = np.arange(round(np.log10(least)), round(np.log10(most)) + 1)
    powers = powers[:: -max(1, int(np.ceil(len(powers) / 3)))][::-1]
    ticks = [*(-(10.0 ** powers[::-1])), 0.0, *(10.0**powers)]
    ax.set_xticks(ticks, [_power(t) for t in ticks], fontsize=8)
    ax.set_xticks([], minor=True)


def _power(value: float) -> str:
    if value == 0 or 0.01 <= abs(value) < 1000:
        return f"{value:g}".replace("-", "−")
    digits = str(round(np.log10(abs(value)))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{'−' if value < 0 else ''}10{digits}"
