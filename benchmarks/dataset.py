"""Cost a pair and peak memory of scoring as a dataset grows, one process for each size."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import toolkit as tk

SIZES = (100, 1_000, 10_000)


def main() -> None:
    """Score repeated shipped pairs under ids of their own, and print one line a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int)
    parser.add_argument("--measures", nargs="+", default=["similarity"])
    options = parser.parse_args()
    if options.size:
        print(json.dumps(_score(options.size, options.measures)))
        return
    for size in SIZES:
        command = [sys.executable, __file__, "--size", str(size), "--measures", *options.measures]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(done.stdout.splitlines()[-1], flush=True)


def _score(size: int, measures: list[str]) -> dict[str, float]:
    policy, shipped = tk.load_model(), tk.load_pairs("single_token")
    pairs = (replace(shipped[i % len(shipped)], id=str(i)) for i in range(size))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        out = Path(folder) / "scores.parquet"
        tk.score_pairs(policy, pairs, measures=measures, out=out, progress=False)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"pairs": size, "ms a pair": 1e3 * seconds / size, "peak GiB": peak}


if __name__ == "__main__":
    main()
