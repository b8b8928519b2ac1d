"""What every explorer says in words, as escaped HTML: header, notes, sentence, prompt, page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from toolkit.measurement import PairResult, PairResults
from toolkit.pairs import PairError, PreferencePair
from toolkit.plots import (
    NO_MATHS,
    REGIMES,
    html_text,
    number,
    regime_of,
    rounded_down,
    visible_text,
    visible_token,
)

NUMBERS = {
    "regime": "regime",
    "cosine": "cosine",
    "Δ chosen": "predicted_chosen_delta",
    "Δ rejected": "predicted_rejected_delta",
    "κ": "kappa",
    "ln CHES": "ln_ches",
    "CHES": "ches",
}
signed = partial(number, sign=True)

NAMED = 12  # pairs that a note names before it folds the rest away
STYLE = f"<style>{Path(__file__).with_name('panels').joinpath('explorer.css').read_text()}</style>"
# Saved without its kernel, the explorer is one line that says so; this copy is then all there is.
# It hides where an explorer lives in the same output, and takes the place of one whose kernel is
# gone: JupyterLab marks the widgets that have lost theirs.
TWIN = (
    "<style>.jp-OutputArea:has(.pe-explorer:not(.jupyter-widgets-disconnected)) .pe-twin, "
    ".jp-OutputArea:has(.pe-twin) .pe-explorer.jupyter-widgets-disconnected {display: none}"
    '</style><div class="pe-twin">%s</div>'
)


def quiet(lines: Iterable[str], attributes: str = "") -> str:
    """Lines in small print, each in a block of its own."""
    return "".join(f'<div class="pe-quiet"{attributes}>{line}</div>' for line in lines)


def header(labels: Mapping[str, object], *more: str) -> str:
    """The labels of every number shown, as far as they are known.

    Args:
        labels: Those of a frame.
        *more: What else is to be said, as HTML.
    """
    cut = labels.get("truncation", "none")
    eos = {True: "EOS appended and scored", False: "EOS not appended"}
    known = {
        "dtype": "{}",
        "params": "parameters: {}",
        "append_eos": eos[bool(labels.get("append_eos"))],
        "truncation": "pairs cut: {}" if cut != "none" else "",
        "ref": "reference: {}",
    }
    said = [text.format(labels[name]) for name, text in known.items() if name in labels]
    words = [f"<b>{html_text(str(labels['model']))}</b>", *map(html_text, filter(None, said))]
    return quiet([" · ".join([*words, *more])])


def skipped_before(count: int) -> list[str]:
    """The note on rows that were left out when the pairs were loaded."""
    return [f"{count:,} rows were left out when the pairs were loaded."] if count else []


def unmeasured(done: int, total: int) -> list[str]:
    """The note on pairs that are not measured yet."""
    if done == total:
        return []
    return [f"<b>{done:,} of {total:,} pairs measured</b>; <code>.measure()</code> goes on."]


def left_out(
    lost: pd.DataFrame,
    total: int | None = None,
    what: str = "cannot be scored and are left out",
    attribute: str = "skipped",
) -> list[str]:
    """The note on pairs that are left out: how many, which, and, folded away, why.

    Args:
        lost: ``pair_id`` and ``reason`` of each, and ``row`` where it is known.
        total: Number of all pairs, where it is known.
        what: What is the matter with them, as HTML.
        attribute: Name of the explorer's attribute that has them all.
    """
    if lost.empty:
        return []
    rows = lost.get("row", pd.Series(pd.NA, lost.index))
    found = zip(rows[:NAMED], lost["pair_id"][:NAMED], lost["reason"][:NAMED], strict=True)
    errors = [
        PairError(why, row=None if pd.isna(row) else row, pair_id=id) for row, id, why in found
    ]
    lines = [html_text(str(error)) for error in errors]
    if len(lost) > NAMED:
        lines.append(f"… (<code>.{attribute}</code> has all {len(lost):,})")
    ids = named(lost["pair_id"].tolist(), 3)
    count = f"{len(lost):,} pairs" if total is None else f"{len(lost):,} of {total:,} pairs"
    return [
        f"<details><summary><b>{count} {what}</b>: {ids} (open for the "
        f"reasons)</summary><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul></details>"
    ]


def named(ids: Sequence[object], most: int) -> str:
    """The first ids of a list, and how many more there are."""
    more = f" and {len(ids) - most:,} more" if len(ids) > most else ""
    return ", ".join(html_text(visible_token(str(id))) for id in ids[:most]) + more


def pair_header(results: PairResults) -> str:
    """The labels of a step's results, and how many pairs are in which regime."""
    counts = results.frame["regime"].value_counts()
    regimes = ", ".join(f"{n} {html_text(name)}" for name, n in counts.items())
    return header(
        results.policy.labels(results.params).to_attrs(),
        f"loss: {html_text(results.loss_name)}",
        f"<b>{len(results.frame):,} pairs</b>: {regimes}",
    )


