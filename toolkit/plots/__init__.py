"""Axes-level figures and token HTML from frames; no torch, no maths beyond ranks and logs.

Every figure takes a frame first, keywords after it, ``ax=None`` (a new figure), and returns the
Axes. The entanglement map, the heatmap and the HTML live in modules of their own and are offered
here, so that one import has every view.
"""

import numpy as np
import pandas as pd
import seaborn as sns

from toolkit.plots._dataset_figure import (
    score_histogram,
    score_scatter,
    update_score_histogram,
    update_score_scatter,
)
from toolkit.plots._entanglement_map import entanglement_map, update_entanglement_map
from toolkit.plots._fall_figure import anatomy_of_a_fall, fall_sentence
from toolkit.plots._fall_parts import fall_by_pair, fall_by_token
from toolkit.plots._figure import (
    COLUMN_WORDS,
    REGIME_COLORS,
    REGIME_MARKERS,
    REGION_NAMES,
    REGION_TINTS,
    SIDE_COLORS,
    axes_of,
    column_words,
    corner_label,
    families,
    finish,
    group_colors,
    plain_legend,
    row_of,
    short,
)
from toolkit.plots._loss_figure import (
    loss_bars,
    loss_limits,
    loss_map,
    loss_order,
    moving_parts,
    update_loss_bars,
    update_loss_map,
)
from toolkit.plots._loss_html import loss_table_html
from toolkit.plots._mass_figure import mass_flow
from toolkit.plots._numbers_table import numbers_table
from toolkit.plots._palette import OKABE_ITO, REGIME_WORDS, caption, require, rounded_down
from toolkit.plots._token_heatmap import token_heatmap
from toolkit.plots._token_html import prompt_strip_html, token_strip_html
from toolkit.plots._trajectory_figure import mark_step, predicted_vs_actual, trajectory
from toolkit.plots._user_text import NO_MATHS, html_text, visible_text, visible_token

__all__ = [
    "NO_MATHS",
    "REGIME_WORDS",
    "anatomy_of_a_fall",
    "caption",
    "ches_scatter",
    "delta_plane",
    "entanglement_map",
    "fall_by_pair",
    "fall_by_token",
    "fall_sentence",
    "hist_by",
    "html_text",
    "length_confound",
    "loss_bars",
    "loss_limits",
    "loss_map",
    "loss_order",
    "loss_table_html",
    "mark_step",
    "mass_flow",
    "moving_parts",
    "numbers_table",
    "predicted_bars",
    "predicted_vs_actual",
    "prompt_strip_html",
    "rounded_down",
    "score_histogram",
    "score_scatter",
    "token_heatmap",
    "token_strip_html",
    "trajectory",
    "update_entanglement_map",
    "update_loss_bars",
    "update_loss_map",
    "update_score_histogram",
    "update_score_scatter",
    "visible_text",
    "visible_token",
]


def delta_plane(frame, *, picked=None, limit=None, ax=None):
    """Predicted change of chosen against rejected: each quadrant is a regime.

    Args:
        frame: ``id, predicted_chosen_delta, predicted_rejected_delta, regime``, changes in nats.
        picked: the ``id`` to ring.
        limit: half-width of both axes, nats; None fits it to the data, but to no more than
            three times the 95th percentile. Points beyond it are drawn on the edge and counted.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, no rows or an unknown ``picked``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": ["a"], "predicted_chosen_delta": [0.1],
        ...     "predicted_rejected_delta": [-0.2], "regime": ["ideal"]})
        >>> ax = delta_plane(frame)
    """
    require(frame, "id", "predicted_chosen_delta", "predicted_rejected_delta", "regime")
    row = row_of(frame, picked)
    x, y = (frame[f"predicted_{side}_delta"].to_numpy(float) for side in ("rejected", "chosen"))
    limit = _plane_limit(np.concatenate([x, y])) if limit is None else limit
    if not 0 < limit < np.inf:
        raise ValueError(f"limit must be a positive number of nats, got {limit!r}")
    beyond = int(((np.abs(x) > limit) | (np.abs(y) > limit)).sum())
    x, y = (np.clip(values, -0.97 * limit, 0.97 * limit) for values in (x, y))
    ax = axes_of(ax, (6.2, 5.6))
    corners = {"ideal": (0.02, 0.98), "both_up": (0.98, 0.98), "both_down": (0.02, 0.02),
               "reversed": (0.98, 0.02)}  # fmt: skip
    for name, (across, up) in corners.items():
        left, bottom = (-limit if across < 0.5 else 0), (0 if up > 0.5 else -limit)
        ax.fill_between([left, left + limit], bottom, bottom + limit, color=REGION_TINTS[name],
                        lw=0, zorder=0)  # fmt: skip
        count = (frame["regime"] == name).sum()
        name_text = f"{REGION_NAMES[name]}\n{count} of {len(frame)}"
        corner_label(ax, name, across, up).set_text(name_text)
    for name, marker in REGIME_MARKERS.items():
        here = (frame["regime"] == name).to_numpy()
        ax.scatter(x[here], y[here], s=40, marker=marker, linewidths=0.5,
                   color=REGIME_COLORS[name], edgecolors="white", zorder=4)  # fmt: skip
    if row is not None:
        ax.scatter(x[row], y[row], s=190, facecolors="none", edgecolors="black", lw=2, zorder=5)
    if beyond:
        ax.set_title(f"{beyond} of {len(frame)} pairs beyond the plane, drawn on its edge",
                     loc="left", fontsize=9)  # fmt: skip
    ax.axhline(0, color="#666666", linewidth=0.8, zorder=1)
    ax.axvline(0, color="#666666", linewidth=0.8, zorder=1)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ax.set_xlabel(COLUMN_WORDS["predicted_rejected_delta"])
    ax.set_ylabel(COLUMN_WORDS["predicted_chosen_delta"])
    return finish(ax, frame, grid=False)


