"""Writing tasks: a prompt that says what to write, and a text that does."""

import random

from .grammar import article
from .notices import notice
from .reviews import review
from .stories import story


def writing_task(rng: random.Random, lexicon: dict) -> tuple[str, str, str]:
    """Returns a prompt that ends with a newline, a text that answers it, and the kind of text."""
    topic = rng.choice(("story", "review", "notice"))
    if topic == "story":
        text, gist = story(rng, lexicon, stages=5)
        return f"Write a short story. {gist}\n", text.replace("\n", " "), topic
    if topic == "review":
        text, sentiment, it = review(rng, lexicon)
        return f"Write a {sentiment} review of {article(it)} {it}.\n", text, topic
    text, gist = notice(rng, lexicon)
    return f"Write a notice. {gist}\n", text, topic
