"""What the explorer of losses says in words, as escaped HTML."""

from __future__ import annotations

import base64

import pandas as pd
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.plots import html_text, visible_token
from toolkit.widgets._loss_state import SIGNS, LossState
from toolkit.widgets.panels.figure import png
from toolkit.widgets.words import (
    NAMED,
    STYLE,
    one_line,
    outcome,
    prompt_box,
    short,
    signed,
    token_words,
)

NAMED_LOSSES = 4  # losses that a slider names before it counts the rest
EXTRA_STYLE = """<style>
.le-hypo {border: 1px dashed #D55E00; border-left: 6px solid #D55E00; padding: 4px 12px}
.le-moves {max-width: 226px; line-height: 1.25; min-height: 2.5em}
.le-text {max-height: 4.4em; overflow: auto; overflow-wrap: anywhere; white-space: pre-wrap}
.le-text b {font-weight: 600}
</style>"""


def style() -> str:
    """The rules that every explorer shares, and those of this one."""
    return STYLE + EXTRA_STYLE


def header(state: LossState) -> str:
    """The labels of every number shown."""
    labels = state.policy.labels(state.params)
    words = [
        f"<b>{html_text(labels.model)}</b>",
        html_text(labels.dtype),
        f"parameters: {html_text(labels.params)}",
        *token_words(labels.to_attrs()),
        f"reference: {html_text(labels.ref)}",
        f"learning rate {short(state.settings.lr)}",
        f"<b>{len(state.frame)} losses</b>, {len(state.measurement):,} pairs",
    ]
    return f'<div class="pe-quiet">{" · ".join(words)}</div>'


def note(state: LossState, skipped_before: int = 0) -> str:
    """Which losses and pairs are left out, and why; nothing when none is."""
    lines = [
        f"<b>{html_text(name)} is left out</b>: {html_text(reason)}"
        for name, reason in state.left_out.items()
    ]
    skipped = state.measurement.skipped
    if skipped:
        ids = ", ".join(html_text(visible_token(str(e.id))) for e in skipped[:NAMED])
        more = f" and {len(skipped) - NAMED:,} more" if len(skipped) > NAMED else ""
        total = len(state.measurement) + len(skipped)
        lines.append(
            f"<b>{len(skipped):,} of {total:,} pairs cannot be scored and are left out</b>: "
            f"{ids}{more} (<code>.skipped</code> has the reasons)"
        )
    if skipped_before:
        lines.append(f"{skipped_before:,} rows were left out when the pairs were loaded.")
    return "".join(f'<div class="pe-quiet">{line}</div>' for line in lines)


def sentence(state: LossState) -> str:
    """What a step of the picked loss does to the picked pair, and why, with the numbers."""
    row = state.row
    color = plots.regime_of(row["regime"]).color
    name = html_text(row["loss"])
    rule = f" Ratio of {name}: {html_text(row['ratio_rule'])}." * bool(row["ratio_rule"])
    formula = f" ℓ = {html_text(row['formula'])} ({html_text(row['source'])})." * bool(
        row["formula"]
    )
    settings = f" ({html_text(row['settings'])})" * bool(row["settings"])
    odd = f" <b>{html_text(row['note'].capitalize())}.</b>" * bool(row["note"])
    return (
        f'<div class="pe-say" style="border-color: {color}">'
        f"<b>pair {html_text(visible_token(state.pair.id))}</b> — A <b>{name}</b> step{settings} "
        f"at learning rate {short(state.settings.lr)} on this pair alone {outcome(row)} "
        f"{_why(row)}{odd}"
        f'<span class="pe-quiet">{formula}{rule} First order, plain gradient descent.</span></div>'
    )


def _why(row: pd.Series) -> str:
    """The ratio of the weights beside the band of the pair."""
    weights = (
        f"d_chosen {short(row['d_chosen'])}, d_rejected {short(row['d_rejected'])}, "
        f"ratio {short(row['ratio'])}"
    )
    if row["d_chosen"] <= 0 or row["d_rejected"] <= 0:
        return f"{weights}; the band of ideal ratios is for positive weights."
    if row["cosine"] <= 0:
        return f"{weights}; cos = {short(row['cosine'])} ≤ 0: any positive ratio is ideal."
    band = f"{short(row['band_low'])} … {short(row['band_high'])}"
    return f"{weights}; ideal for this pair (cos = {short(row['cosine'])}) are ratios of {band}."


