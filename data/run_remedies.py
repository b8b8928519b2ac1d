"""Trains the shipped model with remedies side by side: `python data/run_remedies.py`.

Plain DPO, six remedies and five seeds on pairs whose chosen response falls under plain DPO. Writes
`remedies.csv`, one row per remedy and seed, a seed at a time; a seed that is in the file is not
repeated. The texts for the perplexity are documents from seeds that training never used.
"""

import json
from pathlib import Path

import pandas as pd
from evaluation import held_out

import toolkit as tk

HERE = Path(__file__).parent
TABLE, TEXTS = HERE / "remedies.csv", HERE / "ordinary_text.json"
SEEDS, DOMAINS, PER_DOMAIN = range(5), ("stories", "opinions", "questions", "summaries"), 6


def ches_per_label(policy: tk.Policy, pairs: list) -> list:
    """Returns the half with the lowest lnCHES within each label."""
    scores = tk.similarity(policy, pairs, progress=False)
    return list(tk.filter_pairs(pairs, scores, keep=0.5, stratify="label"))


REMEDIES = {
    "plain DPO": "plain",
    "normalised": "normalised",
    "rejected projected": "project_rejected",
    "chosen floor −1": tk.Constrained(chosen_floor=-1.0),
    "DPOP": "dpop",
    "lowest lnCHES": "lowest_ches",
    "lnCHES per label": {"pairs": ches_per_label},
}
SETTINGS = {"lr": 1e-4, "steps": 32, "batch_size": 4, "beta": 0.1}


def bench(policy: tk.Policy, remedies: dict, seeds, **options) -> pd.DataFrame:
    """Returns the bench on the first 16 pairs of long_suffix, the next 32 held out."""
    pairs = tk.load_pairs("long_suffix")
    texts = json.loads(TEXTS.read_text())
    given = {"seeds": list(seeds), "held_out": pairs[16:48], "texts": texts, **SETTINGS, **options}
    return tk.compare_remedies(policy, pairs[:16], remedies, **given)


def main() -> None:
    """Writes what is missing."""
    policy = tk.load_model().with_options(append_eos=False)
    texts = [t for domain in DOMAINS for t in held_out(domain, PER_DOMAIN, policy.tokenizer)]
    TEXTS.write_text(json.dumps(texts, indent=0, ensure_ascii=False) + "\n")
    done = [pd.read_csv(TABLE)] if TABLE.exists() else []
    known = {seed for frame in done for seed in frame["seed"]}
    for seed in SEEDS:
        if seed not in known:
            done.append(bench(policy, REMEDIES, [seed]))
            pd.concat(done).round(4).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
