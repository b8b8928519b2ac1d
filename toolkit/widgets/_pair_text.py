"""What the pair explorer says in words, as escaped HTML."""

from __future__ import annotations

import base64
import math

import pandas as pd
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.attribution import PromptAttributions
from toolkit.plots import html_text, visible_text, visible_token
from toolkit.widgets._pair_state import Measurement, PairState
from toolkit.widgets._parts import png, short, signed, token_words
from toolkit.widgets._step_words import outcome

MEASURES = {
    "ln_ches": "length-normalised CHES",
    "ches": "CHES",
    "neg_edit_distance": "negative edit distance",
    "last_hidden_inner": "inner product of the last states",
    "cosine": "cosine of the two gradients",
    "kappa": "κ",
}
NAMED = 12  # pairs that a note names before it folds the rest away
STYLE = """<style>
.pe-explorer, .pe-still {color: var(--jp-ui-font-color1, inherit); font-size: 13px;
  font-family: var(--jp-ui-font-family, sans-serif); line-height: 1.45}
.pe-explorer .widget-html-content, .pe-explorer .jupyter-widget-html-content {
  font-size: 13px; line-height: 1.45}
.pe-quiet {color: var(--jp-ui-font-color2, #616161); font-size: 12px}
.pe-say {border-left: 6px solid; padding: 6px 12px; font-size: 15px; line-height: 1.5;
  background: var(--jp-layout-color2, rgba(128, 128, 128, .12))}
.pe-say .pe-quiet {display: block}
.pe-words {white-space: pre-wrap; overflow: auto; max-height: 8.5em; padding: 6px 10px;
  overflow-wrap: anywhere; border: 1px solid var(--jp-border-color2, #bdbdbd)}
.pe-ranks {border-collapse: collapse}
.pe-ranks th, .pe-ranks td {padding: 3px 16px 3px 0; text-align: right}
.pe-ranks th:first-child, .pe-ranks td:first-child {text-align: left}
.pe-table td {max-width: 13em; overflow: hidden; text-overflow: ellipsis}
.pe-table tbody tr {cursor: pointer}
.pe-explorer tbody tr:focus-visible, .pe-explorer .jupyter-matplotlib-canvas-div:focus-visible {
  outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: -2px}
.pe-strips {overflow-x: auto}
.pe-still > div {margin: 0 0 10px; overflow-x: auto}
</style>"""
# Saved without its kernel, the explorer is one line that says so; this copy is then all there is.
# It hides where an explorer lives in the same output, and takes the place of one whose kernel is
# gone: JupyterLab marks the widgets that have lost theirs.
TWIN = (
    "<style>.jp-OutputArea:has(.pe-explorer:not(.jupyter-widgets-disconnected)) .pe-twin, "
    ".jp-OutputArea:has(.pe-twin) .pe-explorer.jupyter-widgets-disconnected {display: none}"
    '</style><div class="pe-twin">%s</div>'
)


def header(state: PairState) -> str:
    """The labels of every number shown, and how many pairs are in which regime."""
    labels = state.policy.labels(state.params)
    words = [
        f"<b>{html_text(labels.model)}</b>",
        html_text(labels.dtype),
        f"parameters: {html_text(labels.params)}",
        *token_words(labels.to_attrs()),
        f"reference: {html_text(labels.ref)}",
        f"loss: {html_text(state.loss_name)}",
    ]
    counts = state.frame["regime"].value_counts()
    regimes = ", ".join(f"{n} {html_text(name)}" for name, n in counts.items())
    words.append(f"<b>{len(state.frame):,} pairs</b>: {regimes}")
    return f'<div class="pe-quiet">{" · ".join(words)}</div>'


def note(measurement: Measurement, skipped_before: int = 0) -> str:
    """Which pairs are missing, and why; nothing when none is."""
    lines, skipped = [], measurement.skipped
    if not measurement.finished:
        lines.append(
            f"<b>{measurement.done:,} of {len(measurement):,} pairs measured</b>; "
            "<code>.measure()</code> or the button continues."
        )
    if skipped:
        ids = ", ".join(html_text(visible_token(str(e.id))) for e in skipped[:NAMED])
        more = f" and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
        rows = "".join(f"<li>{html_text(str(error))}</li>" for error in skipped)
        total = len(measurement) + len(skipped)
        lines.append(
            f"<details><summary><b>{len(skipped):,} of {total:,} pairs cannot be scored and are "
            f"left out</b>: {ids}{more} (open for the reasons)</summary>"
            f'<ul style="max-height: 10em; overflow: auto">{rows}</ul></details>'
        )
    if skipped_before:
        lines.append(f"{skipped_before:,} rows were left out when the pairs were loaded.")
    return "".join(f'<div class="pe-quiet">{line}</div>' for line in lines)


