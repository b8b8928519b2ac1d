"""What is measured of pairs a few at a time and kept, and what a step does to each of them.

Nothing here is shown: explorers, and whoever needs the same numbers without one, read it.
"""

from __future__ import annotations

import difflib
import inspect
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from toolkit.attribution import PromptAttributions, prompt_attributions
from toolkit.checks import positive, shown
from toolkit.entanglements import entanglement, suggest_lr
from toolkit.gradients import (
    PairStats,
    TokenContributions,
    TokenMatrix,
    concat_stats,
    iter_pair_stats,
    token_contributions,
    token_matrix,
)
from toolkit.losses import LOSSES, check_loss
from toolkit.model import Params, Policy
from toolkit.model.inputs import encoded_pairs, skipped_frame, skipped_pairs
from toolkit.model.turns import alone
from toolkit.pairs import PreferencePair
from toolkit.similarities import similarity

SCORES = ("ches", "ln_ches", "neg_edit_distance", "last_hidden_inner")


class Measurement:
    """Gradient products and similarities of many pairs, measured a few at a time and kept.

    Args:
        policy: The model.
        pairs: Preference pairs; those that cannot be scored are set aside in ``skipped``.
        params: Parameter set.
        stats: Statistics measured before, of exactly the pairs that can be scored.
        scores: ``similarity`` of the same pairs, measured before.

    Raises:
        ValueError: If no pair can be scored, ids repeat, or ``stats`` or ``scores`` belong to
            other pairs or were measured otherwise.
    """

    def __init__(
        self,
        policy: Policy,
        pairs: Sequence[PreferencePair],
        params: Params,
        stats: PairStats | None = None,
        scores: pd.DataFrame | None = None,
    ):
        self.policy, self.params = policy, params
        found = encoded_pairs(policy, pairs, "skip", text=True, progress=True)
        self.pairs, self.encoded, self.skipped = found
        policy.parameters_in(params)
        self.ids = [pair.id for pair in self.pairs]
        repeated = [i for i, count in Counter(self.ids).items() if count > 1]
        if repeated:
            raise ValueError(f"pairs: id {repeated[0]!r} occurs twice; ids must be unique")
        self._lengths = [len(e.chosen_ids) + len(e.rejected_ids) for e in self.encoded]
        self._parts: list[tuple[PairStats, pd.DataFrame]] = []
        self.seconds = 0.0
        self._given_stats = self._given_scores = None
        if stats is not None:
            if not isinstance(stats, PairStats):
                raise ValueError(f"stats must be PairStats, received {type(stats).__name__}")
            self._given_stats = stats.take(self._order("stats", stats.pair_ids))
            _same_labels(stats, policy, params)
        if scores is not None:
            if not isinstance(scores, pd.DataFrame) or "pair_id" not in scores:
                raise ValueError(
                    f"similarity must be the frame of tk.similarity, received {shown(scores)}"
                )
            self._given_scores = scores.iloc[self._order("similarity", scores["pair_id"].tolist())]
        if stats is not None and scores is not None:
            self.step(len(self.pairs))

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def done(self) -> int:
        """Number of pairs measured so far; they are the first ones."""
        return sum(len(stats) for stats, _ in self._parts)

    @property
    def finished(self) -> bool:
        """Whether every pair is measured."""
        return self.done == len(self)

    @property
    def seconds_left(self) -> float:
        """Estimate of the remaining time: the tokens to go at the pace of those behind."""
        behind = sum(self._lengths[: self.done])
        return self.seconds / behind * sum(self._lengths[self.done :]) if behind else float("inf")

    @property
    def skipped_frame(self) -> pd.DataFrame:
        """The pairs that cannot be scored: ``row, pair_id, reason``."""
        return skipped_frame(skipped_pairs(self.skipped))

    @alone
    def step(self, count: int) -> None:
        """Measure the next ``count`` pairs; interrupted, it leaves what was there."""
        start = time.perf_counter()
        at = range(self.done, min(self.done + count, len(self)))
        if not at:
            return
        encoded = self.encoded[at.start : at.stop]
        if self._given_stats is None:
            parts = iter_pair_stats(
                self.policy, encoded, params=self.params, batch_size=len(encoded)
            )
            stats = concat_stats(list(parts))  # of smaller batches where memory ran out
        else:
            stats = self._given_stats.take(at)
        if self._given_scores is None:
            scores = similarity(self.policy, encoded, batch_size=len(encoded), progress=False)
        else:
            scores = self._given_scores.iloc[at.start : at.stop]
        self._parts.append((stats, scores))
        self.seconds += time.perf_counter() - start

    @property
    def given_stats(self) -> PairStats | None:
        """The statistics of all pairs, if they were given."""
        return self._given_stats

    def one(self, index: int) -> PairStats:
        """Return the statistics of one pair: those given, or measured now, whatever is done."""
        if self._given_stats is not None:
            return self._given_stats.take([index])
        (stats,) = iter_pair_stats(
            self.policy, [self.encoded[index]], params=self.params, batch_size=1
        )
        return stats

    @alone
    def results(self) -> tuple[PairStats, pd.DataFrame]:
        """Return the statistics and similarities of the pairs measured so far."""
        stats = concat_stats([part for part, _ in self._parts])
        scores = pd.concat([part for _, part in self._parts], ignore_index=True)
        self._parts = [(stats, scores)]
        return stats, scores

    def place_of(self, id: str) -> int:
        """Return where the pair with this id stands.

        Raises:
            ValueError: If no pair that can be scored has this id; the message names close ones.
        """
        reason = next((e.reason for e in self.skipped if e.pair_id == id), None)
        why = f"cannot be scored ({reason})" if reason else "is no id of these pairs"
        return place_in(self.ids, id, why)

    def _order(self, name: str, ids: list[str]) -> list[int]:
        """Return where each pair stands in ``ids``."""
        at, own = {id: i for i, id in enumerate(ids)}, set(self.ids)
        odd = [i for i in self.ids if i not in at] or [i for i in ids if i not in own]
        if odd or len(ids) != len(self.ids):
            hint = f"; id {odd[0]!r} is in one of them only" if odd else "; some repeat"
            raise ValueError(
                f"{name} holds {len(ids)} ids that are not those of the {len(self.ids)} pairs that "
                f"can be scored{hint}: measure these very pairs"
            )
        return [at[i] for i in self.ids]


