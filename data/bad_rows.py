"""Rows that are wrong on purpose, and odd rows that are right; `why` says which and how."""

LONG = "The path went on past the mill and over the bridge and through the meadow. " * 60
QUESTION = "Is a mouse bigger than a horse?\n"
USER = {"role": "user", "content": "How do I grow tulips?"}
ANSWER = {"role": "assistant", "content": "Plant them in autumn."}
OTHER = {"role": "assistant", "content": "Ask a gardener."}
MISSING = object()

# why, prompt, chosen, rejected
ROWS = (
    ("chosen is empty", QUESTION, "", "Yes"),
    ("rejected is empty", QUESTION, "No", ""),
    ("both responses are empty", QUESTION, "", ""),
    ("chosen is whitespace only", QUESTION, " \n\t", "Yes"),
    ("chosen and rejected are identical", QUESTION, "No", "No"),
    ("prompt is null", None, "No", "Yes"),
    ("chosen is null", QUESTION, None, "Yes"),
    ("rejected is null", QUESTION, "No", None),
    ("prompt is a number", 42, "No", "Yes"),
    ("chosen is a number", QUESTION, 3.5, "Yes"),
    ("rejected is true or false", QUESTION, "No", True),
    ("chosen is a list of texts, not of messages", QUESTION, ["No"], "Yes"),
    ("chosen is a mapping, not a list of messages", QUESTION, {"text": "No"}, "Yes"),
    ("the column rejected is missing", QUESTION, "No", MISSING),
    ("the column chosen is missing", QUESTION, MISSING, "Yes"),
    ("the columns chosen and rejected are missing", QUESTION, MISSING, MISSING),
    ("the prompt is messages but the responses are text", [USER], "In autumn.", "Ask a gardener."),
    ("the prompt is text but the responses are messages", QUESTION, [ANSWER], [OTHER]),
    ("chosen is text but rejected is messages", [USER], "In autumn.", [OTHER]),
    ("chosen has no messages", [USER], [], [OTHER]),
    ("the prompt has no messages", [], [ANSWER], [OTHER]),
    ("a message has no role", [{"content": "Hello"}], [ANSWER], [OTHER]),
    ("a message has no content", [USER], [{"role": "assistant"}], [OTHER]),
    ("the content of a message is null", [USER], [{"role": "assistant", "content": None}], [OTHER]),
    ("a role is unknown", [{"role": "robot", "content": "Beep"}], [ANSWER], [OTHER]),
    ("the assistant says nothing", [USER], [{"role": "assistant", "content": ""}], [OTHER]),
    ("the messages are identical", [USER], [ANSWER], [ANSWER]),
    ("the prompt is longer than the context of the tiny model", LONG, " It ended.", " It went on."),
    ("a response is longer than the context of the tiny model", QUESTION, LONG, "Yes"),
    ("the prompt is empty: without BOS nothing predicts the first token", "", "No", "Yes"),
    ("valid: HTML and a script in the prompt must stay inert",
     "<b>Bold</b><script>alert('pairs')</script><img src=x onerror=alert(1)>\n", "No", "Yes"),
    ("valid: HTML in the responses", QUESTION, "<i>No</i> & never", "</td></tr><h1>Yes</h1>"),
    ("valid: emoji, accents and other scripts", "Ça va, 東京? 🦊👩‍👩‍👧\n", "Нет 🙁", "نعم 🙂"),
    ("valid: one response begins with the other", QUESTION, "No", "No, never"),
    ("valid: the responses differ in their last character", QUESTION, "No.", "No!"),
    ("valid: the prompt ends with a space, so a token may straddle the boundary",
     "Review: The plot makes no sense. Sentiment: ", "negative", "positive"),
    ("valid: the prompt ends inside a word", "The dog is a very frien", "dly animal", "tless word"),
    ("valid: a special token is written out in the prompt", "Say <|endoftext|>.\n", "No", "Yes"),
    ("valid: line breaks and tabs in the responses", QUESTION, "No\n\n\tnot at all", "Yes\r\n"),
    ("valid: a control character in the prompt", "Ring the bell:\u0007\n", "No", "Yes"),
    ("valid: several turns after the prompt", [USER],
     [ANSWER, {"role": "user", "content": "Now?"}, {"role": "assistant", "content": "Soon."}],
     [OTHER, {"role": "user", "content": "Which one?"}, {"role": "assistant", "content": "Any."}]),
)  # fmt: skip


def bad_rows() -> list[dict]:
    """Returns the rows; the last two share an id, which is wrong as well."""
    rows = []
    for why, *values in ROWS:
        row = {"id": f"bad-{len(rows):03d}", "why": why}
        named = zip(("prompt", "chosen", "rejected"), values, strict=True)
        row.update({name: value for name, value in named if value is not MISSING})
        rows.append(row)
    rows.append({**rows[0], "id": "bad-twice", "why": "the id is used twice", "chosen": "No"})
    rows.append({**rows[-1], "chosen": "Never"})
    return rows
