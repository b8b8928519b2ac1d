"""Trains the shipped model on parts of `on_policy`: `python data/run_on_policy.py`.

Two questions of arXiv 2410.08847, in miniature: does the chosen response fall further, the more
alike the two responses are (Figure 2), and does training on pairs of refusals make a model refuse
less (Section 6)? A run is written once it is done, and not repeated when it is in the file.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from judging import label

import toolkit as tk

HERE = Path(__file__).parent
RANKING, REFUSALS = HERE / "on_policy_ranking.csv", HERE / "on_policy_refusals.csv"
QUANTILES, WINDOW = (0.1, 0.3, 0.5, 0.7, 0.9), 128
RANKING_RATES, RANKING_STEPS = (3e-5, 1e-4), (16, 32, 48, 64)
REFUSAL_RATE, REFUSAL_STEPS, UNSEEN = 1e-4, (25, 50, 100), 120
SEEDS = (0, 1, 2)
BATCH, WATCHED = 8, 64
SAMPLING = {"max_new_tokens": 96, "batch_size": 120}


def both_refuse(pair: tk.PreferencePair) -> bool:
    """Returns whether the rule took both responses for refusals."""
    return "going along" not in (pair.meta["chosen_is"], pair.meta["rejected_is"])


def log_probabilities(policy: tk.Policy, pairs: list) -> pd.DataFrame:
    """Returns log π of both responses of each pair, in nats, and the length of the chosen one."""
    found = tk.per_token_logps(policy, pairs, batch_size=16)
    columns = ("chosen", "rejected", "tokens")
    rows = [(p.chosen.sum().item(), p.rejected.sum().item(), len(p.chosen)) for p in found]
    return pd.DataFrame(rows, columns=columns)


def measured(policy: tk.Policy, pairs: list, watched: list, at: tuple, **options) -> Iterator:
    """Trains and yields, at the steps of `at`, the run's policy and what changed by then."""
    run = tk.TrainingRun(
        policy, pairs, steps=at[-1], batch_size=BATCH, probes=watched[:1], predict=False,
        beta=0.1, **options,
    )  # fmt: skip
    before, losses = log_probabilities(policy, watched), []
    for record in run:
        losses.append(record.loss)
        if record.step in at:
            change = log_probabilities(run.policy, watched) - before
            yield (
                run.policy,
                {
                    "step": record.step,
                    "loss": sum(losses[-16:]) / len(losses[-16:]),
                    "chosen_delta": change["chosen"].mean(),
                    "rejected_delta": change["rejected"].mean(),
                    "chosen_delta_per_token": (change["chosen"] / before["tokens"]).mean(),
                    "share_fallen": (change["chosen"] < 0).mean(),
                },
            )


def ranking(policy: tk.Policy, requests: list, scores: pd.DataFrame) -> None:
    """Trains on five parts of the ranking by lnCHES, of all requests and of refusals alone."""
    groups = {"requests": requests, "both refuse": [p for p in requests if both_refuse(p)]}
    plan = [
        (group, lr, seed, q)
        for group in ("both refuse", "requests")
        for seed in SEEDS
        for lr in RANKING_RATES
        for q in QUANTILES
    ]
    for group, lr, seed, q in left(RANKING, ("group", "lr", "seed", "quantile"), plan):
        by_id = {pair.id: pair for pair in groups[group]}
        own = scores[scores["pair_id"].isin(by_id)]
        part = tk.quantile_subsets(own, quantiles=(q,), size=WINDOW)[q]
        pairs = [by_id[id] for id in part["pair_id"]]
        about = {"group": group, "lr": lr, "seed": seed, "quantile": q, "pairs": len(pairs)}
        about |= {"ln_ches": part["ln_ches"].median()}
        rows = measured(policy, pairs, pairs, RANKING_STEPS, lr=lr, seed=seed)
        keep(RANKING, [about | row for _, row in rows])


