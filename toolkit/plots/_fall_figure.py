"""The anatomy of a fall: the forces behind a response's change over a run, beside that change."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from toolkit.plots._figure import axes_of, finish, mark_step, short, zero_lines
from toolkit.plots._frames import probes, require
from toolkit.plots._numbers import number, places_for
from toolkit.plots._palette import OKABE_ITO, SIDE_COLORS

SIDES = ("chosen", "rejected")
SOURCES = {
    "own": "by its own pair",
    "others": "by the other pairs of its batches",
    "earlier": "by earlier steps through the momentum",
}
REST = ("earlier_unsplit", "decay", "projection")  # forces that neither side's terms built
_DARK = {"chosen": "#0B4F78", "rejected": "#7A4A00"}  # of SIDE_COLORS, to be read as text
_PANELS = {"tug": [0, 0.56, 1, 0.44], "net": [0, 0, 1, 0.47]}
UNKNOWN = "This optimiser's steps cannot be split into forces: only what happened is known."


class Fall(NamedTuple):
    """Cumulative changes of one response (or a mean of responses), nats, from before the run on.

    Attributes:
        sums: By step, the first one before any of the frame's: ``chosen`` and ``rejected``, what
            the terms of that side built; ``own``, ``others`` and ``earlier``, the same forces by
            where they come from; ``rest``, decay and projection and momentum from before the run;
            ``predicted``, all forces together; ``actual``, what happened. NaN where unknown.
        high: The step of the high from which the largest fall begins.
        low: The step of that fall's end; ``high`` where it never fell.
        who: Whose changes these are, in words.
    """

    sums: pd.DataFrame
    high: int
    low: int
    who: str

    @property
    def end(self) -> pd.Series:
        """All sums after the last step."""
        return self.sums.iloc[-1]

    @property
    def known(self) -> bool:
        """Whether the steps could be split into forces."""
        return bool(np.isfinite(self.sums["predicted"]).all())

    @property
    def drawdown(self) -> float:
        """The largest fall from an earlier high, nats, never negative."""
        return float(self.sums["actual"][self.high] - self.sums["actual"][self.low])

    def text(self, value: float, sign: bool = True) -> str:
        """Nats with decimals that show two digits of the smaller of the two net changes."""
        places = max(places_for(*self.end[["predicted", "actual"]]), 1)
        return number(value, sign=sign, places=places)


def fall_of(forces, pair_id, side: str) -> Fall:
    """The cumulative forces of a probe, or of the mean of the probes.

    Raises:
        ValueError: for a missing column, no rows, an unknown side or pair.
    """
    split = [f"{source}_{term}" for source in SOURCES for term in SIDES]
    require(forces, "step", "pair_id", "side", *split, "actual_delta")
    rows, who = response_rows(forces, pair_id, side)
    parts = {term: [name for name in split if name.endswith(f"_{term}")] for term in SIDES}
    parts |= {source: [f"{source}_{term}" for term in SIDES] for source in SOURCES}
    parts |= {"rest": [name for name in REST if name in rows], "actual": ["actual_delta"]}
    parts["predicted"] = [*split, *parts["rest"]]
    table = pd.DataFrame({name: rows[of].sum(axis=1, skipna=False) for name, of in parts.items()})
    steps = table.groupby(rows["step"]).agg(lambda values: values.mean(skipna=False))
    steps.loc[steps.index[0] - 1] = 0.0
    sums = steps.sort_index().cumsum(skipna=False)
    falls = sums["actual"].cummax() - sums["actual"]
    low = falls.idxmax() if np.isfinite(falls).all() else sums.index[0]
    return Fall(sums, sums["actual"].loc[:low].idxmax(), low, who)


def response_rows(frame, pair_id, side: str) -> tuple[pd.DataFrame, str]:
    """One response's rows of a tidy frame (of all probes without an id), and whose they are.

    Raises:
        ValueError: for an unknown side or pair.
    """
    if side not in SIDES:
        raise ValueError(f"side={side!r} is unknown; allowed: {', '.join(SIDES)}")
    return probes(frame[frame["side"] == side], pair_id, "pair_id")


def anatomy_of_a_fall(forces, *, pair_id=None, side="chosen", step=None, ax=None):
    """The two forces on a response above, and the little that is left of them, magnified, below.

    Above: everything that chosen terms built and everything that rejected terms built, summed over
    the run; on their scale the net is a line along zero. Below: that net on a scale of its own
    (what first order predicts, dashed) and what really happened (solid), with the high and the
    largest fall from it. What lies between the two is curvature.

    Args:
        forces: `Trajectory.forces()`: ``step, pair_id, side``, ``own_``, ``others_`` and
            ``earlier_`` of ``chosen`` and ``rejected``, ``actual_delta`` (nats); ``decay``,
            ``projection`` and ``earlier_unsplit`` where it has them.
        pair_id: the probe to show; None shows the mean of the probes.
        side: the response: ``chosen`` or ``rejected``.
        step: the step to mark by an upright line; `mark_step` moves it.
        ax: axes to draw into; drawing again replaces what is there.

    Returns:
        The Axes, itself empty; its two panels are ``ax.child_axes``, gids ``tug`` and ``net``.

    Raises:
        ValueError: for a missing column, no rows, an unknown side or pair.

    Example:
        >>> import pandas as pd
        >>> forces = pd.DataFrame({"step": [1, 2], "pair_id": "a", "side": "chosen",
        ...     "own_chosen": 9.0, "own_rejected": -8.0, "others_chosen": 0.0,
        ...     "others_rejected": 0.0, "earlier_chosen": 0.0, "earlier_rejected": [0.0, -3.0],
        ...     "actual_delta": [1.0, -2.0]})
        >>> ax = anatomy_of_a_fall(forces)
        >>> [panel.get_gid() for panel in ax.child_axes]
        ['tug', 'net']
    """
    fall = fall_of(forces, pair_id, side)
    ax = axes_of(ax, (7.2, 5.8))
    for old in list(ax.child_axes):
        old.remove()
    ax.set_axis_off()
    tug, net = (ax.inset_axes(place, gid=name) for name, place in _PANELS.items())
    net.sharex(tug)
    _draw_tug(tug, fall, side)
    _draw_net(net, fall)
    for panel in (net, tug):
        zero_lines(panel, "y")
        panel.margins(x=0.02)
        if step is not None:
            mark_step(panel, step)
    tug.tick_params(labelbottom=False)
    net.xaxis.set_major_locator(MaxNLocator(integer=True))
    net.set_xlabel("step")
    finish(tug, pd.DataFrame())  # the labels stand once, below
    finish(net, forces)
    return ax


def _draw_tug(ax, fall: Fall, side: str) -> None:
    """Push and pull as two wedges with their sums written in them."""
    ax.set_ylabel("summed forces, nats")
    ax.set_title(f"{short(fall.who)}, {side} response: what pulls at it", loc="left", fontsize=10,
                 parse_math=False)  # fmt: skip
    if not fall.known:
        ax.text(0.5, 0.5, UNKNOWN, transform=ax.transAxes, ha="center", va="center", wrap=True,
                fontsize=9, gid="unknown")  # fmt: skip
        return
    for term, values in fall.sums[list(SIDES)].items():
        ax.fill_between(values.index, 0, values, color=SIDE_COLORS[term], lw=0, zorder=2, gid=term,
                        alpha=0.85)  # fmt: skip
        up = fall.end[term] >= 0
        ax.text(0.02, 0.95 if up else 0.05, f"built by {term} terms: {fall.text(fall.end[term])}",
                transform=ax.transAxes, va="top" if up else "bottom", fontsize=9.5,
                fontweight="bold", color=_DARK[term], gid=f"{term}-sum")  # fmt: skip
    ax.plot(fall.sums["predicted"], color="black", lw=1.6, zorder=3, gid="net")


def _draw_net(ax, fall: Fall) -> None:
    """What is left of the forces, and what happened, with the high and the fall from it."""
    predicted, actual = fall.sums["predicted"], fall.sums["actual"]
    if fall.known:
        ax.plot(predicted, color="black", lw=1.4, ls=(0, (4, 2)), zorder=3, gid="predicted",
                label=f"together: {fall.text(fall.end['predicted'])}")  # fmt: skip
        ax.fill_between(actual.index, predicted, actual, color="#BBBBBB", lw=0, zorder=1,
                        label="curvature: what the forces leave out", gid="residual")  # fmt: skip
    ax.plot(actual, color=OKABE_ITO["purple"], lw=2.6, zorder=4, gid="actual",
            label=f"what happened: {fall.text(fall.end['actual'])}")  # fmt: skip
    if fall.drawdown > 0:
        ax.plot(actual[[fall.high, fall.low]], "v", color="black", ms=6, ls="none", zorder=6,
                gid="drawdown", label=f"from high to low: {fall.text(-fall.drawdown)}")  # fmt: skip
        for step, words, up in ((fall.high, "high", True), (fall.low, "low", False)):
            left = step < actual.index.to_numpy().mean()
            ax.annotate(f"{words} {fall.text(actual[step])}, step {step}", (step, actual[step]),
                        (0, 7 if up else -9), textcoords="offset points", fontsize=8, zorder=7,
                        va="bottom" if up else "top", ha="left" if left else "right")  # fmt: skip
    ax.set_ylabel("summed change, nats")
    ax.margins(y=0.16)
    words = f"what is left of it{_magnified(fall)}, and what happened"
    ax.set_title(words if fall.known else "what happened", loc="left", fontsize=10)
    ax.legend(fontsize=8, framealpha=0.85)


def _magnified(fall: Fall) -> str:
    """How much larger the lower panel's scale is, where it is."""
    tall, small = (
        np.ptp(fall.sums[list(of)].to_numpy()) for of in (SIDES, ("predicted", "actual"))
    )
    if not small or tall < 2 * small:
        return ""
    return f", magnified {round(tall / small, -1 if tall > 100 * small else 0):,.0f}×"


