"""Which columns of a row hold the prompt and the two responses, and what to type where none do."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from toolkit.checks import shown

from ._values import LayoutError, RowError, Text

PERSONA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
TEXT_COLUMNS = ("prompt", "chosen", "rejected")
# Names that hold a whole prompt wherever they stand alone, and names of a part of one.
WHOLE = {"instruction", "question", "query", "input", "problem", "messages"}
WHOLE |= {"prompt_text", "user_prompt", "user_query", "user_input"}
PARTS = {"system", "system_prompt", "system_message", "context", "history"}
PARTS |= {"conversation", "conversations", "dialogue"}
RESPONSES = (
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("answer_chosen", "answer_rejected"),
    ("preferred", "dispreferred"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_response", "dispreferred_response"),
    ("accepted", "rejected"),
    ("winner", "loser"),
    ("better", "worse"),
    ("good", "bad"),
)
SEVERAL = {"answers", "responses", "completions", "generations", "outputs", "candidates"}
LABEL = re.compile(r"[\w.:/@+-]+", re.ASCII)  # ids, sources, topics: text that asks nothing


def rename(names: Mapping[str, str]) -> str:
    """Return the line that gives columns of a DataFrame their names here."""
    return f"df.rename(columns={json.dumps(names, ensure_ascii=False)})"


def text_columns(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns to read: persona's, TRL's three, or the two responses alone.

    Raises:
        RowError: One of them is missing, or another one looks like a misspelt prompt.
    """
    persona = any(name.startswith(("answer_match", "answer_not_match")) for name in values)
    names = PERSONA if persona and not {"chosen", "rejected"} & set(values) else TEXT_COLUMNS
    if names == TEXT_COLUMNS and "prompt" not in values:
        names = TEXT_COLUMNS[1:]
    for name in names:
        if name not in values:
            raise LayoutError(_missing(name, values, names))
    if len(names) == 2:
        _refuse_misspelt_prompt(values)
    return names


def _refuse_misspelt_prompt(values: Iterable[str]) -> None:
    for name in values:
        # 0.82 catches 'promt', 'Prompt ' and 'propmt', and lets 'prompt_id' (0.80) be.
        if difflib.SequenceMatcher(None, _folded(name), "prompt").ratio() >= 0.82:
            raise LayoutError(
                f"column {shown(name)} looks like a misspelt 'prompt'; rename it: "
                f"{rename({name: 'prompt'})}"
            )


def _folded(name: str) -> str:
    return name[:80].strip().lower()


def _missing(name: str, values: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return what to type where a column is missing, for the forms that data come in."""
    folded = {_folded(other): other for other in values if other not in names}
    said = f"column {name!r} is missing; the columns are {shown(list(values), 200)}; "
    for chosen, rejected in RESPONSES:
        found = {folded.get(chosen, chosen): "chosen", folded.get(rejected, rejected): "rejected"}
        if set(found) <= set(values):
            return said + rename({old: new for old, new in found.items() if old != new})
    if {"completion", "label"} <= set(folded):
        return said + (
            "these are unpaired rows (KTO's form): a pair needs a chosen and a rejected response "
            "to one prompt, so join the rows labelled True and False by their prompt, for example "
            'df[df.label].merge(df[~df.label], on="prompt", suffixes=("_chosen", "_rejected"))'
        )
    several = [other for key, other in folded.items() if key in SEVERAL]
    if several or any(re.fullmatch(r"(response|answer|output)_(\d|[ab])", n) for n in folded):
        return said + (
            "these rows hold several responses: say which two are compared, for example "
            'df["chosen"] = the best one and df["rejected"] = the worst one, as text'
        )
    close = difflib.get_close_matches(name, folded, n=1)
    if close:
        return said + f"did you mean {folded[close[0]]!r}? {rename({folded[close[0]]: name})}"
    return said + f"rename the one that holds it: {rename({'its name': name})}"


def prompt_columns(values: Mapping[str, Any]) -> dict[str, Text]:
    """Return the columns beside chosen and rejected that hold text or messages to be answered.

    Ids, sources and other labels of one word are none, unless their name says prompt.
    """
    found = {}
    for name, value in values.items():
        key = _folded(name)
        if key in ("id", "prompt") or key.startswith(("chosen", "rejected")):
            continue
        if isinstance(value, str) and value.strip():
            if known([name]) or not LABEL.fullmatch(value.strip()):
                found[name] = value
        elif known([name]) and isinstance(value, list):
            contents = [v.get("content") if isinstance(v, Mapping) else None for v in value]
            if contents and all(isinstance(content, str) for content in contents):
                found[name] = tuple(value)
    return found


def known(names: Iterable[str]) -> list[str]:
    """Return those of the names that say prompt, or a part of one."""
    return [name for name in names if _folded(name) in WHOLE | PARTS]


def whole_prompt(values: Mapping[str, Any], columns: Mapping[str, Text]) -> str | None:
    """Return the name of the one column that is the prompt; None where no name says so.

    Raises:
        LayoutError: There are several, or one that is a part, or it is empty.
    """
    names = known(columns)
    empty = [name for name in known(values) if _folded(name) in WHOLE]
    if not names and empty:
        raise RowError(f"{empty[0]} is empty, and there is no other prompt")
    if not names:
        return None
    if len(names) > 1:
        joined = ' + "\\n\\n" + '.join(f"df[{json.dumps(name)}]" for name in names)
        raise LayoutError(
            f"there is no column 'prompt', and {_listed(names)} may all be parts of it; say how "
            f'they are joined: df["prompt"] = {joined}'
        )
    if _folded(names[0]) in WHOLE:
        return names[0]
    raise LayoutError(no_prompt(names))


def no_prompt(names: list[str]) -> str:
    """Return what to type where columns are left over and none of them is the prompt for sure."""
    return (
        f"there is no column 'prompt', and {_listed(names)} would not be read; if it is the "
        f"prompt: {rename({names[0]: 'prompt'})}; if it is not: {drop(names)}"
    )


def drop(names: list[str]) -> str:
    """Return the line that leaves columns of a DataFrame out."""
    return f"df.drop(columns={json.dumps(names, ensure_ascii=False)})"


def _listed(names: list[str]) -> str:
    return f"column{'s' * (len(names) > 1)} {' and '.join(shown(name) for name in names)}"
