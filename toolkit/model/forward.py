"""The one scored forward pass: every log-probability in the package comes from here."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence

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
        One tensor a row with the log-probability of each scored token in nats, differentiable,
        float32 or the weights' own dtype where that is wider.
    """
    logits, start = response_logits(model, rows)
    scores = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    targets = padded_ids(rows)[:, start + 1 :].to(scores.device)
    logps = scores.gather(-1, targets[..., None]).squeeze(-1)
    masks = nn.utils.rnn.pad_sequence([mask for _, mask in rows], batch_first=True)[:, start + 1 :]
    return [row[mask] for row, mask in zip(logps, masks.to(scores.device), strict=True)]


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
