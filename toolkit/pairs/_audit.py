"""What encoding does with each pair, and why a pair cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from toolkit.checks import choice, flag, is_iterable, whole

from ._encode import TRUNCATIONS, Side, cut_sides, encode_sides
from ._formats import IDENTICAL
from ._pair import PairError, PreferencePair
from ._values import RowError, shared_length

SAME = "both sides have the same tokens: they cannot be told apart"
MERGED = "a token holds the end of the prompt and the start of the completion; it is scored"
OWN_BOS = "the text already begins with BOS; none was added"
OWN_EOS = "the completion already ends with EOS; none was added"
UNEVEN = "the prompt's tokens differ between the two sides"


AUDIT_COLUMNS = {
    "pair_id": object,
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
    truncation: str | None = None,
) -> pd.DataFrame:
    """Report what encoding does with each pair and why a pair cannot be used.

    Args:
        pairs: pairs; rows that `load_pairs` skipped are listed too, in their place.
        policy: a `Policy`, any object with `tokenizer`, `context_length` and `vocabulary`, or a
            tokenizer.
        max_length: most tokens a side may have; the policy's context length holds as well.
        append_eos: as in `encode`; None for the policy's own (True for a tokenizer).
        truncation: as in `encode`; None for the policy's own. A pair that is cut is usable, its
            numbers are those after the cut (all but `total`), and its notes say what was cut.

    Returns:
        One row per pair: id, row, prompt_tokens (unscored), chosen_tokens and rejected_tokens
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
    choice("truncation", truncation, (None, *TRUNCATIONS))
    if isinstance(pairs, str | dict | PreferencePair) or not is_iterable(pairs):
        raise ValueError(
            f"pairs must be a list of PreferencePair, received {type(pairs).__name__}: use "
            "tk.load_pairs(...)"
        )
    tokenizer = getattr(policy, "tokenizer", policy)
    truncation = truncation or getattr(policy, "truncation", None)
    if append_eos is None:
        append_eos = getattr(policy, "append_eos", True)
    flag("append_eos", append_eos)
    limits = (max_length, getattr(policy, "context_length", None))
    limit = min((value for value in limits if value is not None), default=None)
    vocabulary = getattr(policy, "vocabulary", None)
    how = limit, truncation, vocabulary
    records = [_audit_pair(pair, tokenizer, append_eos, *how) for pair in pairs]
    skipped = getattr(pairs, "skipped", None)
    if skipped is not None and len(skipped):
        for row, id, reason in skipped.itertuples(index=False):
            identical = True if reason == IDENTICAL else None
            record = {"pair_id": id, "row": row, "identical": identical}
            records.append(record | {"usable": False, "reason": reason, "notes": ""})
        records.sort(key=lambda record: record["row"])
    return pd.DataFrame(records, columns=list(AUDIT_COLUMNS)).astype(AUDIT_COLUMNS)


def _audit_pair(
    pair: PreferencePair,
    tokenizer: Any,
    append_eos: bool,
    limit: int | None,
    truncation: str | None,
    vocabulary: int | None,
) -> dict[str, Any]:
    try:
        full = sides = chosen, rejected = encode_sides(pair, tokenizer, append_eos)
    except PairError as error:
        record = {"pair_id": pair.id, "row": pair.row, "usable": False, "reason": error.reason}
        return record | {"notes": "; ".join(pair.notes)}
    total = max(len(side.ids) for side in sides)
    too_long, reason = limit is not None and total > limit, ""
    try:
        sides = chosen, rejected = cut_sides(full, limit, truncation)
    except RowError as error:
        reason = str(error)
    highest = max(id for side in sides for id in side.ids)
    if not reason and vocabulary is not None and highest >= vocabulary:
        reason = f"token id {highest} is outside the model's vocabulary of {vocabulary}"
    found = {
        "identical": chosen.ids == rejected.ids,
        "boundary_merge": any(side.merge for side in sides),
        "double_bos": any(side.double_bos for side in sides),
        "double_eos": any(side.double_eos for side in sides),
    }
    uneven = chosen.ids[: chosen.start] != rejected.ids[: rejected.start]
    said = zip([*found.values(), uneven], [SAME, MERGED, OWN_BOS, OWN_EOS, UNEVEN], strict=True)
    return {
        "pair_id": pair.id,
        "row": pair.row,
        "prompt_tokens": chosen.start,
        "chosen_tokens": len(chosen.ids) - chosen.start,
        "rejected_tokens": len(rejected.ids) - rejected.start,
        "total": total,
        "shared_prefix": shared_length(chosen.ids[chosen.start :], rejected.ids[rejected.start :]),
        **found,
        "exceeds_context": too_long,
        "usable": not reason,
        "reason": reason,
        "notes": "; ".join(
            [*pair.notes, *(note for true, note in said if true), *_cut(full, sides, truncation)]
        ),
    }


def _cut(full: tuple[Side, Side], kept: tuple[Side, Side], truncation: str | None) -> list[str]:
    """Say what cutting took away, in one note or none."""
    if full == kept:
        return []
    gone = [len(whole.ids) - len(side.ids) for whole, side in zip(full, kept, strict=True)]
    unscored = [
        len(whole.ids) - whole.start - (len(side.ids) - side.start)
        for whole, side in zip(full, kept, strict=True)
    ]
    return [
        f"cut ({truncation}) by {gone[0]} chosen and {gone[1]} rejected tokens; "
        f"{unscored[0]} and {unscored[1]} of the completions are not scored"
    ]
