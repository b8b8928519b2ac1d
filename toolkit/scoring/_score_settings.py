"""What a scoring run measures, the columns that come of it, and the part of it in the run's key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa

from toolkit.checks import choice, whole
from toolkit.losses import check_loss
from toolkit.model import Params, check_params
from toolkit.pairs import AUDIT_COLUMNS
from toolkit.scoring._function_key import Unhashable, function_key

HEAD = {"row": "int64", "pair_id": "object", "error": "object"}
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
    "entanglement": STATS
    | dict.fromkeys(WEIGHTS + CHANGES, "float64")
    | {"regime": "object", "first_order": "boolean", "first_order_lr": "float64"},
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
        ValueError: If a measure, the loss, a hyper-parameter or ``params`` is unknown, or given
            without the measure that uses it.
    """

    measures: Sequence[str] = ("similarity", "stats", "audit")
    loss: str | Callable = "dpo"
    params: Params = "all"
    rows_per_part: int = 64
    batch_size: int | None = None
    on_error: str = "keep"
    hparams: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        listed = isinstance(self.measures, Iterable) and not isinstance(self.measures, str)
        named = list(self.measures) if listed else [self.measures]
        unknown = [name for name in named if not isinstance(name, str) or name not in MEASURES]
        if unknown or not named:
            got = repr(unknown[0]) if unknown else "none"
            raise ValueError(f"measures: got {got}; allowed are {', '.join(MEASURES)}")
        object.__setattr__(self, "measures", tuple(m for m in MEASURES if m in named))
        choice("on_error", self.on_error, ("keep", "raise"))
        whole("rows_per_part", self.rows_per_part)
        if self.batch_size is not None:
            whole("batch_size", self.batch_size)
        check_params(self.params)
        self._check_loss()

    def _check_loss(self) -> None:
        if "entanglement" not in self.measures:
            needs = [
                *self.hparams,
                *([] if isinstance(self.loss, str) and self.loss == "dpo" else ["loss"]),
            ]
            if needs:
                measures = ", ".join(repr(name) for name in (*self.measures, "entanglement"))
                raise ValueError(
                    f"{needs[0]}: nothing uses it without 'entanglement' among the measures; give "
                    f"measures=[{measures}] (--measures {','.join(self.measures)},entanglement)"
                )
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
        return {"loss_name": _name(self.loss), **self.hparams} if measured else {}

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
