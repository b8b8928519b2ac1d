"""What happens on the way from one model to the other: responses, margin, KL, ordinary text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from toolkit.averaging.average import (
    Weights,
    by_name,
    check_alike,
    check_parts,
    check_weights,
    mean_weight,
    place,
    working_copy,
)
from toolkit.averaging.path import check_bend, place_on_curve
from toolkit.checks import flag, is_iterable, shown
from toolkit.model import Policy, perplexity
from toolkit.model.batching import batches
from toolkit.model.forward import evaluation, scored_distributions, sequences
from toolkit.model.inputs import Pairs, encoded_pairs, skipped_attrs
from toolkit.model.perplexity import text_rows
from toolkit.model.turns import alone


@alone
def interpolate(
    before: Policy,
    after: Policy,
    weights: Sequence[Weights],
    pairs: Pairs,
    *,
    texts: Sequence[str] | None = None,
    parts: int = 1,
    bend: Policy | None = None,
    batch_size: int | None = None,
    on_error: str = "raise",
    progress: bool = True,
) -> pd.DataFrame:
    """Return what pairs and ordinary text look like on the way between two models.

    At ``θ(w) = (1 − w)·θ_before + w·θ_after``, or on the curve
    ``(1 − w)²·θ_before + 2w(1 − w)·θ_bend + w²·θ_after``.

    Args:
        before: The policy before training.
        after: The policy after it, of the same architecture.
        weights: Points of the way, each a ``weight_on_after`` as for :func:`toolkit.average`.
        pairs: Pairs to look at.
        texts: Ordinary texts that training has not seen, for the price of the way.
        parts: Parts of the network (see ``average``).
        bend: The bend of a Bézier curve, such as :func:`toolkit.bezier_bend` finds.
        batch_size: Pairs per forward pass (default 8).
        on_error: "raise" or "skip", as for ``per_token_logps``.
        progress: Show a progress bar.

    Returns:
        One row per point and pair: ``point`` (from 0), ``weight_on_after`` (mean over parts;
        ``weight_1`` … for several), ``pair_id, chosen_logps, rejected_logps`` and their changes
        since ``before`` ``chosen_delta, rejected_delta``; ``margin = chosen_delta −
        rejected_delta``; ``kl`` (KL(π‖π_before) over the whole vocabulary, mean over the scored
        positions of both responses); nats. With texts ``text_nll`` (nats a token) and
        ``perplexity = exp(text_nll)`` of the point, the same in all of its rows.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If the models differ in architecture, or an argument is not allowed; before any
            work.

    Source:
        arXiv 2309.06256, Section 3; curves: Garipov et al. 2018, Section 3.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("stance", limit=2)
        >>> run = tk.train(policy, pairs, lr=1e-4, steps=1, progress=False)
        >>> line = tk.interpolate(policy, run.policy_at(1), [0, 0.5, 1], pairs, progress=False)
        >>> line.groupby("weight_on_after")["margin"].mean().is_monotonic_increasing
        True
    """
    from tqdm.auto import tqdm

    check_alike(before, after)
    check_bend(before, bend, parts)
    flag("progress", progress)
    points = _points(weights, parts)
    check_parts(before, parts)
    if texts is not None:
        text_rows(before, texts)
    given = encoded_pairs(before, pairs, on_error)
    scored = list(batches(given.pairs, batch_size))
    work, found = working_copy(before), []
    start = [_distributions(work, batch) for batch in scored]
    base = np.concatenate([_sums(rows) for rows in start])
    for k, point in enumerate(tqdm(points, desc="points", disable=not progress)):
        if bend is None:
            place(work.model, before, after, by_name(before, point))
        else:
            place_on_curve(work.model, before, bend, after, point[0])
        frame = _look(work, given.pairs, scored, start, base)
        frame.insert(0, "weight_on_after", mean_weight(point))
        frame.insert(0, "point", k)
        if texts is not None:
            frame["perplexity"] = perplexity(work, texts)
            frame["text_nll"] = np.log(frame["perplexity"])
        for part, weight in enumerate(point if parts > 1 else [], 1):
            frame[f"weight_{part}"] = weight
        found.append(frame)
    frame = pd.concat(found, ignore_index=True)
    frame.attrs.update(after.labels("all").to_attrs(), params="none", ref=before.name)
    frame.attrs.update(parts=parts, path="line" if bend is None else "curve")
    frame.attrs.update(skipped_attrs(given.left_out))
    return frame


def barriers(frame: pd.DataFrame, value: str = "text_nll") -> pd.DataFrame:
    """Return how high a loss rises on the way: the barriers of mode connectivity.

    With L(t) at ``t = weight_on_after``, ends L(0) and L(1): ``barrier_max = max L(t) −
    max(L(0), L(1))``, ``barrier_linear = max [L(t) − (1 − t)·L(0) − t·L(1)]``, ``barrier_mean =
    ∫L(t)dt − (L(0) + L(1))/2`` (trapezoids). They differ: one way can rise above the straight
    line between its ends and not above the higher of them.

    Args:
        frame: :func:`interpolate`'s, with both ends 0 and 1 among its points.
        value: The column that is the loss, lower being better; its mean over pairs is taken.

    Returns:
        One row: ``value, barrier_max, barrier_linear, barrier_mean`` and ``highest_at`` (the t of
        the highest L), in the column's unit.

    Raises:
        ValueError: If a column or an end of the way is missing.

    Source:
        Garipov et al. 2018 (mode connectivity); Frankle et al. 2020 (the linear barrier).

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"weight_on_after": [0, 0.5, 1.0], "text_nll": [2.0, 4, 3]})
        >>> barriers(frame)["barrier_max"].item(), barriers(frame)["barrier_linear"].item()
        (1.0, 1.5)
    """
    for name in ("weight_on_after", value):
        if not isinstance(frame, pd.DataFrame) or name not in frame:
            raise ValueError(f"frame must have a column {shown(name)}: use tk.interpolate(…)")
    loss = frame.groupby("weight_on_after")[value].mean()
    at = loss.index.to_numpy(float)
    if len(at) < 2 or at[0] != 0 or at[-1] != 1:
        raise ValueError("weights must reach from 0 to 1: give interpolate both ends")
    values, (first, last) = loss.to_numpy(float), loss.iloc[[0, -1]]
    columns = {
        "value": value,
        "barrier_max": values.max() - max(first, last),
        "barrier_linear": (values - (1 - at) * first - at * last).max(),
        "barrier_mean": np.trapezoid(values, at) - (first + last) / 2,
        "highest_at": at[values.argmax()],
    }
    found = pd.DataFrame([columns])
    found.attrs.update(frame.attrs)
    return found


def _points(weights, parts: int) -> list[list[float]]:
    if isinstance(weights, str) or not is_iterable(weights):
        raise ValueError(f"weights must be a list of points, received {shown(weights)}")
    found = [check_weights(point, parts, "weights") for point in weights]
    if not found:
        raise ValueError("weights is empty: give at least one point, such as [0, 0.5, 1]")
    return found


def _distributions(policy: Policy, batch) -> list:
    with evaluation(policy.model), torch.no_grad():
        return scored_distributions(policy.model, sequences(batch))


def _sums(rows: list) -> np.ndarray:
    return np.array([math.fsum(logps.double().tolist()) for logps, _ in rows])


def _look(policy: Policy, encoded, scored, start, base: np.ndarray) -> pd.DataFrame:
    """Return the pairs' columns at the policy's present weights."""
    sums, kl = [], []
    for batch, before in zip(scored, start, strict=True):
        now = _distributions(policy, batch)
        sums.append(_sums(now))
        gaps = []
        for (_, own), (_, ref) in zip(now, before, strict=True):
            wide = own.double()
            gaps.append((wide.exp() * (wide - ref.double())).sum(-1))
        pairs = zip(gaps[::2], gaps[1::2], strict=True)
        kl += [float(torch.cat(both).mean()) for both in pairs]
    logps = np.concatenate(sums)
    moved = (logps - base).reshape(-1, 2)
    columns = {"pair_id": [pair.id for pair in encoded]}
    columns |= {"chosen_logps": logps[::2], "rejected_logps": logps[1::2]}
    columns |= {"chosen_delta": moved[:, 0], "rejected_delta": moved[:, 1]}
    return pd.DataFrame({**columns, "margin": moved[:, 0] - moved[:, 1], "kl": kl})
