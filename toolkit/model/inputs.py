"""What measurements are given: that this is a policy, that these are pairs, and their tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from tqdm.auto import tqdm

from toolkit.checks import choice, is_iterable, shown
from toolkit.pairs import EncodedPair, PairError, PreferencePair

if TYPE_CHECKING:
    from toolkit.model.policy import Policy

Pairs = Sequence[PreferencePair | EncodedPair] | PreferencePair | EncodedPair
ON_ERROR = ("raise", "skip")
KINDS = (PreferencePair, EncodedPair)
Skipped = list[dict[str, object]]  # row, pair_id and reason of each pair left out, as attrs hold it


def skipped_pairs(errors: Iterable[PairError]) -> Skipped:
    """Return what was left out in plain values; a pair that stands there twice is named once."""
    found = [{"row": e.row, "pair_id": e.pair_id, "reason": e.reason} for e in errors]
    return [pair for i, pair in enumerate(found) if pair not in found[:i]]


def skipped_frame(skipped: Skipped) -> pd.DataFrame:
    """Return what was left out as a frame, ``row, pair_id, reason``, as ``PairList.skipped`` is."""
    frame = pd.DataFrame(skipped, columns=["row", "pair_id", "reason"], dtype=object)
    return frame.astype({"row": "Int64"})


def skipped_attrs(skipped: Skipped) -> dict[str, Skipped]:
    """Return what was left out for ``DataFrame.attrs``; nothing where that is nothing."""
    return {"skipped": skipped} if skipped else {}


class Encoded(NamedTuple):
    """Pairs with their tokens, and those that cannot be scored.

    Attributes:
        given: The pairs that can be scored, as they were given.
        pairs: Their tokens, in the same order.
        errors: Why the others cannot, one error per pair.
    """

    given: list[PreferencePair | EncodedPair]
    pairs: list[EncodedPair]
    errors: list[PairError]

    @property
    def left_out(self) -> Skipped:
        """``row``, ``pair_id`` and ``reason`` of each pair that cannot be scored."""
        return skipped_pairs(self.errors)


def check_policy(policy: Any, name: str = "policy") -> Policy:
    """Return a policy.

    Raises:
        ValueError: If it is something else; the message says how to make one.
    """
    from toolkit.model.policy import Policy  # here: it is heavy, and checks of pairs need none

    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, str | os.PathLike):
        hint = f"load it first: tk.load_model({os.fspath(policy)!r})"
    elif hasattr(policy, "forward"):
        hint = "use tk.Policy(model, tokenizer)"
    else:
        hint = "use tk.load_model(...) or tk.Policy(model, tokenizer)"
    raise ValueError(f"{name} must be a toolkit Policy, received {type(policy).__name__}: {hint}")


def check_pair(pair: Any, name: str = "pair") -> PreferencePair | EncodedPair:
    """Return one pair.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(pair, KINDS):
        many = "; give one of them, such as pairs[0]" if isinstance(pair, list | tuple) else ""
        raise ValueError(
            f"{name} must be one PreferencePair or EncodedPair, received "
            f"{type(pair).__name__}{many or ' (load pairs with tk.load_pairs)'}"
        )
    return pair


def check_pairs(pairs: Any, name: str = "pairs", *, text: bool = False) -> list:
    """Return the pairs as a list; a single pair becomes a list of one.

    Args:
        pairs: Pairs, plain or encoded.
        name: The parameter, for errors.
        text: Whether they must be pairs with their text.

    Raises:
        ValueError: If there is nothing in it, or something that is no pair.
    """
    kinds = (PreferencePair,) if text else KINDS
    if isinstance(pairs, kinds):
        return [pairs]
    asked = f"{name} must be a list with at least one PreferencePair"
    # Text, a mapping and a frame can be gone through too, but not pair by pair.
    single = isinstance(pairs, (str, bytes, Mapping)) or hasattr(pairs, "columns")
    if single or not is_iterable(pairs):
        load = shown(pairs) if isinstance(pairs, str) else "..."
        raise ValueError(f"{asked}, received {type(pairs).__name__}: use tk.load_pairs({load})")
    items = list(pairs)
    if not items:
        raise ValueError(f"{name} is empty: {asked}")
    for i, item in enumerate(items):
        if not isinstance(item, kinds):
            allowed = ", ".join(kind.__name__ for kind in kinds)
            raise ValueError(
                f"{name}[{i}] is {type(item).__name__}; allowed: {allowed} "
                "(load rows with tk.load_pairs)"
            )
    return items


def encoded_pair(policy: Any, pair: Any) -> EncodedPair:
    """Return the tokens of one pair.

    Raises:
        PairError: If the pair cannot be scored.
        ValueError: If these are no policy and no pair.
    """
    return check_policy(policy).encode(check_pair(pair))


def encoded_pairs(
    policy: Any,
    pairs: Any,
    on_error: str = "raise",
    *,
    name: str = "pairs",
    text: bool = False,
    progress: bool = False,
) -> Encoded:
    """Return the tokens of all pairs, checked before any work: the entry of every measurement.

    Args:
        policy: The model.
        pairs: Pairs, plain or encoded, or a single one.
        on_error: ``"raise"`` stops at the first pair that cannot be scored; ``"skip"`` sets such
            pairs aside.
        name: The parameter that holds the pairs, for errors.
        text: Whether they must be pairs with their text.
        progress: Show a bar where it takes longer than a second.

    Raises:
        PairError: If a pair cannot be scored, under ``on_error="raise"``.
        ValueError: If these are no policy and no pairs, or no pair can be scored.
    """
    policy = check_policy(policy)
    choice("on_error", on_error, ON_ERROR)
    items = check_pairs(pairs, name, text=text)
    found = Encoded([], [], [])
    bar = {"desc": "tokens", "unit": "pair", "delay": 1, "leave": False}
    for item in tqdm(items, disable=not progress, **bar):
        try:
            found.pairs.append(policy.encode(item))
            found.given.append(item)
        except PairError as error:
            if on_error == "raise":
                hint = 'on_error="skip" leaves such pairs out'
                raise PairError(
                    error.reason, row=error.row, pair_id=error.pair_id, hint=hint
                ) from None
            found.errors.append(error)
    if not found.pairs:
        raise ValueError(f"{name}: none can be scored; the first one: {found.errors[0]}")
    return found