def sentence(state: PairState) -> str:
    """What the step does to the picked pair, in one sentence that holds the numbers."""
    row = state.row
    beta = f"at β {short(state.beta)} and" if state.has_beta else "at"
    color = plots.REGIME_COLORS.get(str(row["regime"]), "#555555")
    return (
        f'<div class="pe-say" style="border-color: {color}">'
        f"<b>pair {html_text(visible_token(state.pair.id))}</b> — "
        f"A {html_text(state.loss_name)} step {beta} learning rate {short(state.lr)} on this pair "
        f"alone {outcome(row)} cos = {short(row['cosine'])}, κ = {short(row['kappa'])}."
        '<span class="pe-quiet">First order, plain gradient descent; other pairs in the batch, '
        "momentum and Adam add their own terms.</span></div>"
    )


def failure(error: Exception) -> str:
    """What went wrong in a callback, whose traceback the notebook does not show."""
    return f"<b>{html_text(type(error).__name__)}</b>: {html_text(str(error))}"


def prompt_box(text: str) -> str:
    """The whole prompt in a box of its own height."""
    text = html_text(text.strip())
    return f'<div class="pe-quiet">prompt</div><div class="pe-words" dir="auto">{text}</div>'


def ranks(state: PairState) -> str:
    """Where the picked pair stands among all measured ones."""
    frame, lines = state.frame, []
    for name, words in MEASURES.items():
        value, known = state.row[name], int(frame[name].notna().sum())
        place = "n/a</td><td>"
        if not math.isnan(value):
            rank = int((frame[name] > value).sum()) + 1
            place = f"{rank:,} of {known:,}</td><td>top {100 * rank / known:.0f} %"
        lines.append(f"<tr><td>{words}</td><td>{short(value)}</td><td>{place}</td></tr>")
    head = "<tr><th></th><th>this pair</th><th>place, highest first</th><th></th></tr>"
    return (
        f'<table class="pe-ranks">{head}{"".join(lines)}</table><div class="pe-quiet">A higher '
        "CHES, edit distance nearer 0 or inner product means that the model finds the two "
        "responses more alike.</div>"
    )


def completeness(result: PromptAttributions, target: str) -> str:
    """How far the attributions are from adding up, in words."""
    change, gap = result.differences[target], result.gaps[target]
    what = "chosen − rejected" if target == "margin" else f"the {target} log-probability"
    share = f" ({100 * abs(gap / change):.1g} % of it)" if change else ""
    return (
        f"<div>Against a prompt of {html_text(result.baseline)} embeddings, this prompt moves "
        f"<b>{what}</b> by {signed(change)} nats. The tokens below add up to "
        f"{signed(change + gap)}: the completeness gap is {signed(gap)} nats{share}. "
        f'<span class="pe-quiet">{html_text(result.method.replace("_", " "))}</span></div>'
    )


def still(state: PairState, skipped_before: int) -> str:
    """The picked pair as self-contained HTML: sentence, strips, numbers and the map."""
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    plots.entanglement_map(state.frame, picked=state.pair.id, ax=figure.subplots())
    picture = base64.b64encode(png(figure, dpi=90)).decode()
    parts = [
        header(state),
        note(state.measurement, skipped_before),
        sentence(state),
        prompt_box(state.pair.prompt_text),
        plots.token_strip_html(state.tokens(), value=state.color),
        plots.numbers_table(state.frame, picked=state.pair.id),
        f'<img alt="entanglement map" src="data:image/png;base64,{picture}">',
    ]
    body = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="pe-still {plots.NO_MATHS}">{STYLE}{body}</div>'


def table_frame(state: PairState) -> pd.DataFrame:
    """The table's columns: texts on one line, numbers with short names."""
    frame, pairs = state.frame, state.measurement.pairs
    pairs = pairs[: len(frame)]
    return pd.DataFrame(
        {
            "id": [visible_token(id) for id in frame["id"]],
            "prompt": [one_line(p.prompt_text) for p in pairs],
            "regime": frame["regime"],
            "cosine": frame["cosine"],
            "Δ chosen": frame["predicted_chosen_delta"],
            "Δ rejected": frame["predicted_rejected_delta"],
            "κ": frame["kappa"],
            "ln CHES": frame["ln_ches"],
            "CHES": frame["ches"],
            **_beyond(frame),
            "chosen tokens": frame["chosen_length"],
            "rejected tokens": frame["rejected_length"],
            "chosen": [one_line(p.chosen_text) for p in pairs],
            "rejected": [one_line(p.rejected_text) for p in pairs],
        }
    )


def _beyond(frame: pd.DataFrame) -> dict[str, list[str]]:
    """A column that says which Δ are no numbers to believe, where there are such."""
    if frame["first_order"].all():
        return {}
    return {"Δ holds": ["yes" if holds else "sign only" for holds in frame["first_order"]]}


def one_line(text: str, length: int = 90) -> str:
    """Return the text on one line, harmless, cut with … after ``length`` characters."""
    line = " ".join(text.split())
    return visible_text(line if len(line) <= length else line[: length - 1] + "…")
