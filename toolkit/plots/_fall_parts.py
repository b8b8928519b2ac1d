"""The parts of a fall: which tokens of a response fell when, and which training pairs did it."""

from matplotlib.ticker import MaxNLocator

from toolkit.plots._fall_figure import response_rows
from toolkit.plots._figure import (
    axes_of,
    beside,
    change_bars,
    color_bar,
    finish,
    height_of,
    name_lines,
    short,
)
from toolkit.plots._frames import one_pair, require, rows_of
from toolkit.plots._numbers import largest, number, places_for
from toolkit.plots._palette import DIVERGING
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
    rows = one_pair(tokens, pair_id, "pair_id")
    rows = rows[(rows["side"] == side) & rows[value].notna()]
    if rows.empty:
        raise ValueError(f"frame has no {side!r} row with a {value!r} in {len(tokens)} rows")
    table = rows.pivot(index="position", columns="step", values=value).astype(float)
    sums = table.sum(axis=1)
    shown = sums.abs().sort_values(ascending=False, kind="stable").index[:top].sort_values()
    names = rows.drop_duplicates("position").set_index("position")["token"]
    ax = axes_of(ax, (7.2, height_of(len(shown), 2.4)))
    end = largest(table, 0.98)
    edges = (table.columns[0] - 0.5, table.columns[-1] + 0.5, len(shown) - 0.5, -0.5)
    image = ax.imshow(table.loc[shown], cmap=DIVERGING, vmin=-end, vmax=end, aspect="auto",
                      interpolation="nearest", extent=edges)  # fmt: skip
    places = places_for(sums.abs().max())
    beside(ax, [number(value, sign=True, places=places) for value in sums[shown]])
    name_lines(ax, [short(name, 22) if name else CONTINUED for name in names[shown]], 8.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("step")
    left_out = f", the {len(shown)} of {len(table)} that changed most" * (len(shown) < len(table))
    ax.set_title(f"change of each {side} token in each step{left_out}; beside it its sum, nats",
                 loc="left", fontsize=9)  # fmt: skip
    extend = "both" if largest(table) > end * (1 + 1e-6) else "neither"
    color_bar(image, "fell ← nats in a step → rose", pad=0.12, extend=extend)
    return finish(ax, tokens, grid=False)


def ranked_pulls(pulls, *, pair_id=None, side="chosen"):
    """What each training pair did to a response over the run, from the strongest pull down.

    Args:
        pulls: as for `fall_by_pair`.
        pair_id: as there.
        side: as there.

    Returns:
        One row per training pair, by rising ``delta``: ``train_pair_id, delta`` (nats, summed over
        the steps; the mean over the probes without a ``pair_id``).

    Raises:
        ValueError: for a missing column, no rows, an unknown side or pair.

    Example:
        >>> import pandas as pd
        >>> pulls = pd.DataFrame({"pair_id": "p", "side": "chosen", "train_pair_id": ["a", "b"],
        ...     "delta": [0.1, -0.4]})
        >>> ranked_pulls(pulls).to_numpy().tolist()
        [['b', -0.4], ['a', 0.1]]
    """
    require(pulls, "pair_id", "side", "train_pair_id", "delta")
    rows, _ = response_rows(pulls, pair_id, side)
    sums = rows.groupby("train_pair_id", sort=False)["delta"].sum(min_count=1)
    sums = (sums / rows["pair_id"].nunique()).sort_values(kind="stable")
    return sums.reset_index()


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
    ranked = ranked_pulls(pulls, pair_id=pair_id, side=side)
    _, who = response_rows(pulls, pair_id, side)
    rows_of(ranked, "train_pair_id", picked, alone=False)
    sums = ranked.set_index("train_pair_id")["delta"]
    order = sums.abs().sort_values(ascending=False, kind="stable").index[:top]
    rows = sums[order].sort_values(kind="stable")
    ax = axes_of(ax, (6.6, height_of(len(rows), 2.2, each=0.28, around=1.4)))
    change_bars(ax, rows, rows.index == picked)
    places = max(places_for(rows.abs().max()), 1)
    beside(ax, [number(delta, sign=True, places=places) for delta in rows])
    name_lines(ax, [short(id, 24) for id in rows.index])
    ax.set_xlabel("what each training pair did to it over the run, nats")
    shown = f"{len(rows)} of {len(sums)} training pairs"
    ax.set_title(f"{short(who)}, {side} response: {shown}", loc="left", fontsize=9,
                 parse_math=False)  # fmt: skip
    return finish(ax, pulls)
