"""The command line: ``python -m toolkit score`` and ``python -m toolkit losses``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SCORE = """Score every preference pair of a dataset and write one Parquet row per pair.

The work may be interrupted at any time, also by a crash: the same command goes on where it stopped.
Pairs that cannot be scored keep their row, with the reason in the column "error"."""
EXAMPLE = """exit status:
  0    done, and at least one pair was scored
  1    done, but no pair at all could be scored: the output holds the reasons
  2    bad input, or the work failed: one line on the error output says why
  130  stopped with Ctrl-C: the same command goes on

example:
  python -m toolkit score --pairs pairs.jsonl --out scores.parquet
  python -m toolkit score --model gpt2 --pairs owner/name --split test --measures entanglement \\
      --loss simpo --hparam gamma=0.5 --out scores.parquet"""
MEASURES = "similarity,stats,audit"
NONE_SCORED, FAILED = 1, 2
STOPPED = 130  # what a shell reports for Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, which ``score --help`` explains.

    Args:
        arguments: The words of the command line; ``None`` takes this process's own.

    Example:
        >>> main(["losses"])  # doctest: +SKIP
    """
    if hasattr(sys.stdout, "reconfigure"):  # what the console cannot show must not end the work
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"\nstopped. {options.again}", file=sys.stderr)
        return STOPPED
    except (ValueError, ImportError, OSError, MemoryError) as error:
        print(f"error: {_line(error)}", file=sys.stderr)
    except RuntimeError as error:  # torch's errors; its out of memory is one
        print(f"error: {_line(error)}. {options.again}", file=sys.stderr)
    return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m toolkit", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    losses = commands.add_parser("losses", help="print the table of losses")
    losses.set_defaults(run=_losses, again="")
    score = commands.add_parser(
        "score",
        help="score a dataset",
        description=SCORE,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.set_defaults(run=_score, again="What is done is kept: run the same command to go on.")
    _add_input(score.add_argument_group("what to score"))
    _add_measures(score.add_argument_group("what to measure"))
    _add_running(score.add_argument_group("how to run"))
    return parser


def _add_input(group) -> None:
    group.add_argument("--pairs", required=True, help="shipped set, file or hub id of the pairs")
    group.add_argument("--out", required=True, help="Parquet file to write")
    group.add_argument("--split", default="train", help="split of a hub dataset (train)")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    group.add_argument("--model", help="hub name or folder (default: the shipped tiny model)")
    group.add_argument("--ref", metavar="MODEL", help="reference (default: the same weights)")
    group.add_argument("--adapter", metavar="FOLDER", help="PEFT adapter to put on the model")
    group.add_argument(
        "--max-length", type=int, metavar="N", help="most tokens per side (the model's own limit)"
    )
    group.add_argument(
        "--truncation", choices=["keep_start", "keep_end"], help="cut longer pairs (refuse them)"
    )
    group.add_argument("--dtype", default="auto", help="float32, bfloat16, ... (auto)")
    group.add_argument("--device", help="cpu, cuda, ... (CUDA where present)")


def _add_measures(group) -> None:
    group.add_argument(
        "--measures",
        default=MEASURES,
        metavar="A,B",
        help=f"any of audit, similarity, stats, entanglement ({MEASURES})",
    )
    group.add_argument(
        "--loss", default="dpo", help="loss of the measure entanglement (dpo); see losses"
    )
    group.add_argument("--beta", type=float, help="the loss's beta")
    group.add_argument(
        "--hparam",
        action="append",
        default=[],
        type=_hparam,
        metavar="NAME=VALUE",
        help="another hyper-parameter of the loss; may be given several times",
    )
    group.add_argument("--params", default="all", help="all, head, lora or an expression (all)")


def _add_running(group) -> None:
    group.add_argument("--batch-size", type=int, metavar="N", help="most pairs per forward pass")
    group.add_argument(
        "--rows-per-part", type=int, default=64, metavar="N", help="rows stored together (64)"
    )
    group.add_argument("--no-resume", action="store_true", help="discard what --out holds")
    group.add_argument("--on-error", choices=["keep", "raise"], default="keep", help="(keep)")
    group.add_argument("--engine", choices=["local", "ray"], default="local", help="(local)")
    group.add_argument("--ray-address", metavar="ADDRESS", help="a running Ray cluster")
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def _hparam(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; write NAME=NUMBER") from None


def _losses(options: argparse.Namespace) -> int:
    from toolkit.losses import loss_table

    table = loss_table()[["formula", "defaults", "needs_ref", "source"]]
    print(table.to_string(max_colwidth=90))
    return 0


def _score(options: argparse.Namespace) -> int:
    from toolkit.checks import whole
    from toolkit.model import load_model
    from toolkit.scoring import PairStream, ScoringRun, Settings

    whole("max_length", options.max_length, optional=True)
    hparams = dict(options.hparam)
    if options.beta is not None:
        hparams["beta"] = options.beta
    run = ScoringRun(
        PairStream(options.pairs, split=options.split, limit=options.limit),
        Settings(
            measures=[name.strip() for name in options.measures.split(",")],
            loss=options.loss,
            params=options.params,
            rows_per_part=options.rows_per_part,
            batch_size=options.batch_size,
            on_error=options.on_error,
            hparams=hparams,
        ),
        out=options.out,
        resume=not options.no_resume,
        engine=options.engine,
        ray_address=options.ray_address,
        progress=not options.quiet,
    )
    policy = load_model(
        options.model,
        ref=options.ref,
        adapter=options.adapter,
        dtype=options.dtype,
        device=options.device,
    )
    scores = run(policy.with_options(max_length=options.max_length, truncation=options.truncation))
    print(_summary(scores, options.out))
    if (scores["error"] == "").any():
        return 0
    first = scores.iloc[0]
    print(
        f"error: none of the {len(scores):,} pairs could be scored; row {first['row']}: "
        f"{first['error']}",
        file=sys.stderr,
    )
    return NONE_SCORED


def _summary(scores: pd.DataFrame, out: str) -> str:
    """Say in a few lines what came out."""
    from toolkit.scoring import length_confound

    failed = scores.loc[scores["error"] != "", ["row", "error"]]
    lines = [f"{len(scores):,} pairs, {len(failed):,} of them could not be scored"]
    lines += [f"  row {row.row}: {row.error}" for row in failed.head(3).itertuples()]
    if "cosine" in scores and scores["cosine"].notna().any():
        lines.append(f"cosine of the two gradients: median {scores['cosine'].median():.3f}")
    if "ln_ches" in scores and scores["ln_ches"].notna().any():
        quantiles = scores["ln_ches"].quantile([0, 0.25, 0.5, 0.75, 1])
        lines.append("ln_ches at 0, 25, 50, 75, 100 %: " + ", ".join(f"{q:.3g}" for q in quantiles))
        rho = [length_confound(scores, by) for by in ("ches", "ln_ches")]
        if not any(map(math.isnan, rho)):
            lines.append(
                "Spearman correlation with rejected_length - chosen_length: "
                f"ches {rho[0]:+.2f}, ln_ches {rho[1]:+.2f}"
            )
    if "regime" in scores:
        counts = scores["regime"].value_counts()
        lines.append("regimes: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()))
    return "\n".join([*lines, f"written to {out}"])


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