def _plane_limit(values) -> float:
    sizes = np.abs(values[np.isfinite(values)])
    if not sizes.any():
        return 1.0
    robust = 3 * np.quantile(sizes, 0.95)
    return float(min(1.15 * sizes.max(), robust) if robust > 0 else 1.15 * sizes.max())


def predicted_bars(frame, *, top=20, ax=None):
    """Predicted change of chosen (●) and rejected (■), one line per pair, largest first.

    Args:
        frame: ``id, predicted_chosen_delta, predicted_rejected_delta`` in nats.
        top: how many pairs to show, those with the largest changes.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": ["a"], "predicted_chosen_delta": [0.1],
        ...     "predicted_rejected_delta": [-0.2]})
        >>> ax = predicted_bars(frame)
    """
    names = ["predicted_chosen_delta", "predicted_rejected_delta"]
    require(frame, "id", *names)
    order = frame[names].abs().max(axis=1).sort_values(ascending=False, kind="stable").index
    shown = frame.loc[order[:top]]
    ax = axes_of(ax, (7.2, float(np.clip(1.6 + 0.3 * len(shown), 2.6, 9))))
    lines = np.arange(len(shown))
    ax.hlines(lines, shown[names[0]], shown[names[1]], color="#9A9A9A", linewidth=2, zorder=2)
    for name, side, mark in zip(names, SIDE_COLORS, "os", strict=True):
        ax.scatter(shown[name], lines, s=58, marker=mark, color=SIDE_COLORS[side],
                   edgecolors="black", linewidths=0.8, zorder=3, label=side)  # fmt: skip
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(lines, [short(name, 24) for name in shown["id"]], parse_math=False, fontsize=8,
                  fontfamily=families())  # fmt: skip
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_xlabel("predicted change of the log-probability, nats")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
    if len(shown) < len(frame):
        ax.set_title(f"{len(shown)} of {len(frame)} pairs", loc="right", fontsize=9)
    return finish(ax, frame)


def ches_scatter(frame, *, x="ln_ches", y="predicted_chosen_delta", hue=None, ax=None):
    """A similarity against a change, one point per pair, with Spearman's ρ and n in the title.

    Args:
        frame: the `similarity` and `Entanglement` frames joined on ``id``.
        x: column along the bottom.
        y: column up the side.
        hue: a text column to colour and mark the points by.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"ln_ches": [-1.0, 0.5, 2], "predicted_chosen_delta": [3, 2, 1]})
        >>> ax = ches_scatter(frame)
        >>> ax.get_title(loc="left")
        'Spearman ρ = −1.00   (n = 3)'
    """
    require(frame, x, y, *([hue] if hue else []))
    return _ranked_scatter(frame, frame[x], frame[y], (x, y), hue, ax)


