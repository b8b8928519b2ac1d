"""Opinions on products, films, books, restaurants and more; the sentiment never wavers."""

import random

from .grammar import Scene, read_patterns
from .review_words import NOUNS, START_OF
from .words import CORE


def _parse(row: str) -> tuple[str, list[str], list[str]]:
    part, good, bad = row.split(" | ")
    return part, good.split(";"), bad.split(";")


PARTS = {kind: [_parse(row) for row in rows] for kind, [rows] in read_patterns("parts").items()}
STARTS = {name: starts for name, [starts] in read_patterns("starts").items()}

OVERALL = {
    "positive": (
        "It is {very} {good}",
        "What a(n) {good} {it}",
        "I {love} it [from the first minute|at once|more than I expected]",
        "It has been {good} [in every way|from day one|so far]",
        "It [exceeded|was better than] all my expectations",
        "Everyone [in my family|at the table|I know] {love} it",
        "[Honestly|Simply put|In short], it is {good} and {good}",
        "I have [nothing but praise|only kind words] for it",
        "It made me [smile|happy|forget the time]",
        "A(n) {good} {it} with a(n) {good} touch",
    ),
    "negative": (
        "It is {very} {bad}",
        "What a(n) {bad} {it}",
        "I {hate} it [from the first minute|at once|more than I can say]",
        "It has been {bad} [in every way|from day one|so far]",
        "It [failed|was worse than] all my expectations",
        "Everyone [in my family|at the table|I know] {hate} it",
        "[Honestly|Simply put|In short], it is {bad} and {bad}",
        "I have [nothing but complaints|no kind words] for it",
        "It made me [angry|sad|want to leave]",
        "A(n) {bad} {it} with a(n) {bad} touch",
    ),
}
CONTRAST = {
    "positive": ("{bad_part}, but [that is a small thing|I can live with that|I hardly notice]",
                 "My only complaint is a small one: {bad_part_low}",
                 "I was worried at first, but I need not have been"),
    "negative": ("{good_part}, but [that is not enough|that does not save it|little else works]",
                 "The only good thing I can say is this: {good_part_low}",
                 "I wanted to like it, but I could not"),
}  # fmt: skip
VERDICTS = {
    "positive": (
        "I would [gladly|happily] [recommend it|choose it again|tell everyone about it]",
        "[Worth every penny|Five stars from me|Highly recommended]",
        "[We will|I will] [certainly|definitely|surely] be back for more",
        "If you [can|get the chance], [try it|do not miss it]",
        "My {relative} wants one too",
        "It is the best {it} I have [known|tried|come across] in years",
    ),
    "negative": (
        "I would [never|not] [recommend it|choose it again|wish it on anyone]",
        "[Not worth a penny|One star from me|Avoid it]",
        "[We will|I will] [certainly|definitely|surely] not be back",
        "If you [can|value your time], [stay away|spend your money elsewhere]",
        "I [asked for|want] my money back",
        "It is the worst {it} I have [known|tried|come across] in years",
    ),
}
REASONS = {
    "positive": ("because it [makes life easier|never lets me down|brings joy to the whole family]",
                 "which is [rare|a nice surprise] [these days|at this price]",
                 "and I [smile every time|was grateful for it|keep telling my {relative}]"),
    "negative": ("because it [makes life harder|always lets me down|annoys the whole family]",
                 "which is [a shame|unacceptable] [these days|at this price]",
                 "and I [sigh every time|was sorry I came|keep warning my {relative}]"),
}  # fmt: skip
OPPOSITE = {"positive": "negative", "negative": "positive"}


def _part(scene: Scene, parts: list, sentiment: str) -> str:
    part, good, bad = parts.pop()
    predicate = scene.rng.choice(good if sentiment == "positive" else bad)
    return scene.say(f"{part} {predicate}")


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _parts_sentence(scene: Scene, parts: list, sentiment: str) -> str:
    first = _part(scene, parts, sentiment)
    style = scene.rng.random()
    if style < 0.4 and parts:
        second = _part(scene, parts, sentiment)
        joint = scene.rng.choice((" and ", ", and ", "; also, ", ", while "))
        return f"{first}{joint}{_lower(second)}"
    if style < 0.6:
        return f"{first}, {scene.say(scene.rng.choice(REASONS[sentiment]), start=False)}"
    return first


def review(rng: random.Random, lexicon: dict, *, short: bool = False) -> tuple[str, str, str]:
    """Writes one opinion and returns its text, its sentiment and what is reviewed."""
    kind = rng.choice(list(NOUNS))
    sentiment = rng.choice(("positive", "negative"))
    scene = Scene(rng, lexicon, it=rng.choice(NOUNS[kind]), town=rng.choice(CORE["town"]))
    parts = PARTS[kind][:]
    rng.shuffle(parts)
    sentences = []
    if not short or scene.chance(0.5):
        sentences.append(scene.pick(STARTS[START_OF[kind]]))
    if scene.chance(0.5 if short else 0.75):
        sentences.append(scene.pick(OVERALL[sentiment]))
    for _ in range(1 if short else rng.randint(1, 3)):
        if len(parts) < 2:
            break
        sentences.append(_parts_sentence(scene, parts, sentiment))
    if parts and not short and scene.chance(0.3):
        other = _part(scene, parts, OPPOSITE[sentiment])
        slot = "bad_part" if sentiment == "positive" else "good_part"
        scene.fixed[slot] = other
        scene.fixed[f"{slot}_low"] = _lower(other)
        sentences.append(scene.pick(CONTRAST[sentiment]))
    if scene.chance(0.3 if short else 0.7):
        sentences.append(scene.pick(VERDICTS[sentiment]))
    end = "!" if scene.chance(0.1) else "."
    return ". ".join(sentences) + end, sentiment, scene.fixed["it"]
