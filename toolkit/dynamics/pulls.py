"""What each training pair did to each response: the forces of the loss's terms, pair by pair.

A step moves the weights linearly in the gradient of every pair of its minibatch, and through the
momentum in those of all earlier ones. So each pair has a momentum of its own: that of all pairs
together is their sum. One more backward per pair of the minibatch, and one copy of the trained
parameters per training pair where the optimiser has momentum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit.dynamics._step_parts import StepParts
from toolkit.gradients.products import flat_products

MOST_BYTES = 8 << 30
Values = Mapping[str, Tensor]


def check_bytes(pairs: int, parameters: Values, entries: int) -> None:
    """Refuse a run whose pairs' moments and pulls do not fit, before it starts.

    Raises:
        ValueError: If they take more than ``MOST_BYTES``.
    """
    one = sum(p.numel() * max(p.element_size(), 4) for p in parameters.values())
    needed = pairs * one + entries * 16
    if needed > MOST_BYTES:
        raise ValueError(
            f"forces='by_pair' would keep {needed / 2**30:.1f} GiB, a copy of {one / 2**30:.2g} "
            f"GiB for each of {pairs} training pairs; at most {MOST_BYTES / 2**30:.0f} GiB: train "
            "fewer pairs or parameters (params='head'), or give forces=True"
        )


class PairMoments:
    """The momentum buffers kept apart by the training pair that built them.

    Args:
        count: Number of training pairs N.
    """

    def __init__(self, count: int):
        self.count = count
        # [N, *shape] and [N] by parameter name: a buffer is their product, so that a step writes
        # to the pairs of its minibatch alone while all others fade.
        self._built: dict[str, Tensor] = {}
        self._share: dict[str, np.ndarray] = {}

    def pulls(
        self,
        grads: Sequence[Values],
        parts: Mapping[str, StepParts],
        at: Sequence[int],
        terms: Sequence[Values],
    ) -> np.ndarray:
        """Return what a step did to responses by training pair, nats, ``[responses, N, 2]``.

        The last axis: through the minibatch's gradient, and through the momentum. First order:
        ``⟨∇log π, Δθ⟩``.

        Args:
            grads: ∇log π of each response.
            parts: The factors of the step, by parameter name.
            at: Which training pairs are in the minibatch.
            terms: Their shares of its gradient after clipping.
        """
        found = np.zeros((len(grads), self.count, 2))
        for name, part in parts.items():
            responses = torch.stack([g[name] for g in grads])
            shares = torch.stack([term[name] for term in terms])
            found[:, at, 0] -= flat_products(responses * part.scale, shares).numpy()
            if name in self._built:
                past = flat_products(responses * part.past, self._built[name]).numpy()
                found[:, :, 1] -= past * self._share[name]
        return found

    def advance(
        self, parts: Mapping[str, StepParts], at: Sequence[int], terms: Sequence[Values]
    ) -> None:
        """Let the buffers go on as the optimiser's own did in this step."""
        for name, part in parts.items():
            if part.take is None:
                continue
            if name not in self._built:
                blank = terms[0][name]
                self._built[name] = blank.new_zeros(self.count, *blank.shape)
                self._share[name] = np.ones(self.count)
            built, share = self._built[name], self._share[name]
            share *= part.keep
            for i, term in zip(at, terms, strict=True):
                built[i].mul_(float(share[i])).add_(part.take * term[name])
                share[i] = 1.0
