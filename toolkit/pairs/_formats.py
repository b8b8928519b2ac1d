"""How the columns of a row become prompt, chosen and rejected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ._values import Message, RowError, Text, as_text, got, plain, shared_length

IDENTICAL = "chosen and rejected are identical: training needs two different responses"
SHARED_TURN = "prompt cut at the last assistant turn both share"
NO_PROMPT = "chosen and rejected share no beginning: the prompt is empty"
ASSISTANT = "\n\nAssistant:"
PERSONA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
TEXT_COLUMNS = ("prompt", "chosen", "rejected")


class Split(NamedTuple):
    """One row taken apart."""

    prompt: Text
    chosen: Text
    rejected: Text
    meta: dict[str, Any]
    notes: tuple[str, ...]


def split_row(values: Any) -> Split:
    """Return the prompt, both responses and the other columns of one row."""
    if isinstance(values, RowError):
        raise values
    if not isinstance(values, Mapping):
        raise RowError(f"a row must be an object with named columns, got {got(values)}")
    values = {str(name): plain(value) for name, value in values.items()}
    names = _text_columns(values)
    _require(values, names)
    texts = [as_text(name, values[name]) for name in names]
    _refuse_blank(names[-2:], texts[-2:])
    notes: tuple[str, ...] = ()
    if len(texts) == 3:
        prompt, chosen, rejected = _explicit(*texts)
    else:
        prompt, chosen, rejected, notes = _implicit(*texts)
    _refuse_blank(("chosen response", "rejected response"), (chosen, rejected))
    if chosen == rejected:
        raise RowError(IDENTICAL)
    meta = {name: value for name, value in values.items() if name not in {*names, "id"}}
    return Split(prompt, chosen, rejected, meta, notes)


def _text_columns(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns to read: persona's, TRL's three, or two with an implicit prompt."""
    if not {"chosen", "rejected"} & set(values) and any(n.startswith("answer_") for n in values):
        return PERSONA
    if "prompt" in values:
        return TEXT_COLUMNS
    for name in values:
        # 0.82 catches 'promt', 'Prompt ' and 'propmt', and lets 'prompt_id' (0.80) be.
        if difflib.SequenceMatcher(None, name.strip().lower(), "prompt").ratio() >= 0.82:
            raise RowError(f"column {name!r} looks like a misspelt 'prompt'; rename it")
    return TEXT_COLUMNS[1:]


def _require(values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name in values:
            continue
        folded = {other.strip().lower(): other for other in values if other not in names}
        close = difflib.get_close_matches(name, folded, n=1)
        hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
        raise RowError(f"column {name!r} is missing; the columns are {list(values)}{hint}")


def _refuse_blank(names: Sequence[str], texts: Sequence[Text]) -> None:
    for name, text in zip(names, texts, strict=True):
        content = text if isinstance(text, str) else "".join(m["content"] for m in text)
        if not content.strip():
            raise RowError(f"{name} is empty")


def _explicit(prompt: Text, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    kinds = [isinstance(text, str) for text in (prompt, chosen, rejected)]
    if all(kinds):
        return prompt, chosen, rejected
    if kinds == [True, False, False]:  # text beside two whole conversations that hold it
        shared, chosen, rejected, _ = _cut_messages(chosen, rejected)
        if shared[-1]["content"] != prompt:
            raise RowError("prompt is text that the messages of chosen and rejected do not repeat")
        return shared, chosen, rejected
    if any(kinds):
        raise RowError("prompt, chosen and rejected must all be text or all lists of messages")
    if not prompt:
        raise RowError("prompt is an empty list of messages")
    chosen, rejected = (
        text[len(prompt) :] if text[: len(prompt)] == prompt else text
        for text in (chosen, rejected)
    )
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if text and text[0]["role"] != "assistant":
            raise RowError(
                f"{name} must go on with an assistant message after the prompt, "
                f"got role {text[0]['role']!r}"
            )
    return prompt, chosen, rejected


def _implicit(chosen: Text, rejected: Text) -> tuple[Text, Text, Text, tuple[str, ...]]:
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("chosen and rejected must both be text or both lists of messages")
    if not isinstance(chosen, str):
        return _cut_messages(chosen, rejected)
    both = (chosen, rejected)
    shared = shared_length(chosen, rejected)
    transcripts = all(text.lstrip().startswith("Human:") for text in both)
    if transcripts and any(ASSISTANT in text for text in both):
        start = chosen.rfind(ASSISTANT, 0, shared)
        if start < 0:
            raise RowError(f"the two transcripts share no assistant turn ({ASSISTANT!r})")
        cut = start + len(ASSISTANT)
        notes = (SHARED_TURN,) if any(ASSISTANT in text[cut:] for text in both) else ()
    else:
        cut = _word_cut(chosen, rejected, shared)
        notes = () if cut else (NO_PROMPT,)
    return chosen[:cut], chosen[cut:], rejected[cut:], notes


def _word_cut(chosen: str, rejected: str, shared: int) -> int:
    """Return the last place up to `shared` that is inside no word and leaves two responses.

    Words are runs without white space. One space before the cut goes to the responses, as in
    TRL's `extract_prompt`: byte-level tokenizers join it to the word that follows.
    """

    def good(cut: int, text: str) -> bool:
        between = cut == 0 or text[cut - 1].isspace() or text[cut : cut + 1].isspace()
        return between and bool(text[cut:].strip())

    for cut in range(shared, 0, -1):
        if good(cut, chosen) and good(cut, rejected):
            return cut - 1 if chosen[cut - 1] == " " else cut
    return 0


def _cut_messages(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Text, Text, Text, tuple[str, ...]]:
    shared = shared_length(chosen, rejected)
    for cut in range(min(shared, len(chosen) - 1, len(rejected) - 1), 0, -1):
        if chosen[cut]["role"] == rejected[cut]["role"] == "assistant":
            several = len(chosen) > cut + 1 or len(rejected) > cut + 1
            notes = (SHARED_TURN,) if several else ()
            return chosen[:cut], chosen[cut:], rejected[cut:], notes
    raise RowError("the two conversations share no message before an assistant message")
