"""Text that users bring, made harmless: shown as it is, with nothing hidden and nothing acting."""

import re
import unicodedata
from html import escape

# Class names that MathJax leaves alone: those of version 3 (JupyterLab) and 2 (nbconvert, nbviewer)
NO_MATHS = "mathjax_ignore tex2jax_ignore"
CONTINUED = "⋯"  # in place of a token that is a further piece of the character before it
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SIGNS = {"\n": "↵", "\t": "⇥"}
# Between two letters of such scripts a joiner shapes them (emoji, Persian); elsewhere it hides.
_JOINER = re.compile("(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")


def visible_text(text: str) -> str:
    r"""``text`` with the characters that hide or reorder written as escapes; not yet HTML.

    For texts of several lines: newlines, tabs and spaces stay. Control characters, direction
    overrides, zero-width and unassigned characters become escapes such as ``\u202e``.

    Example:
        >>> print(visible_text("5\u202e01"))
        5\u202e01
    """
    if text.isprintable():
        return text
    kept = {match.start() for match in _JOINER.finditer(text)}
    return "".join(
        char if char in "\n\t" or k in kept or unicodedata.category(char) not in HIDDEN
        else escaped(char)
        for k, char in enumerate(text)
    )  # fmt: skip


def html_text(text) -> str:
    """``visible_text`` escaped for HTML, attributes included: what every view writes.

    Example:
        >>> html_text("<b>") == "&lt;b&gt;"
        True
    """
    return escape(visible_text(str(text)))


def tag(name: str, html: str, cls: str = "", **attributes: str) -> str:
    """An element around HTML; attributes are escaped, and left out where they are empty."""
    known = {"class": cls, **attributes}.items()
    marks = "".join(
        f' {key.replace("_", "-")}="{html_text(value)}"' for key, value in known if value
    )
    return f"<{name}{marks}>{html}</{name}>"


def visible_token(text: str) -> str:
    r"""``text`` with its invisible characters made visible; not yet escaped for HTML.

    For short texts whose every character counts (tokens, ids, names): spaces at an end or in a
    run become ␣, newline ↵, tab ⇥; control, formatting (zero-width, direction) and unassigned
    characters become escapes such as ``\u200b``.

    Example:
        >>> visible_token(" the"), visible_token("a b\n")
        ('␣the', 'a b↵')
    """
    if not text:
        return "∅"
    text = re.sub(r"^ +| +$| {2,}", lambda run: "␣" * len(run[0]), text)
    if unicodedata.category(text[0]) in ("Mn", "Me"):
        text = "◌" + text  # a combining mark would sit on the box's edge
    return "".join(map(_visible_character, text))


def _visible_character(char: str) -> str:
    if char == " " or unicodedata.category(char) not in {*HIDDEN, "Zs"}:
        return char
    return _SIGNS.get(char) or escaped(char)


def escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()
