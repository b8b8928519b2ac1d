"""Real training steps: what theory predicts for each response beside what really happens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from toolkit.checks import flag, positive
from toolkit.dynamics import _optimizers, _prediction, _step
from toolkit.dynamics._mass_flow import displacement_verdict, mass_flow
from toolkit.dynamics._optimizers import NAMES as OPTIMIZERS
from toolkit.dynamics._single_token import SingleTokenTheory, single_token_theory
from toolkit.dynamics._training import TrainingRun
from toolkit.dynamics._trajectory import StepRecord, Trajectory
from toolkit.losses import check_loss
from toolkit.model import Params, Policy
from toolkit.model.inputs import Pairs
from toolkit.model.turns import alone

__all__ = [
    "OPTIMIZERS",
    "SingleTokenTheory",
    "StepRecord",
    "TrainingRun",
    "Trajectory",
    "displacement_verdict",
    "mass_flow",
    "predict_step",
    "single_token_theory",
    "train",
]


@alone
def predict_step(
    policy: Policy,
    pairs: Pairs,
    *,
    loss: str | Callable[..., Tensor] = "dpo",
    optimizer: str | torch.optim.Optimizer = "sgd",
    lr: float | None = None,
    probes: Pairs | None = None,
    params: Params = "all",
    weight_decay: float = 0.0,
    max_grad_norm: float | None = None,
    optimizer_options: Mapping[str, object] | None = None,
    state: Mapping | None = None,
    on_error: str = "raise",
    **hparams: float,
) -> pd.DataFrame:
    """Predict one training step on a minibatch, take it on a copy, and compare.

    ``predicted_delta = ⟨∇log π(s), Δθ⟩`` with the optimiser's own Δθ: exact at first order for
    every loss and optimiser. With ``Δθ = −P·∇ℓ + …`` it is split into what the response's own
    pair did (``self_delta``), the other pairs of the minibatch (``cross_delta``), older gradients
    in the momentum buffers, weight decay, and the radial part that AdamP and SGDP take out; the
    parts sum to it up to rounding. P is that of this step, second moments after their update. For
    sign descent self and cross are NaN: its step is not linear in the gradient. For an optimiser
    that is not in the list below all parts are NaN, and the prediction holds all the same.

    Neither the model nor a live optimiser is changed. Dropout is off.

    Args:
        policy: The model. Its reference is ``policy.ref_model``, or its weights before the step.
        pairs: The minibatch; its loss is the mean over the pairs.
        loss: A key of ``LOSSES`` or a function (see ``loss_weights``).
        optimizer: ``"sgd"``, ``"momentum"`` (SGD with 0.9), ``"rmsprop"``, ``"adam"``,
            ``"adamw"``, ``"sign"``, ``"adamp"``, ``"sgdp"`` (extra ``optimizers``), all at
            their first step unless ``state`` is given; or a live torch optimiser over the
            policy's parameters, whose state, groups and weight decay are used.
        lr: Learning rate; a live optimiser's own if not given.
        probes: Responses to watch; the training pairs themselves if not given. Outside the
            minibatch a probe's ``self_delta`` is 0.
        params: Parameters that are trained (see ``Policy.parameters_in``).
        weight_decay: As the named optimiser means it: decoupled for ``adamw``, ``sign``,
            ``adamp`` and ``sgdp``, an L2 term in the gradient for the others.
        max_grad_norm: Clip the minibatch gradient to this norm.
        optimizer_options: Further options of the named optimiser, such as ``{"betas": …}``.
        state: A ``state_dict`` of that optimiser: its moments are used, its settings are not.
        on_error: "raise" stops at the first pair that cannot be scored, before any work; "skip"
            leaves such pairs out, and
            ``attrs["skipped"]`` names them (row, id, reason).
        **hparams: Hyper-parameters of the loss, such as ``beta``.

    Returns:
        One row a response: ``pair_id, side, logps`` (before), ``actual_delta``,
        ``predicted_delta``, its five parts, ``residual`` = actual − predicted (curvature),
        ``in_batch``; all in nats. ``attrs`` holds the labels, ``batch_loss``, ``grad_norm`` and
        ``clip_factor``.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If an argument is not allowed, or a loss is not finite (it names the pair).
        ImportError: If the optimiser's package is missing.

    Source:
        arXiv 2410.13828, Section 3, for one pair; the split follows from linearity.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("single_token", limit=2)
        >>> frame = tk.predict_step(policy, pairs, optimizer="sgd", lr=1e-3, beta=0.1)
        >>> bool((frame["residual"].abs() < 0.1 * frame["actual_delta"].abs()).all())
        True
    """
    positive("max_grad_norm", max_grad_norm, optional=True)
    check_loss(loss, hparams)
    encoded, watched, left_out = _step.trained_and_watched(policy, pairs, probes, on_error)
    watched = watched or encoded
    recipe = _optimizers.Recipe(optimizer, lr, weight_decay, optimizer_options, state)
    selected = recipe.moved(policy.parameters_in(params))
    own = _step.token_logps(policy, encoded)
    ref = _step.sums_of(_step.ref_token_logps(policy, encoded, own))
    batch = _step.minibatch(policy, selected, encoded, ref, loss, hparams, max_grad_norm)
    step = _prediction.take_step(selected, batch, recipe)
    frame = _frame(policy, encoded, watched, step)
    frame.attrs.update(_step.labels_of(policy, params, "weights before the step"))
    frame.attrs.update(loss=batch.weights.loss, **batch.weights.hparams, **recipe.to_attrs())
    frame.attrs.update(
        skipped=left_out,
        batch_size=len(encoded),
        batch_loss=float(batch.weights.losses.mean()),
        grad_norm=batch.norm,
        max_grad_norm=max_grad_norm,
        clip_factor=batch.clip_factor,
        split="linear" if frame["self_delta"].notna().all() else "not linear in the gradient",
    )
    return frame


def train(
    policy: Policy,
    pairs: Pairs,
    *,
    steps: int,
    lr: float | None = None,
    progress: bool = True,
    **options,
) -> Trajectory:
    """Train for real and keep, at every step, what was predicted and what happened.

    At each step the probes' token log-probabilities are predicted by ``⟨∇log π_t, Δθ⟩`` along the
    optimiser's real move and then measured. A deep copy is trained unless ``in_place=True``.
    Stopping it (the Stop button, Ctrl-C) returns everything done so far, with
    ``trajectory.stopped`` true. So does divergence, with a warning: ``trajectory.divergence``
    names the step and the learning rate. To pause, look and go on, use :class:`TrainingRun`,
    which takes the same arguments and explains all of them.

    Args:
        policy: The model to start from.
        pairs: Training pairs.
        steps: Number of steps.
        lr: Learning rate; a live optimiser's own if not given.
        progress: Show a progress bar.
        **options: Those of :class:`TrainingRun`.

    Returns:
        :class:`Trajectory`.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If an argument is not allowed, or a loss is not finite before the first step
            (it names the pair).
        ImportError: If an optional package is missing.

    Source:
        arXiv 2410.13828, Section 3, step by step.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("single_token", limit=4)
        >>> trajectory = tk.train(policy, pairs, lr=1e-5, steps=2, progress=False)
        >>> len(trajectory.steps_frame())
        2
    """
    from tqdm.auto import tqdm

    flag("progress", progress)
    run = TrainingRun(policy, pairs, lr=lr, steps=steps, **options)
    try:
        with tqdm(total=steps, desc="training", unit="step", disable=not progress) as bar:
            for record in run:
                bar.set_postfix(loss=f"{record.loss:.4f}", refresh=False)
                bar.update()
    except KeyboardInterrupt:
        run.stopped = True
    return run.trajectory


def _signature() -> inspect.Signature:
    """Show all of TrainingRun's arguments where people look for those of train."""
    own = list(inspect.signature(TrainingRun).parameters.values())
    shown = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=True)
    return inspect.Signature([*own[:-1], shown, own[-1]], return_annotation=Trajectory)


train.__signature__ = _signature()


def _frame(policy: Policy, encoded, watched, step: _prediction.TakenStep) -> pd.DataFrame:
    before, after = (
        _step.sums_of(_step.token_logps(policy, watched, values))
        for values in (step.before, step.after)
    )
    move = _step.moved(step.before, step.after)
    predicted = _step.sums_of(_step.directional(policy, watched, step.before, move))
    inside = [any(_step.same_tokens(e, probe) for e in encoded) for probe in watched]
    columns = {
        "pair_id": np.repeat([probe.id for probe in watched], 2),
        "side": np.tile(_step.SIDES, len(watched)),
        "logps": before,
        "actual_delta": after - before,
        "predicted_delta": predicted,
        **_prediction.split(policy, encoded, watched, step),
        "residual": after - before - predicted,
        "in_batch": np.repeat(inside, 2),
    }
    return pd.DataFrame(columns)
