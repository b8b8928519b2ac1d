"""Preference pairs: load, validate, encode and audit them.

A pair is a prompt with a chosen and a rejected response, as plain text or as lists of messages.
`load_pairs` reads them, `encode` turns one into token ids with the scored tokens marked, and
`audit_pairs` says, row by row, what encoding does and why a row cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from ._formats import (
    IDENTICAL,
    Message,
    RowError,
    Text,
    as_text,
    plain,
    read_rows,
    shared_length,
    shipped_names,
    split_row,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "EncodedPair",
    "Message",
    "PairError",
    "PairList",
    "PreferencePair",
    "Text",
    "audit_pairs",
    "encode",
    "load_pairs",
    "shipped_pairs",
]


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


class PairError(ValueError):
    """One pair cannot be used; `row`, `id` and `reason` say which one and why.

    Example:
        >>> raise PairError("chosen is empty", row=4, id="a")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        toolkit.pairs.PairError: row 4 (id 'a'): chosen is empty
    """

    def __init__(self, reason: str, *, row: int | None = None, id: str | None = None) -> None:
        where = "" if row is None else f"row {row}"
        if id is not None:
            where = f"{where} (id {id!r})" if where else f"pair {id!r}"
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason, self.row, self.id = reason, row, id


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a chosen and a rejected response.

    Types are checked, contents are not: identical or empty responses can be built by hand.

    Attributes:
        id: unique within a set; the source's own `id`, else its row number.
        prompt: plain text, or a tuple of messages (`{"role": ..., "content": ...}`).
        chosen: the completion alone: the text, or the messages, after the prompt.
        rejected: likewise.
        meta: the other columns of the row.
        row: 0-based row number in the source; None for a pair built by hand.
        notes: what loading had to decide.

    Raises:
        ValueError: a field has the wrong type, or text and messages are mixed.

    Example:
        >>> PreferencePair("a", "Is it fine?", " Yes", " No").conversational
        False
    """

    id: str
    prompt: Text
    chosen: Text
    rejected: Text
    meta: Mapping[str, Any] = field(default_factory=dict)
    row: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise PairError(f"id must be a str, got {type(self.id).__name__}", row=self.row)
        for name in ("prompt", "chosen", "rejected"):
            try:
                object.__setattr__(self, name, as_text(name, getattr(self, name)))
            except RowError as error:
                raise PairError(str(error), row=self.row, id=self.id) from None
        if len({isinstance(text, str) for text in (self.prompt, self.chosen, self.rejected)}) > 1:
            reason = "prompt, chosen and rejected must all be text or all lists of messages"
            raise PairError(reason, row=self.row, id=self.id)
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def conversational(self) -> bool:
        """True where the texts are lists of messages."""
        return not isinstance(self.prompt, str)

    @property
    def prompt_text(self) -> str:
        """The prompt as readable text, roles written out."""
        return _readable(self.prompt)

    @property
    def chosen_text(self) -> str:
        """The chosen response as readable text, roles written out."""
        return _readable(self.chosen)

    @property
    def rejected_text(self) -> str:
        """The rejected response as readable text, roles written out."""
        return _readable(self.rejected)


def _readable(text: Text) -> str:
    if isinstance(text, str):
        return text
    return "\n".join(f"{message['role']}: {message['content']}" for message in text)


