"""What encoding does with each pair, and why a pair cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from toolkit.checks import whole

from ._encode import encode_sides
from ._formats import IDENTICAL
from ._pair import PairError, PreferencePair
from ._values import shared_length

SAME = "both sides have the same tokens: they cannot be told apart"
MERGED = "a token holds the end of the prompt and the start of the completion; it is scored"
OWN_BOS = "the text already begins with BOS; none was added"
OWN_EOS = "the completion already ends with EOS; none was added"
UNEVEN = "the prompt's tokens differ between the two sides"


AUDIT_COLUMNS = {
    "id": object,
    **dict.fromkeys(("row", "prompt_tokens", "chosen_tokens", "rejected_tokens"), "Int64"),
    **dict.fromkeys(("total", "shared_prefix"), "Int64"),
    **dict.fromkeys(("identical", "boundary_merge", "double_bos", "double_eos"), "boolean"),
    "exceeds_context": "boolean",
    "usable": bool,
    "reason": object,
    "notes": object,
}


def audit_pairs(
    pairs: Iterable[PreferencePair],
    policy: Any,
    *,
    max_length: int | None = None,
    append_eos: bool | None = None,
) -> pd.DataFrame:
    """Report what encoding does with each pair and why a pair cannot be used.

    Args:
        pairs: pairs; rows that `load_pairs` skipped are listed too, in their place.
        policy: a `Policy`, any object with `tokenizer` and `context_length`, or a tokenizer.
        max_length: most tokens a side may have; the policy's context length holds as well.
        append_eos: as in `encode`; None for the policy's own (True for a tokenizer).

    Returns:
        One row a pair: id, row, prompt_tokens (unscored), chosen_tokens and rejected_tokens
        (scored), total (the longer side, prompt included), shared_prefix (leading scored tokens
        equal on both sides), the flags identical, boundary_merge, double_bos, double_eos (the text
        brings its own, none was added), exceeds_context, then usable, reason (empty where usable)
        and notes. What could not be measured is missing (NA).

    Raises:
        ValueError: a bad `max_length`, `policy` or item of `pairs`.

    Example:
        >>> import toolkit as tk
        >>> pairs = [tk.PreferencePair("a", "Is it fine?", " Yes", " No")]
        >>> tk.audit_pairs(pairs, tk.load_model())[["chosen_tokens", "usable"]].values.tolist()
        [[2, True]]
    """
    whole("max_length", max_length, optional=True)
    tokenizer = getattr(policy, "tokenizer", policy)
    if append_eos is None:
        append_eos = getattr(policy, "append_eos", True)
    limits = (max_length, getattr(policy, "context_length", None))
    limit = min((value for value in limits if value is not None), default=None)
    records = [_audit_pair(pair, tokenizer, append_eos, limit) for pair in pairs]
    skipped = getattr(pairs, "skipped", None)
    if skipped is not None and len(skipped):
        for row, id, reason in skipped.itertuples(index=False):
            identical = True if reason == IDENTICAL else None
            record = {"id": id, "row": row, "identical": identical}
            records.append(record | {"usable": False, "reason": reason, "notes": ""})
        records.sort(key=lambda record: record["row"])
    return pd.DataFrame(records, columns=list(AUDIT_COLUMNS)).astype(AUDIT_COLUMNS)


def _audit_pair(
    pair: PreferencePair, tokenizer: Any, append_eos: bool, limit: int | None
) -> dict[str, Any]:
    try:
        sides = chosen, rejected = encode_sides(pair, tokenizer, append_eos)
    except PairError as error:
        record = {"id": pair.id, "row": pair.row, "usable": False, "reason": error.reason}
        return record | {"notes": "; ".join(pair.notes)}
    total = max(len(side.ids) for side in sides)
    too_long = limit is not None and total > limit
    found = {
        "identical": chosen.ids == rejected.ids,
        "boundary_merge": any(side.merge for side in sides),
        "double_bos": any(side.double_bos for side in sides),
        "double_eos": any(side.double_eos for side in sides),
    }
    uneven = chosen.ids[: chosen.start] != rejected.ids[: rejected.start]
    said = zip([*found.values(), uneven], [SAME, MERGED, OWN_BOS, OWN_EOS, UNEVEN], strict=True)
    return {
        "id": pair.id,
        "row": pair.row,
        "prompt_tokens": chosen.start,
        "chosen_tokens": len(chosen.ids) - chosen.start,
        "rejected_tokens": len(rejected.ids) - rejected.start,
        "total": total,
        "shared_prefix": shared_length(chosen.ids[chosen.start :], rejected.ids[rejected.start :]),
        **found,
        "exceeds_context": too_long,
        "usable": not too_long,
        "reason": f"{total} tokens, and at most {limit} are allowed" if too_long else "",
        "notes": "; ".join([*pair.notes, *(note for true, note in said if true)]),
    }
