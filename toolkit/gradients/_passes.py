"""One forward and one activation-only backward pass, and what each layer's rule makes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from toolkit.gradients._rules import Embedding, Linear, Rule, Use, dot, rule_for, tied_products
from toolkit.model._forward import Row, evaluation, scored_logps

Parameters = dict[str, nn.Parameter]
Consumer = Callable[[nn.Module, Use], None]


@dataclass(frozen=True)
class Plan:
    """Who accounts for each selected parameter.

    Attributes:
        rules: Modules with a rule for their parameters.
        tied: Output head and embedding, where they share the matrix.
        remainder: Parameters that no rule covers exactly: plain autograd takes them.
        position_bytes: What one position of one row keeps for the backward pass, as measured;
            0 where nothing was measured.
    """

    rules: dict[nn.Module, Rule]
    tied: tuple[nn.Module, nn.Module] | None
    remainder: Parameters
    position_bytes: int = 0


_PLANS: WeakKeyDictionary[nn.Module, dict[frozenset[str], Plan]] = WeakKeyDictionary()


def plan_for(model: nn.Module, selected: Parameters) -> Plan:
    """Return the plan of these parameters, checked against plain autograd once for each model.

    Every selected parameter's products by the rules are compared with autograd's on two short
    rows; a parameter that a rule gets wrong (used elsewhere, shared in an unknown way, a module
    that mixes rows) goes to the remainder.
    """
    plans = _PLANS.setdefault(model, {})
    key = frozenset(selected)
    if key not in plans:
        draft, rows, kept = _draft(model, selected), _probe_rows(model), _Kept(model)
        with kept:
            found, _ = pair_products(model, draft, rows)
        wrong = _misjudged(model, selected, rows, found)
        covered = {n: p for n, p in selected.items() if n not in wrong}
        rest = {n: selected[n] for n in selected if n in wrong}
        redraft = _draft(model, covered)
        remainder = {**redraft.remainder, **rest}
        size = kept.total // sum(len(ids) for ids, _ in rows)
        plans[key] = Plan(redraft.rules, redraft.tied, remainder, size)
    return plans[key]


def pair_products(
    model: nn.Module, plan: Plan, rows: Sequence[Row]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return ``[pairs, 3]`` by parameter name where there is a rule, and the log-probabilities.

    Each layer is contracted as its gradients arrive and then forgotten.
    """
    found: dict[str, Tensor] = {}
    head, embedding = plan.tied or (None, None)
    ids = nn.utils.rnn.pad_sequence([ids for ids, _ in rows], batch_first=True)
    kept: list[Use] = []

    def add(products: dict[str, Tensor]) -> None:
        for name, value in products.items():
            found[name] = found[name] + value if name in found else value

    def consume(module: nn.Module, use: Use) -> None:
        rule = plan.rules[module]
        add(rule.products(use))
        if module is head:
            kept.append(Use(use.inputs, _columns(use.grads, ids)))
        elif module is embedding:
            add({rule.weight: tied_products(kept.pop(), use, rule)})

    logps, _ = backward(model, plan, rows, consume)
    return found, logps


def backward(
    model: nn.Module, plan: Plan, rows: Sequence[Row], consume: Consumer
) -> tuple[list[Tensor], Tensor | None]:
    """Hand every ruled module's inputs and output gradients to ``consume``, last layer first.

    Parameters are frozen, so that no weight gradient is ever formed. Summing over rows is safe:
    no row sees another. A module used several times hands over its uses joined along the tokens.

    Returns:
        The rows' token log-probabilities, and their gradient at the input of the output head,
        ``[rows, kept, d]``: each position there predicts one token.
    """
    calls: dict[nn.Module, list[list]] = {}

    def on_call(module, inputs, output):
        mine = calls.setdefault(module, [])
        at = len(mine)
        mine.append([inputs, None])
        output.register_hook(lambda grads: arrived(module, at, grads))

    @torch.no_grad()
    def arrived(module, at, grads):
        calls[module][at][1] = grads
        if all(done is not None for _, done in calls[module]):
            consume(module, joined(calls.pop(module)))

    head, states = model.get_output_embeddings(), []
    hook = head.register_forward_pre_hook(lambda module, args: states.append(args[0]))
    try:
        with recording(model, plan, len(rows), on_call) as anchors:
            logps = scored_logps(model, rows)
            found = torch.autograd.grad(
                torch.cat(logps).sum(), [*states, *anchors], allow_unused=True
            )
    finally:
        hook.remove()
    return [x.detach() for x in logps], found[0] if len(states) == 1 else None


