"""Time, memory and error of the gradient products, side by side: `make bench`.

Every time is a ratio to `plain`: one forward and backward of the same batch with response logits
only. Methods of one case are run in turns (interleaved) in one process, slow ones once; peak memory
comes from one run in a process of its own for each method; errors are against plain autograd in
float64. All nine cases take about half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import cases
import methods
import report
import torch

HERE = Path(__file__).parent


def main() -> None:
    """Run every case, then write the table and the figure."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(_peak_memory(*options.memory_of)))
        return
    if not methods.has_opacus():
        print("Opacus is left out: pip install -e '.[bench]' -c constraints.txt", flush=True)
    rows = []
    for model_name in options.models:
        model = cases.model(model_name)
        for lengths in options.lengths:
            rows += _case(model_name, model, lengths, options)
            report.write(rows, HERE, options)
    print((HERE / "README.md").read_text())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(cases.CONFIGS), choices=cases.CONFIGS)
    parser.add_argument("--lengths", nargs="+", default=list(cases.LENGTHS), choices=cases.LENGTHS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", nargs=3, metavar=("MODEL", "LENGTHS", "METHOD"))
    return parser.parse_args()


def _case(name: str, model, lengths: str, options) -> list[dict]:
    batch = cases.batch(model, lengths)
    runs = {method: methods.METHODS[method] for method in methods.for_case(lengths)}
    times, results = _measure(f"{name} {lengths}", model, batch, runs, options.repeats)
    oracle = methods.Oracle(model, batch)
    plain = {f.__name__: f(times["plain"]) for f in (statistics.median, min)}
    rows = []
    for method, run in runs.items():
        rows.append(
            {
                "model": name,
                "lengths": lengths,
                "method": method,
                "median": statistics.median(times[method]) / plain["median"],
                "minimum": min(times[method]) / plain["min"],
                "seconds": statistics.median(times[method]),
                "error": oracle.error(run.quantity, results[method]),
                "covers": getattr(results[method], "covers", run.covers),
            }
        )
    del oracle  # gigabytes that the processes below may need
    for row in rows:
        if runs[row["method"]].peak:
            row["memory"] = _memory_in_another_process(name, lengths, row["method"], options)
        print(json.dumps(row, ensure_ascii=False), flush=True)
    return rows


def _measure(case: str, model, batch, runs: dict, repeats: int) -> tuple[dict, dict]:
    """Return the seconds and the result of every method; slow ones are not warmed up."""
    times, results = {method: [] for method in runs}, {}
    for turn in range(repeats + 1):
        for method, run in runs.items():
            if run.slow and turn != 1:
                continue
            start = time.perf_counter()
            results[method] = run.call(model, batch)
            seconds = time.perf_counter() - start
            print(f"{case} turn {turn} of {repeats}: {method}, {seconds:.1f} s", flush=True)
            if turn:
                times[method].append(getattr(results[method], "seconds", seconds))
    return times, results


def _memory_in_another_process(name: str, lengths: str, method: str, options) -> float | None:
    command = [sys.executable, __file__, "--threads", str(options.threads)]
    command += ["--memory-of", name, lengths, method]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
    if done.returncode:
        print(f"no memory of {method}:", *done.stderr.splitlines()[-1:], flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def _peak_memory(name: str, lengths: str, method: str) -> float:
    """Peak resident memory of one method above the loaded model, GiB."""
    model = cases.model(name)
    batch = cases.batch(model, lengths)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading (Linux)
    before = _resident("VmRSS")
    methods.METHODS[method].call(model, batch)
    return (_resident("VmHWM") - before) / 2**20


def _resident(field: str) -> int:
    """Read a size in kB from the process status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
