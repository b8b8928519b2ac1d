"""The two calls on whole datasets: score every pair, and read what is scored so far."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from toolkit.checks import flag, shown
from toolkit.model import Params, Policy, load_model
from toolkit.model.inputs import check_policy
from toolkit.scoring._score_run import ScoringRun, read
from toolkit.scoring._score_settings import Settings
from toolkit.scoring._score_store import Store


def score_pairs(
    policy: Policy | str | os.PathLike,
    pairs: Any,
    *,
    measures: Sequence[str] = ("similarity", "stats", "audit"),
    loss: str | Callable = "dpo",
    params: Params = "all",
    out: str | os.PathLike | None = None,
    resume: bool = True,
    engine: str = "local",
    ray_address: str | None = None,
    batch_size: int | None = None,
    rows_per_part: int = 64,
    on_error: str = "keep",
    progress: bool = True,
    **hparams: float,
) -> pd.DataFrame:
    """Score every pair of a dataset: CHES, gradient statistics, entanglement, audit.

    With ``out`` the work survives any interruption, SIGKILL included: each ``rows_per_part`` rows
    are stored as a part as soon as they are done, and the same call goes on where it stopped. Which
    rows share a batch depends on their place alone, so that a resumed run gives the same bits.

    Args:
        policy: The model, or its name or folder.
        pairs: Whatever ``load_pairs`` reads, pairs, a ``PairStream``, or an iterable of pairs or
            rows. Files are streamed: neither they nor the pairs are held whole (.json is).
        measures: Any of "audit", "similarity", "stats" and "entanglement" (which holds "stats").
        loss: Loss of "entanglement"; a key of ``LOSSES`` or a function. With ``out`` a function is
            known by its code and all that it reaches, or by its attribute ``version`` if it has it.
        params: Parameter set of the gradients (see ``Policy.parameters_in``).
        out: Parquet file to write; ``None`` keeps everything in memory.
        resume: Go on with what ``out`` holds; False discards it.
        engine: "local", or "ray" for workers on this machine or a cluster (extra ``ray``).
        ray_address: Address of a Ray cluster; ``None`` starts Ray here or takes RAY_ADDRESS.
        batch_size: Most pairs per forward pass. It changes rounding only and may change between
            a run and its resumption.
        rows_per_part: Rows that are stored together; batches never reach over its edge.
        on_error: "keep" gives a pair that cannot be scored, or whose scores are not finite, a row
            with ``error`` and missing measures; "raise" stops at the first.
        progress: Show a progress bar, with time and memory after the first part.
        **hparams: Hyper-parameters of the loss.

    Returns:
        One row per pair, as they were given: ``row`` (0-based place), ``pair_id``, ``error`` (empty
        where all is well), then the columns of each measure as their own functions name them.

    Raises:
        ValueError: If an argument is not allowed (before a model is loaded), a weight is NaN or
            infinite, or ``out`` holds scores made with other weights, another tokenizer or other
            settings; the message says what changed.
        PairError: If a pair cannot be scored, under ``on_error="raise"``.
        ImportError: If engine="ray" has no ray; it gives the install command.

    Source:
        arXiv 2410.13828 and 2410.08847; the measures name their equations.

    Example:
        >>> import toolkit as tk
        >>> pairs = tk.load_pairs("long_suffix", limit=4)
        >>> policy = tk.load_model()
        >>> scores = tk.score_pairs(policy, pairs, measures=["similarity"], progress=False)
        >>> scores.columns[:4].tolist(), len(scores)
        (['row', 'pair_id', 'error', 'ches'], 4)
    """
    flag("progress", progress)
    named = isinstance(policy, str | os.PathLike)
    policy = policy if named else check_policy(policy)
    settings = Settings(measures, loss, params, rows_per_part, batch_size, on_error, hparams)
    where = {"engine": engine, "ray_address": ray_address, "progress": progress}
    run = ScoringRun(pairs, settings, out=out, resume=resume, **where)
    return run(load_model(policy) if named else policy)


def read_scores(out: str | os.PathLike, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the scores that ``out`` holds so far, also while they are being computed.

    Args:
        out: The ``out`` of ``score_pairs``.
        columns: Columns to read; ``None`` reads all.

    Returns:
        The rows that are there, by ``row``. ``attrs`` holds what they were measured with, and
        ``complete``: whether the run has finished.

    Raises:
        ValueError: If nothing is there, or a column is unknown.

    Example:
        >>> read_scores("scores.parquet")  # doctest: +SKIP
    """
    if columns is not None and not isinstance(columns, list | tuple | pd.Index):
        raise ValueError(f"columns must be a list of names, received {shown(columns)}")
    return read(Store(out), None if columns is None else list(columns))
