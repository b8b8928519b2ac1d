"""What inner products run over: parameters, a preconditioner, and who accounts for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from toolkit.checks import shown
from toolkit.gradients._findings import names, plan_for
from toolkit.gradients._plan import Plan
from toolkit.gradients.preconditioner import Preconditioner
from toolkit.model import Params, Policy, Provenance
from toolkit.model.batching import fitting
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair


class Scope:
    """A policy's selected parameters, their preconditioner, and who accounts for each of them.

    Attributes:
        selected: The parameters by name.
        weights: The preconditioner's diagonal of each, in order; ``None`` for plain products.
        plan: Which of them have a layer rule, and which are left to plain autograd.
    """

    @alone
    def __init__(self, policy: Policy, params: Params, preconditioner: Preconditioner | None):
        if preconditioner is not None and not isinstance(preconditioner, Preconditioner):
            raise ValueError(
                "preconditioner must be None or a Preconditioner, received "
                f"{shown(preconditioner)}: use "
                "tk.Preconditioner.from_optimizer(optimizer, policy.model)"
            )
        self.policy, self.selected = policy, policy.parameters_in(params)
        self.weights, self.own_labels = None, policy.labels(params)
        if preconditioner is None:
            self.plan = plan_for(policy.model, self.selected)
        else:
            # It has no low-rank form that a layer rule could use: plain autograd takes all.
            self.weights = preconditioner.of(self.selected)
            self.plan = Plan({}, None, self.selected)
            self.own_labels = replace(self.own_labels, optimizer_metric=preconditioner.name)

    @property
    def labels(self) -> Provenance:
        """The policy's labels, with the parameters that plain autograd took."""
        return self.labels_with("")

    def labels_with(self, note: str) -> Provenance:
        """The same with a note on the way that was taken."""
        by_autograd = names(list(self.plan.remainder), list(self.selected))
        both = "; ".join(text for text in (by_autograd, note) if text)
        return replace(self.own_labels, by_autograd=both)

    def fitting(self, encoded, batch_size, memory) -> Iterator[Sequence[EncodedPair]]:
        """The pairs in batches that fit into memory."""
        return fitting(encoded, batch_size, self.plan.position_bytes, self.policy.device, memory)

    def scales(self) -> dict[str, Tensor] | None:
        """√P by parameter name."""
        if self.weights is None:
            return None
        roots = (w.sqrt() for w in self.weights)
        return dict(zip(self.selected, roots, strict=True))
