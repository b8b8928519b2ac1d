"""What the dataset explorer says in words, as escaped HTML."""

from __future__ import annotations

import base64
import math

import pandas as pd
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.measurement import PairResult
from toolkit.plots import REGIMES, html_text, number, visible_text, visible_token
from toolkit.widgets._dataset_scores import UNMEASURED
from toolkit.widgets._dataset_state import DatasetState
from toolkit.widgets.panels.figure import png
from toolkit.widgets.words import (
    NAMED,
    STYLE,
    one_line,
    prompt_box,
    short,
    step_sentence,
    token_words,
)

CUT = 60  # characters of a text in the table
EXTRA_STYLE = """<style>
.de-counts {border-collapse: collapse; font-size: 13px}
.de-counts th, .de-counts td {padding: 1px 14px 1px 0; text-align: right; font-weight: normal}
.de-counts th:first-child, .de-counts td:first-child {text-align: left}
.de-counts tr:first-child th {color: var(--jp-ui-font-color2, #616161); font-size: 12px}
.de-marker {font-size: 15px; line-height: 1}
</style>"""
MARKS = {"ideal": "●", "both_down": "▼", "both_up": "▲", "reversed": "✖", "unchanged": "■"}


def style() -> str:
    """The rules that every explorer shares, and those of this one."""
    return STYLE + EXTRA_STYLE


def header(state: DatasetState) -> str:
    """What the scores were measured with, and how many pairs there are."""
    attrs, words = state.frame.attrs, []
    ours = state.policy.labels("all")
    words.append(f"<b>{html_text(str(attrs.get('model', ours.model)))}</b>")
    if "dtype" in attrs:
        words.append(html_text(str(attrs["dtype"])))
    if "params" in attrs:
        words.append(f"parameters: {html_text(str(attrs['params']))}")
    if "append_eos" in attrs:
        words += token_words(attrs)
    words.append(f"reference: {html_text(str(attrs.get('ref', ours.ref)))}")
    if "loss" in attrs:
        words.append(f"loss of the regimes: {html_text(str(attrs['loss']))}")
    words.append(f"<b>{len(state.pairs):,} pairs</b>")
    return f'<div class="pe-quiet">{" · ".join(words)}</div>'


def note(state: DatasetState, skipped_before: int = 0) -> str:
    """Which pairs have no score, and why; nothing when all have one."""
    lines, by = [], html_text(visible_token(state.columns["by"]))
    theirs, ours = state.frame.attrs.get("model"), state.policy.labels("all").model
    if theirs is not None and theirs != ours:
        lines.append(
            f"The scores were measured with <b>{html_text(str(theirs))}</b>; the picked pair is "
            f"shown with <b>{html_text(str(ours))}</b>."
        )
    lost = state.unscored()
    missing = sum(reason == UNMEASURED for _, reason in lost)
    if missing:
        done = len(state.pairs) - missing
        lines.append(
            f"<b>{done:,} of {len(state.pairs):,} pairs measured</b>; <code>.measure()</code> goes "
            "on."
        )
    lost = [(id, reason) for id, reason in lost if reason != UNMEASURED]
    if lost:
        ids = ", ".join(html_text(visible_token(id)) for id, _ in lost[:3])
        more = f" and {len(lost) - 3:,} more" if len(lost) > 3 else ""
        rows = "".join(
            f"<li>{html_text(visible_token(id))}: {html_text(reason)}</li>"
            for id, reason in lost[:NAMED]
        )
        if len(lost) > NAMED:
            rows += f"<li>… (<code>.unscored</code> has all {len(lost):,})</li>"
        lines.append(
            f"<details><summary><b>{len(lost):,} of {len(state.pairs):,} pairs without {by}</b>, "
            f"which cannot be kept: {ids}{more} (open for the reasons)</summary>"
            f"<ul>{rows}</ul></details>"
        )
    if skipped_before:
        lines.append(f"{skipped_before:,} rows were left out when the pairs were loaded.")
    return "".join(f'<div class="pe-quiet">{line}</div>' for line in lines)


def ranking(state: DatasetState) -> str:
    """What the filter keeps, in numbers, and how far the length alone explains the ranking."""
    counts, by = state.counts(), html_text(visible_token(state.columns["by"]))
    scored = counts["kept"] + counts["dropped"]
    first = (
        f"<div><b>kept {counts['kept']:,}</b> of {scored:,} scored (the lowest "
        f"{short(100 * state.keep)} %, {by} ≤ {short(state.cut)}) · "
        f"dropped {counts['dropped']:,} · unscored {counts['unscored']:,} · "
        f"selected {int(state.selected.sum()):,}</div>"
    )
    return first + _regimes(state) + f"<div>{_confound(state)}</div>"


