"""One forward and one activation-only backward pass, and what each layer's rule makes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from toolkit.gradients._plan import Plan
from toolkit.gradients._rules import Use
from toolkit.model.batching import is_out_of_memory
from toolkit.model.forward import Row, evaluation, head_inputs, padded_ids, scored_logps
from toolkit.model.parameters import only

Consumer = Callable[[nn.Module, Use], None]


class NotByRows(RuntimeError):
    """A module with a rule was called on something that is not one row of tokens per response."""

    def __init__(self, module: nn.Module):
        super().__init__(f"{type(module).__name__} was not called on one row per response")
        self.module = module


def pair_products(
    model: nn.Module, plan: Plan, rows: Sequence[Row]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return ``[pairs, 3]`` by parameter name where there is a rule, and the log-probabilities.

    Each layer is contracted as its gradients arrive and then forgotten. A rule of a plan that is
    not checked yet may fail: its parameters are left out.
    """
    found: dict[str, Tensor] = {}
    tied, ids = plan.tied, padded_ids(rows)
    heads: list[Use] = []

    def add(products: dict[str, Tensor]) -> None:
        for name, value in products.items():
            found[name] = found.get(name, 0) + value

    def consume(module: nn.Module, use: Use) -> None:
        try:
            add(plan.rules[module].products(use))
            if tied and module is tied.head:
                heads.append(tied.looked_up(use, ids))
            elif tied and module is tied.embedding:
                add(tied.products(heads.pop(), use))
        except Exception as error:
            if plan.checked or is_out_of_memory(error):
                raise

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

    with recording(model, plan, len(rows), on_call) as anchors, head_inputs(model) as states:
        logps = scored_logps(model, rows)
        found = torch.autograd.grad(torch.cat(logps).sum(), [*states, *anchors], allow_unused=True)
    return [x.detach() for x in logps], found[0] if len(states) == 1 else None


@contextlib.contextmanager
def recording(
    model: nn.Module, plan: Plan, rows: int, on_call: Callable[[nn.Module, Tensor, Tensor], None]
) -> Iterator[list[Tensor]]:
    """Report ``(module, inputs, output)`` of every ruled module called in the block.

    Parameters are frozen inside; the graph starts at the embedding outputs, which are yielded.

    Raises:
        NotByRows: If a rule of a checked plan would miss a call of its module.
    """
    anchors: list[Tensor] = []

    def keep(module, args, output):
        if not torch.is_grad_enabled():
            return None
        if isinstance(module, nn.Embedding):
            anchors.append(output.detach().requires_grad_())
            output = anchors[-1].clone()  # a leaf itself must not be changed in place
        if module in plan.rules:
            if output.dim() >= 3 and len(output) == rows and output.requires_grad:
                on_call(module, args[0].detach(), output)
            elif plan.checked:
                raise NotByRows(module)
        return output

    with widened(model, rows), contextlib.ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding) or module in plan.rules:
                hooks.enter_context(module.register_forward_hook(keep))
        with only(model, {}), evaluation(model):
            yield anchors


@contextlib.contextmanager
def widened(model: nn.Module, rows: int) -> Iterator[None]:
    """Give embeddings that look up one row for the whole batch (positions) one per response."""

    def widen(module, args):
        ids = args[0]
        return (ids.expand(rows, *ids.shape[1:]), *args[1:]) if len(ids) == 1 else None

    with contextlib.ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                hooks.enter_context(module.register_forward_pre_hook(widen))
        yield


def joined(calls: Sequence[tuple[Tensor, Tensor]]) -> Use:
    """Join the calls of one module along the tokens, in at least float32.

    Where a module works on vectors, whatever lies between rows and features counts as tokens.
    """
    if all(x.dim() == g.dim() and x.shape[1:-1] == g.shape[1:-1] for x, g in calls):
        calls = [(x.flatten(1, -2), g.flatten(1, -2)) for x, g in calls]
    inputs, grads = ([c[i] for c in calls] for i in range(2))
    inputs = inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)
    grads = grads[0] if len(grads) == 1 else torch.cat(grads, 1)
    wide = torch.promote_types(grads.dtype, torch.float32)
    return Use(inputs.to(wide) if inputs.is_floating_point() else inputs, grads.to(wide))
