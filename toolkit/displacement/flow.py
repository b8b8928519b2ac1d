"""Where the probability goes: next-token distributions before and after, by token and by word."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from toolkit.checks import whole
from toolkit.displacement.spelling import Groups, group_of_words, word_of
from toolkit.model import Policy
from toolkit.model.forward import evaluation, log_softmax, scored_logits
from toolkit.model.inputs import check_policy, encoded_pair
from toolkit.model.tokens import legible_texts
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair, PreferencePair


@alone
def mass_flow(
    before: Policy,
    after: Policy,
    pair: PreferencePair | EncodedPair,
    *,
    top_k: int | None = 10,
    position: int | str | None = None,
    groups: Groups | None = None,
) -> pd.DataFrame:
    """Return the tokens whose probability changed most, ``delta = π_after(v|·) − π_before(v|·)``.

    The context is the prompt and the chosen completion up to ``position``. Tokens that differ only
    in the case of letters or in white space around them are one group (`` Yes``, ``yes``, ``YES``):
    probability that moves between them is spelling, not meaning.

    Args:
        before: The policy before training; its output embedding gives ``theory_score``.
        after: The policy after it, with the same tokenizer.
        pair: One preference pair.
        top_k: Keep this many of the largest gains and as many of the largest losses at each
            position, and always the chosen and the rejected token; ``None``: the whole vocabulary.
        position: Position within the chosen completion, from 0, or ``"all"``; ``None``: the first
            at which the two sides differ, so that the context is what they share.
        groups: Your own groups of words, such as ``{"agree": ["yes", "sure"], "refuse": ["no"]}``.
            Every spelling of a word counts; words in no group keep the group of their spellings.

    Returns:
        One row per token, by falling ``delta`` within each position: ``pair_id``, ``position``,
        ``context_token`` (last token of the context), ``token``, ``token_id``, ``prob_before``,
        ``prob_after``, ``delta``, ``logp_delta`` (nats), ``direction`` (``gain``, ``loss`` or
        ``none``), ``role`` (``chosen``, ``rejected`` or empty), ``group``, ``given_group`` (whether
        it is one of ``groups``), ``group_delta`` (sum of ``delta`` over all of the vocabulary's
        tokens in the group), and, where the two sides
        differ, ``theory_score = ⟨W_token, W_chosen − W_rejected⟩`` and ``theory_rank`` (1 is the
        token that theory lets gain most). Labels and ``groups`` are in ``attrs``.

    Raises:
        PairError: If the pair cannot be scored.
        ValueError: If the policies do not share a tokenizer, the two sides never differ, or an
            option is not allowed.

    Source:
        arXiv 2410.08847, Theorem 5 (the score ranks the tokens that gain).

    Example:
        >>> import toolkit as tk
        >>> policy, pair = tk.load_model(), tk.load_pairs("stance", limit=1)[0]
        >>> flow = tk.mass_flow(policy, policy, pair)
        >>> flow["role"].tolist(), flow["delta"].tolist()
        (['chosen', 'rejected'], [0.0, 0.0])
    """
    whole("top_k", top_k, optional=True)
    word_groups = group_of_words(groups)
    enc = _encoded(before, after, pair)
    wanted = _positions(enc, position)
    models, side = (before.model, after.model), (enc.chosen_ids, enc.chosen_mask)
    logps = [next_token_logps(model, *side)[wanted] for model in models]
    texts = legible_texts(before.tokenizer, range(logps[0].shape[1]))
    names = [word_of(text, word_groups) for text in texts]
    frames = []
    for at, old, new in zip(wanted, *logps, strict=True):
        every = _whole_vocabulary(before, enc, at, old, new, texts, names)
        frames.append(every if top_k is None else _largest(every, top_k))
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(0, "pair_id", enc.id)
    given = frame["group"].isin(list(groups or {}))
    frame.insert(frame.columns.get_loc("group") + 1, "given_group", given)
    frame.attrs.update(before.labels("none").to_attrs(), after=after.name)
    frame.attrs["groups"] = {name: list(words) for name, words in (groups or {}).items()}
    return frame


def next_token_logps(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the log-distributions that predict the scored tokens, ``[scored, V]`` in float64."""
    with evaluation(model), torch.no_grad():
        return log_softmax(scored_logits(model, (ids, mask)), torch.float64).cpu()