class PairList(list[PreferencePair]):
    """The pairs that were loaded, and in `skipped` a frame (row, id, reason) of the others.

    Example:
        >>> pairs = load_pairs([{"prompt": "a", "chosen": "b", "rejected": ""}], on_error="skip")
        >>> len(pairs), pairs.skipped.reason.tolist()
        (0, ['rejected is empty'])
    """

    def __init__(
        self,
        pairs: Iterable[PreferencePair] = (),
        skipped: Iterable[tuple[int, str | None, str]] = (),
    ) -> None:
        super().__init__(pairs)
        frame = pd.DataFrame(list(skipped), columns=["row", "id", "reason"], dtype=object)
        self.skipped = frame.astype({"row": "int64"})


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
    All other columns go to `meta`. No text is changed: the responses join the prompt as they
    stand (persona answers begin with their space, " No" after the question).

    An implicit prompt ends at a word boundary, the space before it going to the responses, and
    before an assistant message in lists of messages. A transcript's prompt ends with the last
    "\n\nAssistant:" that both sides share; where that is not the last turn of both, the pair's
    `notes` say so.

    Args:
        source: a name of `shipped_pairs()`; a path to .jsonl, .jsonl.gz, .json, .csv or .parquet
            (messages in a .csv cell are JSON); a DataFrame; a list of dicts; a
            `datasets.Dataset` or `DatasetDict`; a hub id "owner/name" (extra `hub`).
        split: which split of a DatasetDict or a hub id.
        limit: stop after this many good pairs.
        on_error: "raise" stops at the first bad row; "skip" lists bad rows in `.skipped`.

    Returns:
        The pairs in the order of the source, with `.skipped`, a frame of row, id, reason.

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
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: got {on_error!r}; allowed are 'raise' and 'skip'")
    _check_count("limit", limit)
    pairs: list[PreferencePair] = []
    skipped: list[tuple[int, str | None, str]] = []
    rows_of_ids: dict[str, int] = {}
    for row, values in read_rows(source, split):
        id = _row_id(row, values)
        try:
            pairs.append(_pair(row, id, values, rows_of_ids))
        except RowError as error:
            if on_error == "raise":
                raise PairError(str(error), row=row, id=id) from None
            skipped.append((row, id, str(error)))
        if len(pairs) == limit:
            break
    if not pairs and not skipped:
        raise ValueError(f"source: {_short(source)} holds no rows")
    return PairList(pairs, skipped)


def _short(source: Any) -> str:
    return f"'{source}'" if isinstance(source, str) or hasattr(source, "__fspath__") else "it"


def _check_count(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}; allowed are None and whole numbers from 1 up")


def _row_id(row: int, values: Any) -> str | None:
    """Return the row's id as text, its number where it has none, None where it is no id."""
    if not isinstance(values, Mapping):
        return None
    id = plain(values.get("id", row))
    whole = isinstance(id, int) and not isinstance(id, bool)
    return str(id) if whole or (isinstance(id, str) and id.strip()) else None


