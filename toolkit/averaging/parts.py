"""Which parts of the network to take from which model: heterogeneous averaging by a proxy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from toolkit.averaging.average import (
    by_name,
    check_alike,
    check_parts,
    check_weights,
    part_of,
    place,
    working_copy,
)
from toolkit.checks import check_seed, flag, whole
from toolkit.model import Policy, sample_responses
from toolkit.model.batching import batches
from toolkit.model.forward import Row, evaluation, scored_logps
from toolkit.model.parameters import only
from toolkit.model.turns import alone
from toolkit.pairs import PreferencePair

LEAST = 1e-3  # smallest step of a weight that is still tried
FIRST = 0.25  # the first step


@dataclass(frozen=True)
class PartSearch:
    """A search for the weights of the parts under a fixed mean.

    Attributes:
        weights: The best weights found, input part first; to be given to ``tk.average``.
        history: Every point that was tried: ``point, weight_1`` …, ``proxy_logp`` (mean log π of
            the proxy responses, nats), ``best`` (whether it was the best so far).
        proxies: The proxy responses: ``prompt, response``.
    """

    weights: tuple[float, ...]
    history: pd.DataFrame
    proxies: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """Return every point that was tried, in order."""
        return self.history.copy()


@alone
def search_parts(
    before: Policy,
    after: Policy,
    prompts: Sequence,
    *,
    weight_on_after: float,
    parts: int = 3,
    steps: int = 10,
    max_new_tokens: int = 32,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> PartSearch:
    """Return the weights of the parts that keep most of the trained behaviour under a fixed mean.

    ``max_w mean log π_θ(w)(a|x)`` over ``mean_k w_k = weight_on_after`` and ``0 ≤ w_k ≤ 1``, with
    one response a drawn from ``after`` for each prompt x: the paper's stand-in for the reward. The
    gradient by w is ``∂/∂w_k = ⟨∇L, θ_after − θ_before⟩`` over part k; the step is projected back
    and halved until it helps. It starts with all weights equal, and is never worse than that.

    Args:
        before: The policy before training.
        after: The policy after it, of the same architecture.
        prompts: Texts or lists of messages, as for ``sample_responses``.
        weight_on_after: Mean share of the trained weights, from 0 to 1.
        parts: Parts of the network (see ``average``).
        steps: Most steps of the search.
        max_new_tokens: Longest proxy response.
        seed: Seed of the proxy responses.
        batch_size: Proxies per forward pass (default 8).
        progress: Show a progress bar.

    Returns:
        :class:`PartSearch`.

    Raises:
        ValueError: If the models differ in architecture, an argument is not allowed, or every
            proxy response is empty.

    Source:
        arXiv 2309.06256, Section 5 and Appendix B.1. Its code's parameters keep the mean but can
        leave [0, 1]; here both hold.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> found = tk.search_parts(policy, policy, ["Review: "], weight_on_after=0.4, steps=1,
        ...                         progress=False)
        >>> found.weights
        (0.4, 0.4, 0.4)
    """
    check_alike(before, after)
    whole("parts", parts)
    weights = np.array(check_weights([weight_on_after], 1) * parts)
    check_parts(before, parts)
    whole("steps", steps)
    check_seed(seed)
    flag("progress", progress)
    proxies = _proxies(after, list(prompts), max_new_tokens, seed)
    rows = _rows(before, proxies)
    work, tried = working_copy(before), []
    best, slope = _value(work, before, after, weights, rows, batch_size)
    tried.append((*weights, best, True))
    step = FIRST
    with tqdm(total=steps, desc="parts", disable=not progress) as bar:
        for _ in range(steps):
            bar.update()
            along = slope - slope.mean()
            if not np.linalg.norm(along) or step < LEAST:
                break
            new = _projected(weights + step * along / np.abs(along).max(), weights.mean())
            value, new_slope = _value(work, before, after, new, rows, batch_size)
            tried.append((*new, value, value > best))
            if value > best:
                weights, best, slope = new, value, new_slope
            else:
                step /= 2
    names = [f"weight_{k}" for k in range(1, parts + 1)]
    history = pd.DataFrame(tried, columns=[*names, "proxy_logp", "best"])
    history.insert(0, "point", np.arange(len(history)))
    history.attrs.update(after.labels("all").to_attrs(), params="none", parts=parts, seed=seed)
    return PartSearch(tuple(map(float, weights)), history, proxies)


def _proxies(after: Policy, prompts: list, most: int, seed: int) -> pd.DataFrame:
    drawn = sample_responses(after, prompts, max_new_tokens=most, seed=seed)
    found = pd.DataFrame({"prompt": prompts, "response": drawn["response"]})
    found = found[found["response"] != ""].reset_index(drop=True)
    if found.empty:
        raise ValueError("prompts: every response that was drawn is empty; give other prompts")
    return found


def _rows(policy: Policy, proxies: pd.DataFrame) -> list[Row]:
    found = []
    for k, (prompt, text) in enumerate(zip(proxies["prompt"], proxies["response"], strict=True)):
        message = text if isinstance(prompt, str) else ({"role": "assistant", "content": text},)
        pair = policy.encode(PreferencePair(f"proxy-{k}", prompt, message, message))
        found.append((pair.chosen_ids, pair.chosen_mask))
    return found


def _value(work, before, after, weights, rows, batch_size) -> tuple[float, np.ndarray]:
    """Return the mean log-probability of the proxies at some weights, and its slope by weight."""
    place(work.model, before, after, by_name(before, list(weights)))
    named = dict(work.model.named_parameters())
    ends = [dict(policy.model.named_parameters()) for policy in (before, after)]
    part, slope, total = part_of(work.model, len(weights)), np.zeros(len(weights)), 0.0
    with only(work.model, named), evaluation(work.model):
        for batch in batches(rows, batch_size):
            logps = torch.stack([x.double().sum() for x in scored_logps(work.model, batch)])
            total += float(logps.detach().sum())
            grads = torch.autograd.grad(logps.sum(), list(named.values()), allow_unused=True)
            for name, grad in zip(named, grads, strict=True):
                if grad is not None:
                    move = (ends[1][name] - ends[0][name]).detach().to(grad.device)
                    slope[part[name]] += float((grad.double() * move.double()).sum())
    return total / len(rows), slope / len(rows)


def _projected(weights: np.ndarray, mean: float) -> np.ndarray:
    """Return the nearest weights from 0 to 1 with this mean: a shift, cut, found by bisection."""
    low, high = -weights.max(), 1 - weights.min()
    for _ in range(100):
        shift = (low + high) / 2
        if np.clip(weights + shift, 0, 1).mean() < mean:
            low = shift
        else:
            high = shift
    return np.clip(weights + high, 0, 1)
