"""Reading pairs from any source, with the rows that gave none listed."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any

from toolkit.checks import choice, shown, whole

from ._formats import SHARED_TURN, split_row
from ._pair import PairError, PairList, PreferencePair
from ._sources import read_rows, shipped_names
from ._values import LayoutError, RowError, as_text, plain

SKIP = 'to leave bad rows out and list them in .skipped: load_pairs(source, on_error="skip")'


def shipped_pairs() -> list[str]:
    """Return the names of the shipped sets, each a source for `load_pairs`.

    Example:
        >>> "long_suffix" in shipped_pairs()
        True
    """
    return shipped_names()


def load_pairs(
    source: Any, *, split: str = "train", limit: int | None = None, on_error: str = "raise"
) -> PairList:
    r"""Load preference pairs from a shipped set, a file, live data or the hub.

    Rows hold `prompt`, `chosen`, `rejected` as text or as lists of messages; or `chosen` and
    `rejected` that both begin with the prompt; or hh-rlhf transcripts; or the persona columns
    `question`, `answer_matching_behavior` (chosen), `answer_not_matching_behavior` (rejected).
    Without a column `prompt`, one column named instruction, question, query, input, problem,
    messages or prompt_text is the prompt; several of them, or another column of text that the
    responses do not hold, are refused with the line that says which is meant. All other columns
    go to `meta`. A cell of text that spells a list of messages in JSON is that list. No text is
    changed: the responses join the prompt as they stand (persona answers begin with their space,
    " No" after the question). A prompt that is empty, that both responses repeat, or that leaves
    out a column such as `system`, is said in the pair's `notes` and in one warning.

    An implicit prompt ends at a word boundary, the space before it going to the responses, and
    before an assistant message in lists of messages. A transcript's prompt ends with the last
    "\n\nAssistant:" that both sides share; where that is not the last turn of both, the pair's
    `notes` say so.

    Args:
        source: a name of `shipped_pairs()`; a path to .jsonl, .jsonl.gz, .json, .csv or .parquet
            (.json is read whole); a DataFrame; a list of dicts; a
            `datasets.Dataset` or `DatasetDict`; a hub id "owner/name" (extra `hub`).
        split: which split of a DatasetDict or a hub id.
        limit: read this many rows, good or bad, and no more.
        on_error: "raise" stops at the first bad row; "skip" lists bad rows in `.skipped`.

    Returns:
        The pairs in the order of the source, with `.skipped`, a frame of row, pair_id, reason.

    Raises:
        PairError: a bad row, under on_error="raise"; it names the row and what is allowed.
        ValueError: a bad argument, or a source that is unknown or holds no rows.
        ImportError: a hub id without the package datasets; it gives the install command.

    Example:
        >>> rows = [{"chosen": "Is it fine? Yes", "rejected": "Is it fine? No"}]
        >>> pair = load_pairs(rows)[0]
        >>> pair.prompt, pair.chosen, pair.rejected
        ('Is it fine?', ' Yes', ' No')
    """
    choice("on_error", on_error, ("raise", "skip"))
    whole("limit", limit, optional=True)
    pairs: list[PreferencePair] = []
    skipped: list[tuple[int, str | None, str]] = []
    rows_of_ids: dict[str, int] = {}
    for row, values in islice(read_rows(source, split), limit):
        id = row_id(row, values)
        try:
            pairs.append(read_pair(row, id, values, rows_of_ids))
        except RowError as error:
            if on_error == "raise":
                hint = "" if isinstance(error, LayoutError) else SKIP
                raise PairError(str(error), row=row, pair_id=id, hint=hint) from None
            skipped.append((row, id, str(error)))
    if not pairs and not skipped:
        raise ValueError(f"source: {_short(source)} holds no rows")
    _warn(pairs)
    return PairList(pairs, skipped)


def _warn(pairs: list[PreferencePair]) -> None:
    """Say once what loading had to decide about the prompts, beyond what the format asks for."""
    found = Counter(note for pair in pairs for note in pair.notes if note != SHARED_TURN)
    if found:
        lines = [f"{count:,} of {len(pairs):,} pairs: {note}" for note, count in found.items()]
        message = (
            f"load_pairs: {'; '.join(lines)}; the notes of each pair and of audit_pairs say which"
        )
        warnings.warn(message, stacklevel=3)


def _short(source: Any) -> str:
    return f"'{source}'" if isinstance(source, str) or hasattr(source, "__fspath__") else "it"


def row_id(row: int, values: Any) -> str | None:
    """Return the row's id as text, its number where it has none, None where it is no id."""
    if not isinstance(values, Mapping):
        return None
    try:
        id = plain(values.get("id", row))
        whole = isinstance(id, int) and not isinstance(id, bool)
        text = as_text("id", str(id) if whole else id)
    except (RecursionError, ValueError):  # no text, or no text that can be written
        return None
    return text if isinstance(text, str) and text.strip() else None


def read_pair(row: int, id: str | None, values: Any, rows_of_ids: dict[str, int]) -> PreferencePair:
    prompt, chosen, rejected, meta, notes = split_row(values)
    if id is None:
        raise RowError(f"id must be text or a whole number, got {shown(values['id'])}")
    if id in rows_of_ids:
        raise RowError(f"id {shown(id)} is already the id of row {rows_of_ids[id]}")
    rows_of_ids[id] = row
    return PreferencePair(id, prompt, chosen, rejected, meta, row, notes)
