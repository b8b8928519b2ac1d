"""One matrix with two uses, output head and embedding: what the uses add to each other's products.

Its gradient is the sum of both: ``g_head = Σ_t D_t h_tᵀ``, and ``g_embedding`` adds ``e_s`` to row
``id_s``. The rules of the two modules know products within one use; here are the cross terms,
``⟨g_head, g_embedding⟩ = Σ_ts D_t[id_s]·⟨h_t, e_s⟩`` (docs/formulas.md, section 5), as an answer to
each question that a rule answers. h are the head's activations, D its backprops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.gradients._rules import Embedding, Use, symmetric


@dataclass(frozen=True)
class Tied:
    """The output head and the embedding that share a matrix, and the embedding's rule."""

    head: nn.Module
    embedding: nn.Module
    rule: Embedding

    def looked_up(self, head: Use, ids: Tensor) -> Use:
        """Keep the head's backprops at the ids of both rows of a pair alone, ``[rows, 2, T, S]``.

        All else of what is as wide as the vocabulary can be forgotten.
        """
        ids, found = ids.to(head.backprops.device), []
        for row, grads in enumerate(head.backprops):
            found.append(torch.stack([grads[:, ids[row // 2 * 2 + side]] for side in range(2)]))
        return Use(head.activations, torch.stack(found))

    def products(self, head: Use, embedding: Use) -> dict[str, Tensor]:
        """Return ``[pairs, 3]`` by parameter name, of a head as :meth:`looked_up` returns it."""
        sums = self.rule.scaled(*embedding)
        cross = torch.zeros(len(sums), 2, dtype=torch.float64)
        for row, side in ((row, side) for row in range(len(sums)) for side in range(2)):
            e = sums[row // 2 * 2 + side]
            terms = head.backprops[row, side] * (head.activations[row] @ e.T)
            cross[row, side] = terms.sum(dtype=torch.float64)
        a, b = cross[::2], cross[1::2]
        return {self.rule.weight: torch.stack([2 * a[:, 0], 2 * b[:, 1], a[:, 1] + b[:, 0]], 1)}

    def head_tangent(self, head: Use, embedding: Use, source: Tensor) -> Tensor:
        """Return what row ``source[i]``'s embedding gradient does to each token, at the head.

        Returns:
            ``[len(source), T]``; row i of the batch is row ``i % rows`` of the head's use.
        """
        sums, found = self.rule.scaled(*embedding), []
        for i, row in enumerate(source.tolist()):
            own = i % len(head.activations)
            columns = head.backprops[own][:, embedding.activations[row]]
            found.append((columns * (head.activations[own] @ sums[row].T)).sum(-1))
        return torch.stack(found)

    def embedding_tangent(self, head: Use, source: Tensor, ids: Tensor) -> Tensor:
        """Return what row ``source[i]``'s head gradient adds to the embeddings of ``ids[i]``."""
        d, h = head.backprops, head.activations
        found = [d[row][:, looked].T @ h[row] for looked, row in zip(ids, source, strict=True)]
        return self.rule.scaled(ids, torch.stack(found))

    def gram(self, heads: Sequence[Use], embeddings: Sequence[Use]) -> Tensor:
        """Return the cross terms of all token gradients of the rows, one use of each per row."""
        sums = [self.rule.scaled(*use) for use in embeddings]

        def cross(i: int, j: int) -> Tensor:
            columns = heads[i].backprops[:, embeddings[j].activations]
            terms = torch.einsum("ps,pd,qsd->pq", columns, heads[i].activations, sums[j])
            return terms.double().cpu()

        return symmetric(len(heads), lambda i, j: cross(i, j) + cross(j, i).T)
