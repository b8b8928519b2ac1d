"""What the dataset explorer says in words, as escaped HTML."""

from __future__ import annotations

import math

import pandas as pd

from toolkit import plots
from toolkit.dataset.choice import DatasetChoice
from toolkit.dataset.scores import UNMEASURED
from toolkit.measurement import PairResult
from toolkit.plots import REGIMES, html_text, number, visible_text, visible_token
from toolkit.widgets import words
from toolkit.widgets.words import one_line, prompt_box, say, step_sentence

CUT = 60  # characters of a text in the table
MARKS = {"ideal": "●", "both_down": "▼", "both_up": "▲", "reversed": "✖", "unchanged": "■"}


def header(found: DatasetChoice) -> str:
    """What the scores were measured with, and how many pairs there are."""
    attrs, ours = found.frame.attrs, found.policy.labels("all")
    more = [f"<b>{len(found.pairs):,} pairs</b>"]
    if "loss_name" in attrs:
        more.insert(0, f"loss of the regimes: {html_text(str(attrs['loss_name']))}")
    return words.header({"model": ours.model, "ref": ours.ref, **attrs}, *more)


def note(found: DatasetChoice, skipped_before: int = 0) -> str:
    """Which pairs have no score, and why; nothing when all have one."""
    lines, by = [], html_text(visible_token(found.columns["by"]))
    theirs, ours = found.frame.attrs.get("model"), found.policy.labels("all").model
    if theirs is not None and theirs != ours:
        lines.append(
            f"The scores were measured with <b>{html_text(str(theirs))}</b>; the picked pair is "
            f"shown with <b>{html_text(str(ours))}</b>."
        )
    lost = pd.DataFrame(found.unscored(), columns=["pair_id", "reason"])
    waiting, total = lost["reason"] == UNMEASURED, len(found.pairs)
    lines += words.unmeasured(total - int(waiting.sum()), total)
    without = f"without {by}, which cannot be kept"
    lines += words.left_out(lost[~waiting], total, without, "unscored")
    return words.quiet(lines + words.skipped_before(skipped_before))


def ranking(found: DatasetChoice) -> str:
    """What the filter keeps, in numbers, and how far the length alone explains the ranking."""
    counts, by = found.counts(), html_text(visible_token(found.columns["by"]))
    scored = counts["kept"] + counts["dropped"]
    first = (
        f"<div><b>kept {counts['kept']:,}</b> of {scored:,} scored (the lowest "
        f"{number(100 * found.keep)} %, {by} ≤ {number(found.cut)}) · "
        f"dropped {counts['dropped']:,} · unscored {counts['unscored']:,} · "
        f"selected {int(found.selected.sum()):,}</div>"
    )
    return first + _regimes(found) + f"<div>{_confound(found)}</div>"


def _regimes(found: DatasetChoice) -> str:
    table = found.regimes()
    if table is None:
        return '<div class="pe-quiet">these scores hold no regimes</div>'
    rows = []
    for name, row in table.iterrows():
        color = plots.regime_of(name).color
        mark = f'<span class="pe-marker" style="color: {color}">{MARKS.get(name, "●")}</span>'
        meaning = REGIMES[name].words if name in REGIMES else ""
        said = f'{html_text(str(name).replace("_", " "))} <span class="pe-quiet">{meaning}</span>'
        share = f"{100 * row['kept'] / row['all']:.0f} %"
        rows.append((f"{mark} {said}", f"{row['kept']:,}", f"{row['all']:,}", share))
    return words.table(("regime", "kept", "all", "kept share"), rows, "pe-counts")


def _confound(found: DatasetChoice) -> str:
    rho = found.confound()
    by = html_text(visible_token(found.columns["by"]))
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
        "status": step_sentence(alone),
        "prompt": prompt_box(alone.pair),
        "strips": plots.token_strip_html(alone.tokens(), value="predicted_delta"),
        "numbers": plots.numbers_table(alone.results.frame, picked=alone.pair.id),
    }


def failed_detail(found: DatasetChoice, error: Exception) -> dict[str, str]:
    """The texts of a picked pair that cannot be scored, and why."""
    pair = found.pair
    id = html_text(visible_token(pair.id))
    said = say(None, f"<b>pair {id}</b> cannot be scored: {html_text(str(error))}")
    texts = "".join(
        f'<div class="pe-quiet">{name}</div>'
        f'<div class="pe-words" dir="auto">{html_text(text[:2000])}</div>'
        for name, text in (("chosen", pair.chosen_text), ("rejected", pair.rejected_text))
    )
    return {"status": said, "prompt": prompt_box(pair, 5000), "strips": texts,
            "numbers": ""}  # fmt: skip


def details_of(found: DatasetChoice) -> dict[str, str]:
    """The picked pair in words, or why there is nothing to say."""
    try:
        return detail(found.details())
    except ValueError as error:
        return failed_detail(found, error)


def table_frame(found: DatasetChoice, places) -> pd.DataFrame:
    """The table's columns: the drawn columns first, texts cut."""
    rows = found.frame.iloc[places]
    columns = {"pair_id": [visible_token(id) for id in rows["pair_id"]]}
    if "regime" in rows:
        columns["regime"] = rows["regime"].fillna("").map(str).map(visible_text).to_numpy()
    for name in dict.fromkeys([*found.columns.values(), *found.numbers[:3]]):
        columns[visible_text(name.replace("_", " "))] = rows[name].astype("float64").to_numpy()
    if "length_difference" in rows:
        for side in ("chosen", "rejected"):
            columns[f"{side} tokens"] = rows[f"{side}_length"].astype("float64")
    pairs = [found.pairs[i] for i in places]
    for name in ("prompt", "chosen", "rejected"):
        columns[name] = [one_line(getattr(p, f"{name}_text")[:600], CUT) for p in pairs]
    if any(rows["error"]):
        columns["error"] = [one_line(error[:600], CUT) for error in rows["error"]]
    return pd.DataFrame(columns).reset_index(drop=True)