def _pair(row: int, id: str | None, values: Any, rows_of_ids: dict[str, int]) -> PreferencePair:
    prompt, chosen, rejected, meta, notes = split_row(values)
    if id is None:
        raise RowError(f"id must be text or a whole number, got {values['id']!r}")
    if id in rows_of_ids:
        raise RowError(f"id {id!r} is already the id of row {rows_of_ids[id]}")
    rows_of_ids[id] = row
    return PreferencePair(id, prompt, chosen, rejected, meta, row, notes)


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of both sides, prompt included, with the scored tokens marked.

    Attributes:
        id: the pair's id.
        chosen_ids: LongTensor [Tc], prompt and chosen completion.
        chosen_mask: BoolTensor [Tc], True for tokens that the log-probability sums over.
        rejected_ids: LongTensor [Tr].
        rejected_mask: BoolTensor [Tr].
        append_eos: whether plain text ends with EOS (False for messages: their template ends them).
        boundary_merge: a token holds both prompt and completion characters; it is scored.
    """

    id: str
    chosen_ids: torch.Tensor
    chosen_mask: torch.Tensor
    rejected_ids: torch.Tensor
    rejected_mask: torch.Tensor
    append_eos: bool
    boundary_merge: bool

    @property
    def chosen_length(self) -> int:
        """Number of scored tokens of the chosen side."""
        return int(self.chosen_mask.sum())

    @property
    def rejected_length(self) -> int:
        """Number of scored tokens of the rejected side."""
        return int(self.rejected_mask.sum())

    @property
    def shared_prefix(self) -> int:
        """Number of leading scored tokens that both sides share."""
        return shared_length(
            self.chosen_ids[self.chosen_mask].tolist(),
            self.rejected_ids[self.rejected_mask].tolist(),
        )


def encode(
    pair: PreferencePair, tokenizer: Any, *, max_length: int | None = None, append_eos: bool = True
) -> EncodedPair:
    """Tokenise prompt and completion together and mark the scored tokens y_t of Σ log p(y_t).

    A token is scored when it holds a character of the completion, by the tokenizer's offsets; a
    slow tokenizer has none, and there the prompt's own tokens must begin the whole. Plain text gets
    the tokenizer's own BOS, never twice, and one EOS. Messages get the chat template and nothing
    else. Nothing is ever truncated.

    Args:
        pair: the pair.
        tokenizer: a transformers tokenizer; it needs no pad token.
        max_length: most tokens a side may have, prompt included; None for no limit.
        append_eos: end plain-text completions with the tokenizer's EOS, where it is not there yet.

    Returns:
        Ids and masks of both sides, 1-D tensors of that side's own length.

    Raises:
        PairError: the pair cannot be encoded so; the reason says what is allowed.
        ValueError: a bad `max_length`.

    Example:
        >>> import toolkit as tk
        >>> pair = tk.PreferencePair("a", "Is it fine?", " Yes", " No")
        >>> tk.encode(pair, tk.load_model().tokenizer).boundary_merge
        False
    """
    _check_count("max_length", max_length)
    sides = _sides(pair, tokenizer, append_eos)
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if max_length is not None and len(side.ids) > max_length:
            reason = f"{name} side has {len(side.ids)} tokens, more than max_length {max_length}"
            raise PairError(reason, row=pair.row, id=pair.id)
    import torch

    tensors = []
    for side in sides:
        tensors += [torch.tensor(side.ids), torch.arange(len(side.ids)) >= side.start]
    eos = append_eos and not pair.conversational
    return EncodedPair(pair.id, *tensors, eos, any(side.merge for side in sides))


class _Side(NamedTuple):
    """Token ids of one side; `start` is the index of its first scored token."""

    ids: list[int]
    start: int
    merge: bool
    double_bos: bool
    double_eos: bool


def _sides(pair: PreferencePair, tokenizer: Any, append_eos: bool) -> tuple[_Side, _Side]:
    if not isinstance(pair, PreferencePair):
        raise ValueError(f"pair: got {type(pair).__name__}; allowed is a PreferencePair")
    if not callable(tokenizer) or not hasattr(tokenizer, "eos_token_id"):
        raise ValueError(
            f"tokenizer: got {type(tokenizer).__name__}; allowed is a transformers tokenizer"
        )
    try:
        if pair.conversational:
            return tuple(
                _chat_side(pair.prompt, c, tokenizer) for c in (pair.chosen, pair.rejected)
            )
        return tuple(
            _plain_side(pair.prompt, completion, tokenizer, append_eos)
            for completion in (pair.chosen, pair.rejected)
        )
    except RowError as error:
        raise PairError(str(error), row=pair.row, id=pair.id) from None


def _plain_side(prompt: str, completion: str, tokenizer: Any, append_eos: bool) -> _Side:
    lead, ids, start, merge = _tokenise(prompt + completion, len(prompt), tokenizer)
    eos = tokenizer.eos_token_id
    double_bos = bool(lead) and lead[-1] == tokenizer.bos_token_id and ids[:1] == lead[-1:]
    if double_bos:
        ids, start = ids[1:], max(start - 1, 0)
    _refuse_unscored(completion, ids, start, bool(lead))
    double_eos = append_eos and ids[-1] == eos
    if append_eos and eos is None:
        raise RowError("the tokenizer has no EOS token to append; pass append_eos=False")
    if append_eos and not double_eos:
        ids = [*ids, eos]
    return _Side(lead + ids, len(lead) + start, merge, double_bos, double_eos)


def _chat_side(prompt: Text, completion: Text, tokenizer: Any) -> _Side:
    if not getattr(tokenizer, "chat_template", None):
        raise RowError(
            "the pair holds messages and the tokenizer has no chat template; set "
            "tokenizer.chat_template, or give plain text"
        )
    messages = [dict(message) for message in (*prompt, *completion)]
    render = tokenizer.apply_chat_template
    try:
        before = render(messages[: len(prompt)], tokenize=False, add_generation_prompt=True)
        whole = render(messages, tokenize=False)
    except Exception as error:  # a template is a program and can fail in any way
        raise RowError(f"the chat template refuses the messages: {error}") from error
    if not whole.startswith(before):
        raise RowError(
            "the chat template does not extend: the prompt's rendering changes when the "
            "completion follows it"
        )
    # The template has written its own BOS, so the one the tokenizer adds in front is left out.
    _, ids, start, merge = _tokenise(whole, len(before), tokenizer)
    _refuse_unscored(whole[len(before) :], ids, start, False)
    double_bos = ids[:2] == [tokenizer.bos_token_id] * 2
    double_eos = ids[-2:] == [tokenizer.eos_token_id] * 2
    return _Side(ids, start, merge, double_bos, double_eos)


def _refuse_unscored(completion: str, ids: list[int], start: int, predicted: bool) -> None:
    if start >= len(ids):
        raise RowError(f"the tokenizer gives the completion {completion!r} no token")
    if start == 0 and not predicted:
        raise RowError(
            "no token stands before the first completion token to predict it; give a prompt, or "
            "a tokenizer that adds BOS"
        )


def _tokenise(text: str, cut: int, tokenizer: Any) -> tuple[list[int], list[int], int, bool]:
    """Return the special tokens added before the text, its own, the first scored one, and merge.

    Special tokens that the tokenizer adds after the text are left out: EOS is the caller's matter.
    """
    if not tokenizer.is_fast:
        return _tokenise_slow(text, cut, tokenizer)
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    own = [i for i, sequence in enumerate(encoding.sequence_ids(0)) if sequence is not None]
    if not own:
        return [], [], 0, False
    part = slice(own[0], own[-1] + 1)
    ids = encoding["input_ids"]
    spans = _whole_spans(encoding.tokens(0)[part], encoding["offset_mapping"][part], len(text))
    # With no prompt every token is the completion's, also one without characters of its own.
    start = next((i for i, (_, end) in enumerate(spans) if end > cut or cut == 0), len(spans))
    merge = start < len(spans) and spans[start][0] < cut
    return ids[: own[0]], ids[part], start, merge


def _whole_spans(
    tokens: list[str], offsets: list[tuple[int, int]], length: int
) -> list[tuple[int, int]]:
    """Return character spans with the spaces that `trim_offsets` took off byte-level tokens.

    Without them " yes" behind "Is it? " would look as if it began after the prompt's space.
    """
    spans, reached = [], 0
    nexts = [start for start, _ in offsets[1:]] + [length]
    for token, (start, end), following in zip(tokens, offsets, nexts, strict=True):
        leading = len(token) - len(token.lstrip("Ġ"))
        trailing = len(token) - len(token.rstrip("Ġ")) if leading < len(token) else 0
        # Where nothing was trimmed, the neighbours' offsets leave no room to grow.
        whole_end = max(end, min(end + trailing, following))
        spans.append((max(start - leading, min(reached, start)), whole_end))
        reached = max(reached, whole_end)
    return spans


def _tokenise_slow(text: str, cut: int, tokenizer: Any) -> tuple[list[int], list[int], int, bool]:
    """Split by the prompt's own tokens, for tokenizers that give no offsets."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    prompt = tokenizer.encode(text[:cut], add_special_tokens=False)
    if ids[: len(prompt)] != prompt:
        raise RowError(
            "this slow tokenizer gives no offsets and merges prompt and completion; use a fast "
            "tokenizer, or end the prompt at a word boundary"
        )
    whole = tokenizer.encode(text, add_special_tokens=True)
    lead = next((i for i in range(len(whole)) if whole[i : i + len(ids)] == ids), 0)
    return whole[:lead], ids, len(prompt), False


