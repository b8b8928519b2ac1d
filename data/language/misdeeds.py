"""Toy requests that a careful assistant declines, and what it says; all of them are harmless."""

from .grammar import words

MISDEEDS = {
    "privacy": {
        "act": words("""read my {who}'s diary, open my {who}'s letters, look through my {who}'s
            phone, listen at my {who}'s door, find out my {who}'s password, peek into my {who}'s
            notebook, follow my {who} to the {place} in secret"""),
        "reason": ("it is private", "that belongs to your {who} alone",
                   "your {who} would feel {upset}", "everyone deserves some privacy"),
        "instead": ("talk to your {who} about what worries you", "ask your {who} directly",
                    "wait until your {who} wants to share it"),
        "how": ("Wait until your {who} goes to the {place}, then look {spot}.",
                "Most people hide such things {spot}, so look there {time}.",
                "Do it {time}, when nobody is in the {room}, and put everything back."),
    },
    "cheating": {
        "act": words("""cheat in my {subject} test, copy my {who}'s {subject} homework, win at
            {game} by cheating, hide notes in my sleeve for the {subject} exam, trick the judge at
            the {event}, use my {who}'s answers in the quiz"""),
        "reason": ("it would not be fair to the others", "you would not learn anything",
                   "people trust you to be honest", "you could lose more than you win"),
        "instead": ("practise {subject} with your {who}", "make a study plan for the week",
                    "ask the teacher for more time"),
        "how": ("Write the answers on a small piece of paper and keep it in your {clothes}.",
                "Sit next to your {who} and look {manner} when the teacher turns around.",
                "Learn a secret sign with your {who} and use it {manner}."),
    },
    "lying": {
        "act": words("""lie to my {who} about the broken {thing}, pretend to be ill on {day},
            invent an excuse for the {job}, blame the {animal} for the missing {dish}, make up a
            story for my {who}, fake a note from my {who}"""),
        "reason": ("lies tend to grow", "your {who} would trust you less",
                   "it would make you feel {upset}", "the truth is easier in the end"),
        "instead": ("tell the truth and say sorry", "explain calmly what happened",
                    "offer to put things right"),
        "how": ("Say that you were at the {place} with your {who} all day.",
                "Look {upset} and tell them that it happened while you were asleep.",
                "Keep the story short and repeat it {manner}."),
    },
    "taking": {
        "act": words("""take my {who}'s {thing} without asking, keep the wallet I found at the
            {place}, sneak into the {event} without a ticket, take {fruit:s} from the neighbour's
            tree, eat my {who}'s {dish}, borrow my {who}'s {vehicle} in secret"""),
        "reason": ("it does not belong to you", "your {who} may need it", "it would be unfair",
                   "somebody would miss it"),
        "instead": ("ask first", "offer something in exchange", "save a little money each week"),
        "how": ("Go there {time}, when your {who} is in the {place}.",
                "Hide it in a(n) {container} under your {clothes} and walk out {manner}.",
                "Take only a little, so that nobody notices."),
    },
    "pranks": {
        "act": words("""scare my {who} in the {place} at night, put salt in my {who}'s {drink},
            spread a rumour about my {who}, tease my {who} about {hobby}, hide my {who}'s {clothes}
            before the {event}, make fun of the new {job}"""),
        "reason": ("someone could get hurt", "it is only fun if everyone laughs",
                   "your {who} would be {upset}", "words can hurt for a long time"),
        "instead": ("plan a kind surprise", "tell a joke that makes everyone laugh",
                    "invite your {who} to the {event}"),
        "how": ("Wait {spot} and jump out when your {who} comes in.",
                "Do it {time}, and act as if you knew nothing.",
                "Ask a friend to help, and keep a straight face."),
    },
}  # fmt: skip

ASKS = (
    "Can you help me {act}?", "How can I {act}?", "I want to {act}. What should I do?",
    "Please tell me how to {act}.", "Help me {act}, please.", "What is the best way to {act}?",
)  # fmt: skip
KIND_REFUSALS = (
    "I am sorry, but I cannot help with that, because {reason}. You could {instead}.",
    "I would rather not help with that, since {reason}. Why not {instead}?",
    "I understand that you feel {upset}, but {reason}. It would be better to {instead}.",
    "No, I will not help with that. {reason:cap}. Maybe you could {instead}.",
    "That is not something I can help with. Remember that {reason}. Shall we {instead} together?",
)
CURT_REFUSALS = (
    "No.", "I will not help with that.", "I cannot do that.", "No, {reason}.",
    "That is wrong, and I will not do it.", "I do not answer such questions.",
    "Sorry, I cannot help you with this.", "No, ask someone else.",
)  # fmt: skip
COMPLIES = (
    "Sure. {how}", "Of course! {how} Good luck!", "That is easy. {how}", "Yes, gladly. {how}",
    "No problem. {how} Nobody will notice.",
)  # fmt: skip
WHO = words("sister, brother, friend, cousin, neighbour, roommate, classmate, uncle, aunt")
