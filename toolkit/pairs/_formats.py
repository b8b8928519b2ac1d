"""How the columns of a row become prompt, chosen and rejected."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ._columns import drop, known, no_prompt, prompt_columns, rename, text_columns, whole_prompt
from ._files import parse_json
from ._values import LayoutError, Message, RowError, Text, as_text, got, plain, shared_length

IDENTICAL = "chosen and rejected are identical: training needs two different responses"
SHARED_TURN = "prompt cut at the last assistant turn both share"
NO_PROMPT = "chosen and rejected share no beginning: the prompt is empty"
REPEATED = "both responses begin with the prompt, so that it is read twice"
ASSISTANT = "\n\nAssistant:"
MESSAGES_CELL = re.compile(r"""\s*\[\s*\{\s*["'][^"']{1,40}["']\s*:""")
MESSAGE_KEYS = re.compile(r"""["'](role|content)["']\s*:""")


class Split(NamedTuple):
    """One row taken apart."""

    prompt: Text
    chosen: Text
    rejected: Text
    meta: dict[str, Any]
    notes: tuple[str, ...]


Parts = tuple[Text, Text, Text, tuple[str, ...]]  # prompt, chosen, rejected, notes


def split_row(values: Any) -> Split:
    """Return the prompt, both responses and the other columns of one row."""
    if isinstance(values, RowError):
        raise values
    if not isinstance(values, Mapping):
        raise RowError(f"a row must be an object with named columns, got {got(values)}")
    try:
        values = {as_text("name", str(name)): plain(value) for name, value in values.items()}
    except RecursionError:
        raise RowError("a value is nested too deeply to be read") from None
    except ValueError:  # a lone surrogate, or a number that Python refuses to print
        raise RowError("a column's name is no text that can be written") from None
    names = text_columns(values)
    texts = [as_text(name, _cell(name, values[name])) for name in names]
    _refuse_blank(names[-2:], texts[-2:])
    others = {name: value for name, value in values.items() if name not in {*names, "id"}}
    if len(texts) == 3:
        parts = _explicit(names[0], *texts)
        beside = _texts_beside(others, parts[0])
    else:
        spelt = {name: _cell(name, others[name]) for name in known(others)}
        used, parts = _without_prompt(others | spelt, *texts)
        others.pop(used, None)
        beside = ()
    prompt, chosen, rejected, notes = parts
    _refuse_blank(("chosen response", "rejected response"), (chosen, rejected))
    if chosen == rejected:
        raise RowError(IDENTICAL)
    return Split(prompt, chosen, rejected, others, notes + beside)


def _texts_beside(others: Mapping[str, Any], prompt: Text) -> tuple[str, ...]:
    """Return a note for each column of text that says prompt, where there is another one."""
    return tuple(
        f"column {name!r} is not part of the prompt"
        for name in known(_left_over(others, prompt))
        if isinstance(others[name], str) and not MESSAGES_CELL.match(others[name])
    )


def _cell(name: str, value: Any) -> Any:
    """Return the messages that a cell of text spells as JSON, else the cell as it is."""
    if not (isinstance(value, str) and MESSAGES_CELL.match(value) and MESSAGE_KEYS.search(value)):
        return value
    try:
        read = parse_json(value)
    except json.JSONDecodeError:
        raise RowError(
            f"{name} looks like a list of messages but is not JSON; write such cells with "
            "json.dumps, or use .jsonl or .parquet"
        ) from None
    except RowError as error:
        raise RowError(f"{name}: {error}") from None
    return read


def _refuse_blank(names: Sequence[str], texts: Sequence[Text]) -> None:
    for name, text in zip(names, texts, strict=True):
        if not _said(text).strip():
            raise RowError(f"{name} is empty")


def _said(text: Text) -> str:
    return text if isinstance(text, str) else "\n".join(m["content"] for m in text)


def _left_over(others: Mapping[str, Any], prompt: Text) -> list[str]:
    """Return the columns that may be a prompt and whose words the prompt does not hold."""
    said, left = _said(prompt), []
    for name, text in prompt_columns(others).items():
        messages = () if isinstance(text, str) else text
        asked = [m["content"] for m in messages if m.get("role") != "assistant"]
        parts = [text] if isinstance(text, str) else asked
        if any(part.strip() not in said for part in parts):
            left.append(name)
    return left


def _without_prompt(
    others: Mapping[str, Any], chosen: Text, rejected: Text
) -> tuple[str | None, Parts]:
    """Return the column that is the prompt, where one is, and the row taken apart."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("chosen and rejected must both be text or both lists of messages")
    columns = prompt_columns(others)
    if not isinstance(chosen, str):
        return _without_prompt_messages(columns, chosen, rejected)
    if _transcripts(chosen, rejected):
        parts = _cut_transcripts(chosen, rejected)
        _refuse_lost(others, parts[0])
        return None, parts
    name, parts = whole_prompt(others, columns), _cut_text(chosen, rejected)
    if name is None:
        left = _left_over(others, parts[0])
        if left:
            raise LayoutError(no_prompt(left))
        return None, parts
    if name not in _left_over(others, parts[0]):
        raise LayoutError(
            f"there is no column 'prompt', and both responses hold the text of {name!r}: to read "
            f"it once, {drop([name])}; to read it as the prompt before them, "
            f"{rename({name: 'prompt'})}"
        )
    return name, _explicit(name, as_text(name, columns[name]), chosen, rejected)


def _without_prompt_messages(
    columns: Mapping[str, Text], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[str | None, Parts]:
    answers = all(text[0]["role"] == "assistant" for text in (chosen, rejected))
    names = known(columns)
    asked = columns[names[0]] if len(names) == 1 else ""
    if answers and not isinstance(asked, str) and asked[-1].get("role") != "assistant":
        return names[0], _explicit(names[0], as_text(names[0], asked), chosen, rejected)
    if answers and columns:
        raise LayoutError(
            "chosen and rejected begin with an assistant message, and there is no column "
            f"'prompt'; give it as messages, for example {_as_messages(next(iter(columns)))}"
        )
    parts = _cut_messages(chosen, rejected)
    _refuse_lost(columns, parts[0])
    return None, parts


def _as_messages(name: str) -> str:
    column = json.dumps(name, ensure_ascii=False)
    return f'df["prompt"] = [[{{"role": "user", "content": text}}] for text in df[{column}]]'


def _refuse_lost(others: Mapping[str, Any], prompt: Text) -> None:
    lost = known(_left_over(others, prompt))
    if lost:
        raise LayoutError(
            f"column {lost[0]!r} is not in the prompt that chosen and rejected both begin with; "
            f"put it there, or leave it out: {drop(lost)}"
        )


def _explicit(name: str, prompt: Text, chosen: Text, rejected: Text) -> Parts:
    kinds = [isinstance(text, str) for text in (prompt, chosen, rejected)]
    if all(kinds):
        begins = prompt.strip()
        twice = begins and all(text.lstrip().startswith(begins) for text in (chosen, rejected))
        return prompt, chosen, rejected, (REPEATED,) if twice else ()
    if kinds == [True, False, False]:  # text beside two whole conversations that hold it
        return _cut_beside_text(name, prompt, chosen, rejected)
    if any(kinds):
        raise RowError(f"{name}, chosen and rejected must all be text or all lists of messages")
    if not prompt:
        raise RowError(f"{name} is an empty list of messages")
    chosen, rejected = (
        text[len(prompt) :] if text[: len(prompt)] == prompt else text
        for text in (chosen, rejected)
    )
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        if text and text[0]["role"] != "assistant":
            raise RowError(
                f"{side} must go on with an assistant message after the prompt, "
                f"got role {text[0]['role']!r}"
            )
    return prompt, chosen, rejected, ()


def _cut_beside_text(
    name: str, prompt: str, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> Parts:
    if all(text[0]["role"] == "assistant" for text in (chosen, rejected)):
        raise LayoutError(
            f"{name} is text and the responses are messages; give it as messages: "
            f"{_as_messages(name)}"
        )
    parts = _cut_messages(chosen, rejected)
    if parts[0][-1]["content"] != prompt:
        raise RowError(f"{name} is text that the messages of chosen and rejected do not repeat")
    return parts


def _transcripts(*texts: str) -> bool:
    human = all(text.lstrip().startswith("Human:") for text in texts)
    return human and any(ASSISTANT in text for text in texts)


def _cut_transcripts(chosen: str, rejected: str) -> Parts:
    start = chosen.rfind(ASSISTANT, 0, shared_length(chosen, rejected))
    if start < 0:
        raise RowError(f"the two transcripts share no assistant turn ({ASSISTANT!r})")
    cut = start + len(ASSISTANT)
    several = any(ASSISTANT in text[cut:] for text in (chosen, rejected))
    return chosen[:cut], chosen[cut:], rejected[cut:], (SHARED_TURN,) if several else ()


def _cut_text(chosen: str, rejected: str) -> Parts:
    """Cut at the last place that is inside no word and leaves two responses.

    Words are runs without white space. One space before the cut goes to the responses, as in
    TRL's `extract_prompt`: byte-level tokenizers join it to the word that follows.
    """

    def between(cut: int, text: str) -> bool:
        return text[cut - 1].isspace() or text[cut : cut + 1].isspace()

    last = min(len(chosen.rstrip()), len(rejected.rstrip())) - 1
    for cut in range(min(shared_length(chosen, rejected), last), 0, -1):
        if between(cut, chosen) and between(cut, rejected):
            cut -= chosen[cut - 1] == " "
            notes = () if chosen[:cut].strip() else (NO_PROMPT,)
            return chosen[:cut], chosen[cut:], rejected[cut:], notes
    return "", chosen, rejected, (NO_PROMPT,)


def _cut_messages(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> Parts:
    shared = shared_length(chosen, rejected)
    for cut in range(min(shared, len(chosen) - 1, len(rejected) - 1), 0, -1):
        if chosen[cut]["role"] == rejected[cut]["role"] == "assistant":
            several = len(chosen) > cut + 1 or len(rejected) > cut + 1
            notes = (SHARED_TURN,) if several else ()
            return chosen[:cut], chosen[cut:], rejected[cut:], notes
    raise RowError("the two conversations share no message before an assistant message")
