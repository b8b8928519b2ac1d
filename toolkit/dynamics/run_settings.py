"""What a training run is asked for, checked once, and shown where people look for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields

import torch
from torch import Tensor

from toolkit.checks import check_seed, choice, flag, positive, shown, whole
from toolkit.dynamics._optimizers import Recipe
from toolkit.losses import check_loss
from toolkit.model import Params, batches
from toolkit.remedies import Constrained, UpdateRule, check_update

MOST_STEPS = 10_000_000  # their minibatches are drawn before the first one


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings of :class:`TrainingRun`, which explains them; ``hparams`` are the loss's.

    Raises:
        ValueError: If one is not allowed.
        ImportError: For an optimiser without its optional package.
    """

    steps: int
    lr: float | None = None
    loss: str | Callable[..., Tensor] = "dpo"
    optimizer: str | torch.optim.Optimizer = "adamw"
    batch_size: int = 8
    params: Params = "all"
    seed: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    optimizer_options: Mapping[str, object] | None = None
    lora: Mapping[str, object] | None = None
    checkpoint_every: int | None = None
    in_place: bool = False
    predict: bool = True
    forces: bool | str = False
    update_rule: str | Callable | UpdateRule | Constrained | None = None
    on_error: str = "raise"
    hparams: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        whole("steps", self.steps)
        if self.steps > MOST_STEPS:
            raise ValueError(f"steps may be at most {MOST_STEPS:,}, received {shown(self.steps)}")
        check_seed(self.seed)
        whole("checkpoint_every", self.checkpoint_every, optional=True)
        positive("max_grad_norm", self.max_grad_norm, optional=True)
        flag("in_place", self.in_place)
        flag("predict", self.predict)
        choice("forces", self.forces, [False, True, "by_pair"])
        check_loss(self.loss, self.hparams)
        check_update(self.update_rule)
        if self.recipe.live and self.lora is not None:
            raise ValueError("lora adds parameters that your optimizer does not hold: name one")

    @classmethod
    def of(cls, given: Mapping[str, object]) -> RunSettings:
        """Return the settings in keyword arguments; all others are hyper-parameters."""
        own = {f.name for f in fields(cls)} - {"hparams"}
        more = {name: value for name, value in given.items() if name not in own}
        return cls(**{name: given[name] for name in given if name in own}, hparams=more)

    @property
    def recipe(self) -> Recipe:
        """The optimiser that is asked for."""
        return Recipe(self.optimizer, self.lr, self.weight_decay, self.optimizer_options)

    @property
    def rule(self) -> UpdateRule | Constrained:
        """The update rule that is asked for."""
        return check_update(self.update_rule)

    def schedule(self, count: int) -> list[list[int]]:
        """Return which of ``count`` pairs are in each minibatch, by a generator of their own."""
        generator, found = torch.Generator().manual_seed(self.seed), []
        while len(found) < self.steps:
            shuffled = torch.randperm(count, generator=generator).tolist()
            found += batches(shuffled, self.batch_size)
        return found[: self.steps]

    def to_attrs(self) -> dict[str, object]:
        """Return what labels a run's frames."""
        named = ("steps", "batch_size", "seed", "max_grad_norm")
        return {
            **self.recipe.to_attrs(),
            "update_rule": self.rule.name,
            **{name: getattr(self, name) for name in named},
            "lora": None if self.lora is None else dict(self.lora),
        }


def signature(returns: object, **more: object) -> inspect.Signature:
    """Return the signature of what takes a policy, pairs, probes and all settings.

    Args:
        returns: What it returns.
        **more: Defaults of further keyword arguments.
    """
    kinds = inspect.Parameter
    found = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in ("policy", "pairs")]
    for f in fields(RunSettings):
        if f.name != "hparams":
            default = kinds.empty if f.default is MISSING else f.default
            found.append(kinds(f.name, kinds.KEYWORD_ONLY, default=default, annotation=f.type))
    more = {"probes": None, **more}
    found += [kinds(name, kinds.KEYWORD_ONLY, default=value) for name, value in more.items()]
    found.append(kinds("hparams", kinds.VAR_KEYWORD, annotation="float"))
    return inspect.Signature(found, return_annotation=returns)
