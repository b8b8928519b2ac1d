"""The scores of one part: from rows to a typed table, errors kept with their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

from toolkit.entanglement import entanglement
from toolkit.gradients import PairStats, pair_stats
from toolkit.losses import check_loss
from toolkit.model import Params, Policy
from toolkit.pairs import AUDIT_COLUMNS, EncodedPair, PairError, PairList, audit_pairs
from toolkit.scoring._function_key import Unhashable, function_key
from toolkit.scoring._score_stream import Row
from toolkit.similarity import similarity

HEAD = {"row": "int64", "id": "object", "error": "object"}
LENGTHS = {"chosen_length": "Int64", "rejected_length": "Int64"}
LOGPS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
PRODUCTS = ("chosen_sq_norm", "rejected_sq_norm", "inner", "cosine", "kappa")
WEIGHTS = ("loss", "d_chosen", "d_rejected", "ratio", "log_ratio", "band_low", "band_center")
CHANGES = ("band_high", "band_position", "chosen_slack", "rejected_slack")
CHANGES += ("predicted_chosen_delta", "predicted_rejected_delta", "predicted_margin_delta")
STATS = dict.fromkeys(LOGPS, "float64") | LENGTHS | dict.fromkeys(PRODUCTS, "float64")
CHES = ("ches", "ln_ches", "neg_edit_distance", "last_hidden_inner")
# What each measure puts into the table, in the order of the columns.
MEASURES = {
    "audit": {
        name: str(np.dtype(kind)) if kind in (object, bool) else kind
        for name, kind in AUDIT_COLUMNS.items()
        if name not in HEAD
    },
    "similarity": dict.fromkeys(CHES, "float64") | LENGTHS,
    "stats": STATS,
    "entanglement": STATS | dict.fromkeys(WEIGHTS + CHANGES, "float64") | {"regime": "object"},
}
ARROW = {
    "int64": pa.int64(),
    "Int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "boolean": pa.bool_(),
    "object": pa.string(),
}


@dataclass(frozen=True)
class Settings:
    """What to measure, and how; everything but ``batch_size`` and ``on_error`` is in the key.

    Raises:
        ValueError: If a measure, the loss or a hyper-parameter is unknown.
    """

    measures: Sequence[str] = ("similarity", "stats", "audit")
    loss: str | Callable = "dpo"
    params: Params = "all"
    rows_per_part: int = 64
    batch_size: int | None = None
    on_error: str = "keep"
    hparams: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [self.measures] if isinstance(self.measures, str) else list(self.measures)
        unknown = [name for name in named if name not in MEASURES]
        if unknown or not named:
            got = repr(unknown[0]) if unknown else "none"
            raise ValueError(f"measures: got {got}; allowed are {', '.join(MEASURES)}")
        object.__setattr__(self, "measures", tuple(m for m in MEASURES if m in named))
        if self.on_error not in ("keep", "raise"):
            raise ValueError(f"on_error: got {self.on_error!r}; allowed are 'keep' and 'raise'")
        for name in ("rows_per_part", "batch_size"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
            if not whole and (name == "rows_per_part" or value is not None):
                raise ValueError(f"{name} must be a positive whole number, received {value!r}")
        self._check_loss()

    def _check_loss(self) -> None:
        if "entanglement" not in self.measures:
            if self.hparams:
                name = next(iter(self.hparams))
                raise ValueError(f"{name}: hyper-parameters need 'entanglement' among the measures")
            return
        # With the loss's own defaults.
        object.__setattr__(self, "hparams", check_loss(self.loss, self.hparams))

    @property
    def dtypes(self) -> dict[str, str]:
        """Pandas dtypes of the columns, in their order."""
        own = [MEASURES[measure] for measure in self.measures]
        return HEAD | {name: kind for columns in own for name, kind in columns.items()}

    @property
    def schema(self) -> pa.Schema:
        """The same as an Arrow schema."""
        return pa.schema([(name, ARROW[kind]) for name, kind in self.dtypes.items()])

    def to_key(self) -> dict[str, object]:
        """Return the settings that decide the numbers.

        Raises:
            ValueError: If the loss is a function that cannot be told from another one.
        """
        key = {"measures": self.measures, "rows_per_part": self.rows_per_part}
        key["params"] = _name(self.params)  # what a predicate picks is in the key by itself
        if "entanglement" in self.measures:
            key |= {"loss": self._loss_key(), "hparams": self.hparams}
        return key

    @property
    def labels(self) -> dict[str, object]:
        """What the numbers of the loss belong to, for a person."""
        measured = "entanglement" in self.measures
        return {"loss": _name(self.loss), **self.hparams} if measured else {}

    def _loss_key(self) -> str:
        if isinstance(self.loss, str):
            return self.loss
        try:
            return function_key(self.loss)
        except Unhashable as error:
            raise ValueError(
                f"loss: a run on disk must tell {_name(self.loss)!r} from any other function, but "
                f"{error}; name it yourself with loss.version = '1', and another text whenever it "
                "changes, or give out=None"
            ) from None


def _name(value: str | Callable) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__)


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Give the columns of scores the same dtypes wherever they come from."""
    known = HEAD | {n: kind for columns in MEASURES.values() for n, kind in columns.items()}
    return frame.astype({name: known[name] for name in frame.columns if name in known})