def fall_sentence(forces, *, pair_id=None, side="chosen") -> str:
    r"""What `anatomy_of_a_fall` shows, in one or two plain sentences; not yet HTML.

    Args:
        forces: as there.
        pair_id: as there.
        side: as there.

    Returns:
        The sums of the frame in words, all with the same number of decimals.

    Raises:
        ValueError: for a missing column, no rows, an unknown side or pair.

    Example:
        >>> import pandas as pd
        >>> forces = pd.DataFrame({"step": [1], "pair_id": "a", "side": "chosen",
        ...     "own_chosen": 479.3, "own_rejected": -482.0, "others_chosen": 0.0,
        ...     "others_rejected": 0.0, "earlier_chosen": 0.0, "earlier_rejected": 0.0,
        ...     "actual_delta": -3.3})
        >>> print(fall_sentence(forces).replace("; ", ";\n"))
        The chosen terms pushed it up by 479.3 nats, the rejected terms pulled it down by 482.0;
        together −2.7, and −3.3 happened. From its high at step 0 it fell by 3.3 to step 1.
    """
    fall = fall_of(forces, pair_id, side)
    end, happened = fall.end, fall.text(fall.end["actual"])
    if fall.known:
        rest = (
            f", decay and the like added {fall.text(end['rest'])}"
            if fall.sums["rest"].any()
            else ""
        )
        words = (
            f"The chosen terms {_moved(end['chosen'], fall)} nats, the rejected terms "
            f"{_moved(end['rejected'], fall)}{rest}; together {fall.text(end['predicted'])}, and "
            f"{happened} happened. {_by_source(fall)}"
        ).rstrip()
    else:
        words = f"{UNKNOWN} It changed by {happened} nats."
    if fall.drawdown > 0:
        words += (
            f" From its high at step {fall.high} it fell by {fall.text(fall.drawdown, False)} to "
            f"step {fall.low}."
        )
    return words


def _by_source(fall: Fall) -> str:
    """Where what is left of the two forces comes from, where there are several places."""
    texts = [f"{fall.text(fall.end[name])} {words}" for name, words in SOURCES.items()
             if fall.sums[name].any()]  # fmt: skip
    return f"By source: {', '.join(texts)}." if len(texts) > 1 else ""


def _moved(value: float, fall: Fall) -> str:
    way = "pushed it up" if value >= 0 else "pulled it down"
    return f"{way} by {fall.text(abs(value), False)}"
