"""Trains the shipped model until its loss is flat, many times: `python data/run_dynamics.py`.

Two protocols in miniature: the three sentiment formats at several learning rates and seeds (arXiv
2410.13828, Section 4), and one prompt with single-token answers over ten prompts (arXiv 2410.08847,
Section 4: 100 updates of RMSprop, largest drawdown, the words that gain). A run is written once it
is done, and not repeated when it is in the file.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from run_on_policy import BETA, changes, keep, left, log_probabilities

import toolkit as tk

HERE = Path(__file__).parent
FALLING, SINGLE = HERE / "falling_formats.csv", HERE / "single_prompt.csv"
FORMATS = ("single_token", "short_suffix", "long_suffix")
RATES, LAST = (1e-4, 3e-4), 60
SEEDS, PAIRS, BATCH, EVERY = (0, 1, 2), 16, 4, 5
KINDS, PROMPTS, SINGLE_RATE = ("No/Never", "Yes/No", "Sure/Yes"), 10, 1e-5
STEPS = (1, 5, 10, 25, 50, 100)


def falling(policy: tk.Policy, pairs: list, lr: float, seed: int) -> list[dict]:
    """Trains on the pairs of a format and returns their means at every fifth step.

    `loss` and the changes are means over all training pairs, in nats; `drawdown` is the mean of
    each chosen response's largest fall so far from an earlier high.
    """
    run = tk.TrainingRun(
        policy, pairs, steps=LAST, lr=lr, seed=seed, batch_size=BATCH, probes=pairs[:1],
        predict=False, beta=BETA,
    )  # fmt: skip
    start = high = log_probabilities(policy, pairs)
    fallen, rows = 0 * start, [{"step": 0, **changes(start, start), "drawdown": 0.0}]
    for record in run:
        if record.step % EVERY == 0:
            now = log_probabilities(run.policy, pairs)
            high = np.maximum(high, now)
            fallen = np.maximum(fallen, high - now)
            drawdown = fallen["chosen"].mean()
            rows.append({"step": record.step, **changes(now, start), "drawdown": drawdown})
    return rows


def single_prompt(policy: tk.Policy, pair: tk.PreferencePair) -> list[dict]:
    """Trains on one pair alone and returns what it and the vocabulary did by each of `STEPS`.

    `prob` is π(chosen), `high` the highest so far, `drawdown` its largest fall so far from an
    earlier high, `loss_rose` whether the loss has risen by then; `own_delta` the change of the
    chosen word in all its spellings; `word_1` to `word_3` those that gained most since the start,
    spellings counted together, and their gains.
    """
    run = tk.TrainingRun(
        policy,
        [pair],
        steps=STEPS[-1],
        lr=SINGLE_RATE,
        optimizer="rmsprop",
        predict=False,
        beta=BETA,
    )
    gained = {0: {}}
    for record in run:
        if record.step in STEPS:
            flow = tk.mass_flow(policy, run.policy, pair, top_k=None)
            gained[record.step] = gains(tk.mass_by_word(flow))
    frame = run.trajectory.to_frame()
    chosen, rejected = (frame[frame["side"] == side] for side in ("chosen", "rejected"))
    probs, losses = np.exp(chosen["logps"].to_numpy()), chosen["loss"].to_numpy()
    high = np.maximum.accumulate(probs)
    found = pd.DataFrame({
        "step": chosen["step"].to_numpy(),
        "loss": losses,
        "prob": probs,
        "rejected_prob": np.exp(rejected["logps"].to_numpy()),
        "high": high,
        "drawdown": np.maximum.accumulate(high - probs),
        "loss_rose": np.maximum.accumulate(np.diff(losses, prepend=losses[0])) > 0,
    })  # fmt: skip
    return [found.loc[step].to_dict() | more for step, more in gained.items()]


def gains(words: pd.DataFrame) -> dict[str, object]:
    """Returns the gain of the chosen word, and the three words that gained most."""
    found = {"own_delta": words.loc[words["role"] == "chosen", "delta"].iloc[0]}
    best = words[words["delta"] > 0].head(3)
    for k, (word, delta) in enumerate(zip(best["word"], best["delta"], strict=True), start=1):
        found |= {f"word_{k}": word, f"gain_{k}": delta}
    return found


def run_formats(policy: tk.Policy) -> None:
    """Runs every format, learning rate and seed that is not in the file yet."""
    plan = [(name, lr, seed) for lr in RATES for seed in SEEDS for name in FORMATS]
    for name, lr, seed in left(FALLING, ("format", "lr", "seed"), plan):
        pairs = tk.load_pairs(name, limit=PAIRS)
        about = {"format": name, "lr": lr, "seed": seed}
        keep(FALLING, [about | row for row in falling(policy, pairs, lr, seed)])


def run_prompts(policy: tk.Policy) -> None:
    """Runs every kind of answers and prompt that is not in the file yet."""
    stance = tk.load_pairs("stance")
    pairs = {kind: [p for p in stance if p.meta["kind"] == kind][:PROMPTS] for kind in KINDS}
    by_id = {pair.id: (kind, pair) for kind in KINDS for pair in pairs[kind]}
    plan = [(pairs[kind][k].id, SINGLE_RATE) for k in range(PROMPTS) for kind in KINDS]
    for id, lr in left(SINGLE, ("pair_id", "lr"), plan):
        kind, pair = by_id[id]
        about = {"kind": kind, "pair_id": id, "lr": lr}
        keep(SINGLE, [about | row for row in single_prompt(policy, pair)])


def main() -> None:
    """Runs what is not in the files yet: the formats, the single prompts, or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("formats", "prompts"))
    options = parser.parse_args()
    policy = tk.load_model().with_options(append_eos=False)
    if options.only != "prompts":
        run_formats(policy)
    if options.only != "formats":
        run_prompts(policy)


if __name__ == "__main__":
    main()
