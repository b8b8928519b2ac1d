"""Who accounts for each parameter: a rule of its layer, or plain autograd."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from toolkit.gradients._rules import Embedding, Linear, Rule, rule_for
from toolkit.gradients._tied import Tied
from toolkit.model.parameters import Parameters


@dataclass(frozen=True)
class Plan:
    """Who accounts for each selected parameter.

    Attributes:
        rules: Modules with a rule for their parameters.
        tied: Output head and embedding, where they share the matrix.
        remainder: Parameters that no rule covers exactly: plain autograd takes them.
        position_bytes: What one position of one row keeps for the backward pass, as measured;
            0 where nothing was measured.
        checked: Whether the rules were compared with plain autograd on this model.
    """

    rules: dict[nn.Module, Rule]
    tied: Tied | None
    remainder: Parameters
    position_bytes: int = 0
    checked: bool = False


def draft(model: nn.Module, selected: Parameters) -> Plan:
    """Return the plan that takes every rule at its word."""
    names = {id(p): n for n, p in selected.items()}
    rules, homes, remainder = {}, {}, dict(selected)
    for module in model.modules():
        own = module.named_parameters(recurse=False, remove_duplicate=False)
        mine = {key: names[id(p)] for key, p in own if id(p) in names}
        for name in mine.values():
            homes.setdefault(name, []).append(module)
        rule = rule_for(module, mine) if mine else None
        if rule:
            rules[module] = rule
            for name in mine.values():
                remainder.pop(name, None)
    tied = None
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    shared = {name: modules for name, modules in homes.items() if len(modules) > 1}
    if any({head, embedding} == set(modules) for modules in shared.values()):
        kinds = type(rules.get(head)), type(rules.get(embedding))
        known = kinds == (Linear, Embedding)
        tied = Tied(head, embedding, rules[embedding]) if known else None
    return Plan(rules, tied, remainder)
