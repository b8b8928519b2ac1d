"""Bézier curves between two models: a bend that is trained so that the way costs less."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from toolkit.averaging.average import check_alike, mixed, place, working_copy
from toolkit.checks import check_seed, flag, positive, whole
from toolkit.model import Policy
from toolkit.model.forward import evaluation, scored_logps
from toolkit.model.parameters import only
from toolkit.model.perplexity import text_rows
from toolkit.model.turns import alone


@alone
def bezier_bend(
    before: Policy,
    after: Policy,
    texts: Sequence[str],
    *,
    steps: int = 30,
    lr: float = 1e-4,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Policy:
    """Return the bend θ of the curve ``φ(t) = (1 − t)²·θ_before + 2t(1 − t)·θ + t²·θ_after``.

    It begins in the middle, where the curve is the straight line, and is trained by Adam to lower
    ``E_{t ~ U[0, 1]} L(φ(t))`` with L the loss of ordinary text, one t per minibatch.

    Args:
        before: The policy before training.
        after: The policy after it, of the same architecture.
        texts: Ordinary texts; others than the curve is measured on.
        steps: Steps of Adam.
        lr: Its learning rate.
        batch_size: Texts of a step.
        seed: Seed of t and of the minibatches.
        progress: Show a progress bar.

    Returns:
        A :class:`Policy`, to be given to :func:`toolkit.interpolate` as ``bend``.

    Raises:
        ValueError: If the models differ in architecture, or an argument is not allowed.

    Source:
        Garipov et al. 2018, Sections 3.2 and 3.3 (arXiv 1802.10026).

    Example:
        >>> import toolkit as tk
        >>> policy, texts = tk.load_model(), ["The kettle is on.", "It rains today."]
        >>> tk.bezier_bend(policy, policy, texts, steps=1, progress=False).name
        'tiny (shipped), bend'
    """
    check_alike(before, after)
    whole("steps", steps)
    positive("lr", lr)
    whole("batch_size", batch_size)
    check_seed(seed)
    flag("progress", progress)
    rows = text_rows(before, texts)
    bend, work = working_copy(before), working_copy(before)
    place(bend.model, before, after, _halves(bend))
    moved = dict(bend.model.named_parameters())
    optimizer = torch.optim.Adam(list(moved.values()), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc="bend", disable=not progress):
        t = float(torch.rand(1, generator=generator))
        picked = torch.randperm(len(rows), generator=generator)[:batch_size].tolist()
        place_on_curve(work.model, before, bend, after, t)
        grads = _text_gradient(work.model, [rows[i] for i in picked])
        for name, p in moved.items():
            p.grad = None if grads[name] is None else 2 * t * (1 - t) * grads[name]
        optimizer.step()
    optimizer.zero_grad()
    bend.name = f"{before.name}, bend"
    return bend


@torch.no_grad()
def place_on_curve(model: nn.Module, before: Policy, bend: Policy, after: Policy, t: float) -> None:
    """Set a model to the point ``φ(t)``: the ends are exact, and buffers are those of an end."""
    place(model, before, after, dict.fromkeys(_halves(before), float(t > 0.5)))
    if t in (0, 1):
        return
    points = [dict(policy.model.named_parameters()) for policy in (before, bend, after)]
    for name, p in model.named_parameters():
        start, middle, end = (named[name].to(p.device) for named in points)
        p.copy_(mixed(_wide(start, middle, t), _wide(middle, end, t), t))


def check_bend(before: Policy, bend: Policy | None, parts: int) -> None:
    """Refuse a bend of another architecture, or one beside parts."""
    if bend is None:
        return
    check_alike(before, bend)
    if parts != 1:
        raise ValueError(f"bend is for parts=1: the parts share one curve, received parts={parts}")


def _wide(start: Tensor, end: Tensor, t: float) -> Tensor:
    wide = torch.promote_types(start.dtype, torch.float32)
    return mixed(start.to(wide), end.to(wide), t)


def _halves(policy: Policy) -> dict[str, float]:
    named = [*policy.model.named_parameters(), *policy.model.named_buffers()]
    return dict.fromkeys((name for name, _ in named), 0.5)


def _text_gradient(model: nn.Module, rows) -> dict[str, Tensor | None]:
    """Return the gradient of the texts' loss a token by parameter name."""
    named = dict(model.named_parameters())
    with only(model, named), evaluation(model):
        logps = torch.cat(scored_logps(model, rows))
        found = torch.autograd.grad(-logps.mean(), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))