def length_confound(frame, *, ax=None):
    """CHES against the difference of the two lengths: what length alone explains.

    Args:
        frame: `similarity()`: ``ches, chosen_length, rejected_length``.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column or no rows.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"ches": [1.0, 2, 3], "chosen_length": [5, 5, 5],
        ...                       "rejected_length": [4, 6, 9]})
        >>> ax = length_confound(frame)
    """
    require(frame, "ches", "chosen_length", "rejected_length")
    longer = frame["rejected_length"] - frame["chosen_length"]
    words = ("rejected length − chosen length, tokens", "ches")
    return _ranked_scatter(frame, longer, frame["ches"], words, None, ax)


def _ranked_scatter(frame, x, y, names, hue, ax):
    """A scatter plot with the rank correlation of its axes written above it."""
    data = pd.DataFrame({"x": x.astype(float), "y": y.astype(float)})
    data = data.replace([np.inf, -np.inf], np.nan)
    if hue:
        data["hue"] = frame[hue].astype(str)
    data = data.dropna(subset=["x", "y"])
    ax = axes_of(ax)
    style = {"color": OKABE_ITO["blue"]}
    if hue == "regime":
        style = {"palette": REGIME_COLORS, "markers": REGIME_MARKERS}
    elif hue:
        style = {"palette": group_colors(data["hue"])}
    if hue:
        style |= {"hue": "hue", "style": "hue", "hue_order": sorted(set(data["hue"]))}
    sns.scatterplot(data, x="x", y="y", ax=ax, s=34, alpha=0.75, linewidth=0.4, **style)
    if hue:
        ax.legend(title=column_words(hue), fontsize=8)
        plain_legend(ax.get_legend())
        for text in ax.get_legend().get_texts():
            text.set_text(short(text.get_text()))
    rho = data["x"].rank().corr(data["y"].rank()) if data[["x", "y"]].nunique().min() > 1 else None
    rho = "undefined" if rho is None else f"= {rho:.2f}".replace("-", "−")
    left_out = len(frame) - len(data)
    note = f", {left_out} without a finite value left out" if left_out else ""
    ax.set_title(f"Spearman ρ {rho}   (n = {len(data)}{note})", loc="left", fontsize=10)
    ax.set_xlabel(column_words(names[0]), parse_math=False)
    ax.set_ylabel(column_words(names[1]), parse_math=False)
    return finish(ax, frame)


def hist_by(frame, column, *, by=None, ax=None):
    """How ``column`` is distributed: a histogram, or boxes with every pair as a dot, by group.

    Args:
        frame: one row per pair.
        column: a numeric column; values that are not finite are left out and counted.
        by: a text column; the groups are named on the axis, with their size and median.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, no rows, or no finite value.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"cosine": [0.1, 0.5], "regime": ["ideal", "both_down"]})
        >>> ax = hist_by(frame, "cosine", by="regime")
    """
    require(frame, column, *([by] if by else []))
    finite = frame[np.isfinite(frame[column].to_numpy(float))]
    if finite.empty:
        raise ValueError(f"column {column!r} has no finite value in {len(frame)} rows")
    ax = axes_of(ax, (6.4, 4.0 if by is None else 1.6 + 0.7 * min(finite[by].nunique(), 12)))
    if by is None:
        sns.histplot(x=finite[column].astype(float), ax=ax, color=OKABE_ITO["blue"], alpha=0.75,
                     edgecolor="white")  # fmt: skip
        ax.set_ylabel("pairs")
    else:
        _boxes(finite, column, by, ax)
    ax.set_xlabel(column_words(column), parse_math=False)
    if len(finite) < len(frame):
        words = f"{len(frame) - len(finite)} of {len(frame)} without a finite value left out"
        ax.set_title(words, loc="left", fontsize=9)
    return finish(ax, frame)


def _boxes(frame, column, by, ax) -> None:
    """A box and its dots a group; group names are written with their size and median."""
    data = pd.DataFrame({"value": frame[column].astype(float), "group": frame[by].astype(str)})
    groups = dict(iter(data.groupby("group", sort=False)["value"]))
    style = {"x": "value", "y": "group", "order": list(groups), "ax": ax}
    sns.stripplot(data, size=3.2, alpha=0.5, jitter=0.25, color=OKABE_ITO["blue"], zorder=2,
                  **style)  # fmt: skip
    sns.boxplot(data, fill=False, fliersize=0, width=0.6, linewidth=1.3, color="#222222", zorder=3,
                **style)  # fmt: skip
    words = [
        f"{short(name, 22)}\nn = {len(part)}, median " + f"{part.median():.3g}".replace("-", "−")
        for name, part in groups.items()
    ]
    ax.set_yticks(range(len(words)), words, fontsize=9, parse_math=False)
    ax.set_ylabel("")
