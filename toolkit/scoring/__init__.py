"""Whole datasets: scores of every pair, streamed to disk, resumed after any interruption."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from toolkit.model import Params, Policy, load_model
from toolkit.model.inputs import check_policy
from toolkit.scoring import _score_engines
from toolkit.scoring._export import export_pairs
from toolkit.scoring._score_key import run_key
from toolkit.scoring._score_rows import Settings, typed
from toolkit.scoring._score_store import Store
from toolkit.scoring._score_stream import Chunk, PairStream
from toolkit.scoring._subsets import (
    FilteredPairs,
    filter_pairs,
    length_confound,
    quantile_subsets,
)

__all__ = [
    "FilteredPairs",
    "PairStream",
    "export_pairs",
    "filter_pairs",
    "length_confound",
    "quantile_subsets",
    "read_scores",
    "score_pairs",
]

LOOKED_AT = 64  # rows of which at least one must be a pair
ENGINES = ("local", "ray")


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
        loss: Loss of "entanglement"; a key of ``LOSSES`` or a function, known by its code.
        params: Parameter set of the gradients (see ``Policy.parameters_in``).
        out: Parquet file to write; ``None`` keeps everything in memory.
        resume: Go on with what ``out`` holds; False discards it.
        engine: "local", or "ray" for workers on this machine or a cluster (extra ``ray``).
        ray_address: Address of a Ray cluster; ``None`` starts Ray here or takes RAY_ADDRESS.
        batch_size: Most pairs per forward pass. It changes rounding only and may change between
            a run and its resumption.
        rows_per_part: Rows that are stored together; batches never reach over its edge.
        on_error: "keep" gives a pair that cannot be scored a row with ``error`` and missing
            measures; "raise" stops at the first.
        progress: Show a progress bar, with time and memory after the first part.
        **hparams: Hyper-parameters of the loss.

    Returns:
        One row a pair in the order of the input: ``row`` (0-based place), ``id``, ``error`` (empty
        where all is well), then the columns of each measure as their own functions name them.

    Raises:
        ValueError: If an argument is not allowed, or ``out`` holds scores made with other weights,
            another tokenizer or other settings; the message says what changed.
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
        (['row', 'id', 'error', 'ches'], 4)
    """
    settings = Settings(measures, loss, params, rows_per_part, batch_size, on_error, hparams)
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}; allowed are {', '.join(ENGINES)}")
    if not isinstance(resume, bool):
        raise ValueError(f"resume must be True or False, received {resume!r}")
    stream = pairs if isinstance(pairs, PairStream) else PairStream(pairs)
    _check_rows(stream)
    store = None if out is None else Store(out)
    named = isinstance(policy, str | os.PathLike)
    policy = load_model(policy) if named else check_policy(policy)
    policy.parameters_in(params)
    by = _score_engines.local
    if engine == "ray":
        by = functools.partial(_score_engines.ray, address=ray_address)
    run = _Run(policy, stream, settings, by, progress)
    return run.in_memory() if store is None else run.to_disk(store, resume)


def _check_rows(stream: PairStream) -> None:
    """Refuse a source without a single pair among its first rows: its columns are others.

    An iterator gives its rows once, so that nothing can be looked at beforehand.
    """
    if isinstance(stream.source, Iterator):
        return
    looked = list(itertools.islice(stream, LOOKED_AT))
    if looked and all(isinstance(row.item, str) for row in looked):
        raise ValueError(
            f"pairs: none of the first {len(looked)} rows is a preference pair; "
            f"row {looked[0].row}: {looked[0].item}"
        )


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
    store = Store(out)
    for _ in range(2):  # a run that finishes meanwhile removes its parts
        attrs = store.attrs()
        tables = list(store.tables(None if columns is None else list(columns)))
        if tables:
            break
    else:
        raise ValueError(f"out: {str(out)!r} holds no scores yet")
    missing = sorted(set(columns or ()) - set(tables[0].column_names))
    if missing:
        raise ValueError(f"columns: {missing[0]!r} is not there; {tables[0].column_names} are")
    frame = typed(pa.concat_tables(t.replace_schema_metadata() for t in tables).to_pandas())
    frame.attrs.update(attrs, complete=store.out.exists() and not store.parts())
    return frame if columns is None else frame[list(columns)]


class _Run:
    """One call of ``score_pairs``: the engine gives parts, this keeps them and tells about it."""

    def __init__(
        self,
        policy: Policy,
        stream: PairStream,
        settings: Settings,
        engine: Callable,
        progress: bool,
    ) -> None:
        self.policy, self.stream, self.settings, self.engine = policy, stream, settings, engine
        self.progress, self.digests = progress, []

    @property
    def attrs(self) -> dict[str, object]:
        """What the numbers were measured with."""
        return self.policy.labels(self.settings.params).to_attrs() | self.settings.labels

    def in_memory(self) -> pd.DataFrame:
        """Score everything and hold it."""
        parts: dict[int, pa.Table] = {}
        self._compute(
            lambda index, digest: False, lambda i, digest, table: parts.update({i: table})
        )
        tables = [parts[index] for index in range(len(self.digests))]
        frame = typed(pa.concat_tables(tables).to_pandas())
        frame.attrs.update(self.attrs, complete=True)
        return frame

    def to_disk(self, store: Store, resume: bool) -> pd.DataFrame:
        """Score what the store does not hold yet, merge, and read it back."""
        key = run_key(self.policy, self.settings.to_key(), self.settings.params)
        with store.lock():
            store.begin(key, self.attrs, resume)
            self._compute(store.has, store.put)
            store.finish(self.digests, self.settings.schema)
        return read_scores(store.out)

    def _compute(self, has: Callable, put: Callable) -> None:
        from tqdm.auto import tqdm

        with tqdm(
            total=self._total(), desc="scores", unit="pair", disable=not self.progress
        ) as bar:

            def wanted(chunk: Chunk) -> bool:
                self.digests.append(chunk.digest)
                known = has(chunk.index, chunk.digest)
                bar.update(len(chunk.rows) if known else 0)
                return not known

            started = time.monotonic()
            for index, table in self.engine(self.policy, self.stream, self.settings, wanted):
                put(index, self.digests[index], table)
                bar.update(len(table))
                if started and self.progress:
                    bar.write(_estimate(bar, len(table), time.monotonic() - started), sys.stderr)
                started = None
        if not self.digests:
            raise ValueError("pairs: the source holds no rows")

    def _total(self) -> int | None:
        try:
            return len(self.stream)
        except TypeError:
            return None


def _estimate(bar: Any, rows: int, seconds: float) -> str:
    """Say after the first part how long the rest takes and how much memory is in use."""
    if bar.total is None:
        said = f"about {seconds / rows * 1000:,.0f} s for 1,000 pairs"
    else:
        left = bar.total - bar.n
        minutes, rest = divmod(round(seconds / rows * left), 60)
        said = f"about {minutes} min {rest:02d} s for the {left:,} pairs left"
    try:
        import resource
    except ImportError:  # Windows
        return said
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{said}; {peak / (2**20 if sys.platform == 'darwin' else 2**10):,.0f} MiB of memory"
