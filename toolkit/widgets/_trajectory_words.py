"""What the trajectory explorer says in words, as escaped HTML, and its still pictures."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.plots import REGIMES, html_text, visible_token
from toolkit.widgets import words
from toolkit.widgets._trajectory_state import ACTUAL, SINCE, TrajectoryState
from toolkit.widgets.words import failure, say, short, signed

SMALL = ("loss", "margin", "kl")
TITLES = {"loss": "loss", "margin": "margin of the rewards", "kl": "KL to the reference, nats"}
LATER = "The flow of probability appears here after the first steps."


def _signed(value: float) -> str:
    return signed(value) if value and not math.isnan(value) else short(value)


def header(state: TrajectoryState) -> str:
    """The labels of every number shown: those of the run that made them."""
    s = state.trajectory.settings
    hparams = ", ".join(f"{n} {s[n]:g}" for n in ("beta", "tau", "gamma", "lam") if n in s)
    rates = " and ".join(map(short, s["lr"] if isinstance(s["lr"], list) else [s["lr"]]))
    return words.header(
        s,
        f"loss: {html_text(str(s['loss_name']))}{f' ({html_text(hparams)})' if hparams else ''}",
        f"optimiser: {html_text(str(s['optimizer']))}",
        f"learning rate {rates}",
        f"batches of {s['batch_size']}",
        f"{len(state.ids)} probes",
    )


def note(state: TrajectoryState) -> str:
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
    return words.quiet(lines, ' role="status"')


def progress(state: TrajectoryState, running: bool) -> str:
    """How far the run is, how long it will take and what it keeps."""
    told = f"{state.done} of {state.total} steps"
    pace = state.seconds_a_step
    if not state.finished and math.isfinite(pace) and not state.stopped:
        told += f", about {_clock(state.seconds_left)} {'left' if running else 'to go'}"
        told += f" ({pace:.2g} s a step)"
    elif not state.finished and not state.stopped:
        told += f", time known after one; keeps {state.kept_bytes / 2**20:.0f} MiB"
    return told


def sentence(state: TrajectoryState) -> str:
    """What training has done to the picked probe so far, and what the last step was."""
    rows, (predicted, real), step = state.rows, state.regimes, state.step
    name = f"<b>probe {html_text(visible_token(state.id))}</b>"
    if step == 0:
        starts = [f"{side} {short(rows.loc[side, 'logps'])}" for side in rows.index]
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


def numbers(state: TrajectoryState) -> str:
    """The shown step's numbers, of the picked probe and of the mean over all probes."""
    f = state.frame
    mean = f.groupby(["step", "side"])[NUMERIC].mean()
    parts = [("this probe", state.rows, _start(state))]
    if len(state.ids) > 1:
        parts.append((f"mean of {len(state.ids)}", mean.loc[state.step], mean.loc[0]))
    sides = ("chosen", "rejected")
    cells = [(now.loc[side], start.loc[side]) for _, now, start in parts for side in sides]
    lines = []
    for title, (show, value) in LINES.items():
        texts = "".join(f"<td>{show(value(now, start))}</td>" for now, start in cells)
        lines.append(f"<tr><td>{title}</td>{texts}</tr>")
    above = "".join(f'<th colspan="2">{html_text(name)}</th>' for name, *_ in parts)
    below = "".join(f"<th>{side}</th>" for _ in parts for side in sides)
    return (
        f'<table class="pe-ranks"><tr><th></th>{above}</tr>'
        f"<tr><th>step {state.step}</th>{below}</tr>{''.join(lines)}</table>"
    )


NUMERIC = ["logps", "predicted_logps", "predicted_delta", "actual_delta", "loss", "margin", "kl"]
LINES = {
    "log π, nats": (short, lambda now, start: now["logps"]),
    "change since the start": (_signed, lambda now, start: now["logps"] - start["logps"]),
    "&emsp;all predictions": (_signed, lambda now, start: now["predicted_logps"] - start["logps"]),
    "change in this step": (_signed, lambda now, start: now["actual_delta"]),
    "&emsp;predicted": (_signed, lambda now, start: now["predicted_delta"]),
    "loss": (short, lambda now, start: now["loss"]),
    "margin of the rewards": (short, lambda now, start: now["margin"]),
    "KL to the reference": (short, lambda now, start: now["kl"]),
}


def strips(state: TrajectoryState, scale: float | None) -> str:
    """The picked probe's tokens at the shown step, on a scale that holds for all steps."""
    tokens = state.tokens()
    tokens.attrs = {}  # the header says them
    if state.color == "since_start":
        return plots.token_strip_html(tokens, value=SINCE, vmax=scale)
    if state.step == 0:
        return '<div class="pe-quiet">Step 0 is the start: no step led here.</div>'
    shown = [plots.token_strip_html(tokens, value=ACTUAL, vmax=scale)]
    if tokens["predicted_delta"].notna().all():
        shown.insert(0, plots.token_strip_html(tokens, value="predicted_delta", vmax=scale))
    return "".join(shown)


def flow_words(state: TrajectoryState) -> str:
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


def flow_figure(state: TrajectoryState) -> Figure:
    """The tokens that gained and lost most."""
    frame = state.flow().copy()
    frame.attrs = {}
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    plots.mass_flow(frame, top=6, ax=figure.subplots())
    return figure


def draw_lines(figure: Figure, state: TrajectoryState) -> list:
    """Draw the run into a figure: mean and picked probe, then loss, margin and KL."""
    figure.clear()
    frame, steps = state.frame.copy(), max(state.total, len(state.trajectory))
    frame.attrs = {}
    places = [["mean"] * 3 + ["picked"] * 3, ["loss"] * 2 + ["margin"] * 2 + ["kl"] * 2]
    axes = figure.subplot_mosaic(places, height_ratios=[1.65, 1])
    common = {"step": state.step, "steps": steps}
    plots.trajectory(frame, ax=axes["mean"], **common)
    plots.trajectory(frame, picked=state.id, ax=axes["picked"], **common)
    for value in SMALL:
        ax = plots.trajectory(frame, value=value, ax=axes[value], **common)
        if len(state.ids) > 1:
            plots.trajectory(frame, value=value, picked=state.id, ax=ax, **common)
        ax.set_title(TITLES[value], loc="left", fontsize=9)
        ax.set_ylabel("")
        ax.tick_params(labelsize=8)
    axes["mean"].set_xlabel("")
    axes["picked"].set(xlabel="", ylabel="")
    for name in ("margin", "kl"):
        if axes[name].get_legend():
            axes[name].get_legend().remove()
    return list(axes.values())


def _start(state: TrajectoryState) -> pd.DataFrame:
    f = state.frame
    return f[(f["step"] == 0) & (f["pair_id"] == state.id)].set_index("side")


def _moved(change: float, loud: bool = False) -> str:
    if not change:
        return "where it was"
    word = "up" if change > 0 else "DOWN" if loud else "down"
    return f"{word} by {short(abs(change))} nats"


def _regime(name: str | None) -> str:
    words = REGIMES[name].words if name in REGIMES else "not a number"
    return f"<code>{html_text(str(name))}</code> ({words})"


def _two(changes: pd.Series) -> str:
    return " and ".join(signed(changes[side]) for side in ("chosen", "rejected"))


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60}:{whole % 60:02d} min"
