"""A preference pair, a list of them, and the error that names one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from toolkit.checks import shown

from ._values import RowError, Text, as_text


class PairError(ValueError):
    """One pair cannot be used; `row`, `pair_id`, `reason` say which and why, `hint` what to type.

    Example:
        >>> raise PairError("chosen is empty", row=4, pair_id="a")
        Traceback (most recent call last):
        toolkit.pairs._pair.PairError: row 4 (id 'a'): chosen is empty
    """

    def __init__(
        self, reason: str, *, row: int | None = None, pair_id: str | None = None, hint: str = ""
    ) -> None:
        where = "" if row is None else f"row {row}"
        if pair_id is not None:
            where = f"{where} (id {pair_id!r})" if where else f"pair {pair_id!r}"
        said = f"{where}: {reason}" if where else reason
        super().__init__(f"{said}; {hint}" if hint else said)
        self.reason, self.row, self.pair_id, self.hint = reason, row, pair_id, hint


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
            row = self.row if type(self.row) is int else None
            raise PairError(f"id must be a str, got {type(self.id).__name__}", row=row)
        self._check_rest()
        for name in ("prompt", "chosen", "rejected"):
            try:
                object.__setattr__(self, name, as_text(name, getattr(self, name)))
            except RowError as error:
                raise PairError(str(error), row=self.row, pair_id=self.id) from None
        if len({isinstance(text, str) for text in (self.prompt, self.chosen, self.rejected)}) > 1:
            reason = "prompt, chosen and rejected must all be text or all lists of messages"
            raise PairError(reason, row=self.row, pair_id=self.id)
        object.__setattr__(self, "notes", tuple(self.notes))

    def _check_rest(self) -> None:
        row, notes = self.row, self.notes
        texts = isinstance(notes, list | tuple) and all(isinstance(note, str) for note in notes)
        for name, good, allowed in (
            ("meta", isinstance(self.meta, Mapping), "a dictionary"),
            ("row", row is None or type(row) is int, "None or a whole number"),
            ("notes", texts, "a tuple of texts"),
        ):
            if not good:
                reason = f"{name} must be {allowed}, got {shown(getattr(self, name))}"
                raise PairError(reason, pair_id=self.id)

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
    """The pairs that were loaded, and in `skipped` a frame (row, pair_id, reason) of the others.

    Example:
        >>> from toolkit import load_pairs
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
        frame = pd.DataFrame(list(skipped), columns=["row", "pair_id", "reason"], dtype=object)
        self.skipped = frame.astype({"row": "int64"})