def _regimes(state: DatasetState) -> str:
    table = state.regimes()
    if table is None:
        return '<div class="pe-quiet">these scores hold no regimes</div>'
    rows = ""
    for name, row in table.iterrows():
        color = plots.regime_of(name).color
        mark = f'<span class="de-marker" style="color: {color}">{MARKS.get(name, "●")}</span>'
        meaning = REGIMES[name].words if name in REGIMES else ""
        rows += (
            f"<tr><td>{mark} {html_text(str(name).replace('_', ' '))} "
            f'<span class="pe-quiet">{meaning}</span></td>'
            f"<td>{row['kept']:,}</td><td>{row['all']:,}</td>"
            f"<td>{100 * row['kept'] / row['all']:.0f} %</td></tr>"
        )
    head = "<tr><th>regime</th><th>kept</th><th>all</th><th>kept share</th></tr>"
    return f'<table class="de-counts">{head}{rows}</table>'


def _confound(state: DatasetState) -> str:
    rho = state.confound()
    by = html_text(visible_token(state.columns["by"]))
    if rho is None:
        return '<span class="pe-quiet">these scores hold no lengths</span>'
    if math.isnan(rho):
        return f"Length confound of {by}: undefined (all lengths or all scores are equal)."
    size = abs(rho)
    share = "little" if size < 0.2 else "part" if size < 0.6 else "<b>most</b>"
    return (
        f"Length confound: Spearman ρ = <b>{number(rho, sign=True, places=2)}</b>"
        + f" of {by} with rejected − chosen length, which explains {share} of the ranking."
    )


def detail(alone: PairResult) -> dict[str, str]:
    """The picked pair: sentence, prompt, strips and numbers."""
    return {
        "say": step_sentence(alone),
        "prompt": prompt_box(alone.pair.prompt_text),
        "strips": plots.token_strip_html(alone.tokens(), value="predicted_delta"),
        "numbers": plots.numbers_table(alone.results.frame, picked=alone.pair.id),
    }


def failed_detail(state: DatasetState, error: Exception) -> dict[str, str]:
    """The texts of a picked pair that cannot be scored, and why."""
    pair = state.pair
    say = (
        f'<div class="pe-say" style="border-color: #555555"><b>pair '
        f"{html_text(visible_token(pair.id))}</b> cannot be scored: {html_text(str(error))}</div>"
    )
    texts = "".join(
        f'<div class="pe-quiet">{name}</div>'
        f'<div class="pe-words" dir="auto">{html_text(text[:2000])}</div>'
        for name, text in (("chosen", pair.chosen_text), ("rejected", pair.rejected_text))
    )
    return {"say": say, "prompt": prompt_box(pair.prompt_text[:5000]), "strips": texts,
            "numbers": ""}  # fmt: skip


def details_of(state: DatasetState) -> dict[str, str]:
    """The picked pair in words, or why there is nothing to say."""
    try:
        return detail(state.details())
    except ValueError as error:
        return failed_detail(state, error)


def draw(figure: Figure, state: DatasetState) -> None:
    """Draw the scatter and the two histograms side by side."""
    axes = figure.subplot_mosaic([["map", "x"], ["map", "y"]], width_ratios=[1.5, 1])
    frame, columns = state.plot_frame(), state.columns
    bare = frame.copy()
    frame.attrs.update(state.frame.attrs)
    plots.score_scatter(
        frame, x=columns["x"], y=columns["y"], by=columns["by"], cut=state.cut,
        picked=state.pair.id, ax=axes["map"],
    )  # fmt: skip
    for side in ("x", "y"):
        plots.score_histogram(bare, columns[side], cut=cut_of(state, side), ax=axes[side])


def cut_of(state: DatasetState, side: str) -> float | None:
    """The cut, if this side of the scatter is what the filter ranks by."""
    return state.cut if state.columns[side] == state.columns["by"] else None


def still(state: DatasetState, skipped_before: int) -> str:
    """The dataset and the picked pair as self-contained HTML."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    draw(figure, state)
    picture = base64.b64encode(png(figure, dpi=90)).decode()
    parts = [
        header(state),
        note(state, skipped_before),
        f'<img alt="scatter and histograms of the scores" src="data:image/png;base64,{picture}">',
        ranking(state),
        *details_of(state).values(),
    ]
    body = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="pe-still {plots.NO_MATHS}">{style()}{body}</div>'


def table_frame(state: DatasetState, places) -> pd.DataFrame:
    """The table's columns: the drawn columns first, texts cut."""
    rows = state.frame.iloc[places]
    columns = {"id": [visible_token(id) for id in rows["id"]]}
    if "regime" in rows:
        columns["regime"] = rows["regime"].fillna("").map(str).map(visible_text).to_numpy()
    for name in dict.fromkeys([*state.columns.values(), *state.numbers[:3]]):
        columns[visible_text(name.replace("_", " "))] = rows[name].astype("float64").to_numpy()
    if "length_difference" in rows:
        for side in ("chosen", "rejected"):
            columns[f"{side} tokens"] = rows[f"{side}_length"].astype("float64")
    pairs = [state.pairs[i] for i in places]
    for name in ("prompt", "chosen", "rejected"):
        columns[name] = [one_line(getattr(p, f"{name}_text")[:600], CUT) for p in pairs]
    if any(rows["error"]):
        columns["error"] = [one_line(error[:600], CUT) for error in rows["error"]]
    return pd.DataFrame(columns).reset_index(drop=True)
