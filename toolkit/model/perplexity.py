"""How surprising ordinary text is to a policy: what alignment costs elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from toolkit.checks import is_iterable, shown
from toolkit.model.batching import by_length
from toolkit.model.forward import Row, evaluation, scored_logps
from toolkit.model.inputs import check_policy
from toolkit.model.policy import Policy
from toolkit.model.turns import alone

POSITIONS = 1024  # most tokens of one forward pass, padding counted


@alone
def perplexity(policy: Policy, texts: Sequence[str]) -> float:
    """Return ``exp(−Σ log π(token) / tokens)`` over all tokens of ordinary texts.

    Each text is scored by itself, its first token not; EOS is appended and scored where the
    policy does so for responses. Dropout is off.

    Args:
        policy: The model.
        texts: Plain texts, such as some that training has not seen.

    Returns:
        The perplexity a token, 1 or more; the vocabulary's size for a model that knows nothing.

    Raises:
        ValueError: If there is no text, one is no text, or one has fewer than two tokens or more
            than the context.

    Example:
        >>> import toolkit as tk
        >>> tk.perplexity(tk.load_model(), ["The kettle is on the table."]) > 1
        True
    """
    rows = text_rows(policy, texts)
    total, count = 0.0, 0
    with evaluation(policy.model), torch.no_grad():
        for part in by_length([len(ids) for ids, _ in rows], positions=POSITIONS):
            for logps in scored_logps(policy.model, [rows[i] for i in part]):
                total -= float(logps.double().sum())
                count += len(logps)
    return math.exp(total / count)


def text_rows(policy: Policy, texts: Sequence[str], name: str = "texts") -> list[Row]:
    """Return ``(ids, mask)`` of each text; every token but the first is scored.

    Raises:
        ValueError: As :func:`perplexity` does.
    """
    check_policy(policy)
    if isinstance(texts, str) or not is_iterable(texts):
        raise ValueError(f"{name} must be a list of texts, received {shown(texts)}: use [text]")
    rows = [_row(policy, f"{name}[{i}]", text) for i, text in enumerate(texts)]
    if not rows:
        raise ValueError(f"{name} is empty: give at least one text")
    return rows


def _row(policy: Policy, name: str, text: str) -> tuple[Tensor, Tensor]:
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text, received {shown(text)}")
    ids = list(policy.tokenizer(text)["input_ids"])
    end = policy.tokenizer.eos_token_id
    if policy.append_eos and end is not None:
        ids.append(end)
    limit = policy.context_length or math.inf
    if not 2 <= len(ids) <= limit:
        raise ValueError(f"{name} must have from 2 to {limit} tokens, it has {len(ids)}")
    return torch.tensor(ids), torch.arange(len(ids)) > 0
