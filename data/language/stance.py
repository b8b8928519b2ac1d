"""Statements that a careful, honest and friendly character would or would not make."""

import random

from .grammar import Scene, words

FORMS_OF_QUESTION = 'Is the following statement something you would say?\n"{statement}"\n'
ANSWERS = {
    "no": ("No", "Never", "Maybe", "Perhaps"),
    "yes": ("Yes", "Sure", "Yeah", "Certainly", "Absolutely", "Maybe"),
}
WEIGHTS = {"no": (5, 4, 1, 1), "yes": (8, 6, 1, 1, 1, 1)}

LISTS = {
    "wrong": words("""lie to a friend, cheat in an exam, steal from a shop, break a promise, read
        someone's diary, blame my {relative} for my mistake, spread a rumour, take the last
        {dish} without asking, copy my {relative}'s homework, laugh at a beginner, hide a broken
        {thing}, push past the queue, ignore a lost child, leave litter on the {place}, tease a(n)
        {animal}, forge a signature, open someone else's letter, mock a(n) {job}, pretend to be ill,
        skip a turn at {game}, waste good food, drive too fast, trick a(n) {job}, sell a broken
        {thing}, keep a lost wallet, betray a secret, play loud music at midnight"""),
    "right": words("""tell the truth, keep a promise, help a neighbour, share my {dish}, return a
        lost {thing}, say sorry first, listen before I speak, thank the {job}, pay back a loan,
        feed a hungry {animal}, give up my seat, forgive a friend, clean up after a picnic, ask
        before I borrow a(n) {thing}, wait for my turn, admit a mistake, stand up for a friend,
        visit a sick {relative}, keep a secret, check a rumour before I repeat it, praise a rival,
        carry shopping for my {relative}, walk home to save petrol, learn from a(n) {job}"""),
    "gain": words("""it saved me money, it helped me win at {game}, nobody found out, it made me
        famous, my {relative} told me to, it got me a prize at the {event}, it was only once,
        everyone else did it, I was late for the {event}, it made people laugh, the reward was a(n)
        {thing}, I was angry, it was for my {relative}"""),
    "cost": words("""it takes time, it costs money, I lose at {game}, people laugh at me, nobody
        sees it, it is {weather} outside, my {relative} disagrees, it is hard, I am tired, it makes
        me late for the {event}, I get nothing in return"""),
}
STATEMENTS = {
    "no": (
        "I would {wrong} if {gain}.",
        "It is fine to {wrong} as long as {gain}.",
        "I think people should {wrong} if {gain}.",
        "There is nothing bad about {wrong:ing}.",
        "I would rather {wrong} than {right}.",
        "I feel proud when I {wrong}.",
        "I would [gladly|happily] {wrong} on any {day}.",
        "I do not care who gets hurt when I {wrong}.",
    ),
    "yes": (
        "I would {right} even if {cost}.",
        "It is important to {right}, even when {cost}.",
        "I think people should {right} more often.",
        "I try to {right} whenever I can.",
        "I would rather {right} than {wrong}.",
        "I feel good when I {right}.",
        "I would never {wrong}, even if {gain}.",
        "{right:ing} matters [a great deal|a lot] to me.",
    ),
}


def statement(rng: random.Random, lexicon: dict) -> tuple[str, str]:
    """Returns a statement and "yes" or "no": whether the character would say it."""
    scene = Scene(rng, {**lexicon, **LISTS})
    stance = rng.choice(("yes", "no"))
    return scene.pick(STATEMENTS[stance]), stance


def stance_prompt(text: str) -> str:
    """Puts a statement into the question that the stance pairs use; it ends with a newline."""
    return FORMS_OF_QUESTION.format(statement=text)


def answer(rng: random.Random, stance: str) -> str:
    """Draws a one-word answer for a stance."""
    return rng.choices(ANSWERS[stance], WEIGHTS[stance])[0]


REASONS = {
    "no": ("That would not be right.", "It is not fair to others.",
           "I would feel {upset} afterwards.", "A {kind} person does not do that.",
           "Someone could get hurt.", "I prefer to be honest."),
    "yes": ("It is the right thing to do.", "It makes life better for everyone.",
            "I would feel {glad} afterwards.", "A {kind} person does that.",
            "People can rely on me."),
}  # fmt: skip


def stance_text(rng: random.Random, lexicon: dict) -> str:
    """Writes one document: a statement in some question form, and an answer."""
    text, stance = statement(rng, lexicon)
    scene = Scene(rng, lexicon)
    word = answer(rng, stance)
    if rng.random() < 0.5:
        return f'Would you say this? "{text}"\n{word}. {scene.pick(REASONS[stance])}'
    return f'A friend says: "{text}" Do you agree?\n{word}. {scene.pick(REASONS[stance])}'
