"""One step on a copy of the weights: what its forces are predicted to do, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from toolkit.checks import positive
from toolkit.dynamics import _optimizers, batch_gradient, given, responses
from toolkit.dynamics.forces import FORCES, SplitMoments, SplitStep, forces_on, unexplained
from toolkit.losses import check_loss
from toolkit.model import Params, Policy
from toolkit.model.inputs import Pairs
from toolkit.model.scores import SIDES
from toolkit.model.turns import alone
from toolkit.remedies import Constrained, UpdateRule, bound, check_update


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
    update_rule: str | Callable | UpdateRule | Constrained | None = None,
    on_error: str = "raise",
    **hparams: float,
) -> pd.DataFrame:
    """Predict one training step on a minibatch, take it on a copy, and compare.

    ``predicted_delta = ⟨∇log π(s), Δθ⟩`` with the optimiser's own Δθ: exact at first order for
    every loss and optimiser. With ``Δθ = −P·∇ℓ + …`` it is split into forces: what the terms of
    the loss for chosen responses do and those for rejected ones, of the response's own pair
    (``own_chosen``, ``own_rejected``) and of the rest of the minibatch (``others_…``), the
    gradients of earlier steps in a state that was given (``earlier_unsplit``), weight ``decay``,
    and the radial part that AdamP and SGDP take out (``projection``). P is that of this step,
    second moments after their update; for sign descent ``lr/|∇ℓ|``. For an optimiser that is not
    in the list below all forces are NaN, and the prediction holds all the same.

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
            minibatch a probe's own forces are 0.
        params: Parameters that are trained (see ``Policy.parameters_in``).
        weight_decay: As the named optimiser means it: decoupled for ``adamw``, ``sign``,
            ``adamp`` and ``sgdp``, an L2 term in the gradient for the others.
        max_grad_norm: Clip the minibatch gradient to this norm.
        optimizer_options: Further options of the named optimiser, such as ``{"betas": …}``.
        state: A ``state_dict`` of that optimiser: its moments are used, its settings are not.
        update_rule: How the step weighs the two responses in place of the loss alone: a key of
            ``UPDATE_RULES``, an ``UpdateRule``, a function (see there), or ``Constrained``.
        on_error: "raise" stops at the first pair that cannot be scored, before any work; "skip"
            leaves such pairs out, and
            ``attrs["skipped"]`` names them (row, pair_id, reason).
        **hparams: Hyper-parameters of the loss, such as ``beta``.

    Returns:
        One row per response: ``pair_id, side, logps`` (before), ``actual_delta``,
        ``predicted_delta``, the nine forces (``FORCES``), ``residual`` (curvature: what the forces,
        or the prediction where they are not known, leave of the actual change), ``in_batch``; all
        in nats. ``attrs`` holds the labels, ``batch_loss``, ``grad_norm`` and ``clip_factor``.

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
    rule = check_update(update_rule)
    encoded, watched, known = given.trained_and_watched(policy, pairs, probes, on_error)
    watched = watched or encoded
    recipe = _optimizers.Recipe(optimizer, lr, weight_decay, optimizer_options, state)
    selected = recipe.moved(policy.parameters_in(params))
    before = {name: p.detach() for name, p in selected.items()}
    clones = {name: nn.Parameter(p.clone()) for name, p in before.items()}
    live = recipe.over(selected, clones)
    rule_here = bound(rule, policy, selected, live, clones, encoded)
    own = responses.token_logps(policy, encoded)
    ref = responses.sums_of(responses.ref_token_logps(policy, encoded, own))
    batch = batch_gradient.minibatch(
        policy, selected, encoded, ref, loss, hparams, max_grad_norm, rule_here
    )
    after, step = _taken(clones, live, before, batch)
    forces, _ = forces_on(policy, watched, encoded, batch, step)
    frame = _frame(policy, encoded, watched, before, after, forces)
    frame.attrs.update(given.labels_of(policy, params, "weights before the step"))
    frame.attrs.update(loss_name=batch.weights.loss_name, **batch.weights.hparams)
    frame.attrs.update(recipe.to_attrs())
    frame.attrs.update(
        update_rule=rule.name,
        **known,
        batch_size=len(encoded),
        batch_loss=float(batch.weights.losses.mean()),
        grad_norm=batch.norm,
        max_grad_norm=max_grad_norm,
        clip_factor=batch.clip_factor,
        split="unknown for this optimizer" if step is None else "linear",
    )
    return frame


def _taken(
    clones: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, Tensor],
    batch: batch_gradient.Minibatch,
) -> tuple[dict[str, Tensor], SplitStep | None]:
    """Let the optimiser step on clones of the parameters; return their values and the split."""
    moments = SplitMoments(optimizer, clones)
    _optimizers.apply(optimizer, {clones[name]: g for name, g in batch.clipped.items()})
    after = {name: clone.detach() for name, clone in clones.items()}
    return after, moments.advance(optimizer, clones, before, batch)


def _frame(policy: Policy, encoded, watched, before, after, forces: np.ndarray) -> pd.DataFrame:
    tokens = [responses.token_logps(policy, watched, values) for values in (before, after)]
    logps, moved = map(responses.sums_of, tokens)
    move = responses.moved(before, after)
    predicted = responses.sums_of(responses.directional(policy, watched, before, move))
    inside = responses.among(watched, encoded)
    columns = {
        "pair_id": np.repeat([probe.id for probe in watched], 2),
        "side": np.tile(SIDES, len(watched)),
        "logps": logps,
        "actual_delta": moved - logps,
        "predicted_delta": predicted,
        **dict(zip(FORCES, forces.T, strict=True)),
        "residual": unexplained(moved - logps, forces, predicted),
        "in_batch": np.repeat(inside, 2),
    }
    return pd.DataFrame(columns)
