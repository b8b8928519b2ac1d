"""The one scored forward pass: every log-probability in the package comes from here."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from toolkit.pairs import EncodedPair

Row = tuple[Tensor, Tensor]  # (ids, mask), prompt included


def sequences(encoded: Sequence[EncodedPair]) -> list[Row]:
    """Return the 2N responses of N pairs as (ids, mask), chosen before rejected."""
    sides = [((e.chosen_ids, e.chosen_mask), (e.rejected_ids, e.rejected_mask)) for e in encoded]
    return [row for pair in sides for row in pair]


def scored_logps(model: nn.Module, rows: Sequence[Row]) -> list[Tensor]:
    """Run the one scored forward pass: per-token log-probabilities of right-padded rows.

    Rows are padded on the right and the attention mask is all ones: under causal attention a
    scored token never sees what follows it, so the result is that of the row alone.

    Args:
        model: A causal LM in evaluation mode (see :func:`evaluation`).
        rows: ``(ids, mask)`` of each response.

    Returns:
        One tensor per row with the log-probability of each scored token in nats, differentiable,
        float32 or the weights' own dtype where that is wider.
    """
    logits, targets, masks = _predicting(model, rows)
    logps = token_logps(logits, targets)
    return [row[mask] for row, mask in zip(logps, masks, strict=True)]


def scored_distributions(model: nn.Module, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor]]:
    """Return each row's token log-probabilities and log-distributions ``[scored, vocabulary]``."""
    logits, targets, masks = _predicting(model, rows)
    every = log_softmax(logits)
    picked = every.gather(-1, targets[..., None]).squeeze(-1)
    return [(p[mask], row[mask]) for p, row, mask in zip(picked, every, masks, strict=True)]


def scored_logits(model: nn.Module, row: Row) -> Tensor:
    """Return the logits that predict one row's scored tokens, ``[scored, vocabulary]``."""
    logits, _, masks = _predicting(model, [row])
    return logits[0, masks[0]]


def token_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the log-probability of each token, ``[…]``, from ``logits […, vocabulary]``."""
    return log_softmax(logits).gather(-1, ids[..., None]).squeeze(-1)


def log_softmax(logits: Tensor, least: torch.dtype = torch.float32) -> Tensor:
    """Return log-probabilities over the vocabulary, in a dtype at least as wide as ``least``."""
    return logits.to(torch.promote_types(logits.dtype, least)).log_softmax(-1)


class Scorer(nn.Module):
    """The scored forward pass as a module, so that its parameters can be replaced."""

    def __init__(self, model: nn.Module, rows: Sequence[Row]):
        super().__init__()
        self.model, self.rows = model, rows

    def forward(self) -> list[Tensor]:
        """Return the log-probabilities of each row's scored tokens."""
        return scored_logps(self.model, self.rows)


def response_logits(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, int]:
    """Return logits of the positions that can predict a scored token, and the first position.

    Returns:
        ``logits [rows, kept, vocabulary]`` and ``start``, the input position of ``logits[:, 0]``.
    """
    device = model.get_input_embeddings().weight.device
    ids = padded_ids(rows).to(device)
    start = min(int(mask.nonzero()[0]) for _, mask in rows) - 1
    options = {"use_cache": False, "attention_mask": torch.ones_like(ids)}
    if "logits_to_keep" in forward_arguments(model):
        keep = ids.shape[1] - start
        return model(ids, logits_to_keep=keep, **options).logits, start
    return model(ids, **options).logits[:, start:], start


def _predicting(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """The logits of all positions from the first that predicts, the next ids, which are scored."""
    logits, start = response_logits(model, rows)
    masks = nn.utils.rnn.pad_sequence([mask for _, mask in rows], batch_first=True)
    following = (x[:, start + 1 :].to(logits.device) for x in (padded_ids(rows), masks))
    return logits[:, :-1], *following


@contextlib.contextmanager
def head_inputs(
    model: nn.Module, instead: Callable[[Tensor], Tensor] | None = None
) -> Iterator[list[Tensor]]:
    """Collect what the output embedding is given inside the block, one tensor for each call.

    A pre-hook on the output embedding itself takes it, so that no model family's way of numbering
    its hidden states has to be trusted.

    Args:
        model: A causal LM.
        instead: What the head is to work on in its place, such as :func:`one_position` of it.
    """
    given: list[Tensor] = []

    def keep(module, args):
        given.append(args[0])
        return None if instead is None else (instead(args[0]), *args[1:])

    with model.get_output_embeddings().register_forward_pre_hook(keep):
        yield given


def one_position(states: Tensor) -> Tensor:
    """Return the first position alone: for passes whose logits nobody reads."""
    return states[:, :1]


def padded_ids(rows: Sequence[Row]) -> Tensor:
    """Return the rows' ids padded on the right, ``[rows, longest]``; any id serves as padding."""
    return nn.utils.rnn.pad_sequence([ids for ids, _ in rows], batch_first=True)


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[nn.Module]:
    """Switch dropout off inside the block and restore every module's own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def forward_arguments(model) -> frozenset[str]:
    """Return the names of the arguments that a model's forward pass takes."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(inner.forward).parameters)