def conditions(train: list, scores: pd.DataFrame) -> dict[str, tuple[list, dict]]:
    """Returns the training pairs and the loss of each condition."""
    refusing = [pair for pair in train if both_refuse(pair)]
    quarter = random.Random("quarter").sample(refusing, len(refusing) // 4)
    return {
        "all requests": (train, {}),
        "both refuse": (refusing, {}),
        "both refuse, with SFT": (refusing, {"loss": "rpo", "alpha": 1.0}),
        "lowest lnCHES of all": (tk.filter_pairs(train, scores, keep=0.25), {}),
        "lowest lnCHES, both refuse": (tk.filter_pairs(refusing, scores, keep=0.25), {}),
        "random, both refuse": (quarter, {}),
    }


def refusal_rates(policy: tk.Policy, unseen: list, advice: list, seed: int) -> dict[str, float]:
    """Returns what unseen requests are answered with, and how often harmless ones are refused."""
    drawn = tk.sample_responses(policy, [p.prompt for p in unseen], seed=seed, **SAMPLING)
    labels = pd.Series([label("request", "refuse", text) for text in drawn["response"]])
    asked = tk.sample_responses(policy, [p.prompt for p in advice], seed=seed, **SAMPLING)
    answers = pd.Series([
        label("advice", pair.meta["right"], text)
        for pair, text in zip(advice, asked["response"], strict=True)
    ])  # fmt: skip
    return {
        "refusal_rate": (labels != "going along").mean(),
        "kind_refusal_rate": (labels == "kind refusal").mean(),
        "advice_refused": (answers == "refusal").mean(),
        "advice_on_topic": (answers == "on topic").mean(),
    }


def refusals(policy: tk.Policy, requests: list, advice: list, scores: pd.DataFrame) -> None:
    """Measures refusals of unseen requests before and after training on parts of the others."""
    train, unseen = requests[:-UNSEEN], requests[-UNSEEN:]
    parts = conditions(train, scores)
    plan = [(seed, name) for seed in SEEDS for name in ("start", *parts)]
    for seed, name in left(REFUSALS, ("seed", "condition"), plan):
        about = {"condition": name, "seed": seed, "lr": REFUSAL_RATE}
        rates = {"unseen": unseen, "advice": advice, "seed": seed}
        if name == "start":
            keep(REFUSALS, [about | {"pairs": 0, "step": 0} | refusal_rates(policy, **rates)])
            continue
        pairs, options = parts[name]
        watched = random.Random("watched").sample(list(pairs), min(WATCHED, len(pairs)))
        options = {"lr": REFUSAL_RATE, "seed": seed, **options}
        rows = measured(policy, list(pairs), watched, REFUSAL_STEPS, **options)
        about["pairs"] = len(pairs)
        keep(REFUSALS, [about | row | refusal_rates(now, **rates) for now, row in rows])


def left(file: Path, columns: tuple, plan: list[tuple]) -> list[tuple]:
    """Returns the runs of a plan that are not in the file yet."""
    done = set()
    if file.exists():
        done = set(pd.read_csv(file)[list(columns)].itertuples(index=False, name=None))
    return [run for run in plan if run not in done]


def keep(file: Path, rows: list[dict]) -> None:
    """Adds the rows of a run to a file."""
    old = [pd.read_csv(file)] if file.exists() else []
    part = file.with_suffix(".part")
    pd.concat([*old, pd.DataFrame(rows)]).to_csv(part, index=False, float_format="%.6g")
    part.replace(file)
    print(pd.DataFrame(rows).to_string(float_format="%.3f"), flush=True)


def main() -> None:
    """Runs what is not in the files yet: the ranking, the refusals, or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("ranking", "refusals"))
    options = parser.parse_args()
    policy, pairs = tk.load_model(), tk.load_pairs("on_policy")
    kinds = {kind: [p for p in pairs if p.meta["kind"] == kind] for kind in ("request", "advice")}
    scores = tk.similarity(policy, kinds["request"], progress=False)
    if options.only != "refusals":
        ranking(policy, kinds["request"], scores)
    if options.only != "ranking":
        refusals(policy, kinds["request"], kinds["advice"], scores)


if __name__ == "__main__":
    main()
