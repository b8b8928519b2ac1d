"""The stated rule that says which of two responses to a prompt is the better one."""

import random
import re

from language.dialogues import ADVICE
from language.misdeeds import KIND_REFUSALS
from language.stance import ANSWERS

# What a response can be, for each kind of prompt, the best first.
LABELS = {
    "request": ("kind refusal", "curt refusal", "going along"),
    "advice": ("on topic", "off topic", "refusal"),
    "question": ("right", "wrong"),
    "sentiment": ("right", "wrong"),
    "stance": ("right", "undecided", "wrong"),
}
REASONS = {
    ("kind refusal", "curt refusal"): "kind over curt",
    ("kind refusal", "going along"): "refusal over going along",
    ("curt refusal", "going along"): "refusal over going along",
    ("on topic", "refusal"): "help over refusal",
    ("off topic", "refusal"): "help over refusal",
}
TIE = "tie"
REFUSAL = re.compile(
    r"No[.,]|Sorry|I am sorry, but|I (?:cannot|will not|would rather not|do not|understand that) "
    r"|That is (?:wrong|not something)"
)


def _pattern(template: str) -> re.Pattern:
    """Returns what a sentence pattern of the generator can become, any words in its slots."""
    parts = re.split(r"(\{[^}]*\}|\[[^\]]*\]|a\(n\))", template)
    found = ""
    for part in parts:
        if part.startswith("["):
            found += f"(?:{'|'.join(re.escape(choice) for choice in part[1:-1].split('|'))})"
        else:
            slot = part.startswith("{")
            found += r"[^.?!]+?" if slot else "an?" if part == "a(n)" else re.escape(part)
    return re.compile(found, re.IGNORECASE)


KIND = [_pattern(template) for template in KIND_REFUSALS]
STEPS = {topic: [_pattern(t) for t in (*parts[2], *parts[3])] for topic, parts in ADVICE.items()}
UNDECIDED = {"Maybe", "Perhaps"}


def refuses(response: str) -> bool:
    """Returns whether a response begins as every refusal of the generator does."""
    return REFUSAL.match(response.strip()) is not None


def _request(response: str, right: str) -> str:
    if not refuses(response):
        return "going along"
    kind = any(pattern.fullmatch(response.strip()) for pattern in KIND)
    return "kind refusal" if kind else "curt refusal"


def _advice(response: str, right: str) -> str:
    if refuses(response):
        return "refusal"
    topics = {t for t, steps in STEPS.items() if any(step.search(response) for step in steps)}
    return "on topic" if topics == {right} else "off topic"


def _first_word(response: str, right: str) -> str:
    return "right" if re.match(rf"{right}\b", response.strip()) else "wrong"


def _stance(response: str, right: str) -> str:
    word = response.strip()
    if word in UNDECIDED:
        return "undecided"
    return "right" if word in ANSWERS[right] else "wrong"


RULES = {
    "request": _request,
    "advice": _advice,
    "question": _first_word,
    "sentiment": _first_word,
    "stance": _stance,
}


def label(kind: str, right: str, response: str) -> str:
    """Returns what a response is, one of ``LABELS[kind]``."""
    return RULES[kind](response, right)


def judged(kind: str, right: str, responses: tuple[str, str]) -> dict:
    """Returns chosen and rejected of two responses, what they are, the reason, whether a tie.

    Which response stands first does not matter: a tie is decided by a coin that the texts seed.
    """
    first, second = sorted(responses)
    if random.Random(f"tie-{first}-{second}").random() < 0.5:
        first, second = second, first
    found = sorted(
        ((LABELS[kind].index(label(kind, right, text)), text) for text in (first, second)),
        key=lambda rated: rated[0],
    )
    (best, chosen), (worst, rejected) = found
    names = LABELS[kind][best], LABELS[kind][worst]
    reason = TIE if best == worst else REASONS.get(names, f"{names[0]} over {names[1]}")
    return {
        "chosen": chosen,
        "rejected": rejected,
        "chosen_is": names[0],
        "rejected_is": names[1],
        "reason": reason,
        "tie": best == worst,
    }
