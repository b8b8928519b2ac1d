"""What a step does, in words: numbers as far as first order holds, directions beyond."""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.plots import REGIME_WORDS, html_text, rounded_down
from toolkit.widgets._parts import short


def outcome(row: Mapping) -> str:
    """Return what goes after "the step": what it does to both responses and to the margin.

    Args:
        row: A row of an ``Entanglement`` frame.
    """
    known = bool(row["first_order"])
    chosen, rejected = (float(row[f"predicted_{s}_delta"]) for s in ("chosen", "rejected"))
    regime = str(row["regime"])
    moves = (
        f"<b>{_verb(chosen, True)} the chosen response{_how_far(chosen, known)}</b> and "
        f"{_verb(rejected)} the rejected one{_how_far(rejected, known)}: "
        f"{REGIME_WORDS.get(regime, 'no first-order change')} (<code>{html_text(regime)}</code>)."
    )
    if known:
        return f"is predicted to {moves} The margin {_margin(chosen - rejected)}."
    return (
        f"sets out to {moves} <b>It is too large for first order to say how far</b>; up to a "
        f"learning rate of {rounded_down(float(row['first_order_lr']))} it can."
    )


def _verb(change: float, loud: bool = False) -> str:
    word = "raise" if change > 0 else "lower" if change < 0 else "leave"
    return word.upper() if loud and change < 0 else word


def _how_far(change: float, known: bool) -> str:
    if not change:
        return " where it is"
    return f" by {short(abs(change))} nats" if known else ""


def _margin(change: float) -> str:
    if not change:
        return "stays"
    return f"{'grows' if change > 0 else 'shrinks'} by {short(abs(change))} nats"
