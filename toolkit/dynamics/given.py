"""What a step or a run is given: its pairs, its probes and the labels of what it measures."""

from __future__ import annotations

from dataclasses import replace

from toolkit.model import Params, Policy
from toolkit.model.inputs import Skipped, encoded_pairs, skipped_pairs
from toolkit.pairs import EncodedPair


def trained_and_watched(
    policy: Policy, pairs, probes, on_error: str
) -> tuple[list[EncodedPair], list[EncodedPair] | None, Skipped]:
    """Return the tokens of training pairs and probes, ``None`` if there are none, and the rest."""
    trained = encoded_pairs(policy, pairs, on_error)
    if probes is None:
        return trained.pairs, None, trained.left_out
    watched = encoded_pairs(policy, probes, on_error, name="probes")
    left_out = skipped_pairs([*trained.errors, *watched.errors])
    return trained.pairs, watched.pairs, left_out


def labels_of(policy: Policy, params: Params, frozen: str) -> dict[str, object]:
    """Return the policy's labels; ``frozen`` names the reference where it is the policy's own."""
    labels = policy.labels(params)
    if labels.ref == "same weights":
        labels = replace(labels, ref=frozen)
    return labels.to_attrs()
