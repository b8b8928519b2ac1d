"""The table and the figure in ``benchmarks/README.md``."""

from __future__ import annotations

import platform
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch

START, END = "<!-- measured -->", "<!-- /measured -->"


def write(rows: list[dict], folder: Path, options) -> None:
    """Write the measured rows between the markers of the README, and the figure beside it."""
    frame = pd.DataFrame(rows)
    path = folder / "README.md"
    before, _, rest = path.read_text().partition(START)
    after = rest.partition(END)[2]
    path.write_text(before + START + "\n\n" + _table(frame, options) + "\n" + END + after)
    _figure(frame, folder / "ratios.png")


def _table(frame: pd.DataFrame, options) -> str:
    lines = [
        f"torch {torch.__version__}, {options.threads} threads, {platform.machine()}, "
        f"{options.repeats} interleaved repeats (slow methods: one run), float32. `×` is the time "
        "over `plain` (median, minimum); memory is the peak above the loaded model, GiB.",
        "",
        "| model | prompt + completion | method | × median | × min | s | error | GiB | covers |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in frame.itertuples():
        error = "" if row.error is None or pd.isna(row.error) else f"{row.error:.1e}"
        memory = "" if row.memory is None or pd.isna(row.memory) else f"{row.memory:.2f}"
        lines.append(
            f"| {row.model} | {row.lengths} | {row.method} | {row.median:.2f} | {row.minimum:.2f} "
            f"| {row.seconds:.2f} | {error} | {memory} | {row.covers} |"
        )
    return "\n".join(lines) + "\n"


def _figure(frame: pd.DataFrame, path: Path) -> None:
    shown = frame[frame["method"] != "plain"].copy()
    fig, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    sns.scatterplot(
        shown, x="median", y="method", hue="model", style="lengths", palette="colorblind", ax=ax
    )
    ax.set(xscale="log", xlabel="time ÷ one forward and backward (log scale)", ylabel="")
    ax.axvline(1, color="black", linewidth=1)
    fig.savefig(path, dpi=110)
    plt.close(fig)
