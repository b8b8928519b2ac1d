"""What the trajectory explorer says in words, as escaped HTML."""

from __future__ import annotations

import math

import pandas as pd
from tqdm import tqdm

from toolkit import plots
from toolkit.dynamics.watched_run import ACTUAL, SINCE, WatchedRun
from toolkit.plots import REGIMES, html_text, number, visible_token
from toolkit.widgets import words
from toolkit.widgets.words import failure, say, signed

LATER = "The flow of probability appears here after the first steps."


def header(state: WatchedRun) -> str:
    """The labels of every number shown: those of the run that made them."""
    s = state.trajectory.settings
    hparams = ", ".join(f"{n} {s[n]:g}" for n in ("beta", "tau", "gamma", "lam") if n in s)
    rates = " and ".join(map(number, s["lr"] if isinstance(s["lr"], list) else [s["lr"]]))
    return words.header(
        s,
        f"loss: {html_text(str(s['loss_name']))}{f' ({html_text(hparams)})' if hparams else ''}",
        f"optimiser: {html_text(str(s['optimizer']))}",
        f"learning rate {rates}",
        f"batches of {s['batch_size']}",
        f"{len(state.ids)} probes",
    )


def note(state: WatchedRun, skipped_before: int = 0) -> str:
    """What is wrong or waiting: an error in a step, settings that are not used yet."""
    lines = []
    if state.error is not None:
        lines.append(
            f"Step {state.done + 1} failed. {failure(state.error)}. The {state.done} steps before "
            "it are kept."
        )
    if state.changed:
        lines.append("<b>The controls have changed</b>: Run or Reset starts anew with them.")
    divergence = state.trajectory.divergence
    if divergence is not None:
        why = html_text(str(divergence))
        lines.append(f"<b>Training {why}.</b> Run or Reset starts again from step 0.")
    elif state.stopped:
        lines.append(
            f"<b>Stopped after {state.done} of {state.total} steps</b>; everything up to there is "
            "kept. Run starts again from step 0."
        )
    lines += words.left_out(state.trajectory.skipped) + words.skipped_before(skipped_before)
    return words.quiet(lines, ' role="status"')


def progress(state: WatchedRun, running: bool) -> str:
    """How far the run is, how long it will take and what it keeps."""
    told = f"{state.done} of {state.total} steps"
    pace = state.seconds_a_step
    if not state.finished and math.isfinite(pace) and not state.stopped:
        told += (
            f", about {tqdm.format_interval(state.seconds_left)} {'left' if running else 'to go'}"
        )
        told += f" ({pace:.2g} s a step)"
    elif not state.finished and not state.stopped:
        told += f", time known after one; keeps {state.kept_bytes / 2**20:.0f} MiB"
    return told


def sentence(state: WatchedRun) -> str:
    """What training has done to the picked probe so far, and what the last step was."""
    rows, (predicted, real), step = state.rows, state.regimes, state.step
    name = f"<b>probe {html_text(visible_token(state.id))}</b>"
    if step == 0:
        starts = [f"{side} {number(rows.loc[side, 'logps'])}" for side in rows.index]
        text = f"{name} — Step 0, the start: log π is {' and '.join(starts)} nats."
        if not state.done:
            text += " Press Run to train."
        return say(real, text)
    since = rows["logps"] - _start(state)["logps"]
    text = (
        f"{name} — After step {step}, the chosen response is "
        f"<b>{_moved(since['chosen'], True)}</b> since the start and the rejected one "
        f"{_moved(since['rejected'])}. This step "
    )
    inside = "in its minibatch" if bool(rows["in_batch"].iloc[0]) else "not in its minibatch"
    happened = f"really was {_regime(real)}: {_two(rows['actual_delta'])} nats"
    if predicted is None:
        text += f"was not predicted; it {happened}"
    elif predicted == real:
        text += f"{happened}, as predicted ({_two(rows['predicted_delta'])})"
    else:
        text += (
            f"{happened}. <b>The prediction said otherwise</b>: {_regime(predicted)}, "
            f"{_two(rows['predicted_delta'])}"
        )
    quiet = f'<span class="pe-quiet">Chosen and rejected, in this order. The probe was {inside}.'
    return say(real, f"{text}. {quiet}</span>")


