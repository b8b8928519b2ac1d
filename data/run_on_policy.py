"""Trains the shipped model on parts of `on_policy`: `python data/run_on_policy.py`.

Two questions of arXiv 2410.08847, in miniature: does the chosen response fall further, the more
alike the two responses are (Figure 2), and does training on pairs of refusals make a model refuse
less (Section 6)? A run is written once it is done, and not repeated when it is in the file.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from judging import label

import toolkit as tk

HERE = Path(__file__).parent
RANKING, REFUSALS = HERE / "on_policy_ranking.csv", HERE / "on_policy_refusals.csv"
SEEDS, BATCH, BETA = (0, 1, 2), 8, 0.1
QUANTILES, WINDOW = (0.1, 0.3, 0.5, 0.7, 0.9), 128
RANKING_RATE, RANKING_STEPS = 1e-4, (16, 32, 64, 96, 128)
# All conditions have as many pairs, so that one pass is 18 steps for each.
PART, UNSEEN, WATCHED = 144, 200, 64
REFUSAL_RATE, REFUSAL_STEPS = 1e-4, (18, 36, 72, 126)
SAMPLING = {"max_new_tokens": 96, "batch_size": 100}


def requests_of(pairs: list) -> list:
    """Returns the pairs that answer a request, in the order of the file."""
    return [pair for pair in pairs if pair.meta["kind"] == "request"]


def both_refuse(pair: tk.PreferencePair) -> bool:
    """Returns whether the rule took both responses for refusals."""
    return "going along" not in (pair.meta["chosen_is"], pair.meta["rejected_is"])


def log_probabilities(policy: tk.Policy, pairs: list) -> pd.DataFrame:
    """Returns log π of both responses of each pair, in nats."""
    found = tk.per_token_logps(policy, pairs, batch_size=16)
    rows = [(p.chosen.sum().item(), p.rejected.sum().item()) for p in found]
    return pd.DataFrame(rows, columns=["chosen", "rejected"])


def changes(now: pd.DataFrame, before: pd.DataFrame) -> dict[str, float]:
    """Returns the mean changes of log π in nats and the DPO loss they amount to."""
    change = now - before
    margin = torch.tensor((change["chosen"] - change["rejected"]).to_numpy())
    return {
        "loss": -torch.nn.functional.logsigmoid(BETA * margin).mean().item(),
        "chosen_delta": change["chosen"].mean(),
        "rejected_delta": change["rejected"].mean(),
        "share_fallen": (change["chosen"] < 0).mean(),
    }


def measured(policy: tk.Policy, pairs: list, watched: list, at: tuple, **options) -> Iterator:
    """Trains and yields, at the steps of `at`, the run's policy and what changed by then."""
    run = tk.TrainingRun(
        policy, pairs, steps=at[-1], batch_size=BATCH, probes=watched[:1], predict=False,
        beta=BETA, **options,
    )  # fmt: skip
    before = log_probabilities(policy, watched)
    for record in run:
        if record.step in at:
            now = log_probabilities(run.policy, watched)
            yield run.policy, {"step": record.step, **changes(now, before)}


def ranking_part(requests: list, scores: pd.DataFrame, quantile: float) -> tuple[list, float]:
    """Returns the pairs of two refusals around a quantile of lnCHES, and their median."""
    by_id = {pair.id: pair for pair in requests if both_refuse(pair)}
    own = scores[scores["pair_id"].isin(by_id)]
    part = tk.quantile_subsets(own, quantiles=(quantile,), size=WINDOW)[quantile]
    return [by_id[id] for id in part["pair_id"]], part["ln_ches"].median()


def ranking(policy: tk.Policy, requests: list, scores: pd.DataFrame) -> None:
    """Trains on five parts of the ranking by lnCHES, all of them pairs of two refusals."""
    plan = [(seed, q) for seed in SEEDS for q in QUANTILES]
    for seed, q in left(RANKING, ("seed", "quantile"), plan):
        pairs, middle = ranking_part(requests, scores, q)
        about = {"seed": seed, "quantile": q, "ln_ches": middle, "lr": RANKING_RATE}
        rows = measured(policy, pairs, pairs, RANKING_STEPS, lr=RANKING_RATE, seed=seed)
        keep(RANKING, [about | row for _, row in rows])


def lowest(pairs: list, scores: pd.DataFrame) -> list:
    """Returns the `PART` pairs of lowest lnCHES."""
    return list(tk.filter_pairs(pairs, scores, keep=PART / len(pairs)))


def conditions(train: list, scores: pd.DataFrame, seed: int) -> dict[str, tuple[list, dict]]:
    """Returns the training pairs and the loss of each condition; what is drawn, `seed` draws."""
    refusing, rng = [pair for pair in train if both_refuse(pair)], random.Random(seed)
    drawn = rng.sample(refusing, PART)
    return {
        "all requests": (rng.sample(train, PART), {}),
        "both refuse": (drawn, {}),
        "both refuse, with SFT": (drawn, {"loss": "rpo", "alpha": 1.0}),
        "lowest lnCHES of all": (lowest(train, scores), {}),
        "lowest lnCHES, both refuse": (lowest(refusing, scores), {}),
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
    names = ("start", *conditions(train, scores, seed=0))
    plan = [(seed, name) for seed in SEEDS for name in names]
    for seed, name in left(REFUSALS, ("seed", "condition"), plan):
        about = {"condition": name, "seed": seed, "lr": REFUSAL_RATE}
        rates = {"unseen": unseen, "advice": advice, "seed": seed}
        if name == "start":
            keep(REFUSALS, [about | {"step": 0} | refusal_rates(policy, **rates)])
            continue
        pairs, options = conditions(train, scores, seed)[name]
        watched = random.Random(seed).sample(pairs, WATCHED)
        options = {"lr": REFUSAL_RATE, "seed": seed, **options}
        rows = measured(policy, pairs, watched, REFUSAL_STEPS, **options)
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
    """Runs what is not in the files yet."""
    policy, pairs = tk.load_model(), tk.load_pairs("on_policy")
    requests, advice = requests_of(pairs), [p for p in pairs if p.meta["kind"] == "advice"]
    scores = tk.similarity(policy, requests, progress=False)
    ranking(policy, requests, scores)
    refusals(policy, requests, advice, scores)


if __name__ == "__main__":
    main()
