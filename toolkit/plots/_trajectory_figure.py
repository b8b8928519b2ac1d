"""A training run as lines over its steps, and its predictions against what really happened."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from toolkit.plots._figure import (
    axes_of,
    finish,
    limits_of,
    mark_step,
    plain_legend,
    short,
    zero_lines,
)
from toolkit.plots._frames import probes, require
from toolkit.plots._numbers import number
from toolkit.plots._palette import OKABE_ITO, SIDE_COLORS

SIDE_MARKS = {"chosen": "o", "rejected": "s"}
DARK_SIDES = {"chosen": OKABE_ITO["blue"], "rejected": OKABE_ITO["vermillion"]}
VALUES = {
    "logps": "change since start, nats",
    "loss": "loss",
    "margin": "margin of the rewards",
    "kl": "KL to the reference, nats",
}


def trajectory(frame, *, value="logps", picked=None, step=None, steps=None, ax=None):
    """What training does to the probes, step by step, over what first order predicts.

    For ``value="logps"`` the chosen and rejected log-probabilities since the start (solid), over
    the sum of all predictions so far (dashed). Otherwise one line. Without ``picked`` the lines
    are means over all probes; call it twice with one ``ax`` for the mean and one probe.

    Args:
        frame: `Trajectory.to_frame()`: ``step, pair_id, side`` and ``value``; for the
            log-probabilities ``predicted_logps`` too.
        value: ``logps``, ``loss``, ``margin`` or ``kl``.
        picked: a ``pair_id`` whose lines to draw instead of the means.
        step: the step to mark by an upright line; `mark_step` moves it.
        steps: end of the step axis; None ends it with the data.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, no rows, an unknown value or pair.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"step": [0, 0, 1, 1], "pair_id": "a", "side": ["chosen",
        ...     "rejected"] * 2, "logps": [-2.0, -3, -2.1, -3.4], "predicted_logps": [-2.0, -3,
        ...     -2.2, -3.5]})
        >>> ax = trajectory(frame, step=1)
    """
    if value not in VALUES:
        raise ValueError(f"value={value!r} is unknown; allowed: {', '.join(VALUES)}")
    require(frame, "step", "pair_id", "side", value,
            *["predicted_logps"] * (value == "logps"))  # fmt: skip
    rows, who = probes(frame, picked)
    who = short(who)
    ax = axes_of(ax, (6.4, 4.2))
    if value == "logps":
        _sides(ax, rows, who)
    else:
        mean = rows[rows["side"] == "chosen"].groupby("step")[value].mean()
        style = {"color": "black", "lw": 2.2, "zorder": 3}
        if picked is not None:
            style = {"color": OKABE_ITO["purple"], "lw": 1.6, "ls": (0, (4, 1)), "zorder": 4}
        ax.plot(mean.index, mean, marker="o", ms=2.5, label=who, **style)
        if len(ax.get_legend_handles_labels()[0]) > 1:
            plain_legend(ax.legend(fontsize=8, framealpha=0.85))
    last = int(frame["step"].max()) if steps is None else steps
    ax.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="step", ylabel=VALUES[value])
    if step is not None:
        mark_step(ax, step)
    return finish(ax, frame)


def _sides(ax, rows, who: str) -> None:
    """Both sides' changes since the start, and the predicted ones behind them."""
    starts = []
    for side, color in SIDE_COLORS.items():
        part = rows[rows["side"] == side].groupby("step")[["logps", "predicted_logps"]].mean()
        since = part - part["logps"].iloc[0]
        if len(since) == 1 or since["predicted_logps"].iloc[1:].notna().any():
            ax.plot(since.index, since["predicted_logps"], color=DARK_SIDES[side], lw=1.4,
                    ls=(0, (3, 2)), zorder=2, label=f"{side}, predicted")  # fmt: skip
        ax.plot(since.index, since["logps"], color=color, lw=2.6, marker=SIDE_MARKS[side], ms=4,
                mec=DARK_SIDES[side], mew=0.7, zorder=3, label=side)  # fmt: skip
        starts.append(number(part["logps"].iloc[0]))
    zero_lines(ax, "y")
    ax.set_title(f"{who}   (start: {' and '.join(starts)} nats)", loc="left", fontsize=9.5,
                 parse_math=False)  # fmt: skip
    handles = sorted(ax.get_legend_handles_labels()[0], key=lambda line: -line.get_zorder())
    ax.legend(handles=handles, fontsize=8, framealpha=0.85, ncols=2)


def predicted_vs_actual(frame, *, ax=None):
    """Actual change of every response against its prediction, with the 1:1 line and R².

    R² = 1 − Σ(actual − predicted)² / Σ(actual − mean)²: the share of the changes that the
    prediction itself explains, no line fitted; below zero it is worse than the mean.

    Args:
        frame: `predict_step()` or `Trajectory.to_frame()`: ``side, predicted_delta,
            actual_delta`` in nats; rows without both (the start of a run) are left out.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, or no row with both changes.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"side": ["chosen", "rejected"], "predicted_delta": [0.1, -0.2],
        ...                       "actual_delta": [0.1, -0.2]})
        >>> predicted_vs_actual(frame).get_title(loc="left")
        'R² = 1.000   (n = 2)'
    """
    require(frame, "side", "predicted_delta", "actual_delta")
    both = frame[["predicted_delta", "actual_delta"]].astype(float)
    rows = frame[np.isfinite(both).all(axis=1)]
    if rows.empty:
        raise ValueError(f"frame has no row with both changes in {len(frame)} rows")
    ax = axes_of(ax, (5.2, 4.8))
    values = rows[["predicted_delta", "actual_delta"]].to_numpy(float)
    ends = limits_of(values)
    ax.plot(ends, ends, color="#444444", lw=1, ls="--", zorder=2, label="predicted = actual")
    for side, color in SIDE_COLORS.items():
        part = rows[rows["side"] == side]
        ax.scatter(part["predicted_delta"], part["actual_delta"], s=26, color=color, alpha=0.85,
                   marker=SIDE_MARKS[side], edgecolors=DARK_SIDES[side], linewidths=0.6, zorder=3,
                   label=side)  # fmt: skip
    actual = values[:, 1]
    total = np.square(actual - actual.mean()).sum()
    gap = np.square(actual - values[:, 0]).sum()
    r_squared = f"= {number(1 - gap / total, places=3)}" if total else "undefined"
    ax.set_title(f"R² {r_squared}   (n = {len(rows)})", loc="left", fontsize=10)
    ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel="predicted change, nats",
           ylabel="actual change, nats")  # fmt: skip
    ax.legend(fontsize=8, loc="best")
    return finish(ax, frame)
