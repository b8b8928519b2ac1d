"""What a loss reads of some pairs: the log-probabilities of both responses, and their lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from toolkit.losses import PairLogSums
from toolkit.model.batching import batches
from toolkit.model.forward import evaluation, scored_logps, sequences
from toolkit.model.policy import Policy
from toolkit.model.reference import reference_logps
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair

SIDES = ("chosen", "rejected")


def scores(batch: Sequence[EncodedPair], own: np.ndarray, ref: np.ndarray) -> PairLogSums:
    """Return the loss's view of the responses' sums, both ``[2B]``, chosen before rejected."""
    lengths = [np.array([int(getattr(e, f"{side}_mask").sum()) for e in batch]) for side in SIDES]
    arrays = [np.asarray(x, float)[i::2] for x in (own, ref) for i in range(2)]
    return PairLogSums([e.id for e in batch], *arrays, *lengths)


@alone
def response_sums(
    policy: Policy, encoded: Sequence[EncodedPair], batch_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return log π and log π_ref of every response in nats, ``[2B]`` each, float64."""
    found: tuple[list[float], list[float]] = [], []
    with evaluation(policy.model), torch.no_grad():
        for batch in batches(encoded, batch_size):
            rows = sequences(batch)
            own = scored_logps(policy.model, rows)
            for sums, logps in zip(found, (own, reference_logps(policy, rows, own)), strict=True):
                sums += [float(row.double().sum()) for row in logps]
    return np.array(found[0]), np.array(found[1])


def same_tokens(a: EncodedPair, b: EncodedPair) -> bool:
    """Return whether two encoded pairs are the same to the model."""
    fields = [f"{side}_{what}" for side in SIDES for what in ("ids", "mask")]
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)
