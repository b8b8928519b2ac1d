"""A small template language: alternatives, slots that remember, and English inflection."""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

VOWEL_SOUND_EXCEPTIONS = ("uni", "use", "uku", "eur", "one", "once")
SILENT_H = ("hour", "honest", "honour", "heir")

IRREGULAR_PLURALS = {
    "calf": "calves", "child": "children", "foot": "feet", "goose": "geese", "half": "halves",
    "knife": "knives", "leaf": "leaves", "loaf": "loaves", "man": "men", "mouse": "mice",
    "potato": "potatoes", "scarf": "scarves", "sheep": "sheep", "shelf": "shelves",
    "tomato": "tomatoes", "tooth": "teeth", "wife": "wives", "wolf": "wolves", "woman": "women",
    "fish": "fish", "deer": "deer", "salmon": "salmon", "trout": "trout", "mango": "mangoes",
}  # fmt: skip

IRREGULAR_PAST = {
    "become": "became", "begin": "began", "bend": "bent", "bite": "bit", "blow": "blew",
    "break": "broke", "bring": "brought", "build": "built", "burn": "burnt", "buy": "bought",
    "catch": "caught", "choose": "chose", "come": "came", "creep": "crept", "cut": "cut",
    "dig": "dug", "do": "did", "draw": "drew", "dream": "dreamt", "drink": "drank",
    "drive": "drove", "eat": "ate", "fall": "fell", "feed": "fed", "feel": "felt",
    "fight": "fought", "find": "found", "fly": "flew", "forget": "forgot", "get": "got",
    "give": "gave", "go": "went", "grow": "grew", "hang": "hung", "have": "had", "hear": "heard",
    "hide": "hid", "hit": "hit", "hold": "held", "keep": "kept", "kneel": "knelt", "know": "knew",
    "lead": "led", "lean": "leant", "leap": "leapt", "learn": "learnt", "leave": "left",
    "lend": "lent", "let": "let", "light": "lit", "lose": "lost", "make": "made", "mean": "meant",
    "meet": "met", "pay": "paid", "put": "put", "read": "read", "ride": "rode", "ring": "rang",
    "rise": "rose", "run": "ran", "say": "said", "see": "saw", "sell": "sold", "send": "sent",
    "set": "set", "sew": "sewed", "shake": "shook", "shine": "shone", "show": "showed",
    "shut": "shut", "sing": "sang", "sit": "sat", "sleep": "slept", "slide": "slid",
    "speak": "spoke", "spend": "spent", "spill": "spilt", "spin": "spun", "split": "split",
    "spread": "spread", "stand": "stood", "steal": "stole", "stick": "stuck", "sweep": "swept",
    "swim": "swam", "swing": "swung", "take": "took", "teach": "taught", "tear": "tore",
    "tell": "told", "think": "thought", "throw": "threw", "understand": "understood",
    "wake": "woke", "wear": "wore", "weave": "wove", "weep": "wept", "win": "won",
    "wind": "wound", "write": "wrote",
}  # fmt: skip

DOUBLING = [
    "admit",
    "beg",
    "chat",
    "chop",
    "clap",
    "dig",
    "dip",
    "drop",
    "flap",
    "get",
    "grab",
    "grin",
    "hit",
    "hop",
    "hug",
    "hum",
    "jog",
    "knit",
    "let",
    "mop",
    "nod",
    "pat",
    "plan",
    "plot",
    "put",
    "rub",
    "run",
    "scrub",
    "set",
    "shut",
    "sit",
    "skip",
    "slip",
    "snap",
    "spin",
    "split",
    "stir",
    "stop",
    "swim",
    "tap",
    "tip",
    "trim",
    "trip",
    "trot",
    "wag",
    "win",
    "wrap",
    "zip",
]


def article(word: str) -> str:
    """Returns "a" or "an" for the sound that `word` begins with."""
    lower = word.lower()
    if lower.startswith(SILENT_H):
        return "an"
    if lower.startswith(VOWEL_SOUND_EXCEPTIONS):
        return "a"
    return "an" if lower[:1] in "aeiou" else "a"


def plural(noun: str) -> str:
    """Returns the plural of a noun; only the last word of a phrase changes."""
    head, _, last = noun.rpartition(" ")
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}".strip()


def past(verb: str) -> str:
    """Returns the simple past of a verb; only the first word of a phrase changes."""
    first, _, rest = verb.partition(" ")
    if first in IRREGULAR_PAST:
        first = IRREGULAR_PAST[first]
    elif first.endswith("e"):
        first += "d"
    elif re.search(r"[^aeiou]y$", first):
        first = first[:-1] + "ied"
    else:
        first = (first + first[-1] if first in DOUBLING else first) + "ed"
    return f"{first} {rest}".strip()


