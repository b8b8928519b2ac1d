"""The output embedding's own part of the entanglement, from the states that predict tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toolkit.model import Policy
from toolkit.model.forward import evaluation, head_inputs, sequences
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair
from toolkit.similarities._head_states import predicting
from toolkit.similarities._packed import States

VOCABULARY_CHUNK = 8192
LARGE = 1024
SLACK_NOTES = {
    True: "squared norm of g_chosen minus its product with g_rejected, head matrix only",
    False: "NaN: this model's logits are not the plain product of its output embedding",
}


def head_slack_of(model: nn.Module, enc: EncodedPair, states: States) -> float:
    """Return ⟨g_chosen, g_chosen − g_rejected⟩ over the head's matrix from the states alone.

    ``g = Σ uₖ hₖᵀ``, so the product needs only ⟨uₖ, uₗ⟩ and ⟨hₖ, hₗ⟩. The vocabulary is gone
    through in chunks, so that no more than ``tokens × chunk`` probabilities are held.
    """
    head, h = model.get_output_embeddings(), torch.cat(predicting(enc, states))
    targets = torch.cat([ids[mask] for ids, mask in sequences([enc])]).to(h.device)
    n, inputs = enc.chosen_length, h.to(head.weight.dtype)
    spans = range(0, len(head.weight), VOCABULARY_CHUNK)
    sums = torch.stack([_logits(head, inputs, at).logsumexp(-1) for at in spans])
    total = sums.logsumexp(0)[:, None]
    weights = torch.zeros(n, len(h), dtype=torch.float64, device=h.device)
    for at in spans:
        u = -(_logits(head, inputs, at) - total).exp()
        inside = (targets >= at) & (targets < at + u.shape[1])
        u[inside, targets[inside] - at] += 1
        weights += u[:n] @ u.T
    weights[:, n:] *= -1
    return float((weights * (h[:n] @ h.T)).sum())


@alone
def plain_head(policy: Policy, enc: EncodedPair) -> bool:
    """Return whether the model's logits are its output embedding's matrix times the states.

    The states are made large for it: a soft cap leaves small logits nearly as they are.
    """
    model = policy.model
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or not weight.is_floating_point():
        return False
    ids = enc.chosen_ids[None, :8].to(model.get_input_embeddings().weight.device)
    with evaluation(model), torch.no_grad(), head_inputs(model, lambda h: LARGE * h) as given:
        logits = model(ids, use_cache=False).logits.double()
    if len(given) != 1 or logits.shape[-1] != len(weight):
        return False
    spans = range(0, len(weight), VOCABULARY_CHUNK)
    expected = torch.cat([_logits(head, LARGE * given[0], at) for at in spans], -1)
    close = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 5e-2
    return bool((logits - expected).abs().max() <= close * expected.abs().max())


def _logits(head: nn.Module, inputs: Tensor, at: int) -> Tensor:
    """Return the logits of one chunk of the vocabulary, in float64."""
    span, bias = slice(at, at + VOCABULARY_CHUNK), getattr(head, "bias", None)
    bias = None if bias is None else bias[span].detach()
    return nn.functional.linear(inputs, head.weight[span].detach(), bias).double()
