"""Bad parameters of every public function, and damaged model folders."""

from __future__ import annotations

import datetime
import inspect
import json
import shutil
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from fuzz import ends_clearly

import toolkit as tk

MODEL = Path(__file__).resolve().parents[1] / "data" / "tiny_model"
STRANGE = [
    *(None, True, 0, -1, 2.5, 1e-300, float("nan"), float("inf"), 10**400, 3 + 4j),
    *("", "adam", "nowhere/none", "(", "\ud800", "\x00", b"all", "x" * 300),
    *([], {}, (), set(), [None], ["dpo", "dpo"], [[1]], {"beta": None}, {1: 2}, [{}]),
    *(object(), int, lambda: 0, lambda *_: None, iter(()), range(3), SimpleNamespace()),
    *(np.array([1.0, 2.0]), np.array(None), np.float32(1), pd.DataFrame(), pd.Series([1])),
    *(pd.DataFrame({"pair_id": ["a", None], "ln_ches": ["x", 2]}), datetime.date(1, 1, 1)),
    *(torch.tensor(float("nan")), torch.nn.Linear(1, 1), torch.float16, Path("nowhere.csv")),
]


@cache
def calls() -> dict[str, tuple[object, dict[str, object]]]:
    """Return each public function with parameters that work, quick on the shipped model."""
    policy = tk.load_model()
    pairs = tk.load_pairs("single_token", limit=2)
    stats = tk.pair_stats(policy, pairs, progress=False)
    scores = tk.similarity(policy, pairs, progress=False)
    both, one = {"policy": policy, "pairs": pairs}, {"policy": policy, "pair": pairs[0]}
    loss = {"loss": "dpo", "beta": 0.1}
    return {
        "load_pairs": (
            tk.load_pairs,
            {"source": [{"prompt": "a", "chosen": "b", "rejected": "c"}]},
        ),
        "encode": (tk.encode, {"pair": pairs[0], "tokenizer": policy.tokenizer}),
        "audit_pairs": (tk.audit_pairs, both),
        "per_token_logps": (tk.per_token_logps, both),
        "sample_responses": (
            tk.sample_responses,
            {"policy": policy, "prompts": [pairs[0].prompt], "max_new_tokens": 2},
        ),
        "pair_stats": (tk.pair_stats, both | {"progress": False}),
        "similarity": (tk.similarity, both | {"progress": False}),
        "ches_tokens": (tk.ches_tokens, one),
        "loss_weights": (tk.loss_weights, loss | {"stats": stats}),
        "entanglement": (tk.entanglement, loss | {"stats": stats}),
        "token_contributions": (tk.token_contributions, one),
        "token_matrix": (tk.token_matrix, one),
        "gram": (tk.gram, both | {"progress": False}),
        "perplexity": (tk.perplexity, {"policy": policy, "texts": ["The kettle is on."]}),
        "influence": (tk.influence, both | loss | {"params": "head", "progress": False}),
        "frozen_kernel_dynamics": (
            tk.frozen_kernel_dynamics,
            both | loss | {"lr": 1e-4, "steps": 1, "params": "head", "progress": False},
        ),
        "average": (
            tk.average,
            {"before": policy, "after": policy, "weight_on_after": 0.5, "parts": 2},
        ),
        "interpolate": (
            tk.interpolate,
            {"before": policy, "after": policy, "weights": [1], "pairs": pairs, "progress": False},
        ),
        "predict_step": (tk.predict_step, both | loss | {"lr": 1e-4}),
        "train": (tk.train, both | loss | {"lr": 1e-4, "steps": 1, "progress": False}),
        "compare_remedies": (
            tk.compare_remedies,
            both | {"lr": 1e-4, "steps": 1, "seeds": 1, "remedies": ["plain"], "progress": False},
        ),
        "lowest_ches": (tk.lowest_ches, both),
        "contrast_only": (tk.contrast_only, both),
        "mass_flow": (tk.mass_flow, {"before": policy, "after": policy, "pair": pairs[0]}),
        "mass_by_word": (tk.mass_by_word, {"flow": tk.mass_flow(policy, policy, pairs[0])}),
        "single_token_theory": (tk.single_token_theory, one | loss),
        "prompt_attributions": (tk.prompt_attributions, one | {"steps": 2}),
        "score_pairs": (tk.score_pairs, both | {"measures": ["audit"], "progress": False}),
        "read_scores": (tk.read_scores, {"out": "nowhere.parquet"}),
        "filter_pairs": (tk.filter_pairs, {"pairs": pairs, "scores": scores, "keep": 0.5}),
        "quantile_subsets": (tk.quantile_subsets, {"scores": scores, "size": 1}),
        "length_confound": (tk.length_confound, {"scores": scores}),
        "export_pairs": (tk.export_pairs, {"pairs": pairs}),
        "PreferencePair": (
            tk.PreferencePair,
            {"id": "a", "prompt": "", "chosen": "", "rejected": ""},
        ),
        "PairStream": (tk.PairStream, {"source": pairs}),
        "load_model": (tk.load_model, {}),
    }


def parameters(random: Random, folder: Path) -> str:
    """Call a public function with one parameter, or two, replaced by something strange."""
    function, fitting = calls()[random.choice(sorted(calls()))]
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    given = dict(fitting)
    for name in random.sample(names, k=random.choice([1, 1, 1, 2])):
        given[name] = random.choice(STRANGE)
    try:
        return "result" if ends_clearly(lambda: function(**given)) is not None else "refused"
    except AssertionError as error:
        changed = {k: repr(v)[:60] for k, v in given.items() if v is not fitting.get(k)}
        raise type(error)(f"{function.__name__} {changed}: {error}") from error.__cause__


def folders(random: Random, folder: Path) -> str:
    """Load a model folder with a damaged file, a missing one, or strange settings."""
    for path in MODEL.iterdir():
        shutil.copyfile(path, folder / path.name)
    name = random.choice(["config.json"] * 3 + ["tokenizer.json", "model.safetensors"])
    path, action = folder / name, random.random()
    raw = path.read_bytes()
    if action < 0.1:
        path.unlink()
    elif name == "config.json" and action < 0.8:
        settings = json.loads(raw)
        key = random.choice(sorted(settings))
        settings[key] = random.choice([None, 0, -1, 2.5, 10**30, "x", [], {}, True, settings[key]])
        if random.random() < 0.1:
            del settings[key]
        path.write_text(json.dumps(settings))
    else:
        start = random.randrange(min(len(raw), 4000))
        end = random.choice([start, start + 1, start + 100, len(raw)])
        path.write_bytes(raw[:start] + random.randbytes(random.choice([0, 1, 8])) + raw[end:])
    policy = ends_clearly(lambda: tk.load_model(folder))
    return "refused" if policy is None else "loaded"
