"""Optimisers by name or live, on parameters of our own, and what a step of theirs is made of."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toolkit.checks import mapping, not_negative, positive, shown
from toolkit.extras import require

NAMES = ("sgd", "momentum", "rmsprop", "adam", "adamw", "sign", "adamp", "sgdp")


class SignDescent(torch.optim.Optimizer):
    """θ ← (1 − lr·weight_decay)·θ − lr·sign(∇ℓ)."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step; parameters without a gradient stay."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(p.grad.sign(), alpha=group["lr"])


@dataclass(frozen=True)
class Recipe:
    """Which optimiser to use, checked when it is made.

    Attributes:
        optimizer: One of ``NAMES`` or a live torch optimiser.
        lr: Learning rate; ``None`` keeps a live optimiser's own.
        weight_decay: For a named optimiser.
        options: Further options of a named optimiser.
        state: ``state_dict`` whose moments a named optimiser starts from.

    Raises:
        ValueError: If something is not allowed.
        ImportError: For AdamP and SGDP without their optional package.
    """

    optimizer: str | torch.optim.Optimizer
    lr: float | None
    weight_decay: float = 0.0
    options: Mapping[str, object] | None = None
    state: Mapping | None = None

    def __post_init__(self):
        if self.lr is not None:
            positive("lr", self.lr)
        not_negative("weight_decay", self.weight_decay)
        mapping("optimizer_options", self.options)
        mapping("state", self.state)
        if self.live:
            given = {"weight_decay": self.weight_decay, "optimizer_options": self.options}
            given["state"] = self.state
            for name, value in given.items():
                if value:
                    raise ValueError(f"{name} belongs to a named optimizer; yours brings its own")
        else:
            # A dry run on one number: what is wrong shows before any gradient is taken.
            self._build([nn.Parameter(torch.zeros(1))])

    @property
    def live(self) -> bool:
        """Whether the optimiser is the user's own object."""
        return isinstance(self.optimizer, torch.optim.Optimizer)

    @property
    def name(self) -> str:
        """Its name in labels."""
        return type(self.optimizer).__name__.lower() if self.live else self.optimizer

    def to_attrs(self) -> dict[str, object]:
        """Return name, learning rate and weight decay for ``DataFrame.attrs``."""
        groups = self.optimizer.param_groups if self.live else [{}]
        decay = [g.get("weight_decay", self.weight_decay) for g in groups]
        lr = [self.lr if self.lr is not None else float(g["lr"]) for g in groups]
        return {
            "optimizer": self.name,
            "optimizer_metric": self.name if self.name != "sgd" else "euclidean",
            "lr": lr[0] if len(set(lr)) == 1 else lr,
            "weight_decay": decay[0] if len(set(decay)) == 1 else decay,
            "optimizer_options": dict(self.options or {}),
        }

    def moved(self, selected: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Return those of the selected parameters that the optimiser moves.

        Raises:
            ValueError: If there are none, or a given state does not fit them.
        """
        if not self.live:
            if self.state is not None:  # a dry run: it shows before any gradient is taken
                blank = {
                    n: nn.Parameter(torch.empty_like(p, device="meta")) for n, p in selected.items()
                }
                self.over(selected, blank)
            return dict(selected)
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        found = {name: p for name, p in selected.items() if id(p) in held}
        if not found:
            raise ValueError(
                "optimizer holds none of the policy's parameters in params: build it over "
                "policy.model.parameters()"
            )
        return found

    def over(self, originals: Mapping[str, nn.Parameter], params: Mapping[str, nn.Parameter]):
        """Return the optimiser over stand-ins of the original parameters, its state included."""
        if self.live:
            mapping = {id(p): params[name] for name, p in originals.items()}
            made = _twin(self.optimizer, mapping)
            for group in made.param_groups:
                group.update({} if self.lr is None else {"lr": float(self.lr)})
            return made
        made = self._build(list(params.values()))
        if self.state is not None:
            _load_state(made, self.state)
        return made

    def _build(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        name = self.optimizer
        if not isinstance(name, str) or name not in NAMES:
            raise ValueError(
                f"optimizer={shown(name)} is unknown; allowed: {', '.join(NAMES)}, or a torch "
                "optimizer over the policy's parameters"
            )
        if self.lr is None:
            raise ValueError(f"lr must be given for optimizer={name!r}")
        kind, options = _kind(name)
        options = {**options, **(self.options or {})}
        try:
            decay = float(self.weight_decay)
            return kind(params, lr=float(self.lr), weight_decay=decay, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"optimizer_options of {name}: {error}") from error


def _twin(optimizer, mapping: Mapping[int, nn.Parameter]) -> torch.optim.Optimizer:
    """Return a copy of a live optimiser, its state included, over other parameters.

    Args:
        optimizer: Stays as it is.
        mapping: Stand-in by the ``id`` of the parameter; the others get one that never moves.
    """
    held = [p for group in optimizer.param_groups for p in group["params"]]
    memo = {id(p): mapping.get(id(p), p.detach()) for p in held}
    twin = copy.deepcopy(optimizer, memo)
    # Optimizer's own copying forgets what a subclass keeps beside state and groups.
    for key, value in vars(optimizer).items():
        if key not in vars(twin) and not key.startswith("_") and not callable(value):
            setattr(twin, key, copy.deepcopy(value, memo))
    return twin


def _load_state(optimizer: torch.optim.Optimizer, state: Mapping) -> None:
    """Take over the moments of a ``state_dict``, not its learning rate or other settings.

    Raises:
        ValueError: If it does not fit.
    """
    own = optimizer.state_dict()
    try:
        for group, saved in zip(own["param_groups"], state["param_groups"], strict=True):
            group.update({"step": saved["step"]} if "step" in saved else {})
            if len(group["params"]) != len(saved["params"]):
                raise ValueError("its parameter groups have other sizes")
        content = {"state": state["state"], "param_groups": own["param_groups"]}
        optimizer.load_state_dict(copy.deepcopy(content))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state is no state_dict of this optimizer: {error}") from error


def apply(optimizer: torch.optim.Optimizer, grads: Mapping[nn.Parameter, Tensor | None]) -> None:
    """Take one step with these gradients; they and every ``.grad`` field are as before after it."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    saved = [(p, p.grad) for p in held]
    try:
        for p in held:
            given = grads.get(p)
            p.grad = None if given is None else given.clone()  # some optimisers write into it
        optimizer.step()
    finally:
        for p, grad in saved:
            p.grad = grad


def _kind(name: str) -> tuple[type, dict]:
    if name in ("adamp", "sgdp"):
        require("optimizers", f'optimizer="{name}"', "pytorch_optimizer")
        import pytorch_optimizer

        return {"adamp": pytorch_optimizer.AdamP, "sgdp": pytorch_optimizer.SGDP}[name], {}
    kinds = {"rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW"}
    if name == "sign":
        return SignDescent, {}
    defaults = {"momentum": 0.9} if name == "momentum" else {}
    return getattr(torch.optim, kinds.get(name, "SGD")), defaults
