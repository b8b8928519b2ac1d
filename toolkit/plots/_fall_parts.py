"""The parts of a fall: which tokens of a response fell when, and which training pairs did it."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from toolkit.plots._fall_figure import rows_of
from toolkit.plots._figure import axes_of, drawable, families, finish, short
from toolkit.plots._frames import one_pair, require
from toolkit.plots._numbers import number, places_for
from toolkit.plots._palette import DIVERGING, OKABE_ITO
from toolkit.plots._user_text import CONTINUED


def fall_by_token(tokens, *, pair_id=None, side="chosen", value="actual_delta", top=32, ax=None):
    """Which tokens of a response fell in which steps: a strip of colour a token, its sum beside it.

    Args:
        tokens: ``step, side, position, token`` and ``value``, such as `Trajectory.tokens` of
            several steps; rows without a value (the start) are left out. ``pair_id`` where the
            frame holds several pairs.
        pair_id: the probe to show.
        side: the response: ``chosen`` or ``rejected``.
        value: the change of each token in each step, nats.
        top: at most so many tokens, those that changed most, in reading order.
        ax: axes to draw on.

    Returns:
        The Axes. Vermillion fell, blue rose, white stayed.

    Raises:
        ValueError: for a missing column, no rows with a value, or an unknown or unsaid pair.

    Example:
        >>> import pandas as pd
        >>> tokens = pd.DataFrame({"step": [1, 2], "side": "chosen", "position": 3,
        ...     "token": " good", "actual_delta": [0.1, -0.4]})
        >>> [text.get_text() for text in fall_by_token(tokens).texts][:1]
        ['−0.30']
    """
    require(tokens, "step", "side", "position", "token", value)
    rows = one_pair(tokens, pair_id)
    rows = rows[(rows["side"] == side) & rows[value].notna()]
    if rows.empty:
        raise ValueError(f"frame has no {side!r} row with a {value!r} in {len(tokens)} rows")
    table = rows.pivot(index="position", columns="step", values=value).astype(float)
    sums = table.sum(axis=1)
    shown = sums.abs().sort_values(ascending=False, kind="stable").index[:top].sort_values()
    names = rows.drop_duplicates("position").set_index("position")["token"]
    ax = axes_of(ax, (7.2, float(np.clip(1.6 + 0.24 * len(shown), 2.4, 9))))
    sizes = table.abs().stack()
    end = float(sizes.quantile(0.98)) or float(sizes.max()) or 1.0
    edges = (table.columns[0] - 0.5, table.columns[-1] + 0.5, len(shown) - 0.5, -0.5)
    image = ax.imshow(table.loc[shown], cmap=DIVERGING, vmin=-end, vmax=end, aspect="auto",
                      interpolation="nearest", extent=edges)  # fmt: skip
    places = places_for(sums.abs().max())
    for line, position in enumerate(shown):
        ax.text(1.01, line, number(sums[position], sign=True, places=places), va="center",
                transform=ax.get_yaxis_transform(), fontsize=8)  # fmt: skip
    ax.set_yticks(range(len(shown)), [_token(names[k]) for k in shown], fontsize=8.5,
                  parse_math=False, fontfamily=families())  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("step")
    left_out = f", the {len(shown)} of {len(table)} that changed most" * (len(shown) < len(table))
    ax.set_title(f"change of each {side} token in each step{left_out}; beside it its sum, nats",
                 loc="left", fontsize=9)  # fmt: skip
    extend = "both" if sizes.max() > end * (1 + 1e-6) else "neither"
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, pad=0.12, extend=extend)
    bar.ax.set_ylabel("fell ← nats in a step → rose")
    bar.outline.set_linewidth(0.5)
    return finish(ax, tokens, grid=False)


def fall_by_pair(pulls, *, pair_id=None, side="chosen", top=12, picked=None, ax=None):
    """Which training pairs pulled a response down most over the run, and which pushed it up.

    Args:
        pulls: `Trajectory.pulls()`, or some of its steps: ``pair_id, side, train_pair_id``,
            ``delta`` (what each training pair did to the response in a step, nats).
        pair_id: the probe to show; None shows the mean of the probes.
        side: the response: ``chosen`` or ``rejected``.
        top: at most so many training pairs, those with the largest sums, from the lowest up.
        picked: a ``train_pair_id`` to mark.
        ax: axes to draw on.

    Returns:
        The Axes.

    Raises:
        ValueError: for a missing column, no rows, an unknown side, pair or ``picked``.

    Example:
        >>> import pandas as pd
        >>> pulls = pd.DataFrame({"pair_id": "p", "side": "chosen", "train_pair_id": ["a", "b"],
        ...     "delta": [0.1, -0.4]})
        >>> [label.get_text() for label in fall_by_pair(pulls).get_yticklabels()]
        ['b', 'a']
    """
    require(pulls, "pair_id", "side", "train_pair_id", "delta")
    rows, who = rows_of(pulls, pair_id, side)
    probes = rows["pair_id"].nunique()
    sums = rows.groupby("train_pair_id", sort=False)["delta"].sum(min_count=1) / probes
    if picked is not None and picked not in sums.index:
        raise ValueError(f"picked={picked!r} is not in the frame's {len(sums)} training pairs")
    order = sums.abs().sort_values(ascending=False, kind="stable").index[:top]
    rows = sums[order].sort_values(kind="stable")
    ax = axes_of(ax, (6.6, float(np.clip(1.4 + 0.28 * len(rows), 2.2, 9))))
    lines, deltas = np.arange(len(rows)), rows.to_numpy(float)
    colors = np.where(deltas < 0, OKABE_ITO["vermillion"], OKABE_ITO["blue"])
    bars = ax.barh(lines, deltas, color=colors, height=0.7, zorder=3)
    for bar, delta, id in zip(bars, deltas, rows.index, strict=True):
        bar.set(hatch="////" if delta < 0 else None, edgecolor="black" if id == picked else "white",
                linewidth=2.0 if id == picked else 0.4)  # fmt: skip
    places = max(places_for(np.abs(deltas).max()), 1)
    for line, delta in zip(lines, deltas, strict=True):
        ax.text(1.01, line, number(delta, sign=True, places=places), va="center", fontsize=8,
                transform=ax.get_yaxis_transform())  # fmt: skip
    ax.axvline(0, color="black", lw=0.8, zorder=4)
    ax.set_yticks(lines, [short(id, 24) for id in rows.index], parse_math=False, fontsize=8,
                  fontfamily=families())  # fmt: skip
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("what each training pair did to it over the run, nats")
    shown = f"{len(rows)} of {len(sums)} training pairs"
    ax.set_title(f"{short(who)}, {side} response: {shown}", loc="left", fontsize=9,
                 parse_math=False)  # fmt: skip
    return finish(ax, pulls)


def _token(text) -> str:
    text = drawable(str(text)) if text else CONTINUED
    return text if len(text) <= 22 else text[:21] + "…"