def rewards(state: LossState) -> str:
    """What was measured of the two log-ratios, and what is assumed instead."""
    chosen, rejected = state.logratios()
    same = " (the policy is its reference: training has not begun)" * (chosen == rejected == 0)
    words = (
        f"Measured log-ratios (policy − reference): chosen {signed(chosen)}, rejected "
        f"{signed(rejected)} nats{same}."
    )
    if not state.hypothetical:
        return f'<div class="pe-quiet">{words} Move the sliders to ask “what if”.</div>'
    cut = state.shown_shifts() != (state.settings.chosen_shift, state.settings.rejected_shift)
    limit = " A log-probability cannot rise above 0: the shift was cut." * cut
    return (
        f"<div><b>Hypothetical</b>: {html_text(state.hypothetical)}. The loss weights are those at "
        f"these log-probabilities; gradients and cosine are the measured ones.{limit}"
        f'<div class="pe-quiet">{words}</div></div>'
    )


def moves(state: LossState, hparam: str) -> str:
    """Which losses a hyper-parameter's slider moves, and where the others stay."""
    reach = state.reach(hparam)
    names = ", ".join(html_text(name) for name in reach[:NAMED_LOSSES])
    more = f" and {len(reach) - NAMED_LOSSES} more" if len(reach) > NAMED_LOSSES else ""
    title = html_text(", ".join(reach))
    return f'<div class="pe-quiet le-moves" title="{title}">moves {names}{more}</div>'


def texts(state: LossState) -> str:
    """The picked pair's prompt and its two responses."""
    pair = state.pair
    return (
        f"{prompt_box(pair.prompt_text)}"
        f'<div class="le-text"><b>chosen</b>: {_aside(pair.chosen_text)}</div>'
        f'<div class="le-text"><b>rejected</b>: {_aside(pair.rejected_text)}</div>'
    )


def _aside(text: str) -> str:
    """A text that keeps its own direction in a line of another one."""
    return f'<span dir="auto">{html_text(text.strip())}</span>'


def setting(name: str) -> str:
    """The name of a hyper-parameter beside its slider."""
    return SIGNS.get(name, name)


def table_frame(state: LossState) -> pd.DataFrame:
    """The columns of the table that picks a pair."""
    pairs, encoded = state.measurement.pairs, state.measurement.encoded
    columns = {
        "id": [visible_token(p.id) for p in pairs],
        "prompt": [one_line(p.prompt_text, 60) for p in pairs],
        "chosen": [one_line(p.chosen_text, 60) for p in pairs],
        "rejected": [one_line(p.rejected_text, 60) for p in pairs],
        "tokens": [f"{e.chosen_length} | {e.rejected_length}" for e in encoded],
    }
    if state.measurement.given_stats is not None:
        columns["cosine"] = [float(state.measurement.one(k).cosine[0]) for k in range(len(pairs))]
    return pd.DataFrame(columns)


def draw(figure: Figure, state: LossState) -> Figure:
    """Draw the map and the changes side by side."""
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    plots.loss_map(state.frame, picked=state.loss, ax=left)
    plots.delta_bars(state.frame, name="loss", log=True, picked=state.loss, ax=right)
    return figure


def still(state: LossState, skipped_before: int) -> str:
    """The picked pair as self-contained HTML: sentence, texts, both pictures, the table."""
    figure = draw(Figure(figsize=(11.4, 5), layout="constrained"), state)
    picture = base64.b64encode(png(figure, dpi=80)).decode()
    parts = [
        header(state),
        note(state, skipped_before),
        texts(state),
        sentence(state),
        rewards(state),
        f'<img alt="map of the losses, and the changes each predicts" '
        f'src="data:image/png;base64,{picture}">',
        plots.loss_table_html(state.frame, picked=state.loss),
    ]
    body = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="pe-still {plots.NO_MATHS}">{style()}{body}</div>'
