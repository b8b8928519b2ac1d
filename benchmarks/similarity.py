"""CHES on real dialogues: the official script's method beside ours, in turns, in one process.

The official method runs one unpadded response at a time through the whole model, with
``output_hidden_states=True`` and logits, and sums the last hidden states. Run it as
``OMP_NUM_THREADS=1 python benchmarks/similarity.py DIALOGUES.jsonl.gz``; the file holds rows with
``chosen`` and ``rejected`` transcripts, such as Anthropic's hh-rlhf.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, GPT2Config

import toolkit as tk
from toolkit.similarities._packed import packed_length


def main() -> None:
    """Measure, and print one line a method and one of the dialogues."""
    options = _options()
    torch.set_num_threads(options.threads)
    policy = _policy()
    pairs = _dialogues(options, policy)
    methods = {"official": official, "toolkit": toolkit}
    times = {name: [] for name in methods}
    found = {}
    for name, method in methods.items():  # also warms up; the toolkit tries out the model here
        start = time.perf_counter()
        found[name] = method(policy, pairs)
        print(f"{name}, first call: {time.perf_counter() - start:.1f} s", flush=True)
    for _ in range(options.repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            method(policy, pairs)
            times[name].append(time.perf_counter() - start)
    print(_lengths(pairs))
    print(_result(times, found, options))


def official(policy: tk.Policy, pairs: list[tk.EncodedPair]) -> list[float]:
    """CHES by one full forward pass of each bare sequence."""
    scores = []
    for pair in pairs:
        a = _official_sum(policy.model, pair.chosen_ids, pair.chosen_mask)
        b = _official_sum(policy.model, pair.rejected_ids, pair.rejected_mask)
        scores.append(float(a @ b - a @ a))
    return scores


def toolkit(policy: tk.Policy, pairs: list[tk.EncodedPair]) -> list[float]:
    """CHES, its normalised form and the baselines by the toolkit."""
    return tk.similarity(policy, pairs, progress=False)["ches"].tolist()


def _official_sum(model, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out = model(ids[None], output_hidden_states=True)
    start = int(mask.nonzero()[0]) - 1
    return out.hidden_states[-1][0, start:-1].sum(0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dialogues", help="rows with chosen and rejected transcripts")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _policy() -> tk.Policy:
    """GPT-2 small with random weights, read by the shipped model's tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GPT2Config()).eval()
    return tk.Policy(model, tk.load_model().tokenizer, name="gpt2 small, random")


def _dialogues(options, policy: tk.Policy) -> list[tk.EncodedPair]:
    """Return dialogues evenly spread over the file, encoded; those that do not fit are left out."""
    pairs = tk.load_pairs(options.dialogues, on_error="skip")
    audit = tk.audit_pairs(pairs, policy)
    fits = set(audit.loc[audit["usable"], "pair_id"])
    pairs = [pair for pair in pairs if pair.id in fits]
    step = max(1, len(pairs) // options.pairs)
    return [policy.encode(pair) for pair in pairs[::step][: options.pairs]]


def _lengths(pairs: list[tk.EncodedPair]) -> str:
    whole = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    once = sum(packed_length(p) for p in pairs)
    longest = max(len(ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids))
    return (
        f"{len(pairs)} pairs, longest response {longest} tokens with its prompt; "
        f"{whole} tokens, {once} with shared tokens counted once"
    )


def _result(times: dict[str, list[float]], found: dict[str, list[float]], options) -> str:
    apart = max(
        abs(a - b) / max(abs(a), abs(b)) for a, b in zip(*found.values(), strict=True) if a or b
    )
    ratios = [a / b for a, b in zip(times["official"], times["toolkit"], strict=True)]
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return (
        f"torch {torch.__version__}, {options.threads} thread(s), {options.repeats} interleaved "
        f"repeats, float32: official {seconds['official']:.2f} s, toolkit {seconds['toolkit']:.2f} "
        f"s, {statistics.median(ratios):.2f}× (from {min(ratios):.2f} to {max(ratios):.2f}); "
        f"scores differ by at most {apart:.1e}"
    )


if __name__ == "__main__":
    main()
