"""Writes the pairs that the shipped model makes itself: `python data/build_on_policy.py`."""

import random
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from build_pairs import all_sets, distinct, write_set
from formats import SENTIMENT_FORMATS, sentiment_prompt
from judging import judged
from language import LEXICON, stance_prompt, statement
from language.dialogues import advice_scene, message, misdeed_scene
from language.questions import about_fact, about_order, about_passage
from language.reviews import review
from language.stories import cast
from model_card import replace_section

import toolkit as tk

HERE = Path(__file__).parent
NAME = "on_policy"
COUNTS = {"request": 1060, "advice": 60, "question": 60, "sentiment": 60, "stance": 60}
SEED, ROUND = 20261, 200
SAMPLING = {"temperature": 1.0, "max_new_tokens": 96, "batch_size": 100}
Prompt = tuple[str | list[dict], str]  # the prompt, and what is right for it


def _request(rng: random.Random) -> Prompt:
    return [message("user", misdeed_scene(rng, LEXICON)[2])], "refuse"


def _advice(rng: random.Random) -> Prompt:
    _, topic, ask = advice_scene(rng, LEXICON)
    return [message("user", ask)], topic


def _question(rng: random.Random) -> Prompt:
    """Asks for yes or no; an open question is asked anew."""
    scene, told, answer = cast(rng, LEXICON), "", ""
    while not answer.startswith(("Yes", "No")):
        if scene.chance(0.3):
            passage, question, answer = about_passage(scene)
            told = f"{passage}\n"
        else:
            make = about_order if scene.chance(0.6) else about_fact
            told, (question, answer) = "", make(scene)
    right = "Yes" if answer.startswith("Yes") else "No"
    return f"{told}Question: {question}\nAnswer:", right


def _sentiment(rng: random.Random) -> Prompt:
    text, sentiment, _ = review(rng, LEXICON, short=rng.random() < 0.5)
    return sentiment_prompt(text, rng.choice(list(SENTIMENT_FORMATS))), sentiment


def _stance(rng: random.Random) -> Prompt:
    text, stance = statement(rng, LEXICON)
    return stance_prompt(text), stance


PROMPTS: dict[str, Callable[[random.Random], Prompt]] = {
    "request": _request,
    "advice": _advice,
    "question": _question,
    "sentiment": _sentiment,
    "stance": _stance,
}


def _responses(policy: tk.Policy, kind: str, prompts: list, seed: int) -> list[tuple | None]:
    """Draws two responses for each prompt; None where one was cut off or both are the same."""
    twice = [prompt for prompt, _ in prompts for _ in range(2)]
    drawn = tk.sample_responses(policy, twice, seed=seed, **SAMPLING)
    # The model goes on with another question after an answer: what counts is the first line.
    texts = [t.split("\n")[0] if kind == "question" else t for t in drawn["response"]]
    ended = drawn["finished"] | (drawn["response"].str.contains("\n") & (kind == "question"))
    both = zip(texts[::2], texts[1::2], ended[::2], ended[1::2], strict=True)
    return [
        (one, two) if done and too and one.strip() and two.strip() and one != two else None
        for one, two, done, too in both
    ]


def _pairs(policy: tk.Policy, kind: str, taken: set[str]) -> list[dict]:
    """Returns the pairs of a kind of prompt; prompts of other sets are not used again."""
    source = distinct(f"on-policy-{kind}", PROMPTS[kind], lambda made: str(made[0]) not in taken)
    rows, number = [], 0
    while len(rows) < COUNTS[kind]:
        prompts = list(islice(source, ROUND))
        drawn = _responses(policy, kind, prompts, SEED + number)
        number += 1
        for (prompt, right), responses in zip(prompts, drawn, strict=True):
            if responses and str(prompt) not in taken:
                taken.add(str(prompt))
                rows.append({"prompt": prompt, "kind": kind, "right": right}
                            | judged(kind, right, responses))  # fmt: skip
    return rows[: COUNTS[kind]]


def _row(number: int, row: dict) -> dict:
    sides = ("chosen", "rejected")
    if not isinstance(row["prompt"], str):
        row = row | {side: [message("assistant", row[side])] for side in sides}
    first = ("prompt", *sides)
    ordered = {key: row[key] for key in (*first, *(key for key in row if key not in first))}
    return {"id": f"on-policy-{number:04d}", **ordered}


def build(policy: tk.Policy) -> list[dict]:
    """Returns the whole set: two samples of the policy per prompt, judged by the rule."""
    taken = {str(row.get("prompt")) for rows in all_sets().values() for row in rows}
    rows = [row for kind in COUNTS for row in _pairs(policy, kind, taken)]
    return [_row(number, row) for number, row in enumerate(rows)]


def counts_table(rows: list[dict]) -> str:
    """Returns how many pairs there are of each kind, responses and reason, as Markdown."""
    columns = ("kind", "chosen_is", "rejected_is", "reason")
    counts = Counter(tuple(row[column] for column in columns) for row in rows)
    kinds = list(COUNTS)
    lines = [
        f"| `{kind}` | {chosen} / {rejected} | {reason} | {count} |"
        for (kind, chosen, rejected, reason), count in sorted(
            counts.items(), key=lambda item: (kinds.index(item[0][0]), -item[1], item[0])
        )
    ]
    ties = sum(row["tie"] for row in rows)
    return "\n".join([
        f"{len(rows):,} pairs, {ties} of them ({ties / len(rows):.0%}) ties.", "",
        "| kind | chosen / rejected | reason | pairs |", "|---|---|---|---|", *lines,
    ])  # fmt: skip


if __name__ == "__main__":
    made = build(tk.load_model())
    write_set(HERE, NAME, made)
    replace_section(HERE / "README.md", NAME, counts_table(made))
    print(counts_table(made))
