"""How alike the model finds the two responses: the CHES family and its baselines."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from toolkit._forward import evaluation, padded_ids, sequences
from toolkit.model import Policy, as_list, batches
from toolkit.pairs import EncodedPair, PreferencePair


def similarity(
    policy: Policy,
    pairs: Sequence[PreferencePair | EncodedPair] | PreferencePair | EncodedPair,
    *,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """Return ``CHES = ⟨S⁺, S⁻ − S⁺⟩`` of every pair, its length-normalised form and baselines.

    ``S±`` sums the hidden states that predict the scored tokens: from the last prompt token to the
    token before the last scored one. The state is the input of the output embedding. A high score
    means that the model sees the two responses as alike, and likelihood displacement is expected.

    Args:
        policy: The model.
        pairs: Preference pairs.
        batch_size: Pairs per forward pass (default 8). It never changes a result beyond rounding.

    Returns:
        One row a pair: ``id``; ``ches``; ``ln_ches`` (⟨μ⁺, μ⁻ − μ⁺⟩ with ``μ = S/length``);
        ``neg_edit_distance`` (−Levenshtein/longest, over scored token ids, in [−1, 0]);
        ``last_hidden_inner`` (inner product of the states *of* the last scored tokens);
        ``chosen_length`` and ``rejected_length``. Sums are float64. Labels are in ``attrs``.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If ``batch_size`` is not a positive integer.

    Source:
        arXiv 2410.08847, Definitions 2 and 3.

    Example:
        >>> import toolkit as tk
        >>> frame = tk.similarity(tk.load_model(), tk.load_pairs("near_duplicates", limit=3))
        >>> list(frame.columns[:3])
        ['id', 'ches', 'ln_ches']
    """
    encoded = [policy.encode(p) for p in as_list(pairs)]
    rows = []
    for batch in batches(encoded, batch_size):
        states = head_inputs(policy.model, sequences(batch))
        for i, enc in enumerate(batch):
            rows.append(_scores(enc, *states[2 * i : 2 * i + 2]))
    frame = pd.DataFrame(rows)
    frame.attrs.update(policy.labels("none").to_attrs())
    return frame


def head_inputs(model: nn.Module, rows) -> list[Tensor]:
    """Return the hidden states multiplied by the output embedding, one ``[length, d]`` a row.

    They are taken by a pre-hook on the output embedding itself, so that no model family's way of
    numbering its hidden states has to be trusted. Rows are right-padded; padding is cut off.
    """
    kept: list[Tensor] = []
    head = model.get_output_embeddings()

    def keep(module, args):
        kept.append(args[0].detach())
        return (args[0][:, :1],)  # the logits are not needed: multiply one position only

    handle = head.register_forward_pre_hook(keep)
    try:
        with evaluation(model), torch.no_grad():
            ids = padded_ids(rows).to(model.get_input_embeddings().weight.device)
            model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        handle.remove()
    if len(kept) != 1 or kept[0].shape[:2] != ids.shape:
        raise ValueError(
            f"{type(model).__name__} does not pass one state a token to its output embedding, "
            "so CHES is not defined for it"
        )
    return [states[: len(row[0])] for states, row in zip(kept[0], rows, strict=True)]


def _scores(enc: EncodedPair, chosen: Tensor, rejected: Tensor) -> dict[str, object]:
    sides = (chosen, enc.chosen_mask), (rejected, enc.rejected_mask)
    a, b = (_state_sum(states, mask) for states, mask in sides)
    na, nb = enc.chosen_length, enc.rejected_length
    last = [states[int(mask.nonzero()[-1])].double() for states, mask in sides]
    return {
        "id": enc.id,
        "ches": float(a @ (b - a)),
        "ln_ches": float(a / na @ (b / nb - a / na)),
        "neg_edit_distance": -_edit_distance(enc),
        "last_hidden_inner": float(last[0] @ last[1]),
        "chosen_length": na,
        "rejected_length": nb,
    }


def _state_sum(states: Tensor, mask: Tensor) -> Tensor:
    """Sum the states at the position before each scored token, in float64."""
    predicting = mask.nonzero().squeeze(-1) - 1
    return states[predicting.to(states.device)].double().sum(0)


def _edit_distance(enc: EncodedPair) -> float:
    from rapidfuzz.distance import Levenshtein

    chosen = enc.chosen_ids[enc.chosen_mask].tolist()
    rejected = enc.rejected_ids[enc.rejected_mask].tolist()
    return float(Levenshtein.normalized_distance(chosen, rejected))
