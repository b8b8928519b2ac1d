"""Who computes the parts: this process, or Ray's workers, each with the model once."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from toolkit.extras import require
from toolkit.model import Policy
from toolkit.scoring._score_rows import score_rows
from toolkit.scoring._score_settings import Settings
from toolkit.scoring._score_stream import Chunk, PairStream, Row

Scored = Iterator[tuple[int, pa.Table]]
RETRIES = 3  # of a worker that dies


def local(
    policy: Policy, stream: PairStream, settings: Settings, wanted: Callable[[Chunk], bool]
) -> Scored:
    """Score the wanted chunks in order, in this process."""
    for chunk in filter(wanted, stream.chunks(settings.rows_per_part)):
        yield chunk.index, score_rows(policy, chunk.rows, settings)


def ray(
    policy: Policy,
    stream: PairStream,
    settings: Settings,
    wanted: Callable[[Chunk], bool],
    address: str | None = None,
) -> Scored:
    """Score the wanted chunks on Ray's workers, in the order in which they are ready.

    This process reads a chunk when a worker is free for it: nothing but the parts under way is
    held. A worker starts when there is a chunk for it.
    """
    require("ray", 'engine="ray"', "ray")
    todo = filter(wanted, stream.chunks(settings.rows_per_part))
    first = next(todo, None)
    if first is None:
        return
    with _session(address) as ray:
        gpus, cpus = (int(ray.cluster_resources().get(k, 0)) for k in ("GPU", "CPU"))
        most = gpus or max(cpus - 1, 1)
        again = {"max_restarts": RETRIES, "max_task_retries": RETRIES}
        worker = ray.remote(num_cpus=1, num_gpus=int(gpus > 0), **again)(_Worker)
        given, free, busy = (ray.put(policy), settings, gpus > 0), [], {}

        def ready() -> tuple[int, pa.Table]:
            (part,), _ = ray.wait(list(busy))
            index, done = busy.pop(part)
            free.append(done)
            return index, ray.get(part)

        for chunk in itertools.chain([first], todo):
            if not free and len(busy) < most:
                free.append(worker.remote(*given))
            if not free:
                yield ready()
            one = free.pop()
            busy[one.score.remote(chunk.rows)] = chunk.index, one
        while busy:
            yield ready()


class _Worker:
    """Holds the policy and turns one part's rows into its table."""

    def __init__(self, policy: Policy, settings: Settings, on_gpu: bool) -> None:
        self.policy, self.settings = policy, settings
        for model in (policy.model, policy.ref_model) if on_gpu else ():
            _ = model is None or model.to("cuda")

    def score(self, rows: Sequence[Row]) -> pa.Table:
        return score_rows(self.policy, rows, self.settings)


@contextlib.contextmanager
def _session(address: str | None) -> Iterator[Any]:
    """Yield ray; what was started here is stopped."""
    import ray

    own = not ray.is_initialized()
    if own:
        here = {} if address else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level="error", **here)
    try:
        yield ray
    finally:
        if own:
            ray.shutdown()
