"""Local news and notices, each with a short summary."""

import random

from .grammar import Scene, read_patterns

NEWS = read_patterns("news")
EXTRA = {
    "trouble": ("a leaking roof", "broken windows", "a flood in the cellar", "a small fire",
                "old wiring", "a fallen tree", "cracks in the wall", "a nest of bees"),
    "shop": ("bakery", "tea room", "cafe", "bookshop", "bistro", "ice cream parlour", "pizzeria",
             "soup kitchen", "restaurant", "sandwich shop"),
    "wind": ("north", "south", "east", "west"),
    "fled": ("escaped", "ran away"),
    "date": tuple(str(n) for n in range(1, 29)),
}  # fmt: skip
LABELS = ("Summary:", "TL;DR:", "In short:")


def notice(rng: random.Random, lexicon: dict) -> tuple[str, str]:
    """Writes one notice and returns it with its summary."""
    scene = Scene(rng, {**lexicon, **EXTRA})
    for name in ("event", "town", "day", "date", "month", "trouble", "animal", "hobby", "shop",
                 "place", "building", "job", "weather"):  # fmt: skip
        scene.fixed[name] = scene.draw(name)
    title = rng.choice(("Mr", "Mrs", "Ms", "Dr"))
    scene.fixed["surname_s"] = f"{title} {scene.draw('surname')}"
    starts, middles, summaries = rng.choice(list(NEWS.values()))
    body = [scene.say(text) for text in rng.sample(middles, rng.randint(2, 4))]
    return " ".join([scene.pick(starts), *body]), scene.pick(summaries)


def summarised(text: str, summary: str, rng: random.Random) -> str:
    """Joins a text and its summary into one document."""
    return f"{text}\n\n{rng.choice(LABELS)} {summary}"
