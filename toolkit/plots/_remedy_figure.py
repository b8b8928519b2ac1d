"""Remedies side by side: what each did to both responses over its seeds, and at what price."""

import numpy as np

from toolkit.plots._figure import axes_of, finish, plain_legend
from toolkit.plots._frames import require
from toolkit.plots._numbers import number
from toolkit.plots._palette import SIDE_COLORS
from toolkit.plots._trajectory_figure import DARK_SIDES, SIDE_MARKS

COLUMN = 68  # points
OFFSET = {"chosen": -0.14, "rejected": 0.14}
# Column, its head, decimals, factor.
PRICES = (
    ("margin_change", "margin\nnats", 1, 1),
    ("accuracy", "held-out\naccuracy", 2, 1),
    ("kl", "KL\nnats", 2, 1),
    ("tax", "perplexity\n%", 1, 100),
    ("seconds_per_step", "seconds\na step", 2, 1),
)


def remedies(frame, *, ax=None):
    """Which remedy keeps the chosen response up, and what it costs.

    One line per remedy, the best for the chosen response on top: the mean over seeds (large) of
    the change of both log-probabilities, a bar from the lowest to the highest seed, and each seed
    (small). Beside it stands what was paid, as means over seeds ± standard deviations: the margin
    gained, accuracy on held-out pairs, KL to the reference, the change of the perplexity of
    ordinary text, and the time of a step. Columns without a value are left out.

    Args:
        frame: `compare_remedies()`.
        ax: axes to draw on, with room at their right.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"remedy": ["plain", "normalised"], "seed": 0, "chosen_change":
        ...     [-5.0, 1.0], "rejected_change": [-9.0, -2.0], "margin_change": [4.0, 3.0]})
        >>> [label.get_text() for label in remedies(frame).get_yticklabels()]
        ['normalised', 'plain']
    """
    require(frame, "remedy", "seed", "chosen_change", "rejected_change", "margin_change")
    groups = dict(list(frame.groupby("remedy", sort=False)))
    order = sorted(groups, key=lambda name: -groups[name]["chosen_change"].mean())
    ax = axes_of(ax, (10.8, 1.9 + 0.46 * len(order)))
    for line, name in enumerate(order):
        for side in SIDE_COLORS:
            _spread(ax, line + OFFSET[side], groups[name][f"{side}_change"].to_numpy(float), side,
                    label=side if line == 0 else None)  # fmt: skip
    ax.axvline(0, color="#444444", lw=1, zorder=2)
    ax.set_yticks(range(len(order)), order, parse_math=False)
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    _prices(ax, [groups[name] for name in order])
    seeds = frame["seed"].nunique()
    words = f"change of log π, mean over pairs, nats ({seeds} seed{'s' * (seeds > 1)})"
    ax.set_xlabel(words)
    plain_legend(ax.legend(fontsize=8.5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2,
                           frameon=False))  # fmt: skip
    return finish(ax, frame)


def _spread(ax, line: float, values, side: str, label) -> None:
    color, dark, mark = SIDE_COLORS[side], DARK_SIDES[side], SIDE_MARKS[side]
    ax.plot([values.min(), values.max()], [line, line], color=dark, lw=2, zorder=3)
    ax.scatter(values, np.full(len(values), line), s=14, marker=mark, color=color, alpha=0.7,
               linewidths=0, zorder=4)  # fmt: skip
    ax.scatter([values.mean()], [line], s=64, marker=mark, color=color, edgecolors=dark,
               linewidths=1.2, zorder=5, label=label)  # fmt: skip


def _prices(ax, groups) -> None:
    """Write what each remedy cost beside its line."""
    place, at = COLUMN / 2 + 8, {"xycoords": ax.get_yaxis_transform(), "ha": "center"}
    at |= {"textcoords": "offset points", "fontsize": 8.5, "annotation_clip": False}
    for column, head, places, factor in PRICES:
        found = [factor * _price(group, column) for group in groups]
        if all(np.isnan(values).all() for values in found):
            continue
        ax.annotate(head, (1, -0.6), xytext=(place, 4), va="bottom", color="#444444", **at)
        for line, values in enumerate(found):
            words = number(values.mean(), places=places, sign=column == "tax")
            if len(values) > 1:
                words += f" ± {number(values.std(ddof=1), places=places)}"
            ax.annotate(words, (1, line), xytext=(place, 0), va="center", **at)
        place += COLUMN


def _price(group, column: str) -> np.ndarray:
    if column == "tax":
        if "perplexity" not in group or "perplexity_before" not in group:
            return np.full(len(group), np.nan)
        return (group["perplexity"] / group["perplexity_before"] - 1).to_numpy(float)
    return group[column].to_numpy(float) if column in group else np.full(len(group), np.nan)
