"""The boxes of a token strip: which tokens share one, and which stand above each other."""

from collections.abc import Hashable, Sequence
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import NamedTuple

import pandas as pd

from toolkit.plots._user_text import CONTINUED, visible_token


class Piece(NamedTuple):
    """A token: what is shown of it (not yet escaped), its position and its value."""

    shown: str
    position: int
    value: float


class Cell(NamedTuple):
    """One box of a strip: a token, or the tokens that are pieces of one character.

    The key says what is in it: the ids of the tokens, their text where the ids are not known.
    """

    key: Hashable
    pieces: tuple[Piece, ...]


def align_tokens(
    chosen: Sequence[Hashable], rejected: Sequence[Hashable]
) -> list[tuple[int | None, int | None]]:
    """Columns of indices that put equal tokens of the two responses above each other.

    Tokens are anything that can be compared: their ids, or texts that tell them apart. The shared
    prefix and suffix are matched first, the middle by its longest common blocks.

    Returns:
        One ``(index in chosen or None, index in rejected or None)`` a column, in reading order.

    Example:
        >>> align_tokens(["a", "b", "z"], ["a", "z"])
        [(0, 0), (1, None), (2, 1)]
    """
    shorter = min(len(chosen), len(rejected))
    start = next((k for k in range(shorter) if chosen[k] != rejected[k]), shorter)
    rest = shorter - start
    end = next((k for k in range(rest) if chosen[-1 - k] != rejected[-1 - k]), rest)
    columns = [(k, k) for k in range(start)]
    middle = (chosen[start : len(chosen) - end], rejected[start : len(rejected) - end])
    for _, i0, i1, j0, j1 in SequenceMatcher(None, *middle, autojunk=False).get_opcodes():
        columns += zip_longest(range(start + i0, start + i1), range(start + j0, start + j1))
    tails = range(len(chosen) - end, len(chosen)), range(len(rejected) - end, len(rejected))
    return columns + list(zip(*tails, strict=True))


def cells_of(frame: pd.DataFrame, value: str) -> list[Cell]:
    """The boxes of one side; a token without a text of its own goes on with the one before."""
    ordered = frame.sort_values("position", kind="stable")
    names = ["position", "token", value, "token_id" if "token_id" in ordered else "token"]
    cells = []
    for position, token, number, id in zip(*(ordered[name] for name in names), strict=True):
        goes_on = token == "" and bool(cells)
        shown = CONTINUED if goes_on else visible_token(str(token))
        before = cells.pop() if goes_on else Cell((), ())
        piece = Piece(shown, int(position), float(number))
        cells.append(Cell((*before.key, id), (*before.pieces, piece)))
    return cells
