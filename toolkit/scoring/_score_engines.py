"""Who computes the parts: this process, or Ray's workers, each with the model once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from toolkit.model import Policy
from toolkit.pairs import EncodedPair, PreferencePair
from toolkit.scoring._score_rows import Settings, score_rows
from toolkit.scoring._score_stream import Chunk, PairStream, Row

Scored = Iterator[tuple[int, pa.Table]]
# The reader only parses text: it should not take a processor from those who compute.
READER_CPUS = 0.1


def local(
    policy: Policy, stream: PairStream, settings: Settings, wanted: Callable[[Chunk], bool]
) -> Scored:
    """Score the wanted chunks in order, in this process."""
    for chunk in stream.chunks(settings.rows_per_part):
        if wanted(chunk):
            yield chunk.index, score_rows(policy, chunk.rows, settings)


def ray(
    policy: Policy,
    stream: PairStream,
    settings: Settings,
    wanted: Callable[[Chunk], bool],
    address: str | None = None,
) -> Scored:
    """Score the wanted chunks with Ray Data, in the order in which they are ready.

    One reader streams the source, a pool of workers scores, and the driver receives whole parts:
    nothing but the parts under way is held. Ray must be able to copy the source to the reader.
    """
    _import_ray()
    todo = {c.index for c in stream.chunks(settings.rows_per_part) if wanted(c)}
    if not todo:
        return
    with _session(address) as (ray, data):
        gpus, cpus = (int(ray.cluster_resources().get(k, 0)) for k in ("GPU", "CPU"))
        read = data.read_datasource(
            _source(data, stream, settings.rows_per_part, todo),
            override_num_blocks=1,
            num_cpus=READER_CPUS,
        )
        scored = read.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(policy), settings, bool(gpus)),
            batch_size=1,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=max(1, min(gpus or cpus - 1, len(todo)))),
            num_gpus=1 if gpus else None,
        )
        for batch in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            for index, content in zip(*batch.to_pydict().values(), strict=True):
                yield index, pa.ipc.open_stream(content).read_all()


@contextlib.contextmanager
def _session(address: str | None) -> Iterator[tuple[Any, Any]]:
    """Yield ray and ray.data; what was started here is stopped, settings are put back."""
    ray = _import_ray()
    own = not ray.is_initialized()
    if own:
        here = {} if address else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level="error", **here)
    context = ray.data.DataContext.get_current()
    # A row of Ray's holds a whole part: blocks of several would wait for each other.
    ours = {"enable_progress_bars": False, "target_max_block_size": 1}
    before = {name: getattr(context, name) for name in ours}
    try:
        vars(context).update(ours)
        yield ray, ray.data
    finally:
        vars(context).update(before)
        if own:
            ray.shutdown()


class _Worker:
    """Holds the policy and turns one part's rows into its table."""

    def __init__(self, policy: Any, settings: Settings, on_gpu: bool) -> None:
        import ray

        self.policy = ray.get(policy) if isinstance(policy, ray.ObjectRef) else policy
        self.settings = settings
        if on_gpu:
            for model in (self.policy.model, self.policy.ref_model):
                _ = model is None or model.to("cuda")

    def __call__(self, batch: pa.Table) -> pa.Table:
        contents = []
        for text in batch["rows"].to_pylist():
            table = score_rows(self.policy, _from_json(text), self.settings)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            contents.append(sink.getvalue().to_pybytes())
        return pa.table({"index": batch["index"], "content": pa.array(contents, pa.binary())})


def _source(data: Any, stream: PairStream, size: int, todo: set[int]) -> Any:
    """One read task that yields a block for each wanted chunk, as fast as they are taken."""

    def read() -> Iterator[pa.Table]:
        for chunk in stream.chunks(size):
            if chunk.index in todo:
                yield pa.table({"index": [chunk.index], "rows": [_to_json(chunk.rows)]})

    class Chunks(data.Datasource):
        def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list:
            about = data.block.BlockMetadata(None, None, None, None)
            return [data.ReadTask(read, about)]

        def estimate_inmemory_data_size(self) -> None:
            return None

    return Chunks()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ImportError(
            'engine="ray" needs ray: pip install "preference-entanglement-toolkit[ray]"'
        ) from None
    return ray


def _to_json(rows: list[Row]) -> str:
    items = []
    for row in rows:
        if isinstance(row.item, EncodedPair):
            raise ValueError('engine="ray" takes pairs with their text, received an EncodedPair')
        pair = row.item
        texts = (
            pair
            if isinstance(pair, str)
            else {"texts": (pair.prompt, pair.chosen, pair.rejected), "notes": pair.notes}
        )
        items.append((row.row, row.id, texts))
    return json.dumps(items)


def _from_json(text: str) -> list[Row]:
    rows = []
    for row, id, item in json.loads(text):
        if not isinstance(item, str):
            item = PreferencePair(id, *item["texts"], row=row, notes=item["notes"])
        rows.append(Row(row, id, item))
    return rows
