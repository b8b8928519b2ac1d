"""What inner products run over: parameters, a preconditioner, and who accounts for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from toolkit.checks import shown
from toolkit.gradients._findings import plan_for
from toolkit.gradients._plan import Plan
from toolkit.gradients.preconditioner import Preconditioner
from toolkit.model import Params, Policy, Provenance
from toolkit.model.batching import fitting
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair


class Scope:
    """A policy's selected parameters, their preconditioner, and who accounts for each of them.

    Attributes:
        model: The policy's model.
        selected: The parameters by name.
        roots: √P by parameter name, the preconditioner's diagonal; empty for plain products.
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
        self.policy, self.model = policy, policy.model
        self.selected, self._labels = policy.parameters_in(params), policy.labels(params)
        self.roots: dict[str, Tensor] = {}
        if preconditioner is None:
            self.plan = plan_for(self.model, self.selected)
        else:
            # It has no low-rank form that a layer rule could use: plain autograd takes all.
            weights = preconditioner.of(self.selected)
            self.roots = {n: w.sqrt() for n, w in zip(self.selected, weights, strict=True)}
            self.plan = Plan({}, None, self.selected)
            self._labels = replace(self._labels, optimizer_metric=preconditioner.name)

    def labels(self, note: str = "") -> Provenance:
        """The policy's labels, with what plain autograd took and a note on the way taken."""
        taken, count = list(self.plan.remainder), len(self.plan.remainder)
        text = ", ".join(taken[:3]) + (f" and {count - 3} more" if count > 3 else "")
        if count and count == len(self.selected):
            text = "all"
        return replace(self._labels, by_autograd="; ".join(t for t in (text, note) if t))

    def fitting(self, encoded, batch_size, memory) -> Iterator[Sequence[EncodedPair]]:
        """The pairs in batches that fit into memory."""
        return fitting(encoded, batch_size, self.plan.position_bytes, self.policy.device, memory)
