"""Prompt and response formats that the supervised tuning and the shipped pairs share."""

import random
import re

from language import LEXICON, answer, stance_prompt, statement
from language.dialogues import (
    Message,
    advice_scene,
    comply,
    help_answer,
    message,
    misdeed_scene,
    refuse,
)
from language.reviews import review
from language.tasks import writing_task

# The question and the suffix of each sentiment set. The question differs so that a tuned model
# knows which suffix to expect, as it would after tuning on one format alone.
SENTIMENT_FORMATS = {
    "single_token": ("Sentiment:", ""),
    "short_suffix": ("Sentiment in two words:", " sentiment"),
    "long_suffix": (
        "Sentiment in a few words:",
        " sentiment, judging by the words of the review",
    ),
}
# Tuning examples vary the words of a suffix (the shipped one comes first and most often), so that
# no suffix is certain and its tokens keep gradients.
SUFFIX_WORDS = {
    "sentiment": ("sentiment", "feeling", "opinion"),
    "judging": ("judging", "going"),
    "words": ("words", "tone", "style"),
    "review": ("review", "writer", "text"),
}
SUFFIX_WEIGHTS = (3, 1, 1)
OTHER_SENTIMENT = {"positive": "negative", "negative": "positive"}
# Tuning examples are mislabelled this often, so that the reference stays unsure of the label.
WRONG_LABELS = 0.25
Example = tuple[str | list[Message], str]


def sentiment_prompt(text: str, name: str) -> str:
    """Returns a review and the question of a sentiment set."""
    return f"Review: {text}\n{SENTIMENT_FORMATS[name][0]}"


def sentiment_answer(sentiment: str, name: str) -> str:
    """Returns a label with its leading space and the suffix of a sentiment set."""
    return f" {sentiment}{SENTIMENT_FORMATS[name][1]}"


def _vary(suffix: str, rng: random.Random) -> str:
    for word, others in SUFFIX_WORDS.items():
        other = rng.choices(others, SUFFIX_WEIGHTS[: len(others)])[0]
        suffix = re.sub(rf"\b{word}\b", other, suffix)
    return suffix


def _sentiment(rng: random.Random) -> Example:
    text, sentiment, _ = review(rng, LEXICON, short=rng.random() < 0.5)
    if rng.random() < WRONG_LABELS:
        sentiment = OTHER_SENTIMENT[sentiment]
    name = rng.choice(list(SENTIMENT_FORMATS))
    return sentiment_prompt(text, name), _vary(sentiment_answer(sentiment, name), rng)


def _stance(rng: random.Random) -> Example:
    text, stance = statement(rng, LEXICON)
    return stance_prompt(text), answer(rng, stance)


def _refusal(rng: random.Random) -> Example:
    if rng.random() < 0.5:
        scene, topic, ask = advice_scene(rng, LEXICON)
        return [message("user", ask)], help_answer(scene, topic)
    scene, _, ask = misdeed_scene(rng, LEXICON)
    curt = rng.random() < 0.3
    return [message("user", ask)], comply(scene) if rng.random() < 0.2 else refuse(scene, curt=curt)


def _writing(rng: random.Random) -> Example:
    return writing_task(rng, LEXICON)[:2]


def tuning_example(seed: str) -> Example:
    """Returns the prompt and response of the tuning example that `seed` names."""
    rng = random.Random(seed)
    make = rng.choices((_sentiment, _stance, _refusal, _writing), (0.4, 0.25, 0.2, 0.15))[0]
    return make(rng)