def _same_labels(stats: PairStats, policy: Policy, params: Params) -> None:
    theirs, ours = stats.labels.to_attrs(), policy.labels(params).to_attrs()
    for name in (n for n in ours if theirs[n] != ours[n]):
        raise ValueError(
            f"stats were measured with {name}={theirs[name]!r}, but here it is {ours[name]!r}: "
            "measure them again with the same policy and params"
        )


class PairResults:
    """What a step at one β and learning rate does to every measured pair.

    Args:
        measurement: The pairs; at least one of them is measured.
        loss: A key of ``LOSSES`` or a function.
        beta: β of the loss, where it has one.
        lr: Learning rate; ``None`` for the rate of ``suggest_lr`` for the pairs measured at the
            start, and again for all of them, in reach of the worst pair too: it is shown first.
        hparams: Other hyper-parameters of the loss.

    Attributes:
        frame: One row per measured pair.
        worst: Place of the pair whose chosen response falls most.
        lr: Learning rate of the frame.
    """

    def __init__(
        self,
        measurement: Measurement,
        loss: str | Callable,
        beta: float,
        lr: float | None,
        hparams: dict[str, float],
    ):
        self.measurement, self.loss, self.hparams = measurement, loss, hparams
        self.policy, self.params = measurement.policy, measurement.params
        self.has_beta, self._chosen_for = takes_beta(loss), 0
        self._cache = Cache()
        self.update(beta, lr)

    @property
    def loss_name(self) -> str:
        """The loss in a sentence."""
        return self.loss.upper() if isinstance(self.loss, str) else self.loss.__name__

    def update(self, beta: float, lr: float | None) -> None:
        """Rebuild ``frame`` for this β and learning rate.

        The suggested rate and the worst pair are chosen when there are first pairs and when all
        are measured, so that neither changes with β or from moment to moment.
        """
        self.beta = float(beta)
        stats, scores = self.measurement.results()
        hparams = {**self.hparams, **({"beta": self.beta} if self.has_beta else {})}
        result = entanglement(stats, self.loss, **hparams)
        if not self._chosen_for or (self.measurement.finished and self._chosen_for != len(stats)):
            self._chosen_for, self.worst = len(stats), result.worst
            slacks = result.chosen_slack, result.rejected_slack
            shown_first = [slack[[self.worst]] for slack in slacks]
            self._suggested_lr = min(suggest_lr(*slacks), suggest_lr(*shown_first))
        self.lr = self._suggested_lr if lr is None else float(lr)
        frame = replace(result, lr=self.lr).to_frame()
        for name in SCORES:
            frame[name] = scores[name].to_numpy()
        frame.attrs.update(measured=len(frame), pairs=len(self.measurement))
        frame.attrs["skipped"] = skipped_pairs(self.measurement.skipped)
        self.frame = frame

    def at(self, index: int) -> PairResult:
        """Return one pair's results by its place."""
        return PairResult(self, index)

    def seconds(self, index: int, kind: str) -> float:
        """Estimate how long ``"matrix"`` or ``"prompt"`` of a pair takes; 0 when kept."""
        if (kind, index) in self._cache:
            return 0.0
        options = {"params": self.params}
        contributions, took = self.of_pair(index, "tokens", token_contributions, **options)
        # Token contributions cost about 2.6 forward and backward passes of the pair, a token matrix
        # a fifth of one per token, the integral of the attributions about 20.
        return took / 2.6 * (len(contributions.tokens) / 5 if kind == "matrix" else 20)

    @alone
    def of_pair(self, index: int, kind: str, function: Callable, **options) -> tuple[Any, float]:
        """Return a result for a pair, and the seconds that it took when it was made."""

        def compute():
            start = time.perf_counter()
            result = function(self.policy, self.measurement.encoded[index], **options)
            return result, time.perf_counter() - start

        return self._cache.get((kind, index), compute)