def score_rows(policy: Policy, rows: Sequence[Row], settings: Settings) -> pa.Table:
    """Return the scores of one part's rows in their order.

    Raises:
        PairError: A row cannot be scored, under ``on_error="raise"``.
    """
    encoded, errors = _encode(policy, rows)
    _refuse(rows, errors, settings)
    frame = pd.DataFrame({"row": [r.row for r in rows], "id": [r.id for r in rows]})
    columns = [frame.set_index("row", drop=False)]
    if "audit" in settings.measures:
        columns.append(_audit(policy, rows))
    if {"stats", "entanglement"} & set(settings.measures) and encoded:
        columns.append(_gradients(policy, encoded, settings, errors))
    if "similarity" in settings.measures and encoded:
        options = {"batch_size": settings.batch_size, "progress": False}
        found = similarity(policy, list(encoded.values()), **options)
        columns.append(found.set_axis(list(encoded)))
    _refuse(rows, errors, settings)
    whole = pd.concat(columns, axis=1)
    whole = whole.loc[:, ~whole.columns.duplicated()].reindex(columns=list(settings.dtypes))
    whole["error"] = [errors.get(row, "") for row in whole["row"]]
    return pa.Table.from_pandas(typed(whole), settings.schema, preserve_index=False)


def _refuse(rows: Sequence[Row], errors: dict[int, str], settings: Settings) -> None:
    for row in rows:
        if row.row in errors and settings.on_error == "raise":
            raise PairError(errors[row.row], row=row.row, id=row.id)


def _encode(policy: Policy, rows: Iterable[Row]) -> tuple[dict[int, EncodedPair], dict[int, str]]:
    """Return what can be scored by row, short before long, and why the others cannot."""
    encoded, errors = {}, {}
    for row in rows:
        if isinstance(row.item, str):
            errors[row.row] = row.item
            continue
        try:
            encoded[row.row] = policy.encode(row.item)
        except PairError as error:
            errors[row.row] = error.reason
    lengths = {row: max(len(e.chosen_ids), len(e.rejected_ids)) for row, e in encoded.items()}
    return {row: encoded[row] for row in sorted(encoded, key=lengths.get)}, errors


def _audit(policy: Policy, rows: Sequence[Row]) -> pd.DataFrame:
    texts = [row for row in rows if not isinstance(row.item, str)]
    if any(isinstance(row.item, EncodedPair) for row in texts):
        raise ValueError("measures: 'audit' needs pairs with their text, received an EncodedPair")
    found = audit_pairs([row.item for row in texts], policy, append_eos=policy.append_eos)
    found.index = [row.row for row in texts]
    lost = [row for row in rows if isinstance(row.item, str)]
    skipped = PairList([], [(row.row, row.id, row.item) for row in lost])
    bad = audit_pairs(skipped, policy).set_axis([row.row for row in lost])
    # Two frames of one kind; an empty one would only unsettle the dtypes.
    both = [part for part in (found, bad) if len(part)]
    return pd.concat(both).drop(columns=["id", "row"])


def _gradients(
    policy: Policy, encoded: dict[int, EncodedPair], settings: Settings, errors: dict[int, str]
) -> pd.DataFrame:
    options = {"params": settings.params, "batch_size": settings.batch_size, "progress": False}
    stats, rows = pair_stats(policy, list(encoded.values()), **options), np.array(list(encoded))
    if "entanglement" not in settings.measures:
        return stats.to_frame().set_axis(rows)
    try:
        return _entangled(stats, settings).set_axis(rows)
    except ValueError:  # some pair's numbers are not finite: the others keep theirs
        kept = []
        for i, row in enumerate(rows):
            try:
                kept.append(_entangled(stats.take([i]), settings).set_axis([row]))
            except ValueError as error:
                errors[int(row)] = str(error)
                kept.append(stats.take([i]).to_frame().set_axis([row]))
        return pd.concat(kept)


def _entangled(stats: PairStats, settings: Settings) -> pd.DataFrame:
    return entanglement(stats, settings.loss, **settings.hparams).to_frame()
