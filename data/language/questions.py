"""Yes/no and open questions with answers that are right for the text or the fact."""

import random

from .grammar import Scene, article
from .knowledge import FACTS, LIGHT_TO_HEAVY, SLOW_TO_FAST, SMALL_TO_LARGE, WEEK, YEAR
from .stories import cast

YES = ("Yes, {fact}.", "Yes. {fact:cap}.", "Yes.", "Yes, it does. {fact:cap}.")
NO = ("No, {fact}.", "No. {fact:cap}.", "No.", "No, that is not right. {fact:cap}.")
FRAMES = ("Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "{q}\n{a}", '"{q}" "{a}"')


def _yes_no(scene: Scene, question: str, truth: bool, fact: str) -> tuple[str, str]:
    scene.fixed["fact"] = fact
    template = scene.rng.choice(YES if truth else NO)
    if "it does" in template and not question.startswith("Does"):
        template = "Yes. {fact:cap}."
    return question, scene.say(template)


def about_fact(scene: Scene) -> tuple[str, str]:
    """Asks what a thing is, does, or where it is found; sometimes about the wrong thing."""
    name, kind, does, where = scene.rng.choice(FACTS)
    a = "" if name in MASS else f"{article(name)} "
    the = {"sun": "the ", "moon": "the "}.get(name, a)
    style = scene.rng.choice((0, 2, 4)) if kind == "a season" else scene.rng.randrange(5)
    if style == 0:
        question = f"What is {the}{name}?"
        extra = scene.rng.choice((f" It {does}.", f" It {does}. You find it {where}.", ""))
        if extra and kind in PEOPLE:
            extra = f" This person {does}."
        return question, f"{the}{name} is {kind}.{extra}"
    if style == 1:
        return f"Where can you find {the}{name}?", f"You can find {the}{name} {where}."
    other = scene.rng.choice(FACTS)
    wrong = scene.chance(0.5) and other[1] != kind
    if style == 2:
        asked = other[1] if wrong else kind
        return _yes_no(scene, f"Is {the}{name} {asked}?", not wrong, f"{the}{name} is {kind}")
    if style == 3:
        asked = other[3] if wrong else where
        question = f"Would you look for {the}{name} {asked}?"
        return _yes_no(scene, question, not wrong, f"you can find {the}{name} {where}")
    options = sorted({name, *(row[0] for row in scene.rng.sample(FACTS, 2))})
    scene.rng.shuffle(options)
    question = f"What {does}: {', '.join(options[:-1])} or {options[-1]}?"
    return question, f"{the}{name} {does}."


MASS = {"honey", "cheese", "bread", "salt", "butter", "wool", "silk", "leather", "glass", "paper",
        "iron", "copper", "gold", "winter", "summer", "lavender"}  # fmt: skip
PEOPLE = {"a person", "a doctor", "a scientist"}


def about_order(scene: Scene) -> tuple[str, str]:
    """Compares two things by size, speed, weight or place in the calendar."""
    scale, word, back = scene.rng.choice((
        (SMALL_TO_LARGE, "bigger", "smaller"), (SLOW_TO_FAST, "faster", "slower"),
        (LIGHT_TO_HEAVY, "heavier", "lighter"), (WEEK, "after", "before"),
        (YEAR, "later in the year", "earlier in the year"),
    ))  # fmt: skip
    i, j = scene.rng.sample(range(len(scale)), 2)
    left, right = scale[i], scale[j]
    truth = i > j
    named = scale in (WEEK, YEAR)
    first, second = (
        (left, right) if named else (f"{article(left)} {left}", f"{article(right)} {right}")
    )
    if scale is WEEK:
        question = f"Does {first} come {word} {second} in the week?"
        return _yes_no(scene, question, truth, f"{first} comes {word if truth else back} {second}")
    than = "than "
    question = f"Is {first} {word} {than}{second}?"
    return _yes_no(scene, question, truth, f"{first} is {word if truth else back} {than}{second}")


def about_passage(scene: Scene) -> tuple[str, str, str]:
    """Tells two or three sentences and asks about one of them."""
    for name in ("place", "thing", "day", "animal", "colour", "dish", "number", "hobby", "job"):
        scene.fixed[name] = scene.draw(name)
    told = [
        (
            "{hero} went to the {place} on {day}.",
            ("Did {hero} go to the {place}?", "Did {hero} go to the {place} on {other_day}?"),
            ("{he} went there on {day}", "{he} went there on {day}"),
        ),
        (
            "{he} bought a(n) {colour} {thing} for {pal}.",
            ("Did {hero} buy a(n) {thing}?", "Was the {thing} {other_colour}?"),
            ("{he} bought a(n) {colour} {thing}", "the {thing} was {colour}"),
        ),
        (
            "{pal} works as a(n) {job} and loves {hobby}.",
            ("Does {pal} love {hobby}?", "Does {pal} work as a(n) {other_job}?"),
            ("{pal} loves {hobby}", "{pal} works as a(n) {job}"),
        ),
        (
            "They saw {number} {animal:s} and ate {dish}.",
            ("Did they see {animal:s}?", "Did they see {other_number} {animal:s}?"),
            ("they saw {number} {animal:s}", "they saw {number} {animal:s}"),
        ),
    ]
    for name in ("day", "colour", "job", "number"):
        scene.fixed[f"other_{name}"] = next(
            word for word in scene.rng.sample(scene.lexicon[name], 3) if word != scene.fixed[name]
        )
    kept = sorted(scene.rng.sample(range(4), scene.rng.randint(2, 3)))
    if kept[0] != 0 and 1 in kept:
        kept.insert(0, 0)
    passage = " ".join(scene.say(told[i][0]) for i in kept)
    asked = told[scene.rng.choice(kept)]
    truth = scene.chance(0.5)
    fact = scene.say(asked[2][0 if truth else 1], start=False)
    question, answer = _yes_no(scene, scene.say(asked[1][0 if truth else 1]), truth, fact)
    return passage, question, answer.replace("it does. ", "that is right. ")


def question_text(rng: random.Random, lexicon: dict) -> str:
    """Writes one document of questions: on a passage, or a few facts and comparisons."""
    scene = cast(rng, lexicon)
    if scene.chance(0.45):
        passage, question, answer = about_passage(scene)
        frame = rng.choice(FRAMES[:3])
        return f"{passage}\n{frame.format(q=question, a=answer)}"
    frame = rng.choice(FRAMES)
    blocks = []
    for _ in range(rng.randint(1, 3)):
        question, answer = about_fact(scene) if scene.chance(0.6) else about_order(scene)
        answer = answer[:1].upper() + answer[1:]
        blocks.append(frame.format(q=question, a=answer))
    return "\n".join(blocks)
