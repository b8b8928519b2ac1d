"""Training pairs and probes as rows of one kernel: each response's gradient is taken once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.gradients import Gram, gram as measured
from toolkit.kernel.margin import check_gram
from toolkit.losses import PairLogSums
from toolkit.model import Policy, Provenance
from toolkit.model.inputs import Skipped, encoded_pairs, skipped_pairs
from toolkit.model.scores import response_sums, same_tokens, scores
from toolkit.pairs import EncodedPair


@dataclass(frozen=True)
class Rows:
    """Training pairs and probes among U different pairs.

    Attributes:
        pairs: The different pairs, training pairs first.
        train_at: Which of them each training pair is, ``[N]``.
        probe_at: Which of them each probe is, ``[P]``.
        train_ids: Ids of the training pairs.
        probe_ids: Ids of the probes.
        logps: log π of every response, nats, ``[2U]``.
        ref_logps: log π_ref of every response, nats, ``[2U]``.
        given: The training pairs and the probes as they were given.
        left_out: Pairs that cannot be scored.
    """

    pairs: list[EncodedPair]
    train_at: np.ndarray
    probe_at: np.ndarray
    train_ids: list[str]
    probe_ids: list[str]
    logps: np.ndarray
    ref_logps: np.ndarray
    given: tuple[list, list]
    left_out: Skipped

    def scores(self, logps: np.ndarray, at: np.ndarray) -> PairLogSums:
        """Return the loss's view of some pairs at these log-probabilities ``[2U]``."""
        rows = np.stack([2 * at, 2 * at + 1], 1).ravel()
        return scores([self.pairs[i] for i in at], logps[rows], self.ref_logps[rows])


def rows_of(policy: Policy, pairs, probes, on_error: str, batch_size: int | None) -> Rows:
    """Return the rows of training pairs and probes; without probes, all pairs are watched."""
    trained = encoded_pairs(policy, pairs, on_error)
    watched = trained
    if probes is not None:
        watched = encoded_pairs(policy, probes, on_error, name="probes")
    unique: list[EncodedPair] = []

    def place(pair: EncodedPair) -> int:
        same = [i for i, other in enumerate(unique) if same_tokens(pair, other)]
        if not same:
            unique.append(pair)
        return same[0] if same else len(unique) - 1

    at = [np.array([place(pair) for pair in found.pairs]) for found in (trained, watched)]
    ids = [[pair.id for pair in found.pairs] for found in (trained, watched)]
    sums = response_sums(policy, unique, batch_size)
    left_out = skipped_pairs([*trained.errors, *(watched.errors if probes is not None else [])])
    return Rows(unique, *at, *ids, *sums, (trained.given, watched.given), left_out)


def kernel_of(
    policy: Policy, rows: Rows, gram: Gram | None, **options
) -> tuple[np.ndarray, Provenance]:
    """Return ⟨g_i, g_j⟩ of the 2U responses, measured or taken from a Gram that holds them.

    Raises:
        ValueError: If ``gram`` is no Gram or lacks a pair, or options were given beside it.
    """
    if gram is None:
        found = measured(policy, rows.pairs, **options)
        return found.matrix, found.labels
    ids = check_gram(gram).pair_ids[::2]
    for name, plain in (("params", "all"), ("preconditioner", None)):
        if options[name] != plain:
            raise ValueError(f"{name} is that of gram where one is given; leave {name} out")
    missing = [pair.id for pair in rows.pairs if ids.count(pair.id) != 1]
    if missing:
        raise ValueError(
            f"gram must hold every pair once; it holds pair {missing[0]!r} "
            f"{ids.count(missing[0])} times: use tk.gram(policy, [*pairs, *probes])"
        )
    at = np.array([ids.index(pair.id) for pair in rows.pairs])
    both = np.stack([2 * at, 2 * at + 1], 1).ravel()
    return gram.matrix[np.ix_(both, both)], gram.labels
