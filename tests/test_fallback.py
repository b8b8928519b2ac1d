"""What a model changes after it was measured, and what happens where a fast way fails."""

import gc
import weakref

import numpy as np
import pytest
import reference
import shapes
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import toolkit as tk
from toolkit.gradients import _autograd, _findings, _passes, _rules, _tangents, _token_gram


def assert_exact(policy):
    pairs = shapes.ragged_pairs()[:3]
    twin = reference.double(policy.model)
    stats = tk.pair_stats(policy, pairs, progress=False)
    for i, pair in enumerate(pairs):
        a, b, ab = reference.pair_products(twin, pair)
        got = np.array([stats.chosen_sq_norm[i], stats.rejected_sq_norm[i], stats.inner[i]])
        assert np.all(np.abs(got - [a, b, ab]) <= 2e-6 * np.array([a, b, np.sqrt(a * b)]))
    chosen, rejected = reference.pair_token_gradients(twin, pairs[0])
    every = torch.cat([chosen, rejected])
    norm = every.norm(dim=1)
    tokens = tk.token_contributions(policy, pairs[0])
    both = (tokens.with_chosen, chosen.sum(0)), (tokens.with_rejected, rejected.sum(0))
    for got, total in both:
        assert np.all(np.abs(got - (every @ total).numpy()) <= 2e-6 * (norm * total.norm()).numpy())
    matrix = tk.token_matrix(policy, pairs[0]).matrix
    error = np.abs(matrix - (every @ every.T).numpy())
    assert np.all(error <= 2e-6 * torch.outer(norm, norm).numpy())


def fresh(policy, shape="llama"):
    return shapes.model(shape, torch.float32, seed=5)


def swap_block(policy):
    policy.model.model.layers[0].mlp = fresh(policy).model.layers[0].mlp


def swap_linear(policy):
    policy.model.model.layers[1].self_attn.q_proj = fresh(policy).model.layers[1].self_attn.q_proj


def swap_parameter(policy):
    old = policy.model.model.norm.weight
    policy.model.model.norm.weight = torch.nn.Parameter(torch.randn_like(old))


def tie(policy):
    policy.model.lm_head.weight = policy.model.model.embed_tokens.weight


class Squared(torch.nn.Linear):
    """Takes the place of a module's class: the module stays the same object."""

    def forward(self, inputs):
        return torch.nn.functional.linear(inputs, self.weight**2)


def hook(policy):
    block = policy.model.model.layers[0].mlp.up_proj
    block.register_forward_hook(lambda module, args, output: output * 1.5)


def other_class(policy):
    policy.model.model.layers[0].mlp.up_proj.__class__ = Squared


def pad(policy):
    policy.model.model.embed_tokens.padding_idx = 5


def share(policy):
    layers = policy.model.model.layers
    layers[1].mlp = layers[0].mlp


CHANGES = [swap_block, swap_linear, swap_parameter, tie, hook, other_class, pad, share]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_a_model_changed_in_place_is_measured_anew(change):
    """A module put in after the first measurement would vanish from the products."""
    policy = shapes.policy("llama", torch.float32)
    assert_exact(policy)
    change(policy)
    assert_exact(policy)


def test_untied_weights_are_measured_anew():
    policy = shapes.policy("qwen2", torch.float32)
    assert_exact(policy)
    head = policy.model.lm_head
    head.weight = torch.nn.Parameter(head.weight.detach() + 0.1)
    assert_exact(policy)


def test_an_unchanged_model_is_examined_once(monkeypatch):
    policy, examined = shapes.policy("llama"), []
    examine = _findings._examine
    monkeypatch.setattr(
        _findings, "_examine", lambda *args: examined.append(len(args[1])) or examine(*args)
    )
    for _ in range(2):
        for measure in (tk.pair_stats, tk.token_contributions, tk.token_matrix):
            measure(policy, shapes.ragged_pairs()[0])
        tk.pair_stats(policy, shapes.ragged_pairs()[0], params="head", progress=False)
        tk.gram(policy, shapes.ragged_pairs(), memory=10_000, progress=False)
    assert examined == [len(dict(policy.model.named_parameters()))]


def test_what_was_found_out_does_not_keep_a_model_alive():
    policy = shapes.policy("gpt2")
    tk.token_contributions(policy, shapes.ragged_pairs()[0])
    model = weakref.ref(policy.model)
    del policy
    gc.collect()
    assert model() is None


def broken(*_, **__):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def tangents_off(model, plan, rows):
    logps, *along = TANGENTS(model, plan, rows)
    return logps, *([x * (1 + 2e-2) for x in side] for side in along)


def gram_off(*args, **options):
    logps, gram = GRAM(*args, **options)
    gram[0, -1] += 1e-2 * gram.diagonal().mean()
    return logps, gram


TANGENTS, GRAM = _tangents.token_products, _token_gram.token_gram


@pytest.mark.parametrize("wrong", [broken, tangents_off])
@pytest.mark.parametrize("deeper", [False, True])
def test_token_contributions_fall_back_with_a_note(wrong, deeper, monkeypatch):
    policy = shapes.policy("llama", torch.float32)
    monkeypatch.setattr(_tangents, "token_products", wrong)
    if deeper:
        monkeypatch.setattr(_autograd, "directional_logps", broken)
    assert_exact(policy)
    note = tk.token_contributions(policy, shapes.ragged_pairs()[0]).labels.by_autograd
    assert note.startswith("one backward per token" if deeper else "forward derivatives")
    assert ("mat1 and mat2" if wrong is broken else "not exact on this model") in note


