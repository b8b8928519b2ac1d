"""Prompt and response as token ids, with the scored tokens marked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from toolkit.checks import choice, flag, whole

from ._pair import PairError, PreferencePair
from ._values import RowError, Text, shared_length

if TYPE_CHECKING:
    import torch


TRUNCATIONS = ("keep_start", "keep_end")  # TRL's words, of its `truncation_mode`


@dataclass(frozen=True)
class EncodedPair:
    """Token ids of both sides, prompt included, with the scored tokens marked.

    Attributes:
        id: the pair's id.
        chosen_ids: LongTensor [Tc], prompt and chosen completion.
        chosen_mask: BoolTensor [Tc], True for tokens that the log-probability sums over.
        rejected_ids: LongTensor [Tr].
        rejected_mask: BoolTensor [Tr].
        append_eos: whether plain text ends with EOS (False for messages: their template ends them).
        boundary_merge: a token holds both prompt and completion characters; it is scored.
        truncated: whether a side was longer and has been cut.
    """

    id: str
    chosen_ids: torch.Tensor
    chosen_mask: torch.Tensor
    rejected_ids: torch.Tensor
    rejected_mask: torch.Tensor
    append_eos: bool
    boundary_merge: bool
    truncated: bool = False

    @property
    def chosen_length(self) -> int:
        """Number of scored tokens of the chosen side."""
        return int(self.chosen_mask.sum())

    @property
    def rejected_length(self) -> int:
        """Number of scored tokens of the rejected side."""
        return int(self.rejected_mask.sum())

    @property
    def shared_prefix(self) -> int:
        """Number of leading scored tokens that both sides share."""
        return shared_length(
            self.chosen_ids[self.chosen_mask].tolist(),
            self.rejected_ids[self.rejected_mask].tolist(),
        )


def encode(
    pair: PreferencePair,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    append_eos: bool = True,
    truncation: str | None = None,
) -> EncodedPair:
    """Tokenise prompt and completion together and mark the scored tokens y_t of Σ log p(y_t).

    A token is scored when it holds a character of the completion, by the tokenizer's offsets; a
    slow tokenizer has none, and there the prompt's own tokens must begin the whole. Plain text gets
    the tokenizer's own BOS, never twice, and one EOS. Messages get the chat template and nothing
    else. A side that is too long is refused, and cut on request alone.

    Args:
        pair: the pair.
        tokenizer: a transformers tokenizer; it needs no pad token.
        max_length: most tokens a side may have, prompt included; None for no limit.
        append_eos: end plain-text completions with the tokenizer's EOS, where it is not there yet.
        truncation: what to do with a side longer than `max_length`. None refuses it; "keep_start"
            drops its end (the completion's, EOS included), "keep_end" its beginning (the prompt's),
            each side for itself, as TRL's `truncation_mode` does. Where "keep_end" cuts into the
            completion, its first kept token is not scored: nothing before it predicts it.

    Returns:
        Ids and masks of both sides, 1-D tensors of that side's own length.

    Raises:
        PairError: the pair cannot be encoded so; the reason says what is allowed.
        ValueError: a bad `max_length` or `truncation`.

    Example:
        >>> import toolkit as tk
        >>> pair = tk.PreferencePair("a", "Is it fine?", " Yes", " No")
        >>> tk.encode(pair, tk.load_model().tokenizer).boundary_merge
        False
    """
    whole("max_length", max_length, optional=True)
    choice("truncation", truncation, (None, *TRUNCATIONS))
    flag("append_eos", append_eos)
    whole_sides = encode_sides(pair, tokenizer, append_eos)
    try:
        sides = cut_sides(whole_sides, max_length, truncation)
    except RowError as error:
        raise PairError(str(error), row=pair.row, pair_id=pair.id) from None
    import torch

    tensors = []
    for side in sides:
        tensors += [torch.tensor(side.ids), torch.arange(len(side.ids)) >= side.start]
    eos = append_eos and not pair.conversational
    merge = any(side.merge for side in sides)
    return EncodedPair(pair.id, *tensors, eos, merge, truncated=sides != whole_sides)


class Side(NamedTuple):
    """Token ids of one side; `start` is the index of its first scored token."""

    ids: list[int]
    start: int
    merge: bool
    double_bos: bool
    double_eos: bool


def cut_sides(
    sides: tuple[Side, Side], limit: int | None, truncation: str | None
) -> tuple[Side, Side]:
    """Return the sides, those that are longer than `limit` cut if that was asked for.

    Raises:
        RowError: a side is too long, or cutting leaves no completion token.
    """
    return tuple(
        _cut_side(name, side, limit, truncation)
        for name, side in zip(("chosen", "rejected"), sides, strict=True)
    )


def _cut_side(name: str, side: Side, limit: int | None, truncation: str | None) -> Side:
    if limit is None or len(side.ids) <= limit:
        return side
    said = f"{name} side has {len(side.ids)} tokens"
    if truncation is None:
        raise RowError(
            f"{said}, more than max_length {limit}; "
            'policy.with_options(truncation="keep_start") (--truncation keep_start) cuts it'
        )
    part = _kept(len(side.ids), limit, truncation)
    start = max(side.start - part.start, 1 if part.start else 0)
    ids = side.ids[part]
    if start >= len(ids):
        raise RowError(
            f"{said}, {side.start} of them the prompt's: cut to max_length {limit} by "
            f"{truncation!r} it has no completion token to score; a longer max_length would"
        )
    return side._replace(ids=ids, start=start, merge=side.merge and side.start >= part.start + 1)


def cut_pair(pair: EncodedPair, limit: int | None, truncation: str | None) -> EncodedPair:
    """Return a pair that was encoded before, cut as `encode` cuts one."""
    if limit is None or truncation is None:
        return pair
    found: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        ids, mask = getattr(pair, f"{side}_ids"), getattr(pair, f"{side}_mask")
        if len(ids) > limit:
            part = _kept(len(ids), limit, truncation)
            mask = mask[part].clone()
            mask[0] = mask[0] and not part.start
            found |= {f"{side}_ids": ids[part], f"{side}_mask": mask, "truncated": True}
    return replace(pair, **found)


def _kept(length: int, limit: int, truncation: str) -> slice:
    return slice(0, limit) if truncation == "keep_start" else slice(length - limit, length)


def encode_sides(pair: PreferencePair, tokenizer: Any, append_eos: bool) -> tuple[Side, Side]:
    if not isinstance(pair, PreferencePair):
        raise ValueError(f"pair: got {type(pair).__name__}; allowed is a PreferencePair")
    if not callable(tokenizer) or not hasattr(tokenizer, "eos_token_id"):
        raise ValueError(
            f"tokenizer: got {type(tokenizer).__name__}; allowed is a transformers tokenizer"
        )
    try:
        if pair.conversational:
            return tuple(
                _chat_side(pair.prompt, c, tokenizer) for c in (pair.chosen, pair.rejected)
            )
        return tuple(
            _plain_side(pair.prompt, completion, tokenizer, append_eos)
            for completion in (pair.chosen, pair.rejected)
        )
    except RowError as error:
        raise PairError(str(error), row=pair.row, pair_id=pair.id) from None


def _plain_side(prompt: str, completion: str, tokenizer: Any, append_eos: bool) -> Side:
    lead, ids, start, merge = _tokenise(prompt + completion, len(prompt), tokenizer)
    eos = tokenizer.eos_token_id
    double_bos = bool(lead) and lead[-1] == tokenizer.bos_token_id and ids[:1] == lead[-1:]
    if double_bos:
        ids, start = ids[1:], max(start - 1, 0)
    _refuse_unscored(completion, ids, start, bool(lead))
    double_eos = append_eos and ids[-1] == eos
    if append_eos and eos is None:
        raise RowError("the tokenizer has no EOS token to append; pass append_eos=False")
    if append_eos and not double_eos:
        ids = [*ids, eos]
    return Side(lead + ids, len(lead) + start, merge, double_bos, double_eos)


def _chat_side(prompt: Text, completion: Text, tokenizer: Any) -> Side:
    if not getattr(tokenizer, "chat_template", None):
        raise RowError(
            "the pair holds messages and the tokenizer has no chat template; set "
            "tokenizer.chat_template, or give plain text"
        )
    messages = [dict(message) for message in (*prompt, *completion)]
    render = tokenizer.apply_chat_template
    try:
        before = render(messages[: len(prompt)], tokenize=False, add_generation_prompt=True)
        whole = render(messages, tokenize=False)
    except Exception as error:  # a template is a program and can fail in any way
        raise RowError(f"the chat template refuses the messages: {error}") from error
    if not whole.startswith(before):
        raise RowError(
            "the chat template does not extend: the prompt's rendering changes when the "
            "completion follows it"
        )
    # The template has written its own BOS, so the one the tokenizer adds in front is left out.
    _, ids, start, merge = _tokenise(whole, len(before), tokenizer)
    _refuse_unscored(whole[len(before) :], ids, start, False)
    double_bos = ids[:2] == [tokenizer.bos_token_id] * 2
    double_eos = ids[-2:] == [tokenizer.eos_token_id] * 2
    return Side(ids, start, merge, double_bos, double_eos)


def _refuse_unscored(completion: str, ids: list[int], start: int, predicted: bool) -> None:
    if start >= len(ids):
        raise RowError(f"the tokenizer gives the completion {completion!r} no token")
    if start == 0 and not predicted:
        raise RowError(
            "no token stands before the first completion token to predict it; give a prompt, or "
            "a tokenizer that adds BOS"
        )


def _tokenise(text: str, cut: int, tokenizer: Any) -> tuple[list[int], list[int], int, bool]:
    """Return the special tokens added before the text, its own, the first scored one, and merge.

    Special tokens that the tokenizer adds after the text are left out: EOS is the caller's matter.
    """
    if not tokenizer.is_fast:
        return _tokenise_slow(text, cut, tokenizer)
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    own = [i for i, sequence in enumerate(encoding.sequence_ids(0)) if sequence is not None]
    if not own:
        return [], [], 0, False
    part = slice(own[0], own[-1] + 1)
    ids = encoding["input_ids"]
    spans = _whole_spans(encoding.tokens(0)[part], encoding["offset_mapping"][part], len(text))
    # With no prompt every token is the completion's, also one without characters of its own.
    start = next((i for i, (_, end) in enumerate(spans) if end > cut or cut == 0), len(spans))
    merge = start < len(spans) and spans[start][0] < cut
    return ids[: own[0]], ids[part], start, merge


def _whole_spans(
    tokens: list[str], offsets: list[tuple[int, int]], length: int
) -> list[tuple[int, int]]:
    """Return character spans with the spaces that `trim_offsets` took off byte-level tokens.

    Without them " yes" behind "Is it? " would look as if it began after the prompt's space.
    """
    spans, reached = [], 0
    nexts = [start for start, _ in offsets[1:]] + [length]
    for token, (start, end), following in zip(tokens, offsets, nexts, strict=True):
        leading = len(token) - len(token.lstrip("Ġ"))
        trailing = len(token) - len(token.rstrip("Ġ")) if leading < len(token) else 0
        # Where nothing was trimmed, the neighbours' offsets leave no room to grow.
        whole_end = max(end, min(end + trailing, following))
        spans.append((max(start - leading, min(reached, start)), whole_end))
        reached = max(reached, whole_end)
    return spans


def _tokenise_slow(text: str, cut: int, tokenizer: Any) -> tuple[list[int], list[int], int, bool]:
    """Split by the prompt's own tokens, for tokenizers that give no offsets."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    prompt = tokenizer.encode(text[:cut], add_special_tokens=False)
    if ids[: len(prompt)] != prompt:
        raise RowError(
            "this slow tokenizer gives no offsets and merges prompt and completion; use a fast "
            "tokenizer, or end the prompt at a word boundary"
        )
    whole = tokenizer.encode(text, add_special_tokens=True)
    lead = next((i for i in range(len(whole)) if whole[i : i + len(ids)] == ids), 0)
    return whole[:lead], ids, len(prompt), False
