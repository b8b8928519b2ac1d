"""How alike the model finds the two responses: the CHES family and its baselines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import pandas as pd
import torch

from toolkit.checks import flag, whole
from toolkit.model import Policy
from toolkit.model.batching import by_length, in_halves
from toolkit.model.forward import sequences
from toolkit.model.inputs import Pairs, encoded_pair, encoded_pairs, skipped_attrs
from toolkit.model.tokens import token_columns
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair, PreferencePair
from toolkit.similarities._head_slack import SLACK_NOTES, head_slack_of, plain_head
from toolkit.similarities._head_states import pair_states, predicting
from toolkit.similarities._packed import States, packed_length

# Tokens of one forward pass: enough to keep the machine busy. More is slower on a CPU, where the
# states of a layer no longer fit into its caches, and means more padding everywhere.
_TOKENS_PER_THREAD = 512
_TOKENS_ELSEWHERE = 16384


def similarity(
    policy: Policy,
    pairs: Pairs,
    *,
    head_slack: bool = False,
    batch_size: int | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> pd.DataFrame:
    """Return ``CHES = ⟨S⁺, S⁻ − S⁺⟩`` of every pair, its length-normalised form and baselines.

    ``S±`` sums the hidden states that predict the scored tokens: from the last prompt token to the
    token before the last scored one. The state is the input of the output embedding. A high score
    means that the model sees the two responses as alike, and likelihood displacement is expected.

    The logits are not computed, and tokens that both responses of a pair share are run once where
    that is exact for the model (it is tried on the model; otherwise each response is run whole).

    Args:
        policy: The model.
        pairs: Preference pairs.
        head_slack: Also compute the column ``head_slack``; it needs the probabilities of the whole
            vocabulary at every scored token.
        batch_size: Most pairs per forward pass; ``None``: as many of similar length as fill it. It
            never changes a result beyond rounding. A batch that does not fit into memory is halved.
        on_error: "raise" stops at the first pair that cannot be scored, before any work; "skip"
            leaves such pairs out and names them in ``attrs["skipped"]`` (row, pair_id, reason).
        progress: Show a progress bar.

    Returns:
        One row per pair, in order: ``pair_id``; ``ches``; ``ln_ches`` (⟨μ⁺, μ⁻ − μ⁺⟩ with
        ``μ = S/length``); ``neg_edit_distance`` (−Levenshtein/longest, over scored token ids, in
        [−1, 0]); ``last_hidden_inner`` (inner product of the states *of* the last scored tokens);
        ``chosen_length`` and ``rejected_length`` in tokens. On request ``head_slack``
        = ‖g_chosen‖² − ⟨g_chosen, g_rejected⟩ over the matrix of the output embedding, in nats²:
        CHES with the weights that it leaves out, and the other sign. With ``u = onehot − p`` it is
        Σ⟨u⁺ₖ, u⁺ₗ⟩⟨h⁺ₖ, h⁺ₗ⟩ − Σ⟨u⁺ₖ, u⁻ₗ⟩⟨h⁺ₖ, h⁻ₗ⟩. A bias of the head is left out, and so is
        the other use of a tied matrix. Where the logits are not the head's plain product (scaled
        or soft-capped), it is NaN, and ``attrs["head_slack"]`` says so. Sums are float64. Labels
        are in ``attrs``.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If ``batch_size`` is not a positive integer.

    Source:
        arXiv 2410.08847, Definitions 2 and 3; ``head_slack``: the first sums of its Theorem 6.

    Example:
        >>> import toolkit as tk
        >>> pairs = tk.load_pairs("near_duplicates", limit=3)
        >>> frame = tk.similarity(tk.load_model(), pairs, progress=False)
        >>> list(frame.columns[:3])
        ['pair_id', 'ches', 'ln_ches']
    """
    from tqdm.auto import tqdm

    flag("head_slack", head_slack)
    flag("progress", progress)
    if batch_size is not None:
        whole("batch_size", batch_size)
    given = encoded_pairs(policy, pairs, on_error)
    encoded = given.pairs
    plain = plain_head(policy, encoded[0]) if head_slack else None
    rows: list[dict] = [{}] * len(encoded)
    measured = partial(_batch_scores, policy, plain=plain)
    with tqdm(total=len(encoded), desc="similarity", unit="pair", disable=not progress) as bar:
        for batch in _buckets(encoded, batch_size, policy.device):
            found = in_halves(measured, [encoded[i] for i in batch])
            for i, scores in zip(batch, chain(*found), strict=True):
                rows[i] = scores
            bar.update(len(batch))
    frame = pd.DataFrame(rows)
    frame.attrs.update(policy.labels("none").to_attrs(), **skipped_attrs(given.left_out))
    if head_slack:
        frame.attrs["head_slack"] = SLACK_NOTES[plain]
    return frame


@alone
def ches_tokens(policy: Policy, pair: PreferencePair | EncodedPair) -> pd.DataFrame:
    """Return each scored token's share ``⟨h⁺ₖ, S⁻ − S⁺⟩`` of the pair's CHES.

    Args:
        policy: The model.
        pair: One pair.

    Returns:
        One row per scored token, chosen first: ``pair_id``; ``side``; ``position`` (from 0 at the
        side's first scored token); ``token``; ``token_id``; ``ches_share`` = ⟨h⁺ₖ, S⁻ − S⁺⟩, NaN on
        the rejected side; ``inner_with_chosen`` = ⟨S⁺, hₖ⟩. Here hₖ is the state that predicts the
        token. Sum rules: Σ ``ches_share`` = CHES; Σ ``inner_with_chosen`` is ‖S⁺‖² over the chosen
        side and ⟨S⁺, S⁻⟩ over the rejected one, so that rejected − chosen = CHES too. Values are
        float64. Labels are in ``attrs``.

    Raises:
        PairError: If the pair cannot be scored.

    Source:
        arXiv 2410.08847, Definition 2, before its outer sum.

    Example:
        >>> import toolkit as tk
        >>> pair = tk.load_pairs("near_duplicates", limit=1)[0]
        >>> tk.ches_tokens(tk.load_model(), pair).columns[0]
        'pair_id'
    """
    enc = encoded_pair(policy, pair)
    (states,) = pair_states(policy.model, [enc])
    chosen, rejected = predicting(enc, states)
    total, apart = chosen.sum(0), rejected.sum(0) - chosen.sum(0)
    inner = torch.cat([chosen, rejected]) @ total
    share = torch.full_like(inner, math.nan)
    share[: len(chosen)] = chosen @ apart
    columns = token_columns(policy.tokenizer, sequences([enc]))
    frame = pd.DataFrame({"pair_id": enc.id, **columns})
    frame["ches_share"], frame["inner_with_chosen"] = share.cpu().numpy(), inner.cpu().numpy()
    frame.attrs.update(policy.labels("none").to_attrs())
    return frame


def _buckets(
    encoded: Sequence[EncodedPair], batch_size: int | None, device: torch.device
) -> Iterator[list[int]]:
    """Yield indices of pairs of similar length, the longest first: they show soonest what fits."""
    lengths, room = [packed_length(enc) for enc in encoded], _token_budget(device)
    return by_length(lengths, longest_first=True, count=batch_size, positions=room)


def _token_budget(device: torch.device) -> int:
    on_cpu = device.type == "cpu"
    return _TOKENS_PER_THREAD * torch.get_num_threads() if on_cpu else _TOKENS_ELSEWHERE


@alone
def _batch_scores(
    policy: Policy, pairs: Sequence[EncodedPair], plain: bool | None
) -> list[dict[str, object]]:
    """Return the scores of one batch; ``plain`` is ``None`` where no slack is wanted."""
    found = []
    for enc, states in zip(pairs, pair_states(policy.model, pairs), strict=True):
        found.append(_scores(enc, states))
        if plain is not None:
            slack = head_slack_of(policy.model, enc, states) if plain else math.nan
            found[-1]["head_slack"] = slack
    return found


def _scores(enc: EncodedPair, states: States) -> dict[str, object]:
    a, b = (h.sum(0) for h in predicting(enc, states))
    na, nb = enc.chosen_length, enc.rejected_length
    masks = enc.chosen_mask, enc.rejected_mask
    last = [h[int(m.nonzero()[-1])].double() for h, m in zip(states, masks, strict=True)]
    return {
        "pair_id": enc.id,
        "ches": float(a @ (b - a)),
        "ln_ches": float(a / na @ (b / nb - a / na)),
        "neg_edit_distance": -_edit_distance(enc),
        "last_hidden_inner": float(last[0] @ last[1]),
        "chosen_length": na,
        "rejected_length": nb,
    }


def _edit_distance(enc: EncodedPair) -> float:
    from rapidfuzz.distance import Levenshtein

    chosen = enc.chosen_ids[enc.chosen_mask].tolist()
    rejected = enc.rejected_ids[enc.rejected_mask].tolist()
    return float(Levenshtein.normalized_distance(chosen, rejected))
