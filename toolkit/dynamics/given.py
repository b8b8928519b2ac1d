"""What a step or a run is given: its pairs, its probes and the labels of what it measures."""

from __future__ import annotations

from dataclasses import replace

from toolkit.model import Params, Policy
from toolkit.model.inputs import encoded_pairs, skipped_pairs
from toolkit.pairs import EncodedPair


def trained_and_watched(
    policy: Policy, pairs, probes, on_error: str
) -> tuple[list[EncodedPair], list[EncodedPair] | None, dict[str, object]]:
    """Return the tokens of training pairs and probes, ``None`` if there are none, and labels.

    The labels say what was left out (``skipped``) and, where every pair was given encoded with
    another EOS policy than this policy's, that one (``append_eos``).
    """
    trained, watched = encoded_pairs(policy, pairs, on_error), None
    if probes is not None:
        watched = encoded_pairs(policy, probes, on_error, name="probes")
    both = [trained, *([] if watched is None else [watched])]
    labels = {"skipped": skipped_pairs(error for found in both for error in found.errors)}
    eos = {getattr(pair, "append_eos", policy.append_eos) for found in both for pair in found.given}
    if len(eos) == 1:
        labels["append_eos"] = eos.pop()
    return trained.pairs, None if watched is None else watched.pairs, labels


def labels_of(policy: Policy, params: Params, frozen: str) -> dict[str, object]:
    """Return the policy's labels; ``frozen`` names the reference where it is the policy's own."""
    labels = policy.labels(params)
    if labels.ref == "same weights":
        labels = replace(labels, ref=frozen)
    return labels.to_attrs()