def pair_table(results: PairResults) -> pd.DataFrame:
    """The columns of a table of pairs: texts on one line, numbers with short names."""
    frame = results.frame
    pairs, holds = results.measurement.pairs[: len(frame)], frame["first_order"]
    columns = {
        "pair_id": [visible_token(id) for id in frame["pair_id"]],
        "prompt": [one_line(p.prompt_text) for p in pairs],
        **{title: frame[name] for title, name in NUMBERS.items()},
    }
    if not holds.all():  # some Δ are no numbers to believe
        columns["Δ holds"] = ["yes" if known else "sign only" for known in holds]
    for side in ("chosen", "rejected"):
        columns[f"{side} tokens"] = frame[f"{side}_length"]
    for side in ("chosen", "rejected"):
        columns[side] = [one_line(getattr(p, f"{side}_text")) for p in pairs]
    return pd.DataFrame(columns)


def table(head: Iterable[str], rows: Iterable[Iterable[str]], name: str = "pe-ranks") -> str:
    """A table of HTML cells, whose first column is to the left."""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    above = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<table class="{name}"><tr>{above}</tr>{lines}</table>'


def say(regime: object, text: str) -> str:
    """The one sentence that an explorer is about, in the colour of a regime."""
    color = regime_of(regime).color
    return f'<div class="pe-say" style="border-color: {color}">{text}</div>'


def step_sentence(one: PairResult) -> str:
    """What a step does to a pair, in one sentence that holds the numbers."""
    row, results = one.row, one.results
    beta = f"at β {number(results.beta)} and" if results.has_beta else "at"
    return say(
        row["regime"],
        f"<b>pair {html_text(visible_token(one.pair.id))}</b> — "
        f"A {html_text(results.loss_name)} step {beta} learning rate {number(results.lr)} on this "
        f"pair alone {outcome(row)} cos = {number(row['cosine'])}, κ = {number(row['kappa'])}."
        '<span class="pe-quiet">First order, plain gradient descent; other pairs in the batch, '
        "momentum and Adam add their own terms.</span>",
    )


def outcome(row: Mapping) -> str:
    """Return what goes after "the step": what it does to both responses and to the margin.

    Args:
        row: A row of an ``Entanglement`` frame.
    """
    known = bool(row["first_order"])
    chosen, rejected = (float(row[f"predicted_{s}_delta"]) for s in ("chosen", "rejected"))
    regime = str(row["regime"])
    meaning = REGIMES[regime].words if regime in REGIMES else "no first-order change"
    moves = (
        f"<b>{_verb(chosen, True)} the chosen response{_how_far(chosen, known)}</b> and "
        f"{_verb(rejected)} the rejected one{_how_far(rejected, known)}: "
        f"{meaning} (<code>{html_text(regime)}</code>)."
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
    return f" by {number(abs(change))} nats" if known else ""


def _margin(change: float) -> str:
    if not change:
        return "stays"
    return f"{'grows' if change > 0 else 'shrinks'} by {number(abs(change))} nats"


def failure(error: Exception) -> str:
    """What went wrong in a callback, whose traceback the notebook does not show."""
    return f"<b>{html_text(type(error).__name__)}</b>: {html_text(str(error))}"


def prompt_box(pair: PreferencePair, most: int | None = None) -> str:
    """The prompt in a box of its own height, and what was noted when the pair was loaded."""
    text = html_text(pair.prompt_text.strip()[:most])
    notes = quiet(f"note: {html_text(note)}" for note in pair.notes)
    return f'<div class="pe-quiet">prompt</div><div class="pe-words" dir="auto">{text}</div>{notes}'


def one_line(text: str, length: int = 90) -> str:
    """Return the text on one line, harmless, cut with … after ``length`` characters."""
    line = " ".join(text.split())
    return visible_text(line if len(line) <= length else line[: length - 1] + "…")


def still(parts: Iterable[str]) -> str:
    """A page that needs no kernel: parts of an explorer one below the other."""
    body = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="pe-still {NO_MATHS}">{STYLE}{body}</div>'