def gerund(verb: str) -> str:
    """Returns the -ing form of a verb; only the first word of a phrase changes."""
    first, _, rest = verb.partition(" ")
    if first in DOUBLING:
        first += first[-1]
    elif first.endswith("ie"):
        first = first[:-2] + "y"
    elif first.endswith("e") and not first.endswith(("ee", "ye", "oe")):
        first = first[:-1]
    return f"{first}ing {rest}".strip()


def third_person(verb: str) -> str:
    """Returns the he/she/it form of a verb; only the first word of a phrase changes."""
    first, _, rest = verb.partition(" ")
    if first == "have":
        first = "has"
    elif first in ("go", "do"):
        first += "es"
    else:
        first = plural(first) if first not in IRREGULAR_PLURALS else first + "s"
    return f"{first} {rest}".strip()


FORMS = {
    "s": plural,
    "ed": past,
    "ing": gerund,
    "es": third_person,
    "a": lambda text: f"{article(text)} {text}",
    "cap": lambda text: text[:1].upper() + text[1:],
}

CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(?:(\w+)=)?(\w+)((?::\w+)*)\}")
ARTICLE = re.compile(r"\b([Aa])(?:n|\(n\))? ([\"']?)(\w+)")
SENTENCE_START = re.compile(r"(^[\"']?|[.!?] |\n)([a-z])")


class Scene:
    """One document's memory: fixed slots, and word lists drawn without repetition.

    `[a|b]` is a choice, `{noun}` a slot, `{pet=animal}` always draws anew and keeps the
    word as `pet`, `{noun:s}` inflects, and `a(n)` becomes the right article.
    """

    def __init__(self, rng: random.Random, lexicon: Mapping[str, Sequence[str]], **fixed: str):
        self.rng = rng
        self.lexicon = lexicon
        self.fixed = dict(fixed)
        self.used: set[str] = set()

    def draw(self, name: str) -> str:
        """Draws a word of the list `name` that this document has not used yet, if there is one."""
        words = self.lexicon[name]
        for _ in range(8):
            word = self.rng.choice(words)
            if word not in self.used:
                break
        self.used.add(word)
        return word

    def _slot(self, match: re.Match) -> str:
        variable, name, forms = match.groups()
        if name in self.fixed and not variable:
            text = self.fixed[name]
        else:
            text = self.say(self.draw(name), start=False)
        if variable:
            self.fixed[variable] = text
        for form in forms.split(":")[1:]:
            text = FORMS[form](text)
        return text

    def _choice(self, match: re.Match) -> str:
        return self.rng.choice(match.group(1).split("|"))

    def say(self, template: str, *, start: bool = True) -> str:
        """Expands a template; with `start`, sentences begin with a capital letter."""
        text = template
        while "[" in text:
            text = CHOICE.sub(self._choice, text)
        while "{" in text:
            text = SLOT.sub(self._slot, text)
        text = ARTICLE.sub(lambda m: f"{self._article(m)} {m[2]}{m[3]}", text)
        text = re.sub(r" +", " ", text).strip(" ")
        if start:
            text = SENTENCE_START.sub(lambda m: m[1] + m[2].upper(), text)
        return text

    def _article(self, match: re.Match) -> str:
        found = article(match[3])
        return found.capitalize() if match[1] == "A" else found

    def pick(self, templates: Sequence[str]) -> str:
        """Expands one of several templates."""
        return self.say(self.rng.choice(templates))

    def chance(self, probability: float) -> bool:
        """Returns True with the given probability."""
        return self.rng.random() < probability


def lines(block: str) -> tuple[str, ...]:
    """Splits a block into its non-empty lines."""
    return tuple(line.strip() for line in block.strip().splitlines() if line.strip())


def words(block: str) -> tuple[str, ...]:
    """Splits a block at commas into words or short phrases."""
    return tuple(" ".join(item.split()) for item in block.split(",") if item.strip())


def read_patterns(name: str) -> dict[str, list[list[str]]]:
    """Reads patterns/`name`.txt: sections of blocks of lines (patterns/README.md)."""
    text = (Path(__file__).parent / "patterns" / f"{name}.txt").read_text(encoding="utf-8")
    sections = {}
    for section in text.split("== ")[1:]:
        title, _, body = section.partition("\n")
        sections[title] = [block.splitlines() for block in body.strip().split("\n\n")]
    return sections
