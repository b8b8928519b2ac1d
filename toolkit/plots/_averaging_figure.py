"""The way between two models: what it gains in margin against what ordinary text pays."""

import numpy as np

from toolkit.plots._figure import axes_of, column_words, finish, group_colors, plain_legend
from toolkit.plots._frames import require
from toolkit.plots._numbers import number
from toolkit.plots._palette import SIDE_COLORS
from toolkit.plots._trajectory_figure import DARK_SIDES, SIDE_MARKS

_WORDS = {
    "margin": "margin gained, nats",
    "text_nll": "loss of ordinary text, nats a token",
    "perplexity": "perplexity of ordinary text",
    "kl": "KL to the model before, nats",
    "weight_on_after": "weight on the trained model",
    "chosen_delta": "change of the chosen log-probability, nats",
}


def averaging_front(frame, *, x="text_nll", y="margin", by=None, label=True, ax=None):
    """Price against gain of averaged models, a dot per point of the way, joined in order.

    Up and to the left is better; a point is hollow where another one of the frame is at least as
    good in both and better in one (it is not on the Pareto front).

    Args:
        frame: `interpolate()`, or several of them joined: ``point, weight_on_after``, the columns
            ``x`` and ``y``; means over the pairs are drawn.
        x: the price: ``text_nll``, ``perplexity`` or ``kl``.
        y: the gain: ``margin`` or ``chosen_delta``.
        by: a column that tells several ways apart.
        label: write the weight on the trained model beside each dot.
        ax: axes to draw on.

    Returns:
        The Axes; the dots of each way are one artist, with the gid ``"points-…"``.

    Raises:
        ValueError: for a missing column, or no rows.

    Source: arXiv 2309.06256, Figures 1 and 2.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"point": [0, 1], "weight_on_after": [0.0, 1], "margin": [0, 2.0],
        ...     "text_nll": [2.0, 2.5]})
        >>> ax = averaging_front(frame)
    """
    require(frame, "point", "weight_on_after", x, y, *([by] if by else []))
    ax = axes_of(ax, (6.4, 4.6))
    names = list(dict.fromkeys(frame[by].astype(str))) if by else [""]
    colors = group_colors(names)
    rows = frame.assign(_way=frame[by].astype(str) if by else "")
    means = rows.groupby(["_way", "point"], sort=False)[["weight_on_after", x, y]].mean()
    best = _front(means[x].to_numpy(float), means[y].to_numpy(float))
    means = means.assign(_best=best)
    for k, name in enumerate(names):
        part = means.loc[name]
        ax.plot(part[x], part[y], color=colors[name], lw=1.5, zorder=3, label=name or None)
        faces = [colors[name] if kept else "white" for kept in part["_best"]]
        ax.scatter(part[x], part[y], c=faces, edgecolors=colors[name], zorder=4, linewidths=1.4,
                   s=42, marker="osD^v"[k % 5], gid=f"points-{name}")  # fmt: skip
        for weight, across, up in part[["weight_on_after", x, y]].to_numpy() if label else []:
            ax.annotate(number(weight, 2), (across, up), (5, -9 if k == 0 else 5), fontsize=8,
                        textcoords="offset points", color="#333333")  # fmt: skip
    words = [_WORDS.get(name) or column_words(name) for name in (x, y)]
    ax.set(xlabel=words[0], ylabel=words[1])
    ax.set_title("up and left is better; numbers: weight on the trained model", loc="left",
                 fontsize=9)  # fmt: skip
    if by:
        plain_legend(ax.legend(fontsize=8, loc="best"))
    return finish(ax, frame)


def averaging_line(frame, *, ax=None):
    """The change of both log-probabilities on the way from one model to the other.

    Args:
        frame: `interpolate()`: ``weight_on_after, chosen_delta, rejected_delta``; means over the
            pairs are drawn, and the spread between its tenth and ninetieth percentile as a band.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"weight_on_after": [0.0, 1], "chosen_delta": [0, -2.0],
        ...     "rejected_delta": [0, -9.0]})
        >>> ax = averaging_line(frame)
    """
    require(frame, "weight_on_after", "chosen_delta", "rejected_delta")
    ax = axes_of(ax, (6.4, 4.2))
    for side, color in SIDE_COLORS.items():
        groups = frame.groupby("weight_on_after")[f"{side}_delta"]
        mean, low, high = groups.mean(), groups.quantile(0.1), groups.quantile(0.9)
        ax.fill_between(mean.index, low, high, color=color, alpha=0.25, linewidth=0, zorder=2,
                        label=f"{side}, middle 80 % of pairs")  # fmt: skip
        ax.plot(mean.index, mean, color=color, lw=2.4, marker=SIDE_MARKS[side], ms=5, zorder=3,
                mec=DARK_SIDES[side], label=side)  # fmt: skip
    ax.axhline(0, color="#666666", lw=0.8, zorder=1)
    ax.set(xlabel=_WORDS["weight_on_after"], ylabel="change of the log-probability, nats")
    ax.legend(fontsize=8, loc="best")
    return finish(ax, frame)


def _front(price, gain) -> np.ndarray:
    """Whether no other point is at least as good in both and better in one."""
    cheaper = price[:, None] >= price[None, :]
    better = gain[:, None] <= gain[None, :]
    strictly = (price[:, None] > price[None, :]) | (gain[:, None] < gain[None, :])
    return ~(cheaper & better & strictly).any(axis=1)
