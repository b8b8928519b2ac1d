"""Everyday stories: one hero, one helper, one plot told in order."""

import random

from .grammar import Scene, read_patterns
from .words import NAMES, TOWNS

PLOTS = read_patterns("plots")
PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}
DETAILS = (
    "{hero} was a {kind} {job} who lived near the {place} in {town}.",
    "It was a(n) {weather} day in {month}, and the {place} was {place_look}.",
    "{hero} lived in {town} with {his} {relative} and {number} {animal:s}.",
    "In {town} everyone knew {hero}, the {kind} {job}.",
    "The {place} smelled of {smell}.",
    "Somewhere there was {sound}.",
    "{he} wore a(n) {colour} {clothes} and an old {clothes}.",
    "{he} had to {chore} before {he} could {pastime}.",
    "{his} {relative} used to say that {kind} people are never alone.",
    "{he} could hear {sound} and smell {smell}.",
)
SMALL_TALK = {
    "saw_trouble": ("noticed that something was wrong", "heard about it", "saw {his} face"),
    "they_heard": (
        "they heard {sound}",
        "a(n) {animal} was sleeping",
        "a(n) {job} was selling {fruit:s}",
        "it smelled of {smell}",
    ),
}


def cast(rng: random.Random, lexicon: dict) -> Scene:
    """Opens a scene with a hero, a helper and a town."""
    gender, other = rng.choice(("she", "he")), rng.choice(("she", "he"))
    he, him, his = PRONOUNS[gender]
    phe, phim, phis = PRONOUNS[other]
    hero = rng.choice(NAMES[gender])
    pal = rng.choice([name for name in NAMES[other] if name != hero])
    return Scene(
        rng,
        {**lexicon, **SMALL_TALK},
        hero=hero, he=he, him=him, his=his,
        pal=pal, pal_s=f"{pal}'s", phe=phe, phim=phim, phis=phis,
        town=rng.choice(TOWNS),
    )  # fmt: skip


def _bind(scene: Scene, *names: str) -> None:
    for name in names:
        scene.fixed[name] = scene.draw(name)


def story(rng: random.Random, lexicon: dict, *, stages: int | None = None) -> tuple[str, str]:
    """Tells one story and returns it with a one-sentence gist."""
    scene = cast(rng, lexicon)
    _bind(scene, "treasure", "pet", "pet_name", "event", "relative", "place")
    plot = rng.choice(list(PLOTS))
    *steps, gists = PLOTS[plot]
    if stages:
        middle = sorted(rng.sample(range(1, len(steps) - 1), stages - 2))
        steps = [steps[0], *(steps[i] for i in middle), steps[-1]]
    sentences = []
    if scene.chance(0.35):
        sentences.append(scene.say(rng.choice(DETAILS[:4])))
    for index, step in enumerate(steps):
        sentences.append(scene.pick(step))
        if stages is None and 0 < index < len(steps) - 2 and scene.chance(0.2):
            sentences.append(scene.pick(DETAILS[4:]))
    paragraph = rng.randint(2, len(sentences) - 2) if scene.chance(0.2) and not stages else None
    if paragraph:
        sentences[paragraph] = "\n" + sentences[paragraph]
    text = " ".join(sentences).replace(" \n", "\n")
    return text, scene.pick(gists)