@pytest.mark.parametrize("wrong", [broken, gram_off])
def test_the_token_matrix_falls_back_with_a_note(wrong, monkeypatch):
    policy = shapes.policy("llama", torch.float32)
    monkeypatch.setattr(_token_gram, "token_gram", wrong)
    assert_exact(policy)
    note = tk.token_matrix(policy, shapes.ragged_pairs()[0]).labels.by_autograd
    assert note.startswith("one backward per token (token gradients by layer: ")


def test_rules_that_fail_leave_all_to_autograd(monkeypatch):
    policy = shapes.policy("llama", torch.float32)
    monkeypatch.setattr(_passes, "joined", broken)
    assert_exact(policy)
    assert tk.pair_stats(policy, shapes.ragged_pairs()[0]).labels.by_autograd == "all"


def test_a_rule_that_fails_later_leaves_all_to_autograd(monkeypatch):
    """On the probe it was right, on the user's rows it raises: the user still gets the numbers."""
    policy = shapes.policy("llama", torch.float32)
    tk.pair_stats(policy, shapes.ragged_pairs()[0], progress=False)
    monkeypatch.setattr(_passes, "joined", broken)
    assert_exact(policy)
    assert tk.pair_stats(policy, shapes.ragged_pairs()[0]).labels.by_autograd == "all"


def test_an_error_of_plain_autograd_too_is_raised_and_not_held_against_the_rules(monkeypatch):
    policy, pair = shapes.policy("llama", torch.float32), shapes.ragged_pairs()[0]
    assert_exact(policy)
    for module in (_passes, _autograd, _token_gram):
        monkeypatch.setattr(module, "scored_logps", broken)
    for measure in (tk.pair_stats, tk.token_contributions, tk.token_matrix):
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            measure(policy, pair)
    monkeypatch.undo()
    for measure in (tk.pair_stats, tk.token_contributions, tk.token_matrix):
        assert measure(policy, pair).labels.by_autograd == ""


class WithExpert(torch.nn.Module):
    """An expert that no token of the probe reaches, and that gets tokens instead of rows later."""

    def __init__(self, block, unseen):
        super().__init__()
        self.block, self.unseen = block, unseen
        self.expert = torch.nn.Linear(24, 24, bias=False)

    def forward(self, x):
        if x.shape[1] == self.unseen:
            return self.block(x)
        return self.block(x) + self.expert(x.flatten(0, 1)).view_as(x)


def test_a_module_called_another_way_than_on_the_probe_is_not_lost():
    policy = shapes.policy("llama", torch.float32)
    layer = policy.model.model.layers[0]
    layer.mlp = WithExpert(layer.mlp, len(_findings.probe_rows(policy.model)[0][0]))
    assert_exact(policy)
    found = tk.pair_stats(policy, shapes.ragged_pairs(), batch_size=1, progress=False)
    assert found.labels.by_autograd == "model.layers.0.mlp.expert.weight"


class Wrong(_rules.Norm):
    """A rule that forgets to multiply the gradients by what was scaled."""

    def normed(self, inputs):
        return torch.ones_like(inputs)


class Gain(torch.nn.Module):
    """A layer of a new kind: one weight per feature."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((24,), 1.5))

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize(("rule", "left"), [(None, True), (_rules.Norm, False), (Wrong, True)])
def test_a_new_kind_of_layer_needs_a_registered_rule_alone(monkeypatch, rule, left):
    """It serves where plain autograd confirms it; no rule and a wrong one leave it to autograd."""
    policy = shapes.policy("llama", torch.float32)
    layer = policy.model.model.layers[0]
    layer.mlp = torch.nn.Sequential(layer.mlp, Gain())
    if rule:
        monkeypatch.setitem(_rules.RULES, Gain, rule)
    found = tk.pair_stats(policy, shapes.ragged_pairs(), progress=False)
    assert found.labels.by_autograd == ("model.layers.0.mlp.1.weight" if left else "")
    assert_exact(policy)


class Held(TorchDispatchMode):
    """Counts the bytes of tensors that live at once, parameters left out."""

    def __init__(self, model):
        super().__init__()
        self.now = self.most = 0
        self.seen = {p.untyped_storage()._cdata for p in model.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(x, torch.Tensor):
                self._count(x.untyped_storage())
        return found

    def _count(self, storage):
        key = storage._cdata
        if key not in self.seen:
            self.seen.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, storage.nbytes())

    def _gone(self, key, size):
        self.seen.discard(key)
        self.now -= size


@pytest.mark.parametrize("by_rules", [True, False])
def test_no_whole_gradient_is_ever_held(by_rules, monkeypatch):
    """Neither while the rules are checked, nor where plain autograd takes everything."""
    policy = wide_policy()
    largest = max(p.numel() for p in policy.model.parameters()) * 4
    whole = sum(p.numel() for p in policy.model.parameters()) * 4
    monkeypatch.setattr(_autograd, "GROUP", largest)
    if not by_rules:
        monkeypatch.setattr(_passes, "joined", broken)
    with Held(policy.model) as held:
        stats = tk.pair_stats(policy, shapes.ragged_pairs()[0], progress=False)
    assert (stats.labels.by_autograd == "") == by_rules
    assert largest < held.most < whole / 2


def wide_policy():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {**shapes.BASE, "num_hidden_layers": 12, "hidden_size": 128, "intermediate_size": 512}
    torch.manual_seed(0)
    return tk.Policy(LlamaForCausalLM(LlamaConfig(**config)), shapes.Letters())
