"""What each training pair does to each response in one step: influence, self and cross."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from toolkit.checks import choice, positive, shown
from toolkit.gradients import Gram, Preconditioner
from toolkit.kernel._rows import Rows, kernel_of, rows_of
from toolkit.kernel.results import Influence
from toolkit.kernel.sign import sign_influence
from toolkit.losses import LossWeights, check_loss, loss_weights
from toolkit.model import Params, Policy
from toolkit.model.inputs import Pairs
from toolkit.model.turns import alone

UPDATES = ("sgd", "sign", "asymmetric_sign")


@alone
def influence(
    policy: Policy,
    pairs: Pairs,
    *,
    probes: Pairs | None = None,
    loss: str | Callable[..., Tensor] = "dpo",
    lr: float = 1.0,
    update: str = "sgd",
    by: str | None = None,
    gram: Gram | None = None,
    params: Params = "all",
    preconditioner: Preconditioner | None = None,
    memory: int = 2 << 30,
    batch_size: int | None = None,
    on_error: str = "raise",
    progress: bool = True,
    **hparams: float,
) -> Influence:
    """Return what every training pair does to every response in one step, at first order.

    ``"sgd"``: ``(lr/N)·(d_chosen^i·⟨g_s, g_chosen^i⟩ − d_rejected^i·⟨g_s, g_rejected^i⟩)``, what
    pair i adds to one step on all N pairs; they sum to that step's predicted change.
    ``"asymmetric_sign"``: ``lr·⟨g_s, sign(u_i)⟩`` with ``u_i = d_chosen^i·g_chosen^i −
    d_rejected^i·g_rejected^i``, the change that a sign step on pair i alone makes: Adam's first
    step. ``"sign"``: ``lr·⟨sign(g_s), sign(u_i)⟩``, the kernel of sign descent: no nats, how many
    more parameters pull together than apart.

    Args:
        policy: The model; its reference is ``policy.ref_model``, or itself.
        pairs: Training pairs.
        probes: Pairs whose responses are watched; the training pairs themselves if not given.
        loss: A key of ``LOSSES`` or a function (see ``loss_weights``).
        lr: Learning rate.
        update: ``"sgd"``, ``"sign"`` or ``"asymmetric_sign"``.
        by: A column of the data (a key of every pair's ``meta``), such as ``"topic"``, for blocks.
        gram: A kernel that holds all of these pairs by id, so that none is measured.
        params: Parameter set (see ``Policy.parameters_in``).
        preconditioner: A diagonal P for ⟨·,·⟩_P; ``None``: Euclidean. Not for sign updates.
        memory: Most bytes of gradients to hold at once.
        batch_size: Pairs per forward pass (default 8); it changes nothing beyond rounding.
        on_error: "raise" or "skip", as for ``gram``.
        progress: Show a progress bar.
        **hparams: Hyper-parameters of the loss, such as ``beta``.

    Returns:
        :class:`Influence`.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If an argument is not allowed, or a pair has no column ``by``.

    Source:
        arXiv 2410.13828, Section 3, for many pairs; arXiv 2210.05643 for the kernels of signs.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("stance", limit=2)
        >>> tk.influence(policy, pairs, progress=False).to_frame().shape
        (8, 7)
    """
    lr = positive("lr", lr)
    choice("update", update, UPDATES)
    check_loss(loss, hparams)
    rows = rows_of(policy, pairs, probes, on_error, batch_size)
    blocks = None if by is None else tuple(_blocks(given, by) for given in rows.given)
    weights = loss_weights(rows.scores(rows.logps, rows.train_at), loss, **hparams)
    options = {"params": params, "preconditioner": preconditioner, "memory": memory}
    options |= {"batch_size": batch_size, "progress": progress}
    if update == "sgd":
        kernel, labels = kernel_of(policy, rows, gram, **options)
        parts = _parts(rows, kernel, weights, lr / len(rows.train_at))
        values = parts[0] + parts[1]
    else:
        found, labels = sign_influence(policy, rows, weights, update, gram, **options)
        values = lr * found
        parts = np.full_like(values, np.nan), np.full_like(values, np.nan)
    settings = {"loss_name": weights.loss_name, **weights.hparams, "lr": lr, "update": update}
    own = rows.probe_at[:, None] == rows.train_at[None, :]
    ids = rows.train_ids, rows.probe_ids
    return Influence(*ids, values, *parts, own, labels, settings, blocks, rows.left_out)


def _parts(rows: Rows, kernel, weights: LossWeights, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what the chosen and the rejected terms do, ``[P, 2, N]`` each."""
    by_side = kernel.reshape(len(rows.pairs), 2, -1, 2)[rows.probe_at][:, :, rows.train_at]
    return scale * weights.d_chosen * by_side[..., 0], -scale * weights.d_rejected * by_side[..., 1]


def _blocks(given: list, by: str) -> list:
    if not isinstance(by, str):
        raise ValueError(f"by must be a key of the pairs' meta, received {shown(by)}")
    for pair in given:
        if by not in getattr(pair, "meta", {}):
            has = ", ".join(map(str, getattr(pair, "meta", {}))) or "none"
            raise ValueError(f"by={by!r} is no column of pair {pair.id!r}; it has: {has}")
    return [pair.meta[by] for pair in given]
