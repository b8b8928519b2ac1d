"""The project's own English: seeded documents in several domains, made from grammar and lists."""

import random

from .dialogues import dialogue, transcript
from .grammar import article
from .notices import notice, summarised
from .qualities import QUALITIES
from .questions import question_text
from .reviews import review
from .stance import answer, stance_prompt, stance_text, statement
from .stories import story
from .tasks import writing_task
from .words import CORE

LEXICON = {**CORE, **QUALITIES}


def _opinion(rng: random.Random) -> str:
    text, sentiment, it = review(rng, LEXICON, short=rng.random() < 0.3)
    style = rng.random()
    if style < 0.12:
        stars = rng.choice((4, 5) if sentiment == "positive" else (1, 2))
        return f"Review: {text}\nStars: {stars}"
    if style < 0.24:
        return f"Review of {article(it)} {it}: {text}"
    return text


def _story(rng: random.Random) -> str:
    return story(rng, LEXICON)[0]


def _question(rng: random.Random) -> str:
    return question_text(rng, LEXICON)


def _stance(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return stance_text(rng, LEXICON)
    text, stance = statement(rng, LEXICON)
    return stance_prompt(text) + answer(rng, stance)


def _dialogue(rng: random.Random) -> list[dict[str, str]] | str:
    turns = dialogue(rng, LEXICON)
    return transcript(turns) if rng.random() < 0.3 else turns


def _summary(rng: random.Random) -> str:
    made = notice(rng, LEXICON) if rng.random() < 0.65 else story(rng, LEXICON, stages=4)
    return summarised(*made, rng)


def _task(rng: random.Random) -> str:
    prompt, text, _ = writing_task(rng, LEXICON)
    return prompt + text


DOMAINS = {
    "opinions": (_opinion, 0.20),
    "stories": (_story, 0.22),
    "questions": (_question, 0.14),
    "stance": (_stance, 0.06),
    "dialogues": (_dialogue, 0.16),
    "summaries": (_summary, 0.10),
    "tasks": (_task, 0.12),
}


def document(seed: str, domain: str | None = None) -> tuple[str, str | list[dict[str, str]]]:
    """Returns the domain and the text (or messages) of the document that `seed` names."""
    rng = random.Random(seed)
    if domain is None:
        names = list(DOMAINS)
        domain = rng.choices(names, [DOMAINS[name][1] for name in names])[0]
    return domain, DOMAINS[domain][0](rng)
