"""Probes of a training run: what the policy thinks of their tokens, beside the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit.dynamics import responses
from toolkit.model import Policy, reference
from toolkit.model.forward import evaluation, scored_distributions, sequences
from toolkit.model.scores import SIDES
from toolkit.model.tokens import token_texts
from toolkit.pairs import EncodedPair


class Watch:
    """The probes: their tokens and what the reference thinks of them."""

    def __init__(self, policy: Policy, probes: Sequence[EncodedPair]):
        self.probes, rows = probes, sequences(probes)
        texts = [token_texts(policy.tokenizer, *row) for row in rows]
        lengths = [len(t) for t in texts]
        self._starts = np.cumsum([0, *lengths[:-1]])
        at = np.repeat(np.arange(len(rows)), lengths)
        self.axis = pd.DataFrame(
            {
                "pair_id": np.array([e.id for e in probes], dtype=object)[at // 2],
                "side": np.array(SIDES, dtype=object)[at % 2],
                "position": np.concatenate([np.arange(n) for n in lengths]),
                "token": [token for text in texts for token in text],
                "token_id": torch.cat([ids[mask] for ids, mask in rows]).cpu().numpy(),
                "row": at,
            }
        )
        with reference(policy) as ref_model:
            found = self._distributions(policy, ref_model or policy.model)
        self._ref = [distribution for _, distribution in found]
        self.ref_logps = _flat(logps for logps, _ in found)

    def look(self, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """Return every token's log-probability, and KL(π‖π_ref) of each pair."""
        found = self._distributions(policy, policy.model)
        divergence = []
        for (_, own), ref in zip(found, self._ref, strict=True):
            wide = own.double()
            divergence.append((wide.exp() * (wide - ref.to(wide))).sum(-1))
        pairs = zip(divergence[::2], divergence[1::2], strict=True)
        kl = np.array([float(torch.cat(pair).mean()) for pair in pairs])
        return _flat(logps for logps, _ in found), kl

    def sums(self, tokens: np.ndarray) -> np.ndarray:
        """Sum over the tokens of each response."""
        return np.add.reduceat(tokens, self._starts)

    def _distributions(self, policy: Policy, model) -> list[tuple[Tensor, Tensor]]:
        with evaluation(model), torch.no_grad():
            return responses.by_parts(
                policy, self.probes, lambda rows: scored_distributions(model, rows)
            )


def _flat(rows) -> np.ndarray:
    return torch.cat(list(rows)).double().cpu().numpy()
