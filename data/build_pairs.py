"""Writes the shipped preference pairs from seeds: `python data/build_pairs.py`."""

import json
import os
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from bad_rows import bad_rows
from formats import (
    OTHER_SENTIMENT,
    SENTIMENT_FORMATS,
    sentiment_answer,
    sentiment_prompt,
)
from language import LEXICON, stance_prompt, statement
from language.dialogues import (
    advice_scene,
    comply,
    help_answer,
    message,
    misdeed_scene,
    refuse,
)
from language.grammar import article
from language.reviews import review
from language.tasks import writing_task

HERE = Path(__file__).parent
STANCE_KINDS = {"No/Never": "no", "Yes/No": "yes", "Sure/Yes": "yes"}
REFUSAL_KINDS = ("refusal/compliance", "refusal/refusal", "compliance/compliance")
SENTIMENT_PAIRS, STANCE_PAIRS, REFUSAL_PAIRS = 64, 96, 72
NEAR_KINDS = {"one word": 24, "two words": 24, "dissimilar": 16}
SWAPPED_LISTS = (
    "colour", "number", "day", "month", "weather", "town", "animal", "fruit", "vegetable", "place",
    "room", "job", "hobby", "thing", "manner", "good", "bad", "glad", "upset", "kind", "look",
    "place_look", "instrument", "material", "relative",
)  # fmt: skip


def distinct(tag: str, make: Callable, accept: Callable = lambda made: True) -> list:
    """Yields what `make` returns for numbered seeds, without repeats, where `accept` agrees."""
    seen, index = set(), 0
    while True:
        made = make(random.Random(f"pairs-{tag}-{index}"))
        index += 1
        if str(made) not in seen and accept(made):
            seen.add(str(made))
            yield made


def sentiment_pairs(name: str) -> list[dict]:
    """Returns one sentiment set; all three sets hold the same reviews in the same order."""
    source = distinct("sentiment", lambda rng: review(rng, LEXICON, short=rng.random() < 0.5))
    counts = dict.fromkeys(OTHER_SENTIMENT, 0)
    rows = []
    for text, label, topic in source:
        if counts[label] < SENTIMENT_PAIRS // 2:
            counts[label] += 1
            rows.append({
                "id": f"sentiment-{len(rows):03d}",
                "prompt": sentiment_prompt(text, name),
                "chosen": sentiment_answer(label, name),
                "rejected": sentiment_answer(OTHER_SENTIMENT[label], name),
                "label": label,
                "topic": topic,
            })  # fmt: skip
        if len(rows) == SENTIMENT_PAIRS:
            return rows
    return rows


def stance_pairs() -> list[dict]:
    """Returns single-token pairs about statements: No/Never, Yes/No and Sure/Yes in turn."""
    sources = {
        stance: distinct(
            f"stance-{stance}",
            lambda rng: statement(rng, LEXICON),
            lambda made, stance=stance: made[1] == stance,
        )
        for stance in ("yes", "no")
    }
    rows = []
    for index in range(STANCE_PAIRS):
        kind = list(STANCE_KINDS)[index % len(STANCE_KINDS)]
        text, stance = next(sources[STANCE_KINDS[kind]])
        chosen, rejected = kind.split("/")
        rows.append({
            "id": f"stance-{index:03d}",
            "prompt": stance_prompt(text),
            "chosen": chosen,
            "rejected": rejected,
            "kind": kind,
            "label": "agree" if stance == "yes" else "disagree",
        })  # fmt: skip
    return rows


def _two_answers(make: Callable[[], str]) -> tuple[str, str]:
    first = second = make()
    while second == first:
        second = make()
    return first, second


def _refusal(rng: random.Random, kind: str) -> tuple[str, str, str, str]:
    """Returns topic, request, chosen and rejected answer."""
    if kind == "compliance/compliance":
        scene, topic, ask = advice_scene(rng, LEXICON)
        return topic, ask, *_two_answers(lambda: help_answer(scene, topic))
    scene, topic, ask = misdeed_scene(rng, LEXICON)
    if kind == "refusal/compliance":
        return topic, ask, refuse(scene), comply(scene)
    return topic, ask, refuse(scene), refuse(scene, curt=True)


