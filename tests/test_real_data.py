"""The whole path on real dialogues, with the shipped model and with other architectures."""

import os
from pathlib import Path

import numpy as np
import pytest
import shapes
import torch
from transformers import AutoModelForCausalLM

import toolkit as tk

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("TOOLKIT_REAL_DATA", ROOT.parent / "shared" / "real"))
HH = REAL / "hh_harmless_dev.jsonl.gz"

pytestmark = pytest.mark.skipif(not HH.exists(), reason="set TOOLKIT_REAL_DATA to the folder")


@pytest.fixture(scope="module")
def tiny():
    return tk.load_model()


@pytest.fixture(scope="module")
def dialogues(tiny):
    """Real dialogues that fit the shipped model, one of them cut before its last turn."""
    pairs = tk.load_pairs(HH, on_error="skip")
    audit = tk.audit_pairs(pairs, tiny)
    fits = set(audit.loc[audit["usable"] & (audit["total"] < 160), "pair_id"])
    chosen = [p for p in pairs if p.id in fits][:4]
    short = set(audit.loc[audit["usable"] & (audit["total"] < 512), "pair_id"])
    return chosen + [p for p in pairs if p.notes and p.id in short]


def other(shape: str, tokenizer) -> tk.Policy:
    """A random model of this architecture over the shipped tokenizer."""
    config = shapes.CONFIGS[shape]()
    config.vocab_size, limit = len(tokenizer), 512
    config.update({"n_positions": limit} if shape == "gpt2" else {"max_position_embeddings": limit})
    torch.manual_seed(0)
    return tk.Policy(AutoModelForCausalLM.from_config(config), tokenizer, name=shape)


@pytest.mark.parametrize("shape", ["tiny", *shapes.CONFIGS])
def test_everything_runs_on_real_dialogues(shape, tiny, dialogues):
    policy = tiny if shape == "tiny" else other(shape, tiny.tokenizer)
    stats = tk.pair_stats(policy, dialogues, progress=False)
    similarity = tk.similarity(policy, dialogues, progress=False)
    explorer = tk.PairExplorer(policy, dialogues, stats=stats, similarity=similarity, live=False)
    frame = explorer.to_frame()
    assert list(frame["pair_id"]) == [p.id for p in dialogues] == list(similarity["pair_id"])
    numbers = frame[["chosen_sq_norm", "rejected_sq_norm", "inner", "ches", "ln_ches"]]
    assert np.isfinite(numbers.to_numpy(float)).all()
    explorer.selection = dialogues[-1].id
    tokens = explorer.tokens()
    row = frame.set_index("pair_id").loc[dialogues[-1].id]
    total = tokens.loc[tokens["side"] == "chosen", "predicted_delta"].sum()
    assert total == pytest.approx(row["predicted_chosen_delta"], rel=1e-3, abs=1e-7)
    assert dialogues[-1].id in explorer.to_html()
    explorer.close()


def test_dialogues_too_long_for_the_model_are_named_and_left_out(tiny):
    pairs = tk.load_pairs(HH, on_error="skip")
    audit = tk.audit_pairs(pairs, tiny).set_index("pair_id")
    long = next(p for p in pairs if audit.loc[p.id, "exceeds_context"])
    with pytest.raises(tk.PairError, match=r"1024"):
        tk.pair_stats(tiny, [long], progress=False)
    short = next(p for p in pairs if audit.loc[p.id, "total"] < 60)
    explorer = tk.PairExplorer(tiny, [long, short], live=False)
    assert list(explorer.to_frame()["pair_id"]) == [short.id]
    assert long.id in explorer.skipped["pair_id"].tolist()
    explorer.close()
