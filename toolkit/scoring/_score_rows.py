"""The scores of one part: from rows to a typed table, errors kept with their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from toolkit.entanglements import entanglement
from toolkit.gradients import PairStats, pair_stats
from toolkit.model import Policy
from toolkit.pairs import EncodedPair, PairError, PairList, audit_pairs
from toolkit.scoring._score_settings import LOGPS, Settings, typed
from toolkit.scoring._score_stream import Row
from toolkit.similarities import similarity

# What a model gives a finite number of, whatever the pair; all else is derived.
MEASURED = (*LOGPS, "chosen_sq_norm", "rejected_sq_norm", "inner", "ches", "last_hidden_inner")


def score_rows(policy: Policy, rows: Sequence[Row], settings: Settings) -> pa.Table:
    """Return the scores of one part's rows in their order.

    Raises:
        PairError: A row cannot be scored, under ``on_error="raise"``.
    """
    encoded, errors = _encode(policy, rows)
    _refuse(rows, errors, settings)
    frame = pd.DataFrame({"row": [r.row for r in rows], "pair_id": [r.id for r in rows]})
    columns = [frame.set_index("row", drop=False)]
    if "audit" in settings.measures:
        columns.append(_audit(policy, rows))
    if {"stats", "entanglement"} & set(settings.measures) and encoded:
        columns.append(_gradients(policy, encoded, settings, errors))
    if "similarity" in settings.measures and encoded:
        options = {"batch_size": settings.batch_size, "progress": False}
        found = similarity(policy, list(encoded.values()), **options)
        columns.append(found.set_axis(list(encoded)))
    whole = pd.concat(columns, axis=1)
    _mark_infinite(whole, list(encoded), errors, policy)
    _refuse(rows, errors, settings)
    whole = whole.loc[:, ~whole.columns.duplicated()].reindex(columns=list(settings.dtypes))
    whole["error"] = [errors.get(row, "") for row in whole["row"]]
    return pa.Table.from_pandas(typed(whole), settings.schema, preserve_index=False)


def _mark_infinite(
    whole: pd.DataFrame, measured: list[int], errors: dict[int, str], policy: Policy
) -> None:
    """Give rows without finite numbers an error, and missing values in their place."""
    found = whole.loc[measured, [name for name in MEASURED if name in whole]].astype("float64")
    for row, odd in (~np.isfinite(found)).iterrows():
        if odd.any():
            name, dtype = odd.idxmax(), policy.labels("all").dtype
            errors[row] = f"{name} is {found.at[row, name]}: the model in {dtype} overflows here"
            floats = whole.columns[whole.dtypes == "float64"]
            whole.loc[row, floats] = whole.loc[row, floats].where(np.isfinite)


def _refuse(rows: Sequence[Row], errors: dict[int, str], settings: Settings) -> None:
    for row in rows:
        if row.row in errors and settings.on_error == "raise":
            raise PairError(errors[row.row], row=row.row, pair_id=row.id)


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
    return pd.concat(both).drop(columns=["pair_id", "row"])


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