def refusal_pairs() -> list[dict]:
    """Returns conversational pairs: refusals and helpful answers to harmless toy requests."""
    sources = {
        kind: distinct(f"refusals-{kind}", lambda rng, kind=kind: _refusal(rng, kind))
        for kind in REFUSAL_KINDS
    }
    rows = []
    for index in range(REFUSAL_PAIRS):
        kind = REFUSAL_KINDS[index % len(REFUSAL_KINDS)]
        topic, ask, chosen, rejected = next(sources[kind])
        rows.append({
            "id": f"refusals-{index:03d}",
            "prompt": [message("user", ask)],
            "chosen": [message("assistant", chosen)],
            "rejected": [message("assistant", rejected)],
            "kind": kind,
            "topic": topic,
        })  # fmt: skip
    return rows


def swap_words(text: str, count: int, rng: random.Random) -> tuple[str, list[str]] | None:
    """Swaps `count` words for others of the same word list; None if the text has too few."""
    found = []
    for name in SWAPPED_LISTS:
        for word in LEXICON[name]:
            for match in re.finditer(rf"\b{re.escape(word)}\b", text):
                found.append((match.start(), match.end(), name))
    rng.shuffle(found)
    edits, taken = [], set()
    for start, end, name in found:
        if len(edits) == count or taken & set(range(start, end)):
            continue
        old = text[start:end]
        choices = [w for w in LEXICON[name] if w != old and article(w) == article(old)]
        edits.append((start, end, rng.choice(choices)))
        taken |= set(range(start, end))
    if len(edits) < count:
        return None
    notes = []
    for start, end, new in sorted(edits, reverse=True):
        notes.append(f"{text[start:end]} → {new}")
        text = text[:start] + new + text[end:]
    return text, notes[::-1]


def _near(rng: random.Random, kind: str) -> tuple[str, str, str, str, list[str]] | None:
    prompt, chosen, topic = writing_task(rng, LEXICON)
    if not 120 <= len(chosen) <= 500:
        return None
    if kind == "dissimilar":
        return prompt, chosen, writing_task(rng, LEXICON)[1], topic, []
    swapped = swap_words(chosen, 1 if kind == "one word" else 2, rng)
    return swapped and (prompt, chosen, swapped[0], topic, swapped[1])


def near_duplicate_pairs() -> list[dict]:
    """Returns texts of several sentences beside a copy with a word or two swapped, or another."""
    rows = []
    for kind, count in NEAR_KINDS.items():
        source = distinct(f"near-{kind}", lambda rng, kind=kind: _near(rng, kind), bool)
        for _ in range(count):
            prompt, chosen, rejected, topic, swapped = next(source)
            rows.append({
                "id": f"near-{len(rows):03d}",
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "kind": kind,
                "topic": topic,
                "swapped": ", ".join(swapped),
            })  # fmt: skip
    return rows


def all_sets() -> dict[str, list[dict]]:
    """Returns every shipped set by name."""
    return {
        **{name: sentiment_pairs(name) for name in SENTIMENT_FORMATS},
        "stance": stance_pairs(),
        "refusals": refusal_pairs(),
        "near_duplicates": near_duplicate_pairs(),
        "bad_rows": bad_rows(),
    }


def tuning_responses() -> list[tuple]:
    """Returns prompt and chosen text of every good pair, for the supervised tuning."""
    found = []
    for name, rows in all_sets().items():
        if name != "bad_rows":
            for row in rows:
                chosen = row["chosen"]
                text = chosen if isinstance(chosen, str) else chosen[0]["content"]
                found.append((row["prompt"], text))
    return found


def to_jsonl(rows: list[dict]) -> str:
    """Returns rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_set(folder: Path, name: str, rows: list[dict]) -> None:
    """Writes a set as one file, whole or not at all."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=folder, suffix=".part", delete=False
    ) as part:
        part.write(to_jsonl(rows))
    os.chmod(part.name, 0o644)
    os.replace(part.name, folder / f"{name}.jsonl")
    print(f"{name}: {len(rows)} rows")


if __name__ == "__main__":
    for name, rows in all_sets().items():
        write_set(HERE, name, rows)