def numbers(state: WatchedRun) -> str:
    """The shown step's numbers, of the picked probe and of the mean over all probes."""
    f = state.frame
    mean = f.groupby(["step", "side"])[NUMERIC].mean()
    parts = [("this probe", state.rows, _start(state))]
    if len(state.ids) > 1:
        parts.append((f"mean of {len(state.ids)}", mean.loc[state.step], mean.loc[0]))
    sides = ("chosen", "rejected")
    cells = [(now.loc[side], start.loc[side]) for _, now, start in parts for side in sides]
    rows = [
        (title, *(show(value(now, start)) for now, start in cells))
        for title, (show, value) in LINES.items()
    ]
    above = "".join(f'<th colspan="2">{html_text(name)}</th>' for name, *_ in parts)
    table = words.table((f"step {state.step}", *sides * len(parts)), rows)
    return table.replace("<tr>", f"<tr><th></th>{above}</tr><tr>", 1)


NUMERIC = ["logps", "predicted_logps", "predicted_delta", "actual_delta", "loss", "margin", "kl"]
LINES = {
    "log π, nats": (number, lambda now, start: now["logps"]),
    "change since the start": (signed, lambda now, start: now["logps"] - start["logps"]),
    "&emsp;all predictions": (signed, lambda now, start: now["predicted_logps"] - start["logps"]),
    "change in this step": (signed, lambda now, start: now["actual_delta"]),
    "&emsp;predicted": (signed, lambda now, start: now["predicted_delta"]),
    "loss": (number, lambda now, start: now["loss"]),
    "margin of the rewards": (number, lambda now, start: now["margin"]),
    "KL to the reference": (number, lambda now, start: now["kl"]),
}


def strips(state: WatchedRun, color: str) -> str:
    """The picked probe's tokens at the shown step, on a scale that holds for all steps."""
    tokens, scale = state.tokens(), state.largest(color == "since_start")
    tokens.attrs = {}  # the header says them
    if color == "since_start":
        return plots.token_strip_html(tokens, value=SINCE, vmax=scale)
    if state.step == 0:
        return '<div class="pe-quiet">Step 0 is the start: no step led here.</div>'
    shown = [plots.token_strip_html(tokens, value=ACTUAL, vmax=scale)]
    if tokens["predicted_delta"].notna().all():
        shown.insert(0, plots.token_strip_html(tokens, value="predicted_delta", vmax=scale))
    return "".join(shown)


def flow_words(state: WatchedRun) -> str:
    """Between which two states the flow of probability is measured."""
    kept = state.kept_step
    if kept is None:
        return f'<div class="pe-quiet">{LATER}</div>'
    which = "the shown step" if kept == state.step else f"the kept step nearest to {state.step}"
    steps = ", ".join(str(k) for k in sorted(state.trajectory.checkpoints))
    return (
        f"<div>Where the probability of the next token went, <b>step 0 → step {kept}</b> "
        f'({which})<div class="pe-quiet">weights are kept at steps {steps}; the token is the '
        "first one in which the two responses differ</div></div>"
    )


def _start(state: WatchedRun) -> pd.DataFrame:
    f = state.frame
    return f[(f["step"] == 0) & (f["pair_id"] == state.id)].set_index("side")


def _moved(change: float, loud: bool = False) -> str:
    if not change:
        return "where it was"
    word = "up" if change > 0 else "DOWN" if loud else "down"
    return f"{word} by {number(abs(change))} nats"


def _regime(name: str | None) -> str:
    words = REGIMES[name].words if name in REGIMES else "not a number"
    return f"<code>{html_text(str(name))}</code> ({words})"


def _two(changes: pd.Series) -> str:
    return " and ".join(signed(changes[side]) for side in ("chosen", "rejected"))
