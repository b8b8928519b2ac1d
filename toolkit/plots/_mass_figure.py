"""Where the probability went: the tokens that gained and lost most, as bars."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from toolkit.plots._figure import axes_of, drawable, families, finish
from toolkit.plots._frames import require
from toolkit.plots._numbers import number
from toolkit.plots._palette import OKABE_ITO

WIDEST = 22  # characters of a token's text


def mass_flow(frame, *, position=None, top=8, ax=None):
    """Tokens that gained (blue) and lost (vermillion, hatched) probability at one position.

    The chosen and the rejected token are named and drawn with a black edge wherever they rank;
    beside every bar stand its change and the probability before and after.

    Args:
        frame: `mass_flow()`: ``position, token, prob_before, prob_after, delta, role``.
        position: the position to show when the frame holds several.
        top: at most this many gains and as many losses, beside the two named tokens.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, no rows, or an unknown or unsaid position.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"position": 0, "token": [" Yes", " No"], "delta": [0.2, -0.3],
        ...     "prob_before": [0.1, 0.6], "prob_after": [0.3, 0.3], "role": ["", "chosen"]})
        >>> ax = mass_flow(frame)
    """
    require(frame, "position", "token", "prob_before", "prob_after", "delta", "role")
    rows = _shown(_at(frame, position), top)
    ax = axes_of(ax, (6.6, float(np.clip(1.5 + 0.3 * len(rows), 2.6, 9))))
    lines, delta = np.arange(len(rows)), rows["delta"].to_numpy(float)
    named = (rows["role"] != "").to_numpy()
    colors = np.where(delta >= 0, OKABE_ITO["blue"], OKABE_ITO["vermillion"])
    bars = ax.barh(lines, delta, color=colors, height=0.72, zorder=3,
                   edgecolor=np.where(named, "black", "white"),
                   linewidth=np.where(named, 2.0, 0.5))  # fmt: skip
    for bar, change in zip(bars, delta, strict=True):
        if change < 0:
            bar.set_hatch("////")
    texts = zip(lines, delta, rows["prob_before"], rows["prob_after"], strict=True)
    for line, change, before, after in texts:
        words = f"{number(change, 2, sign=True)}  ({before:.2g} → {after:.2g})"
        ax.text(1.02, line, words, transform=ax.get_yaxis_transform(), va="center", fontsize=8,
                color="#222222")  # fmt: skip
    ax.axvline(0, color="black", lw=0.8, zorder=4)
    ax.set_yticks(lines, [_named(*row) for row in zip(rows["token"], rows["role"], strict=True)],
                  parse_math=False, fontsize=9, fontfamily=families())  # fmt: skip
    for label, bold in zip(ax.get_yticklabels(), named, strict=True):
        label.set_fontweight("bold" if bold else "normal")
    widest = np.abs(delta).max() or 1.0
    ax.set_xlim(min(delta.min() - 0.05 * widest, 0), max(delta.max() + 0.05 * widest, 0))
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="x", labelsize=8.5)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("change of the probability of the next token")
    return finish(ax, frame)


def _at(frame, position):
    found = list(dict.fromkeys(frame["position"]))
    if position is None and len(found) > 1:
        raise ValueError(f"frame holds {len(found)} positions; say position=, one of {found[:10]}")
    if position is not None and position not in found:
        raise ValueError(f"position={position!r} is not in the frame; it has {found[:10]}")
    return frame if position is None else frame[frame["position"] == position]


def _shown(rows, top: int):
    """The largest gains and losses and the two named tokens, by falling change."""
    rows = rows.sort_values("delta", ascending=False, kind="stable")
    change = rows["delta"].to_numpy(float)
    kept = (rows["role"] != "").to_numpy(copy=True)
    kept[np.flatnonzero(change > 0)[:top]] = True
    kept[np.flatnonzero(change < 0)[::-1][:top]] = True
    return rows[kept] if kept.any() else rows[:top]


def _named(token, role: str) -> str:
    text = drawable(str(token))
    text = text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"
    return f"{text} ({role})" if role else text
