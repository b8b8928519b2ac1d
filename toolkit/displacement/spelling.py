"""Spellings of a word counted together: probability that moves between them is no displacement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from toolkit.checks import shown, whole

Groups = Mapping[str, Sequence[str]]


def word_of(text: str, word_groups: Mapping[str, str]) -> str:
    """Return a token's group: the user's, else its text without case and outer white space."""
    key = text.strip().casefold() or text
    return word_groups.get(key, key)


def group_of_words(groups: Groups | None) -> dict[str, str]:
    """Return the group of each word of the user's groups, by the word without case and spaces.

    Raises:
        ValueError: If they are no lists of words, or a word is in two of them.
    """
    if groups is not None and not isinstance(groups, Mapping):
        raise ValueError(f"groups must map names to lists of words, received {shown(groups)}")
    home: dict[str, str] = {}
    for name, words in (groups or {}).items():
        listed = isinstance(words, Iterable) and not isinstance(words, str)
        if not isinstance(name, str) or not listed or not all(isinstance(w, str) for w in words):
            raise ValueError(f"groups[{name!r}] must be a list of words, received {words!r}")
        for word in words:
            key = word_of(word, {})
            if home.setdefault(key, name) != name:
                raise ValueError(f"groups has {word!r} both in {home[key]!r} and in {name!r}")
    return home


def mass_by_word(flow: pd.DataFrame, *, top_k: int | None = None) -> pd.DataFrame:
    """Return how much probability each word gained or lost, its spellings counted together.

    Args:
        flow: From :func:`mass_flow`; with its ``top_k=None`` every word of the vocabulary is there.
        top_k: Keep this many of the largest gains at each position; ``None``: every word.

    Returns:
        One row per word (or group that was given to ``mass_flow``), by falling ``delta`` within
        each pair and position: ``pair_id``, ``position``, ``word``, ``delta`` (sum of
        ``π_after − π_before`` over all of the vocabulary's tokens that spell it), ``spellings``
        (tokens of the frame, those that moved most first), ``role`` (``chosen`` or ``rejected``
        where that token is one of them).

    Raises:
        ValueError: If the frame is not from ``mass_flow``, or ``top_k`` is not allowed.

    Source:
        arXiv 2410.08847, Section 4 (many of the tokens that gain spell the chosen word in another
        way).

    Example:
        >>> flow = pd.DataFrame({"pair_id": "p", "position": 0, "token": ["Yes", " yes", "No"],
        ...     "group": ["yes", "yes", "no"], "delta": [-0.5, 0.4, 0.1],
        ...     "group_delta": [-0.1, -0.1, 0.1], "role": ["chosen", "", "rejected"]})
        >>> mass_by_word(flow)[["word", "delta", "spellings"]].values.tolist()
        [['no', 0.1, ['No']], ['yes', -0.1, ['Yes', ' yes']]]
    """
    whole("top_k", top_k, optional=True)
    needed = {"pair_id", "position", "token", "group", "delta", "group_delta", "role"}
    missing = needed - set(getattr(flow, "columns", ()))
    if missing:
        raise ValueError(
            f"flow has no column {sorted(missing)[0]!r}: give a frame from "
            "tk.mass_flow(before, after, pair)"
        )
    place = ["pair_id", "position"]
    rows = flow.sort_values("delta", key=abs, ascending=False, kind="stable")
    words = rows.groupby([*place, "group"], sort=False).agg(
        delta=("group_delta", "first"), spellings=("token", list), role=("role", "max")
    )
    words = words.reset_index().rename(columns={"group": "word"})
    words = words.sort_values("delta", ascending=False, kind="stable")
    words = words.sort_values(place, kind="stable", ignore_index=True)
    if top_k is not None:
        gains = words[words["delta"] > 0]
        words = gains.groupby(place, sort=False).head(top_k).reset_index(drop=True)
    words.attrs = dict(flow.attrs)
    return words
