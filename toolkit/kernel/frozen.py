"""A run as it would be if gradients never turned: the whole of it from one kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from toolkit.checks import is_iterable, not_negative, positive, shown, whole
from toolkit.gradients import Gram, Preconditioner
from toolkit.kernel._rows import Rows, kernel_of, rows_of
from toolkit.losses import check_loss, loss_weights
from toolkit.model import Params, Policy
from toolkit.model.inputs import Pairs, skipped_attrs
from toolkit.model.scores import SIDES
from toolkit.model.turns import alone


@alone
def frozen_kernel_dynamics(
    policy: Policy,
    pairs: Pairs,
    *,
    lr: float,
    steps: int | None = None,
    batches: Sequence[Sequence[str]] | None = None,
    loss: str | Callable[..., Tensor] = "dpo",
    momentum: float = 0.0,
    probes: Pairs | None = None,
    gram: Gram | None = None,
    params: Params = "all",
    preconditioner: Preconditioner | None = None,
    memory: int = 2 << 30,
    batch_size: int | None = None,
    on_error: str = "raise",
    progress: bool = True,
    **hparams: float,
) -> pd.DataFrame:
    """Return the run of gradient descent with all gradients frozen at the start (lazy training).

    One step changes every response s by
    ``Δ log π(s) = (lr/B)·Σ_i [d_chosen^i·⟨g_s, g_chosen^i⟩ − d_rejected^i·⟨g_s, g_rejected^i⟩]``,
    with the loss weights of the log-probabilities that this itself predicts, and the kernel ⟨·,·⟩
    of the start. It is exact for a model whose log-probabilities are linear in its parameters;
    what a real run does otherwise is what its gradients learned (and, at large steps, curvature).

    Args:
        policy: The model at the start; its reference is ``policy.ref_model``, or itself.
        pairs: Training pairs.
        lr: Learning rate.
        steps: Number of steps on all pairs together; or give ``batches``.
        batches: Ids of the pairs of each step, such as ``run.steps["batch_ids"]`` of a trajectory.
        loss: A key of ``LOSSES`` or a function (see ``loss_weights``); the mean over a step's
            pairs is descended.
        momentum: Heavy-ball momentum of the descent, from 0 to below 1.
        probes: Responses to follow; the training pairs themselves if not given.
        gram: A kernel that holds all of these pairs by id, so that none is measured.
        params: Parameter set (see ``Policy.parameters_in``).
        preconditioner: A diagonal P for ⟨·,·⟩_P, frozen too; ``None``: Euclidean.
        memory: Most bytes of gradients to hold at once.
        batch_size: Pairs per forward pass (default 8); it changes nothing beyond rounding.
        on_error: "raise" or "skip", as for ``gram``.
        progress: Show a progress bar.
        **hparams: Hyper-parameters of the loss, such as ``beta``.

    Returns:
        One row per step (0 is the start), probe and side: ``step, pair_id, side, logps`` (nats),
        ``loss`` (of the probe). A trajectory's frame has the same rows, in the same order.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If an argument is not allowed, a batch names an unknown pair, or a loss is not
            finite.

    Source:
        arXiv 2210.05643 (kernel regime), with the loss weights of arXiv 2410.13828, Eqs. 3-5.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("stance", limit=2)
        >>> lazy = tk.frozen_kernel_dynamics(policy, pairs, lr=1e-3, steps=2, progress=False)
        >>> len(lazy)
        12
    """
    lr = positive("lr", lr)
    if not_negative("momentum", momentum) >= 1:
        raise ValueError(f"momentum must be below 1, received {shown(momentum)}")
    check_loss(loss, hparams)
    _check_length(steps, batches)
    rows = rows_of(policy, pairs, probes, on_error, batch_size)
    schedule = _schedule(rows, steps, batches)
    options = {"params": params, "preconditioner": preconditioner, "memory": memory}
    options |= {"batch_size": batch_size, "progress": progress}
    kernel, labels = kernel_of(policy, rows, gram, **options)
    logps = _run(rows, kernel, schedule, lr, momentum, loss, hparams)
    weighed = [loss_weights(rows.scores(at, rows.probe_at), loss, **hparams) for at in logps]
    watched = np.stack([2 * rows.probe_at, 2 * rows.probe_at + 1], 1).ravel()
    columns = {
        "step": np.repeat(np.arange(len(logps)), len(watched)),
        "pair_id": np.tile(np.repeat(rows.probe_ids, 2), len(logps)),
        "side": np.tile(SIDES, len(logps) * len(rows.probe_ids)),
        "logps": logps[:, watched].ravel(),
        "loss": np.repeat([found.losses for found in weighed], 2, axis=1).ravel(),
    }
    frame = pd.DataFrame(columns)
    frame.attrs.update(labels.to_attrs(), loss_name=weighed[0].loss_name, **weighed[0].hparams)
    frame.attrs.update(lr=lr, momentum=float(momentum), method="frozen kernel")
    frame.attrs.update(skipped_attrs(rows.left_out))
    return frame


def _run(rows: Rows, kernel, schedule, lr, momentum, loss, hparams) -> np.ndarray:
    """Return the log-probabilities of all responses at every step, ``[T + 1, 2U]``."""
    found, velocity = [rows.logps], np.zeros(len(rows.logps))
    for at in schedule:
        weights = loss_weights(rows.scores(found[-1], at), loss, **hparams)
        pull = np.zeros(len(velocity))
        np.add.at(pull, 2 * at, weights.d_chosen / len(at))
        np.add.at(pull, 2 * at + 1, -weights.d_rejected / len(at))
        velocity = momentum * velocity + pull
        found.append(found[-1] + lr * (kernel @ velocity))
    return np.stack(found)


def _check_length(steps, batches) -> None:
    if (steps is None) == (batches is None):
        raise ValueError("give steps or batches, and not both: steps=30")
    whole("steps", steps, optional=True)
    if batches is not None and (isinstance(batches, str) or not is_iterable(batches)):
        raise ValueError(
            f"batches must be lists of pair ids, one a step, received {shown(batches)}: use "
            'run.steps["batch_ids"]'
        )


def _schedule(rows: Rows, steps, batches) -> list[np.ndarray]:
    if batches is None:
        return [rows.train_at] * steps
    known = dict(zip(rows.train_ids, rows.train_at, strict=True))
    found = []
    for k, batch in enumerate(batches):
        if isinstance(batch, str) or not is_iterable(batch) or not len(list(batch)):
            raise ValueError(f"batches[{k}] must be a list of pair ids, received {shown(batch)}")
        odd = [i for i in batch if not isinstance(i, str) or i not in known]
        if odd:
            raise ValueError(f"batches[{k}] names {shown(odd[0])}, which is no pair of pairs")
        found.append(np.array([known[i] for i in batch]))
    if not found:
        raise ValueError("batches is empty: give the ids of one step at least")
    return found
