"""The matrix of all token-gradient inner products, by one-token backwards and layer contraction.

Nothing as large as a parameter gradient is formed: a token's backward pass runs on activations
alone, and each layer's share of the matrix is contracted and forgotten before the next is formed.

A *cut* is a tensor that everything above it depends on alone: the residual stream between two
blocks. Token gradients are carried from cut to cut, and *level* k is what lies right below cut k::

              positions of the response
              p p p y y y y y y y y
              ├──── span 0 ────┤           tokens are taken in *spans*: a token's gradient reaches
              ├────── span 1 ───────┤      no position after it, so a span's graph ends with it

    cut 0     ───────────────────────      what the output head was given
                last block                  level 0: contracted first
    cut 1     ───────────────────────
                block before it             level 1
    cut 2     ───────────────────────
                first block, embedding      level 2: nothing below it but leaves

Whether a block's input is a cut is found by walking down the graph from the cut above with that
input as a *wall*: it is one if no leaf is reached around it. Short rows are run as a batch of equal
rows, each with another token's gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from toolkit.gradients._activations import slopes_kept
from toolkit.gradients._passes import joined, recording
from toolkit.gradients._plan import Plan
from toolkit.gradients._rules import Linear, Use
from toolkit.gradients.products import grouped
from toolkit.model.forward import Row, head_inputs, one_position, scored_logps

SPAN = 16  # tokens that share a graph: fewer cut off more positions, more save forward passes
POSITIONS = 256  # positions of one backward, over all equal rows
MEMORY = 1 << 30  # bytes of token-wise output gradients kept at once


def token_gram(
    model: nn.Module,
    plan: Plan,
    rows: Sequence[Row],
    memory: int = MEMORY,
    done: Callable[[int, int], None] = lambda level, count: None,
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities and the Gram matrix of all token gradients of two responses.

    Layers are taken in groups whose per-token gradients fit into ``memory`` bytes; ``done`` is
    told how many of how many cuts are behind.
    """
    sides = [_Response(model, plan, row) for row in rows]
    _agree_on_cuts([graph for side in sides for graph in side.graphs])
    gram = _head_gram(plan.rules.get(model.get_output_embeddings()), sides)
    count = sides[0].graphs[0].count
    for level in range(count):
        groups = _groups(plan, sides, level, memory)
        for group in groups:
            last = group is groups[-1]
            found = list(zip(*(side.uses(group, level, last) for side in sides), strict=True))
            with torch.no_grad():
                for module, uses in zip(group, found, strict=True):
                    gram += plan.rules[module].gram(uses)
                    if plan.tied and module is plan.tied.embedding:
                        gram += plan.tied.gram([side.head for side in sides], uses)
        done(level + 1, count)
    return torch.cat([s.logps for s in sides]), (gram + gram.T) / 2


