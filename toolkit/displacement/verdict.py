"""Where the chosen token's probability went: to its own kind, to the opposite, or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from toolkit.checks import shown


def displacement_verdict(
    frame: pd.DataFrame,
    *,
    opposite: Iterable[str] = (),
    drawdown: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Say of each position whether the chosen token's loss went to its own kind or to the other.

    Gains are summed over the rows of the frame, so ask ``mass_flow`` for ``top_k=None`` to count
    every token. ``benign``: most of the gain went to other tokens of the chosen token's group.
    ``catastrophic``: most went to an opposite group. ``other``: most went elsewhere, or nothing
    gained. ``no drop``: the chosen token did not lose probability.

    Args:
        frame: From :func:`mass_flow`.
        opposite: Names of the groups that mean the opposite of the chosen token. By default the
            rejected token's group; where that is the chosen token's own (No against Never), every
            other group that was given to ``mass_flow``.
        drawdown: From ``Trajectory.drawdown`` of the run between the two policies. A response can
            rise first and fall later, which ``before`` and ``after`` do not show.

    Returns:
        One row per position that has a chosen token: ``pair_id``, ``position``, ``chosen_delta``,
        ``own_gain``, ``opposite_gain``, ``other_gain``, ``verdict``; and with ``drawdown`` those
        of the whole chosen response, ``drawdown`` (nats) and ``prob_drawdown``, NaN for a pair
        that the run did not watch.

    Raises:
        ValueError: If the frame is not from ``mass_flow``, ``drawdown`` not from a trajectory, or
            ``opposite`` is a plain string.

    Source:
        arXiv 2410.08847, Definition 1 (benign and catastrophic displacement); the shares are ours.

    Example:
        >>> import toolkit as tk
        >>> policy, pair = tk.load_model(), tk.load_pairs("stance", limit=1)[0]
        >>> tk.displacement_verdict(tk.mass_flow(policy, policy, pair))["verdict"].tolist()
        ['no drop']
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(
            f"frame must be a DataFrame, received {type(frame).__name__}: give one from "
            "tk.mass_flow(before, after, pair)"
        )
    needed = {"pair_id", "position", "role", "group", "given_group", "delta"}
    missing = needed - set(frame.columns)
    if missing:
        raise ValueError(f"frame has no column {sorted(missing)[0]!r}: give one from mass_flow")
    if isinstance(opposite, str) or not isinstance(opposite, Iterable):
        raise ValueError(f"opposite must be a list of group names, received {shown(opposite)}")
    falls, opposite = _chosen_falls(drawdown), set(opposite)
    rows = [
        {"pair_id": pair_id, "position": at, **_verdict(part, opposite)}
        for (pair_id, at), part in frame.groupby(["pair_id", "position"], sort=False)
        if (part["role"] == "chosen").any()
    ]
    found = pd.DataFrame(rows)
    for column in falls if rows else ():
        found[column] = found["pair_id"].map(falls[column])
    return found


def _chosen_falls(drawdown: pd.DataFrame | None) -> pd.DataFrame:
    """Return both drawdowns of the chosen responses by pair; no column without a frame."""
    if drawdown is None:
        return pd.DataFrame()
    columns = ["pair_id", "side", "drawdown", "prob_drawdown"]
    if not isinstance(drawdown, pd.DataFrame) or not set(columns) <= set(drawdown.columns):
        raise ValueError(
            f"drawdown must be what Trajectory.drawdown() returns, received {shown(drawdown)}: "
            "give trajectory.drawdown()"
        )
    chosen = drawdown[drawdown["side"] == "chosen"]
    return chosen.drop_duplicates("pair_id").set_index("pair_id")[columns[2:]]


def _verdict(part: pd.DataFrame, opposite: set[str]) -> dict[str, object]:
    chosen = part[part["role"] == "chosen"].iloc[0]
    if not opposite:
        given = set(part.loc[part["given_group"], "group"])
        rejected = set(part.loc[part["role"] == "rejected", "group"])
        opposite = (rejected or given) - {chosen["group"]} or given - {chosen["group"]}
    gains = part[part["delta"] > 0]
    own = gains.loc[gains["group"] == chosen["group"], "delta"].sum()
    against = gains.loc[gains["group"].isin(opposite - {chosen["group"]}), "delta"].sum()
    shares = {"benign": own, "catastrophic": against, "other": gains["delta"].sum() - own - against}
    most = max(shares, key=lambda name: (shares[name], name == "other"))
    return {
        "chosen_delta": chosen["delta"],
        "own_gain": own,
        "opposite_gain": against,
        "other_gain": shares["other"],
        "verdict": most if chosen["delta"] < 0 else "no drop",
    }