@contextlib.contextmanager
def recording(
    model: nn.Module, plan: Plan, rows: int, on_call: Callable[[nn.Module, Tensor, Tensor], None]
) -> Iterator[list[Tensor]]:
    """Report ``(module, inputs, output)`` of every ruled module called in the block.

    Parameters are frozen inside; the graph starts at the embedding outputs, which are yielded.
    """
    anchors: list[Tensor] = []

    def keep(module, args, output):
        if not torch.is_grad_enabled():
            return
        if isinstance(module, nn.Embedding):
            anchors.append(output.requires_grad_())
        if module in plan.rules and output.dim() >= 3 and len(output) == rows:
            on_call(module, args[0].detach(), output)

    hooks = widened(model, rows)
    for module in model.modules():
        if isinstance(module, nn.Embedding) or module in plan.rules:
            hooks.append(module.register_forward_hook(keep))
    try:
        with only(model, {}), evaluation(model):
            yield anchors
    finally:
        for hook in hooks:
            hook.remove()


def widened(model: nn.Module, rows: int) -> list:
    """Make embeddings of one row for the whole batch (positions) one row a response; hooks."""

    def widen(module, args):
        ids = args[0]
        return (ids.expand(rows, *ids.shape[1:]), *args[1:]) if len(ids) == 1 else None

    embeddings = (m for m in model.modules() if isinstance(m, nn.Embedding))
    return [m.register_forward_pre_hook(widen) for m in embeddings]


def joined(calls: Sequence[tuple[Tensor, Tensor]]) -> Use:
    """Join the calls of one module along the tokens, in at least float32."""
    inputs, grads = ([c[i] for c in calls] for i in range(2))
    inputs = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
    grads = grads[0] if len(grads) == 1 else torch.cat(grads, 1)
    wide = torch.promote_types(grads.dtype, torch.float32)
    return Use(inputs.to(wide) if inputs.is_floating_point() else inputs, grads.to(wide))


@contextlib.contextmanager
def only(model: nn.Module, selected: Parameters) -> Iterator[None]:
    """Let gradients flow to the selected parameters alone, and restore every flag after."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    wanted = {id(p) for p in selected.values()}
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in wanted)
        with torch.enable_grad():
            yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def _columns(grads: Tensor, ids: Tensor) -> Tensor:
    """Head gradients of each row at the ids of both rows of its pair, ``[rows, 2, kept, T]``."""
    ids = ids.to(grads.device)
    pairs = range(len(ids))
    return torch.stack(
        [torch.stack([grads[i][:, ids[i // 2 * 2 + side]] for side in range(2)]) for i in pairs]
    )


def _draft(model: nn.Module, selected: Parameters) -> Plan:
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
        tied = (head, embedding) if kinds == (Linear, Embedding) else None
    return Plan(rules, tied, remainder)


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a graph keeps for its backward pass, the parameters left out."""

    def __init__(self, model: nn.Module):
        self.total = 0
        self.seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        super().__init__(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def _misjudged(
    model: nn.Module, selected: Parameters, rows: Sequence[Row], found: dict[str, Tensor]
) -> set[str]:
    """Names of parameters whose products by the rules differ from plain autograd's."""
    with only(model, selected), evaluation(model):
        sides = [
            torch.autograd.grad(
                scored_logps(model, [row])[0].sum(),
                list(selected.values()),
                allow_unused=True,
                materialize_grads=True,
            )
            for row in rows
        ]
    wrong = set()
    for name, a, b in zip(selected, *sides, strict=True):
        wide = torch.promote_types(a.dtype, torch.float32)
        a, b = a.to(wide), b.to(wide)
        expected = torch.stack([dot(a, a), dot(b, b), dot(a, b)])
        got = found[name][0] if name in found else torch.zeros(3, dtype=torch.float64)
        slack = torch.finfo(selected[name].dtype).eps ** 0.5
        if (got - expected).abs().max() > slack * expected[:2].max():
            wrong.add(name)
    return wrong


def _probe_rows(model: nn.Module) -> list[Row]:
    size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (2, 8), generator=generator)
    ids[:, 5] = ids[:, 2]
    mask = torch.arange(8) >= 3
    return [(row, mask) for row in ids]
