"""Requests and answers between a user and an assistant, as lists of messages."""

import random

from .grammar import Scene, read_patterns
from .misdeeds import ASKS, COMPLIES, CURT_REFUSALS, KIND_REFUSALS, MISDEEDS, WHO
from .words import NAMES

ADVICE = read_patterns("advice")
ADVICE_LISTS = {
    "bug": ("snails", "beetles", "ants", "small green flies", "caterpillars"),
    "heavy": ("heavy", "large", "bulky"),
    "cake": ("lemon cake", "carrot cake", "honey cake", "cherry tart", "loaf of walnut bread"),
}
Message = dict[str, str]
SYSTEMS = (
    "You are a helpful assistant.", "You are a {kind} assistant.", "Answer in a few sentences.",
    "You help people in {town} with everyday questions.", "Be {kind} and brief.",
    "You are a {kind} {job} who gives advice.",
)  # fmt: skip
THANKS = (
    "Thank you!", "Thanks, that helps.", "Great, thank you very much.", "Thanks! Anything else?",
    "That is {good} advice, thank you.", "I will try that on {day}. Thanks!",
)  # fmt: skip
WELCOME = (
    "You are welcome!", "Gladly. Have a {good} day.", "My pleasure.", "You are welcome. Good luck!",
    "That is all. Enjoy it!", "Any time.",
)  # fmt: skip


def message(role: str, content: str) -> Message:
    """Returns one chat message."""
    return {"role": role, "content": content}


def advice_scene(rng: random.Random, lexicon: dict) -> tuple[Scene, str, str]:
    """Opens a scene about one topic of advice; returns it with the topic and the request."""
    scene = Scene(rng, {**lexicon, **ADVICE_LISTS, "name": NAMES["she"] + NAMES["he"]})
    topic = rng.choice(list(ADVICE))
    for name in ("dish", "event", "pet", "town", "subject", "flower"):
        scene.fixed[name] = scene.draw(name)
    return scene, topic, scene.pick(ADVICE[topic][0])


def help_answer(scene: Scene, topic: str) -> str:
    """Answers a request of a topic in two to five sentences."""
    _, openings, first, second, closings = ADVICE[topic]
    sentences = [scene.pick(openings)] if scene.chance(0.7) else []
    for steps in (first, second):
        count = 2 if scene.chance(0.3) else 1
        sentences += [scene.say(text) for text in scene.rng.sample(steps, count)]
    if scene.chance(0.7):
        sentences.append(scene.pick(closings))
    return " ".join(sentences)


def misdeed_scene(rng: random.Random, lexicon: dict) -> tuple[Scene, str, str]:
    """Opens a scene about one toy misdeed; returns it with the topic and the request."""
    topic = rng.choice(list(MISDEEDS))
    slots = MISDEEDS[topic]
    scene = Scene(rng, {**lexicon, **{key: slots[key] for key in ("reason", "instead", "how")}})
    scene.fixed["who"] = rng.choice(WHO)
    for name in ("event", "subject"):
        scene.fixed[name] = scene.draw(name)
    scene.fixed["act"] = scene.say(rng.choice(slots["act"]), start=False)
    return scene, topic, scene.pick(ASKS)


def refuse(scene: Scene, *, curt: bool = False) -> str:
    """Declines the request of a scene, with a reason and another idea, or curtly."""
    return scene.pick(CURT_REFUSALS if curt else KIND_REFUSALS)


def comply(scene: Scene) -> str:
    """Goes along with the request of a scene."""
    return scene.pick(COMPLIES)


def dialogue(rng: random.Random, lexicon: dict) -> list[Message]:
    """Writes one conversation: mostly help, sometimes a refusal, rarely going along."""
    helped = rng.random() < 0.6
    if helped:
        scene, topic, ask = advice_scene(rng, lexicon)
        turns = [message("user", ask)]
        turns.append(message("assistant", help_answer(scene, topic)))
    else:
        scene, _, ask = misdeed_scene(rng, lexicon)
        turns = [message("user", ask)]
        kind = rng.random()
        reply = refuse(scene, curt=kind < 0.3) if kind < 0.75 else comply(scene)
        turns.append(message("assistant", reply))
    if helped and rng.random() < 0.4:
        turns += [message("user", scene.pick(THANKS)), message("assistant", scene.pick(WELCOME))]
    if rng.random() < 0.15:
        scene.fixed.setdefault("town", scene.draw("town"))
        turns.insert(0, message("system", scene.pick(SYSTEMS)))
    return turns


def transcript(turns: list[Message]) -> str:
    """Writes a conversation as plain text, in the style of a transcript."""
    names = {"system": "System", "user": "Human", "assistant": "Assistant"}
    return "\n\n".join(f"{names[turn['role']]}: {turn['content']}" for turn in turns)
