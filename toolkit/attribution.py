"""What each prompt token contributes to a response's log-probability, through captum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from toolkit.checks import choice, whole
from toolkit.model import Policy, Provenance
from toolkit.model.forward import Row, evaluation, sequences, token_logps
from toolkit.model.inputs import encoded_pair
from toolkit.model.tokens import token_texts
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair, PairError, PreferencePair

METHODS = ("integrated_gradients", "input_x_gradient")
TARGETS = ("chosen", "rejected", "margin")
BASELINES = ("mean", "zero")


@dataclass(frozen=True)
class PromptAttributions:
    """Contribution of each prompt token to the log-probabilities of one pair, in nats.

    Attributes:
        pair_id: Pair id.
        tokens: Texts of the prompt tokens that both responses share; of several that are pieces of
            one character the first holds it, the others are empty.
        token_ids: Their ids.
        values: Attributions by target (``chosen``, ``rejected``, ``margin``), each ``[prompt]``.
        gaps: Completeness gap by target, nats: ``Σ attributions − (f(prompt) − f(baseline))``.
        differences: ``f(prompt) − f(baseline)`` by target, nats.
        method: ``"integrated_gradients"`` or ``"input_x_gradient"``.
        baseline: What the prompt is compared with.
        labels: Model, dtype and EOS policy.
    """

    pair_id: str
    tokens: list[str]
    token_ids: np.ndarray
    values: dict[str, np.ndarray]
    gaps: dict[str, float]
    differences: dict[str, float]
    method: str
    baseline: str
    labels: Provenance

    def to_frame(self) -> pd.DataFrame:
        """Return one row per prompt token: ``pair_id, position, token, token_id``, the targets."""
        columns = {"pair_id": self.pair_id, "position": np.arange(len(self.tokens))}
        frame = pd.DataFrame({**columns, "token": self.tokens, "token_id": self.token_ids})
        for target, values in self.values.items():
            frame[target] = values
        gaps = {f"{target}_gap": gap for target, gap in self.gaps.items()}
        frame.attrs.update(self.labels.to_attrs(), method=self.method, baseline=self.baseline)
        frame.attrs.update(gaps)
        return frame


@alone
def prompt_attributions(
    policy: Policy,
    pair: PreferencePair | EncodedPair,
    *,
    method: str = "integrated_gradients",
    target: str = "margin",
    baseline: str = "mean",
    steps: int = 64,
) -> PromptAttributions:
    """Attribute the chosen and rejected log-probability, and their margin, to the prompt tokens.

    The embeddings of the prompt move from the baseline to their own values while the completion
    stays as it is, so the attributions of a target sum to ``f(prompt) − f(baseline)``: exactly for
    the path integral, and up to the reported gap for ``steps`` points of it. Input × gradient is
    the one-point version, against the same baseline.

    Args:
        policy: The model.
        pair: One pair.
        method: ``"integrated_gradients"`` or ``"input_x_gradient"``.
        target: ``"chosen"``, ``"rejected"``, or ``"margin"`` (chosen − rejected; both parts are
            returned as well).
        baseline: ``"mean"`` (the mean token embedding) or ``"zero"``, which is for models whose
            first layer is no RMSNorm: that norm jumps at zero, and more steps do not close the gap.
        steps: Points of the integral; more points, smaller gap.

    Returns:
        :class:`PromptAttributions` with values in nats.

    Raises:
        PairError: If the pair cannot be scored or has no prompt token.
        ValueError: If an option is unknown, or the model takes no input embeddings.

    Source:
        Integrated gradients: arXiv 1703.01365; computed by captum.

    Example:
        >>> import toolkit as tk
        >>> result = tk.prompt_attributions(tk.load_model(), tk.load_pairs("stance", limit=1)[0])
        >>> abs(result.gaps["margin"]) < 0.1
        True
    """
    for name, value, allowed in (
        ("method", method, METHODS),
        ("target", target, TARGETS),
        ("baseline", baseline, BASELINES),
    ):
        choice(name, value, allowed)
    whole("steps", steps)
    enc = encoded_pair(policy, pair)
    prompt = _shared_prompt(enc)
    sides = ("chosen", "rejected") if target == "margin" else (target,)
    parts = {}
    for side, row in zip(("chosen", "rejected"), sequences([enc]), strict=True):
        if side in sides:
            parts[side] = _attribute(policy.model, row, prompt, method, baseline, steps)
    if target == "margin":
        parts["margin"] = tuple(a - b for a, b in zip(*parts.values(), strict=True))
    ids = enc.chosen_ids[:prompt]
    return PromptAttributions(
        enc.id,
        token_texts(policy.tokenizer, ids, torch.ones_like(ids, dtype=torch.bool)),
        ids.cpu().numpy(),
        {name: values for name, (values, _) in parts.items()},
        {name: float(values.sum() - change) for name, (values, change) in parts.items()},
        {name: float(change) for name, (_, change) in parts.items()},
        method,
        baseline,
        policy.labels("none"),
    )


def _shared_prompt(enc: EncodedPair) -> int:
    """Number of leading tokens that are unscored and equal in both sequences."""
    length = min(int(m.nonzero()[0]) for m in (enc.chosen_mask, enc.rejected_mask))
    different = (enc.chosen_ids[:length] != enc.rejected_ids[:length]).nonzero()
    shared = int(different[0]) if len(different) else length
    if shared == 0:
        raise PairError("no prompt token to attribute to: the prompt is empty", pair_id=enc.id)
    return shared


def _attribute(model: nn.Module, row: Row, prompt: int, method: str, baseline: str, steps: int):
    """Return attributions ``[prompt]`` of one response and ``f(prompt) − f(baseline)``."""
    from captum.attr import InputXGradient, IntegratedGradients

    embedding = model.get_input_embeddings()
    device = embedding.weight.device
    with evaluation(model), torch.enable_grad():
        embedded = embedding(row[0].to(device)[None]).detach()
        start, rest = embedded[:, :prompt], embedded[:, prompt:]
        away = torch.zeros_like(start)
        if baseline == "mean":
            ids = torch.arange(embedding.num_embeddings, device=device)
            away = embedding(ids).detach().mean(0).expand_as(start)

        def logp(inputs: Tensor) -> Tensor:
            whole = torch.cat([inputs, rest.expand(len(inputs), -1, -1)], 1)
            return _embedded_logps(model, whole, row)

        if method == "integrated_gradients":
            ig = IntegratedGradients(logp)
            values = ig.attribute(start, away, n_steps=steps, internal_batch_size=16)
        else:
            moved = (start - away).requires_grad_()
            values = InputXGradient(lambda moved: logp(moved + away)).attribute(moved)
        with torch.no_grad():
            change = float(logp(start) - logp(away))
    return values.detach().double().sum(-1)[0].cpu().numpy(), change


def _embedded_logps(model: nn.Module, embedded: Tensor, row: Row) -> Tensor:
    """Log-probability of one response for each of several input embeddings, ``[copies]``."""
    ids, mask = row
    try:
        logits = model(inputs_embeds=embedded, use_cache=False).logits
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{type(model).__name__} takes no input embeddings, so its prompt cannot be "
            f"attributed: {error}"
        ) from error
    at = mask.nonzero().squeeze(-1).to(logits.device)
    wanted = ids.to(logits.device)[at].expand(len(embedded), -1)
    return token_logps(logits[:, at - 1], wanted).sum(1)
