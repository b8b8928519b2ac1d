"""The constrained form: bounds on what becomes of a response, held by Lagrange multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from toolkit.checks import finite, positive
from toolkit.losses import LossWeights, PairLogSums
from toolkit.model import Policy
from toolkit.model.scores import SIDES, response_sums
from toolkit.remedies.update_rules import UpdateRule, check_rule

# The side that a bound is on, and the sign that makes "held" mean sign·(logratio − bound) ≤ 0.
BOUNDS = {"chosen_floor": ("chosen", -1.0), "rejected_ceiling": ("rejected", 1.0),
          "rejected_floor": ("rejected", -1.0)}  # fmt: skip


@dataclass(frozen=True)
class Constrained:
    """Train under bounds on the mean log-ratios: ``min ℓ`` subject to ``gap ≤ 0`` for each bound.

    The Lagrangian ``ℓ + Σ λ·gap`` adds ``λ`` to the pull on the bounded response: a floor under the
    chosen one is a term −λ·log π(chosen), NLL with a weight of its own. After each step the
    multipliers climb, ``λ ← max(0, λ + rate·gap)``, from 0: they grow while a bound is broken, fall
    while there is room, and stay 0 where a bound never binds. ``gap`` is the mean over the
    minibatch of ``floor − logratio`` or of ``logratio − ceiling``, ``logratio = log π − log π_ref``
    in nats of the whole response. ``Trajectory.steps_frame()`` shows gaps and multipliers.

    Attributes:
        chosen_floor: Least mean log-ratio of the chosen responses; ``None``: no bound, here and
            below.
        rejected_ceiling: Largest mean log-ratio of the rejected responses.
        rejected_floor: Least mean log-ratio of the rejected responses.
        rate: How fast the multipliers move, per nat and step; they add to loss weights per nat.
        rule: The update rule under it, as for ``train(update_rule=…)``.

    Raises:
        ValueError: If nothing is bounded, or a value is no number.

    Source:
        arXiv 2310.04373, Section 4 (dual ascent on composite rewards), with plain multipliers in
        place of squashed ones and log-ratios in place of rewards.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=2)
        >>> run = tk.train(policy, pairs, lr=1e-5, steps=1, progress=False,
        ...                update_rule=tk.Constrained(chosen_floor=-1.0))
        >>> float(run.steps_frame()["chosen_floor_multiplier"].iloc[0])
        0.0
    """

    chosen_floor: float | None = None
    rejected_ceiling: float | None = None
    rejected_floor: float | None = None
    rate: float = 0.02
    rule: str | UpdateRule | None = None

    def __post_init__(self):
        for name in BOUNDS:
            value = getattr(self, name)
            if value is not None:
                finite(name, value)
        if not self.bounds:
            raise ValueError(f"Constrained needs a bound: give {' or '.join(BOUNDS)}")
        positive("rate", self.rate)
        check_rule(self.rule)

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by name."""
        values = {name: getattr(self, name) for name in BOUNDS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def name(self) -> str:
        """The bounds and the rule under them, for labels."""
        bounds = ", ".join(f"{name} {value:g}" for name, value in self.bounds.items())
        return f"{check_rule(self.rule).name} under {bounds}"

    def gaps(self, found: PairLogSums) -> dict[str, float]:
        """Return how far each bound is broken, nats; negative where there is room."""
        gaps = {}
        for name, value in self.bounds.items():
            side, sign = BOUNDS[name]
            ratios = getattr(found, f"{side}_logps") - getattr(found, f"ref_{side}_logps")
            gaps[name] = sign * (float(np.mean(ratios)) - value)
        return gaps

    def multipliers(self, notes: Mapping[str, float]) -> dict[str, float]:
        """Return each bound's multiplier, from the notes of the step before, if there is one."""
        if not notes:
            return dict.fromkeys(self.bounds, 0.0)
        old = {name: (notes[f"{name}_multiplier"], notes[f"{name}_gap"]) for name in self.bounds}
        return {name: max(0.0, last + self.rate * gap) for name, (last, gap) in old.items()}

    def pulls(
        self, weights: LossWeights, found: PairLogSums, notes: Mapping[str, float]
    ) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Return both weights with the multipliers in them, and the notes of this step.

        Args:
            weights: The weights under the constraint, of the loss or of the rule.
            found: The minibatch's log-probabilities.
            notes: Those of the step before.
        """
        pulls = {"chosen": weights.d_chosen, "rejected": weights.d_rejected}
        gaps, now = self.gaps(found), {}
        for name, multiplier in self.multipliers(notes).items():
            side, sign = BOUNDS[name]
            # d_chosen pulls up, d_rejected pushes down.
            up = -sign if side == "chosen" else sign
            pulls[side] = pulls[side] + up * multiplier
            now |= {f"{name}_multiplier": multiplier, f"{name}_gap": gaps[name]}
        return *pulls.values(), now


def check_update(rule) -> UpdateRule | Constrained:
    """Return what ``update_rule=`` was given, as a rule or a constraint.

    Raises:
        ValueError: If it is neither.
    """
    return rule if isinstance(rule, Constrained) else check_rule(rule)


def check_start(rule: Constrained, policy: Policy, pairs) -> None:
    """Refuse bounds that do not even hold before the first step.

    Raises:
        ValueError: If a mean log-ratio over all pairs is beyond its bound at the start.
    """
    own, ref = response_sums(policy, pairs)
    start = {side: float((own - ref)[k::2].mean()) for k, side in enumerate(SIDES)}
    for name, value in rule.bounds.items():
        side, sign = BOUNDS[name]
        if sign * (start[side] - value) > 1e-6:
            where = "above" if sign < 0 else "below"
            raise ValueError(
                f"{name}={value:g} is {where} the start: the {side} responses' mean log-ratio is "
                f"{start[side]:.3g} nats before the first step; give at "
                f"{'most' if sign < 0 else 'least'} that"
            )
