"""Influence under sign descent, as Adam begins: signs of gradients in place of gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from toolkit.gradients import contracted
from toolkit.gradients.products import flat_products
from toolkit.kernel._rows import Rows
from toolkit.losses import LossWeights
from toolkit.model import Policy, Provenance

ROUNDING = 64  # units in the last place of the terms of a sum


def sign_influence(
    policy: Policy, rows: Rows, weights: LossWeights, update: str, gram, **options
) -> tuple[np.ndarray, Provenance]:
    """Return ``⟨g_s, sign(u_i)⟩`` or ``⟨sign(g_s), sign(u_i)⟩`` of P·2 responses, ``[P, 2, N]``.

    ``u_i = d_chosen^i·g_chosen^i − d_rejected^i·g_rejected^i`` is what one step on pair i alone
    descends; its entries that cancel up to rounding count as zero. Signs cannot be had from inner
    products: the gradients are gone through again.

    Raises:
        ValueError: If a Gram or a preconditioner is given.
    """
    for name, value in (("gram", gram), ("preconditioner", options.pop("preconditioner"))):
        if value is not None:
            raise ValueError(
                f"{name} serves update='sgd' alone: signs need the gradients themselves; leave "
                f"{name} out"
            )
    pulls = np.zeros((len(rows.train_at), 2 * len(rows.pairs)))
    each = np.arange(len(rows.train_at))
    pulls[each, 2 * rows.train_at] = weights.d_chosen
    pulls[each, 2 * rows.train_at + 1] = -weights.d_rejected

    def contract(gradients: Tensor) -> Tensor:
        pull = torch.tensor(pulls, dtype=gradients.dtype)
        moves = pull @ gradients
        # What cancels exactly leaves rounding behind, whose sign means nothing.
        least = ROUNDING * torch.finfo(moves.dtype).eps * (pull.abs() @ gradients.abs())
        moves = moves.sign() * (moves.abs() > least)
        return flat_products(gradients.sign() if update == "sign" else gradients, moves)

    found, labels = contracted(policy, rows.pairs, contract, **options)
    watched = np.stack([2 * rows.probe_at, 2 * rows.probe_at + 1], 1)
    return found.numpy()[watched], labels