def project(weight: Tensor, direction: Tensor) -> Tensor:
    """Return ``⟨W_v, direction⟩`` for every token v, in float64 without a float64 copy of W."""
    parts = weight.detach().split(8192)
    return torch.cat([part.double() @ direction.to(part.device) for part in parts]).cpu()


def _encoded(before: Policy, after: Policy, pair) -> EncodedPair:
    check_policy(after, "after")
    check_policy(before, "before")
    sizes = [p.model.get_output_embeddings().weight.shape[0] for p in (before, after)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"after scores {sizes[1]} tokens but before scores {sizes[0]}")
    enc, other = encoded_pair(before, pair), after.encode(pair)
    if not torch.equal(enc.chosen_ids, other.chosen_ids):
        raise ValueError("after splits the pair into other tokens than before; both must agree")
    return enc


def _same_prompt(enc: EncodedPair) -> bool:
    prompts = [
        ids[: int(mask.nonzero()[0])]
        for ids, mask in ((enc.chosen_ids, enc.chosen_mask), (enc.rejected_ids, enc.rejected_mask))
    ]
    return torch.equal(*prompts)


def contrast(enc: EncodedPair) -> int | None:
    """Return the first position with one context and two different tokens, if there is one."""
    at = enc.shared_prefix
    within = at < min(enc.chosen_length, enc.rejected_length)
    return at if within and _same_prompt(enc) else None


def _positions(enc: EncodedPair, position) -> list[int]:
    if position == "all":
        return list(range(enc.chosen_length))
    if position is None:
        at = contrast(enc)
        if at is None:
            raise ValueError(
                f"pair {enc.id!r} has no position with one context and two different tokens: give "
                "position as a number or 'all'"
            )
        return [at]
    number = isinstance(position, int) and not isinstance(position, bool)
    if not number or not 0 <= position < enc.chosen_length:
        raise ValueError(
            f"position must be None, 'all' or a whole number from 0 to {enc.chosen_length - 1}, "
            f"received {position!r}"
        )
    return [position]


def _whole_vocabulary(policy, enc, at: int, old: Tensor, new: Tensor, texts, names) -> pd.DataFrame:
    start = int(enc.chosen_mask.nonzero()[at])
    delta = (new.exp() - old.exp()).numpy()
    columns = {
        "position": at,
        "context_token": legible_texts(policy.tokenizer, enc.chosen_ids[start - 1 : start])[0],
        "token": texts,
        "token_id": np.arange(len(texts)),
        "prob_before": old.exp().numpy(),
        "prob_after": new.exp().numpy(),
        "delta": delta,
        "logp_delta": (new - old).numpy(),
        "direction": np.select([delta > 0, delta < 0], ["gain", "loss"], "none"),
        "role": "",
        "group": names,
    }
    frame = pd.DataFrame(columns)
    frame["group_delta"] = frame.groupby("group")["delta"].transform("sum")
    frame["theory_score"], frame["theory_rank"] = np.nan, pd.array([pd.NA] * len(frame), "Int64")
    chosen = int(enc.chosen_ids[start])
    frame.loc[chosen, "role"] = "chosen"
    if at == contrast(enc):
        rejected = int(enc.rejected_ids[enc.rejected_mask][at])
        frame.loc[rejected, "role"] = "rejected"
        weight = policy.model.get_output_embeddings().weight
        direction = weight[chosen].detach().double() - weight[rejected].detach().double()
        frame["theory_score"] = project(weight, direction).numpy()
        ranks = frame["theory_score"].rank(method="first", ascending=False)
        frame["theory_rank"] = ranks.astype("Int64")
    return frame.sort_values("delta", ascending=False, kind="stable")


def _largest(frame: pd.DataFrame, top_k: int) -> pd.DataFrame:
    """The first and last rows that moved, and those with a role; the frame is sorted by delta."""
    gains = frame.index[frame["direction"] == "gain"][:top_k]
    losses = frame.index[frame["direction"] == "loss"][-top_k:]
    kept = frame.index.isin([*gains, *losses]) | (frame["role"] != "")
    return frame[kept]
