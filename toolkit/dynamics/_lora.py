"""The model that a training run trains: a copy, the policy's own, or LoRA matrices on a copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from toolkit.checks import mapping, positive, whole
from toolkit.extras import require
from toolkit.model import Policy
from toolkit.model.turns import alone_in_process


def trained_policy(policy: Policy, in_place: bool, lora, seed: int) -> Policy:
    """Return a view on the policy whose model is the one to train."""
    view = copy.copy(policy)
    if not in_place:
        view.model = copy.deepcopy(policy.model)
    if mapping("lora", lora) is not None:
        if in_place or hasattr(policy.model, "disable_adapter"):
            raise ValueError("lora needs a model without adapter, and in_place=False")
        view.model = _with_lora(view.model, lora, seed)
    return view


@alone_in_process
def _with_lora(model, lora: Mapping[str, object], seed: int):
    require("peft", "lora=", "peft")
    from peft import LoraConfig, get_peft_model

    options = {"r": 8, "alpha": 16, "target_modules": None}
    unknown = set(lora) - set(options)
    if unknown:
        raise ValueError(
            f"lora has no option {sorted(unknown)[0]!r}; allowed: {', '.join(options)}"
        )
    options.update(lora)
    whole("lora r", options["r"])
    alpha, place = positive("lora alpha", options.pop("alpha")), "all-linear"
    modules = options.pop("target_modules") or place
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            config = LoraConfig(
                task_type="CAUSAL_LM", lora_alpha=alpha, target_modules=modules, **options
            )
            return get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            raise ValueError(f"lora: {error}") from error
