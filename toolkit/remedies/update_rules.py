"""What a user asks for: an update rule by name, as a function, or with its settings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.checks import choice, shown
from toolkit.remedies.rule_formulas import UPDATE_RULES, Formula, Weights


@dataclass(frozen=True)
class UpdateRule:
    """How a training step weighs the two responses of a pair, in place of the loss alone.

    Give it, or one of the names, to ``train(update_rule=…)`` or ``predict_step(update_rule=…)``.
    The loss's weights ``d_c``, ``d_r`` become those of the rule; reference, optimiser and clipping
    stay as they are. What a rule guarantees (``tk.rule_table()``) holds at first order, for one
    pair with positive weights, and for a step along P·u with the same metric: minibatches,
    momentum and finite steps can break it.

    Attributes:
        rule: A key of ``UPDATE_RULES``, or a function of ``d_chosen, d_rejected, chosen_norm,
            rejected_norm, inner`` (arrays ``[B]``) that returns the two new weights ``[B]``.
        per: ``"pair"`` reads each pair's gradients (their products come from the layers' rules; no
            gradient of a single pair is kept); ``"batch"`` those of the minibatch's two sums
            ``Σ d_c·g_c`` and ``Σ d_r·g_r``, and gives all its pairs the same two factors.
        metric: ``"plain"``, or ``"optimizer"``: norms and products under the optimiser's diagonal
            P as its moments stand before the step (plain ones until there are any). SGD, RMSprop,
            Adam and AdamW have one.

    Raises:
        ValueError: If a setting is unknown.

    Source:
        arXiv 2410.13828, Section 5, for the normalised rules.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=1)
        >>> frame = tk.predict_step(policy, pairs, lr=1e-3, update_rule="normalised")
        >>> [str(word) for word in frame["predicted_delta"].gt(0)]
        ['True', 'False']
    """

    rule: str | Formula
    per: str = "pair"
    metric: str = "plain"

    def __post_init__(self):
        if not callable(self.rule):
            choice("update_rule", self.rule, UPDATE_RULES)
        choice("per", self.per, ("pair", "batch"))
        choice("metric", self.metric, ("plain", "optimizer"))

    @property
    def name(self) -> str:
        """The rule with what is not at its default, for labels."""
        name = getattr(self.rule, "__name__", "custom") if callable(self.rule) else self.rule
        more = [*(["per batch"] * (self.per == "batch"))]
        more += [*(["optimizer's norms"] * (self.metric == "optimizer"))]
        return f"{name} ({', '.join(more)})" if more else name

    @property
    def reads_gradients(self) -> bool:
        """Whether norms and inner products have to be measured."""
        return callable(self.rule) or UPDATE_RULES[self.rule].reads_gradients

    def weights(self, d_chosen, d_rejected, chosen_norm, rejected_norm, inner) -> Weights:
        """Return the two new weights of each pair, ``[B]``.

        Raises:
            ValueError: If a function of the user's does not return two finite arrays ``[B]``.
        """
        function = self.rule if callable(self.rule) else UPDATE_RULES[self.rule].function
        found = function(d_chosen, d_rejected, chosen_norm, rejected_norm, inner)
        try:
            chosen, rejected = (np.asarray(x, dtype=float) for x in found)
        except (TypeError, ValueError):
            chosen = rejected = np.zeros(0)
        right = chosen.shape == rejected.shape == np.shape(d_chosen)
        if not right or not np.isfinite([chosen, rejected]).all():
            raise ValueError(
                f"update_rule {self.name} must return two finite arrays of shape "
                f"{np.shape(d_chosen)}, received {shown(found)}"
            )
        return chosen, rejected


def check_rule(rule: str | Formula | UpdateRule | None) -> UpdateRule:
    """Return a rule from its name, its function or itself; ``None`` is the plain one.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(rule, UpdateRule):
        return rule
    if rule is None or isinstance(rule, str) or callable(rule):
        return UpdateRule("plain" if rule is None else rule)
    raise ValueError(
        f"update_rule={shown(rule)} is unknown; allowed: {', '.join(UPDATE_RULES)}, a function, "
        "tk.UpdateRule(…) or tk.Constrained(…)"
    )