class _Response:
    """One response: the gradients of its tokens, from the last layer to the first."""

    def __init__(self, model: nn.Module, plan: Plan, row: Row):
        ids, mask = row
        at = mask.nonzero().squeeze(-1) - 1
        self._measure_head(model, plan, row, at)
        self.graphs, self.spans, self.buffers = [], [], {}
        for start in range(0, len(at), SPAN):
            span = slice(start, min(start + SPAN, len(at)))
            length = int(at[span][-1]) + 1
            copies = min(span.stop - start, max(1, POSITIONS // length))
            self.graphs.append(_Graph(model, plan, ids[:length], copies))
            self.spans.append(span)

    def _measure_head(self, model: nn.Module, plan: Plan, row: Row, at: Tensor) -> None:
        """Gradients at the head: each token touches one position, so one pass gives them all."""
        head, found = model.get_output_embeddings(), []

        def keep(module, inputs, output):
            if module is head:
                found.append(output)

        with recording(model, plan, 1, keep), head_inputs(model) as states:
            logps = scored_logps(model, [row])[0]
        (state,) = states
        own = at.to(state.device) - (len(row[0]) - state.shape[1])
        grads, *logits = torch.autograd.grad(logps.sum(), [state, *found])
        wide = torch.promote_types(state.dtype, torch.float32)
        self.logps, hidden = logps.detach(), state.detach()[0, own].to(wide)
        self.head = Use(hidden, logits[0][0, own].to(wide)) if logits else None
        # The gradient of every token at the cut reached so far, [tokens, positions, d].
        self.grads = grads.new_zeros(len(at), int(at[-1]) + 1, grads.shape[-1])
        self.grads[torch.arange(len(at)), at] = grads[0, own]

    def uses(self, modules: Sequence[nn.Module], level: int, move: bool) -> list[Use]:
        """Inputs ``[T, in]`` and per-token output gradients ``[tokens, T, out]`` of modules.

        Args:
            modules: Modules right below the cut ``level``, whose gradients are known.
            level: Number of that cut.
            move: Go on to the next cut: no module above it will be asked for again.
        """
        wanted = [graph.wanted(modules, level, move) for graph in self.graphs]
        ends = zip(wanted[0], wanted[-1], strict=True)
        held = [self._buffer(i, *pair) for i, pair in enumerate(ends)]
        for graph, span, on in zip(self.graphs, self.spans, wanted, strict=True):
            for start in range(span.start, span.stop, graph.copies):
                some = slice(start, min(start + graph.copies, span.stop))
                parts = graph.backward(level, on, self.grads[some])
                for whole, part in zip(held, parts, strict=True):
                    if part is None:
                        whole[some] = 0
                    else:
                        inside = (some, *(slice(size) for size in part.shape[1:]))
                        whole[inside] = part[: some.stop - start]
        if move and level + 1 < self.graphs[0].count:
            self.grads = held.pop().clone()
        grads, found = iter(held), []
        for module in modules:
            calls = self.graphs[-1].calls[module]
            use = joined([(inputs, next(grads)) for _, inputs, _ in calls])
            found.append(Use(use.activations[0], use.backprops))
        return found

    def _buffer(self, index: int, first: Tensor, last: Tensor) -> Tensor:
        """Room for the gradients of all tokens at one tensor, used again on the next level.

        Fresh memory of this size costs more than what is done in it. Positions after a token's
        span are never written: they stay zero. ``first`` and ``last`` are that tensor in the
        shortest and in the longest graph: where they differ is the dimension of positions.
        """
        shape = (len(self.logps), *last.shape[1:])
        along = tuple(a != b for a, b in zip(first.shape, last.shape, strict=True))
        key = index, shape, along
        if key not in self.buffers:
            self.buffers[key] = last.new_zeros(shape)
        return self.buffers[key]

    def size(self, module: nn.Module) -> int:
        """Bytes of the per-token output gradients of a module."""
        outputs = (output for *_, output in self.graphs[-1].calls[module])
        return sum(len(self.logps) * o[0].numel() * o.element_size() for o in outputs)


class _Graph:
    """The graph of some equal rows, from the embeddings to the input of the output head."""

    def __init__(self, model: nn.Module, plan: Plan, ids: Tensor, copies: int):
        self.copies, self.calls = copies, {}
        head = model.get_output_embeddings()
        entries, outputs = [], []

        def keep(module, inputs, output):
            if module is not head:
                outputs.append((module, inputs[:1], output))

        def enter(module, args, kwargs):
            moving = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            entries.extend([x for x in moving if x.requires_grad][:1])

        blocks = [b for m in model.modules() if isinstance(m, nn.ModuleList) for b in m]
        ids = ids.to(model.get_input_embeddings().weight.device).expand(copies, -1)
        with contextlib.ExitStack() as hooks:
            for block in blocks:
                hooks.enter_context(block.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.enter_context(recording(model, plan, copies, keep))
            hooks.enter_context(slopes_kept(model))
            states = hooks.enter_context(head_inputs(model, one_position))
            model(ids, attention_mask=torch.ones_like(ids), use_cache=False)
        self.cuts, levels = _levels(states[0], entries, [output for *_, output in outputs])
        for level, (module, inputs, output) in zip(levels, outputs, strict=True):
            self.calls.setdefault(module, []).append((level, inputs, output))

    @property
    def count(self) -> int:
        """Number of cuts."""
        return len(self.cuts)

    def levels(self) -> dict[nn.Module, set[int]]:
        """Numbers of the cuts right above the calls of each module."""
        return {module: {level for level, *_ in calls} for module, calls in self.calls.items()}

    def forget_cuts(self) -> None:
        """Keep no cut but the first: every module lies right below it."""
        self.cuts = self.cuts[:1]
        for module, calls in self.calls.items():
            self.calls[module] = [(0, *rest) for _, *rest in calls]

    def wanted(self, modules: Sequence[nn.Module], level: int, move: bool) -> list[Tensor]:
        """The outputs of modules, and the next cut where it is to be reached."""
        outputs = [output for m in modules for *_, output in self.calls[m]]
        return outputs + (self.cuts[level + 1 : level + 2] if move else [])

    def backward(self, level: int, on: list[Tensor], grads: Tensor) -> tuple[Tensor | None, ...]:
        """Carry gradients ``[tokens, T, d]`` from a cut, one token per row, to tensors below it."""
        cut = self.cuts[level]
        seeds = cut.new_zeros(cut.shape)
        seeds[: len(grads)] = grads[:, : cut.shape[1]]
        return torch.autograd.grad(cut, on, seeds, retain_graph=True, allow_unused=True)


def _agree_on_cuts(graphs: Sequence[_Graph]) -> None:
    """Drop the cuts where a module is called on both sides of one, or graphs differ in them."""
    levels = [graph.levels() for graph in graphs]
    if any(x != levels[0] for x in levels) or any(len(x) > 1 for x in levels[0].values()):
        for graph in graphs:
            graph.forget_cuts()


def _levels(
    state: Tensor, entries: Sequence[Tensor], outputs: Sequence[Tensor]
) -> tuple[list[Tensor], list[int]]:
    """Return the cuts, last first, and for each output the number of the cut right above it.

    ``entries`` are tensors that enter the model's blocks. One is a cut if no path from above goes
    around it to a leaf. The first cut is ``state``; cuts without an output right below are left
    out, and an output that nothing depends on counts to the last.
    """
    cuts, spans = [state], []
    for entry in reversed(entries):
        span, at_leaf = _walk(cuts[-1], avoid=entry)
        if span and not at_leaf:
            cuts.append(entry)
            spans.append(span)
    spans.append(_walk(cuts[-1])[0])
    nodes = [get_gradient_edge(output).node for output in outputs]
    found = [next((k for k, s in enumerate(spans) if n in s), len(spans) - 1) for n in nodes]
    used = sorted(set(found))
    return [state, *(cuts[k] for k in used[1:])], [used.index(k) for k in found]


def _walk(start: Tensor, avoid: Tensor | None = None) -> tuple[set, bool]:
    """Return the graph's nodes below ``start`` without passing ``avoid``; and if any is a leaf."""
    wall = None if avoid is None else get_gradient_edge(avoid).node
    stack, seen, at_leaf = [get_gradient_edge(start).node], set(), False
    while stack:
        node = stack.pop()
        if node is None or node == wall or node in seen:
            continue
        seen.add(node)
        at_leaf = at_leaf or not node.next_functions
        stack += [following for following, _ in node.next_functions]
    return seen, at_leaf


@torch.no_grad()
def _head_gram(rule: Linear | None, sides: Sequence[_Response]) -> Tensor:
    """The head's part, or zeros where its parameters are not selected."""
    size = sum(len(s.logps) for s in sides)
    if rule is None:
        return torch.zeros(size, size, dtype=torch.float64)
    states, grads = (torch.cat(both) for both in zip(*(s.head for s in sides), strict=True))
    ones = (states @ states.T) * bool(rule.weight) + bool(rule.bias)
    return (grads @ grads.T * ones).double().cpu()


def _groups(
    plan: Plan, sides: Sequence[_Response], level: int, memory: int
) -> list[list[nn.Module]]:
    """Split the modules right below a cut into groups under the memory bound (one at least)."""
    here = sides[0].graphs[0].levels()
    modules = [m for m in plan.rules if here.get(m) == {level}]
    return grouped({m: sum(side.size(m) for side in sides) for m in modules}, memory)