@dataclass(frozen=True)
class PairResult:
    """One pair of :class:`PairResults`: its row, and what is computed when it is asked for.

    Attributes:
        results: The results that it belongs to.
        index: Place of the pair.
    """

    results: PairResults
    index: int

    @property
    def pair(self) -> PreferencePair:
        """The pair."""
        return self.results.measurement.pairs[self.index]

    @property
    def row(self) -> pd.Series:
        """The pair's row of the frame."""
        return self.results.frame.iloc[self.index]

    def tokens(self) -> pd.DataFrame:
        """Return one row per token, at the β and learning rate of the results."""
        weights = {name: float(self.row[name]) for name in ("d_chosen", "d_rejected")}
        frame = self.contributions().to_frame(**weights, lr=self.results.lr)
        return frame.assign(first_order=bool(self.row["first_order"]))

    def contributions(self) -> TokenContributions:
        """Return the token contributions."""
        return self._get("tokens", token_contributions, params=self.results.params)

    def matrix(self) -> TokenMatrix:
        """Return the token matrix."""
        return self._get("matrix", token_matrix, params=self.results.params)

    def attributions(self) -> PromptAttributions:
        """Return the prompt attributions."""
        return self._get("prompt", prompt_attributions)

    def seconds(self, kind: str) -> float:
        """Estimate how long ``"matrix"`` or ``"prompt"`` takes; 0 when kept."""
        return self.results.seconds(self.index, kind)

    def _get(self, kind: str, function: Callable, **options) -> Any:
        return self.results.of_pair(self.index, kind, function, **options)[0]


def check_step(
    loss: str | Callable, beta: float, lr: float | None, hparams: dict[str, float]
) -> None:
    """Check the settings of a predicted step before anything is measured for it.

    Raises:
        ValueError: If the loss or a hyper-parameter is unknown, or a value is out of range.
    """
    positive("beta", beta)
    if lr is not None:
        positive("lr", lr)
    check_loss(loss, {**hparams, **({"beta": beta} if takes_beta(loss) else {})})


def takes_beta(loss: str | Callable) -> bool:
    """Return whether a loss has a β."""
    if callable(loss):
        return "beta" in inspect.signature(loss).parameters
    return isinstance(loss, str) and loss in LOSSES and "beta" in LOSSES[loss].defaults


class Cache:
    """The results used last, at most ``size`` of them."""

    def __init__(self, size: int = 64):
        self._size, self._kept = size, OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Return what is kept under ``key``, computing it when it is not there."""
        if key not in self._kept:
            self._kept[key] = compute()
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def place_in(ids: Sequence[str], id: str, why: str = "is no id of these pairs") -> int:
    """Return where an id stands in a list.

    Raises:
        ValueError: If it is not there; the message says ``why`` and names close ones.
    """
    if id not in ids:
        raise ValueError(f"selection={id!r} {why}; ids close to it: {close_to(id, ids)}")
    return ids.index(id)


def close_to(name: object, names: Sequence[str]) -> str:
    """Return the names that one could have been meant to be, for an error."""
    return ", ".join(difflib.get_close_matches(str(name), names, 3, 0.4) or names[:3])
