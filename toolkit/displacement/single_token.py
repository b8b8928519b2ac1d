"""What theory says of a pair of single tokens: who gains, who loses, and which term does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit.displacement.flow import contrast, next_token_logps, project
from toolkit.losses import LossWeights, PairLogSums, check_loss, loss_weights
from toolkit.model import Policy, Provenance, reference
from toolkit.model.forward import evaluation, head_inputs, log_softmax, response_logits
from toolkit.model.inputs import encoded_pair
from toolkit.model.tokens import legible_texts
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair, PreferencePair


@dataclass(frozen=True)
class SingleTokenTheory:
    """``d/dt ln π`` under gradient flow where W and the state h are free parameters.

    The rates are those of this pair alone, in nats for each unit of learning rate × step. The four
    terms add up to ``total``, and so do the two parts.

    Attributes:
        pair_id: The pair's id.
        chosen_id: Token id of the chosen token.
        rejected_id: Token id of the rejected token.
        weights: Loss weights of the pair.
        norm_term: ``d_rejected·m``, where ``m = (1 − π⁺)‖W⁺‖² + π⁻‖W⁻‖² + (1 − π⁺ + π⁻)‖h‖²``.
        alignment_term: ``−d_rejected·(1 − π⁺ + π⁻)⟨W⁺, W⁻⟩``.
        other_tokens_term: ``−d_rejected·Σ π(z)⟨W_z, W⁺ − W⁻⟩`` over the other tokens z.
        chosen_term: ``(d_chosen − d_rejected)‖∇ ln π⁺‖²``; 0 for losses of the margin alone.
        head_part: What moves through W (the terms with ``‖h‖²``); never negative for such losses.
        feature_part: What moves through h.
        texts: Text of every token of the vocabulary.
        probs: ``π(z)`` of every token, shape ``[V]``.
        scores: ``⟨W_z, W⁺ − W⁻⟩`` of every token, shape ``[V]``.
        rates: ``d/dt ln π(z)`` of every token, shape ``[V]``.
        labels: What it was measured with.
    """

    pair_id: str
    chosen_id: int
    rejected_id: int
    weights: LossWeights
    norm_term: float
    alignment_term: float
    other_tokens_term: float
    chosen_term: float
    head_part: float
    feature_part: float
    texts: list[str]
    probs: np.ndarray
    scores: np.ndarray
    rates: np.ndarray
    labels: Provenance

    @property
    def total(self) -> float:
        """``d/dt ln π(chosen)``; below zero the chosen token loses probability."""
        return self.norm_term + self.alignment_term + self.other_tokens_term + self.chosen_term

    def to_frame(self) -> pd.DataFrame:
        """Return one row: the tokens, their probabilities, the rate, its terms and its parts."""
        row = {"pair_id": self.pair_id}
        for side, token in (("chosen", self.chosen_id), ("rejected", self.rejected_id)):
            row[f"{side}_token"], row[f"{side}_prob"] = self.texts[token], self.probs[token]
        row |= {"d_chosen": self.weights.d_chosen[0], "d_rejected": self.weights.d_rejected[0]}
        names = ("total", "norm_term", "alignment_term", "other_tokens_term", "chosen_term")
        row |= {name: getattr(self, name) for name in (*names, "head_part", "feature_part")}
        return self._labelled(pd.DataFrame([row]))

    def tokens(self) -> pd.DataFrame:
        """Return one row per token of the vocabulary, by falling ``rate`` (``d/dt ln π(z)``).

        Columns ``token, token_id, prob, theory_score, theory_rank, rate, prob_rate, role``;
        ``prob_rate = π(z)·rate`` sums to zero.
        """
        count = len(self.rates)
        frame = pd.DataFrame({"token": self.texts, "token_id": np.arange(count)})
        frame["prob"], frame["theory_score"] = self.probs, self.scores
        frame["theory_rank"] = frame["theory_score"].rank(method="first", ascending=False)
        frame["theory_rank"] = frame["theory_rank"].astype("int64")
        frame["rate"], frame["prob_rate"] = self.rates, self.probs * self.rates
        frame["role"] = ""
        frame.loc[[self.chosen_id, self.rejected_id], "role"] = ["chosen", "rejected"]
        order = frame.sort_values("rate", ascending=False, kind="stable", ignore_index=True)
        return self._labelled(order)

    def _labelled(self, frame: pd.DataFrame) -> pd.DataFrame:
        named = {"loss_name": self.weights.loss_name, **self.weights.hparams}
        frame.attrs.update(self.labels.to_attrs(), **named)
        return frame


@alone
def single_token_theory(
    policy: Policy,
    pair: PreferencePair | EncodedPair,
    loss: str | Callable[..., Tensor] = "dpo",
    **hparams: float,
) -> SingleTokenTheory:
    """Return ``d/dt ln π(chosen)`` of a pair of single tokens, term by term, with W and h free.

    For a loss of the margin with ``d = d_chosen = d_rejected`` it is
    ``d·[m − (1 − π⁺ + π⁻)⟨W⁺, W⁻⟩ − Σ π(z)⟨W_z, W⁺ − W⁻⟩]``; any other loss adds
    ``(d_chosen − d_rejected)‖∇ ln π⁺‖²``. W is the output embedding, h the state it multiplies. A
    bias of the output embedding enters π and is held constant.

    Args:
        policy: The model.
        pair: A pair whose completions are one scored token each, after the same prompt.
        loss: A key of ``LOSSES`` or a function (see ``loss_weights``).
        **hparams: Hyper-parameters of the loss.

    Returns:
        :class:`SingleTokenTheory`; ``.to_frame()`` has the terms, ``.tokens()`` every token.

    Raises:
        PairError: If the pair cannot be scored.
        ValueError: If a completion has more than one scored token (an appended EOS is one), or the
            model changes its logits after the output embedding (scaling, soft-capping).

    Source:
        arXiv 2410.08847, Theorems 4 and 5; Appendix E for the added chosen term.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model().with_options(append_eos=False)
        >>> theory = tk.single_token_theory(policy, tk.load_pairs("stance", limit=1)[0])
        >>> theory.head_part > 0
        True
    """
    enc = encoded_pair(policy, pair)
    check_loss(loss, hparams)
    _check_single(enc)
    chosen, rejected = (
        int(ids[mask][0])
        for ids, mask in ((enc.chosen_ids, enc.chosen_mask), (enc.rejected_ids, enc.rejected_mask))
    )
    state, logps = _state_and_logps(policy, enc)
    with reference(policy) as ref_model:
        side = enc.chosen_ids, enc.chosen_mask
        ref = logps if ref_model is None else next_token_logps(ref_model, *side)[0]
    sums = (x[[token]].numpy() for x in (logps, ref) for token in (chosen, rejected))
    stats = PairLogSums([enc.id], *sums, np.ones(1), np.ones(1))
    weights = loss_weights(stats, loss, **hparams)
    weight = policy.model.get_output_embeddings().weight.detach()
    parts = _parts(weight, state, logps.exp(), chosen, rejected, weights)
    texts = legible_texts(policy.tokenizer, range(len(logps)))
    labels = policy.labels("unconstrained features")
    return SingleTokenTheory(enc.id, chosen, rejected, weights, **parts, texts=texts, labels=labels)


def _parts(weight: Tensor, state: Tensor, probs: Tensor, chosen, rejected, weights) -> dict:
    d_chosen, d_rejected = float(weights.d_chosen[0]), float(weights.d_rejected[0])
    extra, down = d_chosen - d_rejected, float(probs[rejected])
    head, other = weight[chosen].double().cpu(), weight[rejected].double().cpu()
    mean, sq_state = _mean_row(weight, probs), float(state @ state)
    scores = project(weight, head - other)
    rest = probs.clone()
    rest[[chosen, rejected]] = 0
    # 1 − π⁺ + π⁻ and ‖e⁺ − π‖² without the cancellation of 1 − π⁺ at a confident model.
    miss = float(rest.sum()) + down
    gap, sq_miss = miss + down, miss**2 + float(rest @ rest) + down**2
    pull = d_chosen * head - d_rejected * other - extra * mean
    moved = -extra * probs
    moved[chosen] += d_chosen
    moved[rejected] -= d_rejected
    rates = project(weight, pull) - mean @ pull + (moved - probs @ moved) * sq_state
    norms = miss * head @ head + down * other @ other + gap * sq_state
    return {
        "norm_term": d_rejected * float(norms),
        "alignment_term": -d_rejected * gap * float(head @ other),
        "other_tokens_term": -d_rejected * float(rest @ scores),
        "chosen_term": extra * float((head - mean) @ (head - mean) + sq_miss * sq_state),
        "head_part": (d_rejected * gap + extra * sq_miss) * sq_state,
        "feature_part": float((head - mean) @ pull),
        "probs": probs.numpy(),
        "scores": scores.numpy(),
        "rates": rates.numpy(),
    }


def _mean_row(weight: Tensor, probs: Tensor) -> Tensor:
    """``Wᵀπ`` in float64, a block of rows at a time."""
    blocks = zip(weight.split(8192), probs.to(weight.device).split(8192), strict=True)
    return sum(share @ rows.double() for rows, share in blocks).cpu()


def _check_single(enc: EncodedPair) -> None:
    lengths = enc.chosen_length, enc.rejected_length
    if lengths != (1, 1):
        eos = " (EOS is one of them: use policy.with_options(append_eos=False))"
        raise ValueError(
            f"pair {enc.id!r} must have one scored token on each side, but has {lengths[0]} chosen "
            f"and {lengths[1]} rejected{eos if enc.append_eos else ''}"
        )
    if contrast(enc) is None:
        raise ValueError(f"pair {enc.id!r} must have two different tokens after the same prompt")


def _state_and_logps(policy: Policy, enc: EncodedPair) -> tuple[Tensor, Tensor]:
    """The state that predicts the scored token, ``[d]``, and its log-distribution, ``[V]``."""
    model, head = policy.model, policy.model.get_output_embeddings()
    with evaluation(model), torch.no_grad():
        with head_inputs(model) as states:
            logits, start = response_logits(model, [(enc.chosen_ids, enc.chosen_mask)])
        plain = head(states[0]) if states else None
    at = int(enc.chosen_mask.nonzero()[0]) - 1 - start - logits.shape[1]
    if plain is None or not torch.equal(plain[0, at].to(logits.dtype), logits[0, at]):
        raise ValueError(
            f"policy: {type(policy.model).__name__} changes its logits after the output embedding "
            "(scaling or soft-capping); the theory is for logits W·h"
        )
    return states[0][0, at].double().cpu(), log_softmax(logits[0, at], torch.float64).cpu()
