"""One scoring run: everything that can be refused without a model, then the work."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from toolkit.checks import choice, flag
from toolkit.model import Policy
from toolkit.scoring import _score_engines
from toolkit.scoring._score_key import run_key
from toolkit.scoring._score_settings import Settings, typed
from toolkit.scoring._score_store import Store
from toolkit.scoring._score_stream import Chunk, PairStream

ENGINES = ("local", "ray")


class ScoringRun:
    """What is to be scored, how, and where the scores go: made, and refused, before any model.

    Args:
        pairs: As in ``score_pairs``.
        settings: What to measure.
        out: Parquet file to write; ``None`` keeps everything in memory.
        resume: Go on with what ``out`` holds.
        engine: "local" or "ray".
        ray_address: Address of a Ray cluster.
        progress: Show a progress bar.

    Raises:
        ValueError: If an argument is not allowed, or ``out`` holds something else.

    Example:
        >>> import toolkit as tk
        >>> run = ScoringRun("stance", Settings(("similarity",)), progress=False)
        >>> len(run(tk.load_model())) == len(tk.load_pairs("stance"))
        True
    """

    def __init__(
        self,
        pairs: Any,
        settings: Settings,
        *,
        out: Any = None,
        resume: bool = True,
        engine: str = "local",
        ray_address: str | None = None,
        progress: bool = True,
    ) -> None:
        choice("engine", engine, ENGINES)
        flag("resume", resume)
        self.stream = pairs if isinstance(pairs, PairStream) else PairStream(pairs)
        _check_rows(self.stream)
        self.settings, self.resume, self.progress = settings, resume, progress
        self.engine = _score_engines.local
        if engine == "ray":
            self.engine = functools.partial(_score_engines.ray, address=ray_address)
        self.store = None if out is None else Store(out)
        if self.store is not None:
            self.store.check(settings.to_key(), resume)

    def __call__(self, policy: Policy) -> pd.DataFrame:
        """Score with this policy what is not scored yet, and return all of it.

        Raises:
            ValueError: If the policy has no such parameters or holds weights that are not finite,
                or ``out`` holds scores that were made otherwise.
        """
        policy.parameters_in(self.settings.params)
        _check_weights(policy)
        self.policy, self.digests = policy, []
        return self._in_memory() if self.store is None else self._to_disk(self.store)

    @property
    def attrs(self) -> dict[str, object]:
        """What the numbers were measured with."""
        return self.policy.labels(self.settings.params).to_attrs() | self.settings.labels

    def _in_memory(self) -> pd.DataFrame:
        parts: dict[int, pa.Table] = {}
        self._compute(
            lambda index, digest: False, lambda i, digest, table: parts.update({i: table})
        )
        tables = [parts[index] for index in range(len(self.digests))]
        frame = typed(pa.concat_tables(tables).to_pandas())
        frame.attrs.update(self.attrs, complete=True)
        return frame

    def _to_disk(self, store: Store) -> pd.DataFrame:
        """Score what the store does not hold yet, merge, and read it back before others may."""
        key = run_key(self.policy, self.settings.to_key(), self.settings.params)
        with store.lock():
            store.begin(key, self.attrs, self.resume)
            self._compute(store.has, store.put)
            store.finish(self.digests, self.settings.schema)
            return read(store)

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


def read(store: Store, columns: list[str] | None = None) -> pd.DataFrame:
    """Return the scores that a store holds so far (see ``read_scores``).

    Raises:
        ValueError: If there are none yet, or a column is unknown.
    """
    tables, attrs, complete = store.read(columns)
    if not tables:
        raise ValueError(f"out: {str(store.out)!r} holds no scores yet")
    missing = sorted(set(columns or ()) - set(tables[0].column_names))
    if missing:
        raise ValueError(f"columns: {missing[0]!r} is not there; {tables[0].column_names} are")
    frame = typed(pa.concat_tables(t.replace_schema_metadata() for t in tables).to_pandas())
    frame.attrs.update(attrs, complete=complete)
    return frame if columns is None else frame[columns]


def _check_rows(stream: PairStream) -> None:
    """Refuse a source without a single pair: its columns are others. The first pair ends the look.

    An iterator gives its rows once, so that nothing can be looked at beforehand.
    """
    first, count = None, 0
    for row in () if stream.one_pass else stream:
        if not isinstance(row.item, str):
            return
        first, count = first or row, count + 1
    if first is not None:
        raise ValueError(
            f"pairs: {count:,} row{'s' * (count > 1)} read, and none is a preference pair; "
            f"row {first.row}: {first.item}"
        )


def _check_weights(policy: Policy) -> None:
    """Refuse weights that make every score NaN, before hours are spent on them."""
    for role, model in (("policy", policy.model), ("reference", policy.ref_model)):
        for name, weight in model.named_parameters() if model is not None else ():
            lost = weight.numel() - int(torch.isfinite(weight).sum())
            if lost:
                raise ValueError(
                    f"policy: the {role}'s weight {name!r} ({weight.dtype}) is NaN or infinite in "
                    f"{lost:,} of {weight.numel():,} values, and no score would be finite; load "
                    "an undamaged checkpoint, or another dtype"
                )


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
