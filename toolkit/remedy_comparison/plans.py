"""What a remedy's name means: the options of its training runs, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from toolkit.checks import shown
from toolkit.dynamics import RunSettings
from toolkit.losses import LOSSES
from toolkit.model import Policy
from toolkit.model.inputs import Pairs
from toolkit.remedies import UPDATE_RULES, Constrained, UpdateRule, contrast_only
from toolkit.scoring import filter_pairs
from toolkit.similarities import similarity

Choice = Callable[[Policy, Pairs], Sequence]


def lowest_ches(policy: Policy, pairs: Pairs, keep: float = 0.5) -> list:
    """Return the share of the pairs with the lowest length-normalised CHES: those least alike.

    Args:
        policy: The model that measures them.
        pairs: Pairs with their text.
        keep: Share to keep, in (0, 1].

    Raises:
        ValueError: If ``keep`` is no such share.

    Source:
        arXiv 2410.08847, Section 6.3 (there the lowest 5 % of a large set).
    """
    return list(filter_pairs(pairs, similarity(policy, pairs, progress=False), keep=keep))


CHOICES: dict[str, Choice] = {"lowest_ches": lowest_ches, "contrast_only": contrast_only}
REMEDIES = ("plain", "normalised", "project_rejected", "chosen_only", "dpop", "lowest_ches")


def named(remedies) -> dict[str, object]:
    """Return remedies by name."""
    if isinstance(remedies, Mapping):
        found = dict(remedies)
    elif isinstance(remedies, Sequence) and not isinstance(remedies, str):
        named = [r.name if isinstance(r, UpdateRule | Constrained) else r for r in remedies]
        if len(set(map(str, named))) < len(named):
            raise ValueError(f"remedies: a name occurs twice in {shown(named)}")
        found = dict(zip(map(str, named), remedies, strict=True))
    else:
        raise ValueError(f"remedies must be names or a dictionary, received {shown(remedies)}")
    if not found:
        raise ValueError("remedies is empty: give at least one, such as 'plain'")
    return found


def plan_of(name: str, remedy, shared: Mapping[str, object]) -> dict[str, object]:
    """Return the options of a remedy's runs, checked."""
    own, settings = _options(name, remedy), {f.name for f in fields(RunSettings)}
    # Hyper-parameters belong to the loss that they were given with.
    kept = {k: v for k, v in shared.items() if k in settings or "loss" not in own}
    plan = {**kept, **own}
    if "pairs" in plan and not callable(plan["pairs"]):
        raise ValueError(
            f"remedy {name}: pairs must be a function, received {shown(plan['pairs'])}"
        )
    try:
        RunSettings.of({k: v for k, v in plan.items() if k != "pairs"})
    except ValueError as error:
        raise ValueError(f"remedy {name}: {error}") from None
    return plan


def _options(name: str, remedy) -> dict[str, object]:
    if isinstance(remedy, UpdateRule | Constrained):
        return {"update_rule": remedy}
    if isinstance(remedy, Mapping):
        return dict(remedy)
    if isinstance(remedy, str) and remedy in UPDATE_RULES:
        return {"update_rule": remedy}
    if isinstance(remedy, str) and remedy in CHOICES:
        return {"pairs": CHOICES[remedy]}
    if isinstance(remedy, str) and remedy in LOSSES:
        return {"loss": remedy}
    known = ", ".join([*UPDATE_RULES, *CHOICES, *LOSSES])
    raise ValueError(
        f"remedy {shown(remedy)} is unknown; allowed: {known}, an UpdateRule, Constrained, or a "
        "dictionary of options of TrainingRun"
    )
