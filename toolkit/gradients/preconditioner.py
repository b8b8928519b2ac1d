"""The inner product an optimiser really uses: a diagonal preconditioner of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Preconditioner:
    """A diagonal preconditioner P, and its inner product ``⟨a, b⟩_P = Σ P·a·b``.

    A step ``θ ← θ + η P u`` changes log-probabilities by ``η⟨∇log π, u⟩_P``, so with P-products in
    place of plain ones every prediction for gradient descent holds for that step.

    Attributes:
        name: Shown in labels, such as ``"adam"``.
        weights: P by parameter name, each of its parameter's shape, non-negative.

    Source:
        arXiv 2410.13828's conditions carry over with ``⟨·,·⟩_P`` in place of ``⟨·,·⟩``.
    """

    name: str
    weights: Mapping[str, Tensor]

    @classmethod
    def from_optimizer(
        cls, optimizer: torch.optim.Optimizer, model: nn.Module | Mapping[str, nn.Parameter]
    ) -> Preconditioner:
        """Return the preconditioner of the next step of Adam, AdamW or RMSprop, its state frozen.

        ``P = 1/(√v̂ + ε)`` with v̂ the second moments in the optimiser's state (bias-corrected for
        Adam). For plain SGD it is 1.

        Args:
            optimizer: After its latest step.
            model: The model, or its parameters by name.

        Raises:
            ValueError: For another optimiser, or one that has not taken a step yet.
        """
        named = model.items() if isinstance(model, Mapping) else model.named_parameters()
        names = {id(p): name for name, p in named}
        weights = {}
        for group in optimizer.param_groups:
            for p in group["params"]:
                if id(p) in names:
                    weights[names[id(p)]] = _weight(optimizer, group, p, names[id(p)])
        return cls(type(optimizer).__name__.lower(), weights)

    def of(self, selected: Mapping[str, nn.Parameter]) -> list[Tensor]:
        """Return P of the selected parameters, in order.

        Raises:
            ValueError: If a parameter has none, or one of another shape or with negative entries.
        """
        found = []
        for name, p in selected.items():
            weight = self.weights.get(name)
            if weight is None or weight.shape != p.shape:
                got = "none" if weight is None else f"shape {tuple(weight.shape)}"
                raise ValueError(
                    f"preconditioner: {name} needs shape {tuple(p.shape)}, received {got}"
                )
            if not bool((weight >= 0).all()):
                raise ValueError(
                    f"preconditioner: {name} has entries that are negative or not a number"
                )
            found.append(weight.detach().to(p.device, torch.promote_types(p.dtype, torch.float32)))
        return found


def _weight(optimizer: torch.optim.Optimizer, group: dict, p: Tensor, name: str) -> Tensor:
    kind = type(optimizer)
    if kind is torch.optim.SGD:
        return torch.ones_like(p)
    if kind not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        raise ValueError(
            f"optimizer {kind.__name__} has no diagonal preconditioner here; allowed: SGD, Adam, "
            "AdamW, RMSprop, or a Preconditioner with weights of your own"
        )
    state = optimizer.state.get(p, {})
    moments = state.get("square_avg" if kind is torch.optim.RMSprop else "exp_avg_sq")
    if moments is None:
        raise ValueError(f"optimizer: {name} has no second moments yet; take a step first")
    if kind is not torch.optim.RMSprop:
        moments = moments / (1 - group["betas"][1] ** float(state["step"]))
    return 1 / (moments.sqrt() + group["eps"])
