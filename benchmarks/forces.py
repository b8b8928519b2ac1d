"""Cost of a training run with its forces over the same run without them, on the shipped model."""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

import toolkit as tk


def main() -> None:
    """Train with and without forces in turns, and print one line for each number of probes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=32)
    for count in options.probes:
        seconds = {flag: [] for flag in (False, True, "by_pair")}
        for turn in range(options.repeats + 1):
            for forces, times in seconds.items():
                settings = {"lr": 3e-5, "batch_size": 8, "probes": pairs[:count], "forces": forces}
                run = tk.TrainingRun(policy, pairs, steps=options.steps, **settings)
                start = time.perf_counter()
                list(run)
                if turn:  # the first turn warms up
                    times.append((time.perf_counter() - start) / options.steps)
        bare, split, by_pair = (statistics.median(times) for times in seconds.values())
        found = {"probes": count, "s a step": bare, "with forces": split, "ratio": split / bare}
        found |= {"by pair": by_pair, "its ratio": by_pair / bare}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
