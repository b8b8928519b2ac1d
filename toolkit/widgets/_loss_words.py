"""What the explorer of losses says in words, as escaped HTML."""

from __future__ import annotations

import pandas as pd

from toolkit.loss_comparison import LossComparison
from toolkit.plots import html_text, number, visible_token
from toolkit.widgets import words
from toolkit.widgets.words import one_line, outcome, prompt_box, say, signed

NAMED_LOSSES = 4  # losses that a slider names before it counts the rest


def header(losses: LossComparison) -> str:
    """The labels of every number shown."""
    return words.header(
        losses.policy.labels(losses.params).to_attrs(),
        f"learning rate {number(losses.settings.lr)}",
        f"<b>{len(losses.frame)} losses</b>, {len(losses.measurement):,} pairs",
    )


def note(losses: LossComparison, skipped_before: int = 0) -> str:
    """Which losses and pairs are left out, and why; nothing when none is."""
    m = losses.measurement
    lines = [
        f"<b>{html_text(name)} is left out</b>: {html_text(reason)}"
        for name, reason in losses.left_out.items()
    ]
    lost = words.left_out(m.skipped_frame, len(m) + len(m.skipped))
    return words.quiet(lines + lost + words.skipped_before(skipped_before))


def sentence(losses: LossComparison) -> str:
    """What a step of the picked loss does to the picked pair, and why, with the numbers."""
    row = losses.row
    name = html_text(row["loss_name"])
    rule = f" Ratio of {name}: {html_text(row['ratio_rule'])}." * bool(row["ratio_rule"])
    formula = f" ℓ = {html_text(row['formula'])} ({html_text(row['source'])})." * bool(
        row["formula"]
    )
    settings = f" ({html_text(row['settings'])})" * bool(row["settings"])
    odd = f" <b>{html_text(row['note'].capitalize())}.</b>" * bool(row["note"])
    return say(
        row["regime"],
        f"<b>pair {html_text(visible_token(losses.pair.id))}</b> — A <b>{name}</b> step{settings} "
        f"at learning rate {number(losses.settings.lr)} on this pair alone {outcome(row)} "
        f"{_why(row)}{odd}"
        f'<span class="pe-quiet">{formula}{rule} First order, plain gradient descent.</span>',
    )


def _why(row: pd.Series) -> str:
    """The ratio of the weights beside the band of the pair."""
    weights = (
        f"d_chosen {number(row['d_chosen'])}, d_rejected {number(row['d_rejected'])}, "
        f"ratio {number(row['ratio'])}"
    )
    if row["d_chosen"] <= 0 or row["d_rejected"] <= 0:
        return f"{weights}; the band of ideal ratios is for positive weights."
    if row["cosine"] <= 0:
        return f"{weights}; cos = {number(row['cosine'])} ≤ 0: any positive ratio is ideal."
    band = f"{number(row['band_low'])} … {number(row['band_high'])}"
    return f"{weights}; ideal for this pair (cos = {number(row['cosine'])}) are ratios of {band}."


def rewards(losses: LossComparison) -> str:
    """What was measured of the two log-ratios, and what is assumed instead."""
    chosen, rejected = losses.logratios()
    same = " (the policy is its reference: training has not begun)" * (chosen == rejected == 0)
    words = (
        f"Measured log-ratios (policy − reference): chosen {signed(chosen)}, rejected "
        f"{signed(rejected)} nats{same}."
    )
    if not losses.hypothetical:
        return f'<div class="pe-quiet">{words} Move the sliders to ask “what if”.</div>'
    cut = losses.shown_shifts() != (losses.settings.chosen_shift, losses.settings.rejected_shift)
    limit = " A log-probability cannot rise above 0: the shift was cut." * cut
    return (
        f"<div><b>Hypothetical</b>: {html_text(losses.hypothetical)}. The loss weights are those "
        f"at these log-probabilities; gradients and cosine are the measured ones.{limit}"
        f'<div class="pe-quiet">{words}</div></div>'
    )


def moves(losses: LossComparison, hparam: str) -> str:
    """Which losses a hyper-parameter's slider moves, and where the others stay."""
    reach = losses.reach(hparam)
    names = ", ".join(html_text(name) for name in reach[:NAMED_LOSSES])
    more = f" and {len(reach) - NAMED_LOSSES} more" if len(reach) > NAMED_LOSSES else ""
    title = html_text(", ".join(reach))
    return f'<div class="pe-quiet pe-moves" title="{title}">moves {names}{more}</div>'


def texts(losses: LossComparison) -> str:
    """The picked pair's prompt and its two responses."""
    pair = losses.pair
    return (
        f"{prompt_box(pair)}"
        f'<div class="pe-text"><b>chosen</b>: {_aside(pair.chosen_text)}</div>'
        f'<div class="pe-text"><b>rejected</b>: {_aside(pair.rejected_text)}</div>'
    )


def _aside(text: str) -> str:
    """A text that keeps its own direction in a line of another one."""
    return f'<span dir="auto">{html_text(text.strip())}</span>'


def table_frame(losses: LossComparison) -> pd.DataFrame:
    """The columns of the table that picks a pair."""
    pairs, encoded = losses.measurement.pairs, losses.measurement.encoded
    columns = {
        "pair_id": [visible_token(p.id) for p in pairs],
        "prompt": [one_line(p.prompt_text, 60) for p in pairs],
        "chosen": [one_line(p.chosen_text, 60) for p in pairs],
        "rejected": [one_line(p.rejected_text, 60) for p in pairs],
        "tokens": [f"{e.chosen_length} | {e.rejected_length}" for e in encoded],
    }
    if losses.measurement.given_stats is not None:
        columns["cosine"] = [float(losses.measurement.one(k).cosine[0]) for k in range(len(pairs))]
    return pd.DataFrame(columns)