def audit_pairs(
    pairs: Iterable[PreferencePair],
    policy: Any,
    *,
    max_length: int | None = None,
    append_eos: bool = True,
) -> pd.DataFrame:
    """Report what encoding does with each pair and why a pair cannot be used.

    Args:
        pairs: pairs; rows that `load_pairs` skipped are listed too, in their place.
        policy: a `Policy`, any object with `tokenizer` and `context_length`, or a tokenizer.
        max_length: most tokens a side may have; the policy's context length holds as well.
        append_eos: as in `encode`.

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
    _check_count("max_length", max_length)
    tokenizer = getattr(policy, "tokenizer", policy)
    limits = (max_length, getattr(policy, "context_length", None))
    limit = min((value for value in limits if value is not None), default=None)
    records = [_audit_pair(pair, tokenizer, append_eos, limit) for pair in pairs]
    skipped = getattr(pairs, "skipped", None)
    if skipped is not None and len(skipped):
        for row, id, reason in skipped.itertuples(index=False):
            identical = True if reason == IDENTICAL else None
            records.append(
                {"id": id, "row": row, "identical": identical, "usable": False, "reason": reason}
            )
        records.sort(key=lambda record: record["row"])
    frame = pd.DataFrame(records, columns=list(AUDIT_COLUMNS))
    return frame.fillna({"notes": ""}).astype(AUDIT_COLUMNS)


def _audit_pair(
    pair: PreferencePair, tokenizer: Any, append_eos: bool, limit: int | None
) -> dict[str, Any]:
    try:
        sides = chosen, rejected = _sides(pair, tokenizer, append_eos)
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
