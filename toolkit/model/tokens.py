"""The text that each token of a run stands for, and the bytes of those that are no text alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

LONGEST = 4  # bytes of a character in UTF-8, so pieces of one
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # a byte as SentencePiece writes it


def token_texts(tokenizer, ids: Tensor, mask: Tensor) -> list[str]:
    r"""Return the text of each scored token; joined, they read as the run of tokens does.

    The run is decoded as a whole. Where several tokens are pieces of one character, the first
    holds all of their text and the others are empty: what tells pieces apart are their ids.
    Bytes that are no text are written as escapes such as ``\xe2``.

    Args:
        tokenizer: Anything with ``decode``.
        ids: Tokens of a sequence, prompt included.
        mask: The scored ones.
    """
    scored = mask.nonzero().squeeze(-1).tolist()
    if not scored:
        return []
    # The token before them says whether a space belongs to the first one.
    start, run = max(scored[0] - 1, 0), ids.tolist()[: scored[-1] + 1]
    texts = dict.fromkeys(scored, "")
    for places, text in _units(tokenizer, run, start):
        own = [k for k in places if k in texts]
        if own:
            texts[own[0]] = text
    return list(texts.values())


def token_columns(tokenizer, rows: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Sequence]:
    """Return ``side, position, token, token_id`` of the scored tokens of a pair's two responses."""
    texts = [token_texts(tokenizer, *row) for row in rows]
    lengths = [len(text) for text in texts]
    return {
        "side": np.repeat(["chosen", "rejected"], lengths),
        "position": np.concatenate([np.arange(n) for n in lengths]),
        "token": [token for text in texts for token in text],
        "token_id": torch.cat([ids[mask] for ids, mask in rows]).cpu().numpy(),
    }


def _units(tokenizer, run: list[int], start: int) -> Iterator[tuple[range, str]]:
    """Yield the shortest runs of tokens that are text, each with its text."""
    alone = [_decode(tokenizer, [i]) for i in run[start:]]
    whole = _decode(tokenizer, run[start:])
    if "\ufffd" not in whole and "".join(alone) == whole:
        yield from ((range(k, k + 1), text) for k, text in enumerate(alone, start))
        return
    before = begin = start
    known = ""  # text of the tokens from before to begin
    for end in range(start + 1, len(run) + 1):
        text = _decode(tokenizer, run[before:end])
        unit = run[begin:end]
        if end < len(run) and _is_open(tokenizer, unit, text):
            continue
        own = text[len(known) :] if text.startswith(known) else _decode(tokenizer, unit)
        if "\ufffd" in own:
            own = _legible(tokenizer, unit, own)
        yield range(begin, end), own
        before, begin, known = begin, end, _decode(tokenizer, unit)


def legible_texts(tokenizer, ids: Iterable[int]) -> list[str]:
    """Return the text of each token by itself; pieces of a character as their bytes."""
    ids = [int(i) for i in ids]
    return [_legible(tokenizer, [i], _decode(tokenizer, [i])) for i in ids]


def _decode(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _is_open(tokenizer, unit: list[int], text: str) -> bool:
    """Whether these tokens end within a character."""
    if not text.endswith("\ufffd"):
        return False
    found = _bytes_of(tokenizer, unit)
    if found is None:
        return len(unit) < LONGEST
    try:
        found.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def _legible(tokenizer, unit: list[int], text: str) -> str:
    """The text, with its bytes as escapes where they are none."""
    found = _bytes_of(tokenizer, unit) if "\ufffd" in text else None
    return text if found is None else found.decode("utf-8", "backslashreplace")


def _bytes_of(tokenizer, unit: list[int]) -> bytes | None:
    """The bytes behind some tokens, if the tokenizer writes bytes in a way that is known."""
    names = getattr(tokenizer, "convert_ids_to_tokens", lambda ids: [None])(unit)
    if any(not isinstance(name, str) for name in names):
        return None
    if any(_BYTE.fullmatch(name) for name in names):
        return b"".join(_sentencepiece_bytes(name) for name in names)
    alphabet, letters = _byte_alphabet(), "".join(names)
    return bytes(alphabet[c] for c in letters) if set(letters) <= alphabet.keys() else None


def _sentencepiece_bytes(name: str) -> bytes:
    found = _BYTE.fullmatch(name)
    return bytes([int(found[1], 16)]) if found else name.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as one letter: itself if it prints, else from 256 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(prints)]
    return {chr(b): b for b in prints} | {chr(256 + n): b for n, b in enumerate(others)}
