"""Gradient products against plain autograd in float64, and the exact identities between them."""

import gc
import inspect
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import reference
import shapes
import torch

import toolkit as tk
from toolkit import gradients
from toolkit.gradients import (
    _findings,
    _rules,
    _token_gram,
    per_pair,
    products,
    response_gram,
)
from toolkit.model import batching, forward

SHAPES = list(shapes.CONFIGS)


def close(shape, dtype):
    """Relative error allowed; Llama-like norms compute in float32 whatever the weights' dtype."""
    if dtype == torch.float32:
        return 2e-6
    return 1e-9 if shape == "gpt2" else 1e-6


def scale(products):
    """‖a‖², ‖b‖² and ‖a‖‖b‖: the size an error of each product is measured against."""
    a, b, _ = products
    return np.array([a, b, np.sqrt(a * b)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_pair_products_equal_the_oracle(shape, dtype):
    policy, pairs = shapes.policy(shape, dtype), shapes.ragged_pairs()
    stats = tk.pair_stats(policy, pairs, progress=False)
    twin = reference.double(policy.model)
    for i, pair in enumerate(pairs):
        expected = reference.pair_products(twin, pair)
        got = [stats.chosen_sq_norm[i], stats.rejected_sq_norm[i], stats.inner[i]]
        assert np.all(np.abs(got - expected) <= close(shape, dtype) * scale(expected)), pair.id


@pytest.mark.parametrize("shape", SHAPES)
def test_logps_equal_the_oracle(shape):
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs()
    twin = reference.double(policy.model)
    for pair, logps in zip(pairs, tk.per_token_logps(policy, pairs), strict=True):
        for side, values in zip(reference.sides(pair), (logps.chosen, logps.rejected), strict=True):
            expected = reference.token_logps(twin, *side).detach()
            torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_token_products_equal_the_oracle(shape, dtype):
    """Every cell of the token matrix and every token contribution (T1)."""
    policy = shapes.policy(shape, dtype)
    twin = reference.double(policy.model)
    for pair in shapes.ragged_pairs()[:4]:
        chosen, rejected = reference.pair_token_gradients(twin, pair)
        every = torch.cat([chosen, rejected])
        gram = (every @ every.T).numpy()
        norm = np.sqrt(np.diag(gram))
        matrix = tk.token_matrix(policy, pair)
        assert np.all(np.abs(matrix.matrix - gram) <= close(shape, dtype) * np.outer(norm, norm))

        tokens = tk.token_contributions(policy, pair)
        for got, total in ((tokens.with_chosen, chosen), (tokens.with_rejected, rejected)):
            total = total.sum(0)
            allowed = close(shape, dtype) * norm * float(total.norm())
            assert np.all(np.abs(got - (every @ total).numpy()) <= allowed)


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_sum_to_the_pair(shape):
    policy, pair = shapes.policy(shape), shapes.ragged_pairs()[0]
    stats, tokens = (
        tk.pair_stats(policy, pair, progress=False),
        tk.token_contributions(policy, pair),
    )
    matrix = tk.token_matrix(policy, pair)
    chosen = tokens.sides == "chosen"
    assert tokens.with_chosen[chosen].sum() == pytest.approx(stats.chosen_sq_norm[0])
    assert tokens.with_rejected[~chosen].sum() == pytest.approx(stats.rejected_sq_norm[0])
    for part in (tokens.with_rejected[chosen].sum(), tokens.with_chosen[~chosen].sum()):
        assert part == pytest.approx(stats.inner[0])
    assert matrix.matrix[np.ix_(chosen, ~chosen)].sum() == pytest.approx(stats.inner[0])
    assert matrix.matrix[np.ix_(chosen, chosen)].sum() == pytest.approx(stats.chosen_sq_norm[0])


def test_shared_prefix_tokens_have_the_same_gradient():
    """T8: equal contexts give equal gradients, so those columns and rows are identical."""
    pair = shapes.encoded("p", [5, 6], [7, 8, 9, 3], [7, 8, 10, 3])
    matrix = tk.token_matrix(shapes.policy("llama"), pair)
    length = 4
    for i in range(2):
        np.testing.assert_allclose(matrix.matrix[i], matrix.matrix[length + i], rtol=1e-6)
        assert matrix.cosine[i, length + i] == pytest.approx(1.0)
    assert abs(matrix.cosine[2, length + 2]) < 0.999


def test_swapping_the_responses_swaps_the_norms():
    """T10."""
    policy, pair = shapes.policy("qwen2"), shapes.ragged_pairs()[1]
    both = pair, shapes.swapped(pair)
    a, b = (tk.pair_stats(policy, p, progress=False) for p in both)
    assert a.chosen_sq_norm == pytest.approx(b.rejected_sq_norm)
    assert a.rejected_sq_norm == pytest.approx(b.chosen_sq_norm)
    assert a.inner == pytest.approx(b.inner)


def test_identical_responses_have_cosine_one():
    """T14."""
    pair = shapes.encoded("same", [5, 6], [7, 8, 9], [7, 8, 9])
    stats = tk.pair_stats(shapes.policy("gpt2"), pair, progress=False)
    assert stats.cosine[0] == pytest.approx(1.0) and stats.kappa[0] == pytest.approx(1.0)


def test_token_matrix_is_symmetric_and_positive_semidefinite():
    """T11."""
    matrix = tk.token_matrix(shapes.policy("gpt2"), shapes.ragged_pairs()[2]).matrix
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() >= -1e-9 * np.trace(matrix)


def test_token_matrix_does_not_depend_on_its_blocks():
    """One layer in memory at a time gives the matrix of all at once."""
    policy, pair = shapes.policy("gpt2"), shapes.ragged_pairs()[0]
    whole = tk.token_matrix(policy, pair).matrix
    plan = _findings.plan_for(policy.model, policy.parameters_in("all"))
    rows = forward.sequences([pair])
    _, blocked = _token_gram.token_gram(policy.model, plan, rows, memory=1)
    np.testing.assert_allclose(blocked, whole, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("span", "positions"), [(1, 1), (2, 1), (3, 40)])
def test_token_matrix_does_not_depend_on_its_spans(shape, span, positions, monkeypatch):
    """Tokens cut into spans, whose graphs end with the span, and runs of equal rows."""
    policy, pair = shapes.policy(shape), shapes.ragged_pairs()[0]
    whole = tk.token_matrix(policy, pair).matrix
    monkeypatch.setattr(_token_gram, "SPAN", span)
    monkeypatch.setattr(_token_gram, "POSITIONS", positions)
    np.testing.assert_allclose(tk.token_matrix(policy, pair).matrix, whole, rtol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_backward_passes_stop_between_the_blocks(shape):
    """Without the cuts the matrix is as right, but every group of layers starts from the top."""
    model = shapes.policy(shape).model
    plan = _findings.plan_for(model, dict(model.named_parameters()))
    graph = _token_gram._Graph(model, plan, torch.arange(6), copies=2)
    # The final norm, the blocks, the embeddings.
    assert graph.count >= model.config.num_hidden_layers + 1


def test_a_path_around_a_tensor_makes_it_no_cut():
    """A gradient that goes round the cut would be lost without a word."""
    leaf = torch.ones(2, requires_grad=True)
    inner = leaf * 2
    middle = inner * 3
    around = middle * 5 + inner
    straight = middle * 5
    cuts, levels = _token_gram._levels(around, [inner, middle], [around, middle, leaf])
    assert levels == [0, 0, 1] and len(cuts) == 2 and cuts[1] is inner
    cuts, levels = _token_gram._levels(straight, [inner, middle], [straight, middle, leaf])
    assert levels == [0, 1, 2] and cuts[1] is middle and cuts[2] is inner


def test_token_matrix_without_any_cut(monkeypatch):
    """Where blocks cannot be told apart, all layers are taken from the top."""
    policy, pair = shapes.policy("llama"), shapes.ragged_pairs()[0]
    whole = tk.token_matrix(policy, pair).matrix
    monkeypatch.setattr(
        _token_gram, "_agree_on_cuts", lambda graphs: [g.forget_cuts() for g in graphs]
    )
    np.testing.assert_allclose(tk.token_matrix(policy, pair).matrix, whole, rtol=1e-9)


def test_runs_of_neighbours_keep_every_limit():
    lengths = [4, 3, 3, 8, 1]
    assert list(batching.runs(lengths)) == [range(5)] and not list(batching.runs([]))
    assert [len(r) for r in batching.runs(lengths, count=2)] == [2, 2, 1]
    assert [len(r) for r in batching.runs(lengths, positions=12)] == [3, 1, 1]
    assert [len(r) for r in batching.runs(lengths, padding=2)] == [3, 1, 1]
    assert [len(r) for r in batching.runs(lengths, positions=0)] == [1] * 5
    assert list(batching.by_length(lengths, count=3)) == [[4, 1, 2], [0, 3]]
    assert list(batching.by_length(lengths, count=3, longest_first=True)) == [[3, 0, 1], [2, 4]]


def test_batches_fill_a_memory_budget():
    """Padding counts: a batch is as wide as its longest row."""
    pairs = [shapes.encoded(str(n), [1] * n, [2], [3, 4]) for n in (3, 3, 3, 8)]

    def sizes(room, size=None):
        device = torch.device("cpu")
        return [len(b) for b in batching.fitting(pairs, size, 10, device, 10 * room)]

    assert sizes(2 * 3 * 5) == [3, 1]
    assert sizes(2 * 4 * 10) == [4]
    assert sizes(2 * 4 * 10 - 1) == [3, 1]
    assert sizes(1) == [1, 1, 1, 1]
    assert sizes(1, size=3) == [3, 1]


def test_what_a_position_keeps_is_measured():
    """The budget is worth nothing if the estimate does not grow with the model."""
    found = {}
    for shape in SHAPES:
        model = shapes.policy(shape).model
        found[shape] = _findings.plan_for(model, dict(model.named_parameters())).position_bytes
        width = model.config.hidden_size
        assert found[shape] > 10 * width * model.dtype.itemsize
        assert found[shape] < 1000 * (width + model.config.vocab_size) * model.dtype.itemsize


def test_results_do_not_depend_on_the_memory_budget():
    policy, pairs = shapes.policy("llama"), shapes.ragged_pairs()
    one, all_at_once = (
        tk.pair_stats(policy, pairs, memory=m, progress=False) for m in (1, 1 << 30)
    )
    np.testing.assert_allclose(one.inner, all_at_once.inner, rtol=1e-9)
    with pytest.raises(ValueError, match="memory must be a positive number of bytes"):
        tk.pair_stats(policy, pairs, memory=0, progress=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_size_and_order_change_nothing(shape):
    """T15: padding must not leak into a shorter neighbour."""
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs()
    frames = []
    for size, order in ((1, range(5)), (3, range(5)), (8, reversed(range(5)))):
        chosen = [pairs[i] for i in order]
        stats = tk.pair_stats(policy, chosen, batch_size=size, progress=False)
        frames.append(stats.to_frame().set_index("pair_id").loc[[p.id for p in pairs]])
    for other in frames[1:]:
        np.testing.assert_allclose(other.to_numpy(float), frames[0].to_numpy(float), rtol=1e-8)


@pytest.mark.parametrize("params", ["head", r"layers\.0\.", lambda name, p: "norm" in name])
def test_parameter_sets_restrict_the_products(params):
    policy, pair = shapes.policy("llama"), shapes.ragged_pairs()[0]
    names = list(policy.parameters_in(params))
    assert 0 < len(names) < len(dict(policy.model.named_parameters()))
    expected = reference.pair_products(reference.double(policy.model), pair, names)
    stats = tk.pair_stats(policy, pair, params=params, progress=False)
    got = [stats.chosen_sq_norm[0], stats.rejected_sq_norm[0], stats.inner[0]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    tokens = tk.token_contributions(policy, pair, params=params)
    total = tokens.with_rejected[tokens.sides == "chosen"].sum()
    assert total == pytest.approx(expected[2], rel=1e-6)


def test_disjoint_parameter_sets_add_up():
    policy, pair = shapes.policy("llama"), shapes.ragged_pairs()[0]
    parts = ["lm_head", "embed_tokens", r"model\.(layers|norm)"]
    inner = [tk.pair_stats(policy, pair, params=p, progress=False).inner[0] for p in parts]
    assert sum(inner) == pytest.approx(tk.pair_stats(policy, pair, progress=False).inner[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_probability_sum_over_the_vocabulary_does_not_change(shape):
    """T16: Σ_v p_v ∇log p_v = 0 at any position, so no direction changes it."""
    policy = shapes.policy(shape)
    pairs = [shapes.encoded(str(v), [5, 9, 3], [v], [7]) for v in range(shapes.VOCAB)]
    p = torch.stack([r.chosen.exp() for r in tk.per_token_logps(policy, pairs)]).numpy()[:, 0]
    along = np.array([tk.token_contributions(policy, q).with_rejected[0] for q in pairs])
    assert p.sum() == pytest.approx(1.0)
    assert abs(p @ along) < 1e-7 * np.abs(p * along).sum()


def test_the_walk_to_a_contraction_enters_each_file_once(monkeypatch):
    """As CONTRIBUTING.md tells it: a way back up, or a sixth file, fails here."""
    policy, pair = shapes.policy("gpt2"), shapes.ragged_pairs()[0]
    tk.pair_stats(policy, pair, progress=False)
    walks, room = [], Path(gradients.__file__).parent

    def walked(*args):
        files = [Path(frame.filename) for frame in reversed(inspect.stack(0))]
        inside = [file.stem for file in files if file.parent == room]
        walks.append([file for file, _ in groupby(inside)])
        return products.tensor_products(*args)

    monkeypatch.setattr(_rules, "tensor_products", walked)
    tk.pair_stats(policy, pair, progress=False)
    # The contraction itself is the fifth, products.
    assert walks and all(w == ["per_pair", "fallback", "_passes", "_rules"] for w in walks)


def test_the_model_is_left_as_it_was():
    policy = shapes.policy("gpt2")
    policy.model.train()
    policy.model.transformer.wpe.weight.requires_grad_(False)
    policy.model.transformer.h[0].eval()
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    modes = [m.training for m in policy.model.modules()]
    for measure in (tk.pair_stats, tk.token_contributions, tk.token_matrix):
        measure(policy, shapes.ragged_pairs()[0])
    assert [m.training for m in policy.model.modules()] == modes
    for name, p in policy.model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None
        assert p.requires_grad == ("wpe" not in name)


def test_frozen_parameters_are_not_in_all():
    policy = shapes.policy("gpt2")
    pair = shapes.ragged_pairs()[0]
    policy.model.transformer.wpe.weight.requires_grad_(False)
    names = [n for n, _ in policy.model.named_parameters() if "wpe" not in n]
    expected = reference.pair_products(reference.double(policy.model), pair, names)
    assert tk.pair_stats(policy, pair, progress=False).inner[0] == pytest.approx(expected[2])


def test_dropout_is_off():
    policy = shapes.policy("gpt2")
    policy.model.train()
    a, b = (tk.pair_stats(policy, shapes.ragged_pairs(), progress=False) for _ in range(2))
    np.testing.assert_array_equal(a.inner, b.inner)


def test_labels_travel_with_the_numbers():
    policy, pair = shapes.policy("gpt2"), shapes.ragged_pairs()[0]
    results = [
        tk.pair_stats(policy, pair, params="head", progress=False),
        tk.token_contributions(policy, pair, params="head"),
        tk.token_matrix(policy, pair, params="head"),
    ]
    for result in results:
        attrs = result.to_frame().attrs
        assert attrs["params"] == "head" and attrs["dtype"] == "float64"
        assert attrs["model"] == "gpt2" and attrs["optimizer_metric"] == "euclidean"


@pytest.mark.parametrize(
    ("params", "message"),
    [("nothing_like_this", "matches no parameter"), ("(", "regular expression"), (3, "string")],
)
def test_a_bad_parameter_set_is_refused(params, message):
    with pytest.raises(ValueError, match=message):
        tk.pair_stats(shapes.policy("gpt2"), shapes.ragged_pairs()[0], params=params)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "8"])
def test_a_bad_batch_size_is_refused(size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        tk.pair_stats(shapes.policy("gpt2"), shapes.ragged_pairs(), batch_size=size)


def test_a_pair_longer_than_the_context_is_named_before_any_work():
    long = shapes.encoded("too-long", [1] * 60, [2] * 10, [3])
    with pytest.raises(tk.PairError, match=r"too-long.*70 tokens"):
        tk.pair_stats(shapes.policy("gpt2"), [shapes.ragged_pairs()[0], long], progress=False)


def test_take_and_join_keep_order():
    policy = shapes.policy("gpt2")
    stats = tk.pair_stats(policy, shapes.ragged_pairs(), progress=False)
    again = gradients.concat_stats([stats.take([0, 1]), stats.take([2, 3, 4])])
    assert again.to_frame().equals(stats.to_frame())
    other = tk.pair_stats(policy, shapes.ragged_pairs()[0], params="head", progress=False)
    with pytest.raises(ValueError, match="same labels"):
        gradients.concat_stats([stats, other])


@pytest.mark.parametrize("memory", [1 << 30, 20_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_equals_the_oracle(shape, memory):
    """Every pair of responses, whatever the number of passes the memory bound asks for."""
    policy, pairs = shapes.policy(shape, torch.float32), shapes.ragged_pairs()
    twin = reference.double(policy.model)
    every = torch.stack([g.sum(0) for p in pairs for g in reference.pair_token_gradients(twin, p)])
    kernel = tk.gram(policy, pairs, memory=memory, batch_size=2, progress=False)
    norms = every.norm(dim=1).numpy()
    error = np.abs(kernel.matrix - (every @ every.T).numpy())
    assert np.all(error <= 2e-6 * np.outer(norms, norms))
    assert kernel.pair_ids[2:4] == [pairs[1].id] * 2 and list(kernel.sides[:2]) == [
        "chosen",
        "rejected",
    ]
    assert kernel.relative_error == 0


def test_gram_holds_no_more_gradients_than_it_was_allowed(monkeypatch):
    """Catches views that keep the whole gradient of each row, and slices that are held twice."""
    policy, pairs = shapes.policy("llama", torch.float32), shapes.ragged_pairs()
    memory, held = 200_000, []
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}

    def live_bytes():
        tensors = [item for item in gc.get_objects() if type(item) is torch.Tensor]
        tensors = [t for t in tensors if t.layout is torch.strided]  # other tests' sparse ones
        found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(size for at, size in found.items() if at not in weights)

    def counting(gradients):
        held.append(live_bytes() - before)
        return response_gram.flat_products(gradients, gradients)

    monkeypatch.setattr(response_gram, "exact", counting)
    before = live_bytes()
    tk.gram(policy, pairs, memory=memory, batch_size=2, progress=False)
    one = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    assert max(held) < memory + one


def test_gram_holds_the_pair_statistics():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    kernel, stats = tk.gram(policy, pairs, progress=False), tk.pair_stats(policy, pairs)
    np.testing.assert_allclose(np.diag(kernel.matrix)[::2], stats.chosen_sq_norm, rtol=1e-9)
    np.testing.assert_allclose(np.diag(kernel.matrix, 1)[::2], stats.inner, rtol=1e-9)


def test_projection_keeps_the_diagonal_and_its_stated_error():
    policy, pairs = shapes.policy("llama"), shapes.ragged_pairs()
    exact = tk.gram(policy, pairs, progress=False)
    guess = tk.gram(policy, pairs, projection=2000, progress=False)
    again = tk.gram(policy, pairs, projection=2000, memory=50_000, progress=False)
    np.testing.assert_allclose(np.diag(guess.matrix), np.diag(exact.matrix), rtol=1e-9)
    off = ~np.eye(len(exact.pair_ids), dtype=bool)
    error = (guess.cosine - exact.cosine)[off]
    assert 0 < np.sqrt((error**2).mean()) < 2 * guess.relative_error
    assert guess.relative_error == pytest.approx(2000**-0.5)
    assert np.abs(again.cosine - exact.cosine).max() < 6 * guess.relative_error


@pytest.mark.parametrize("options", [{"memory": 0}, {"projection": 0}, {"projection": 1.5}])
def test_bad_gram_options_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be a positive"):
        tk.gram(shapes.policy("gpt2"), shapes.ragged_pairs(), **options)


@pytest.mark.parametrize("by", ["layer", "kind", "parameter"])
def test_parts_sum_to_the_pair(by):
    policy, pairs = shapes.policy("llama"), shapes.ragged_pairs()
    stats = tk.pair_stats(policy, pairs, progress=False)
    parts = stats.split(by)
    sums = parts.groupby("pair_id")[["chosen_sq_norm", "rejected_sq_norm", "inner"]].sum()
    whole = stats.to_frame().set_index("pair_id")
    np.testing.assert_allclose(sums, whole.loc[sums.index, sums.columns], rtol=1e-9)
    if by == "layer":
        assert {"block 0", "block 1", "lm_head"} <= set(parts["part"])
        only = tk.pair_stats(policy, pairs, params=r"layers\.1\.", progress=False)
        got = parts[parts["part"] == "block 1"].set_index("pair_id").loc[only.pair_ids, "inner"]
        np.testing.assert_allclose(got, only.inner, rtol=1e-9)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="allowed: 'layer', 'kind', 'parameter'"):
        tk.pair_stats(shapes.policy("gpt2"), shapes.ragged_pairs()[0]).split("head")


def worst_errors(policy, pairs):
    """Largest relative errors of pair products, contributions and matrix against the oracle."""
    twin = reference.double(policy.model)
    named = dict(policy.model.named_parameters())
    names = [n for n, p in named.items() if p.requires_grad]
    stats = tk.pair_stats(policy, pairs, progress=False)
    worst = []
    for i, pair in enumerate(pairs):
        expected = reference.pair_products(twin, pair, names)
        got = [stats.chosen_sq_norm[i], stats.rejected_sq_norm[i], stats.inner[i]]
        worst.append(np.max(np.abs(got - expected) / scale(expected)))
    chosen, rejected = reference.pair_token_gradients(twin, pairs[0], names)
    every = torch.cat([chosen, rejected])
    norm = every.norm(dim=1).numpy()
    tokens, matrix = tk.token_contributions(policy, pairs[0]), tk.token_matrix(policy, pairs[0])
    for got, total in ((tokens.with_chosen, chosen), (tokens.with_rejected, rejected)):
        exact = (every @ total.sum(0)).numpy()
        worst.append(np.max(np.abs(got - exact) / (norm * float(total.sum(0).norm()))))
    gram = (every @ every.T).numpy()
    worst.append(np.max(np.abs(matrix.matrix - gram) / np.outer(norm, norm)))
    return worst


@pytest.mark.parametrize("shape", list(shapes.ODD_CONFIGS))
def test_odd_architectures_are_exact(shape):
    """Scaled embeddings, soft-capping, head norms, routers and experts: by rule or by autograd."""
    policy = shapes.policy(shape, torch.float32)
    assert max(worst_errors(policy, shapes.ragged_pairs())) <= 2e-6


@pytest.mark.parametrize(
    ("shape", "expected"), [("mixtral", "experts"), ("opt", "embed_positions")]
)
def test_what_no_rule_covers_goes_to_autograd_by_name(shape, expected):
    policy = shapes.policy(shape, torch.float32)
    plan = _findings.plan_for(policy.model, policy.parameters_in("all"))
    assert any(expected in name for name in plan.remainder)
    assert not any("q_proj" in name for name in plan.remainder)


def test_a_weight_used_outside_its_module_is_found():
    """A rule that silently missed a second use of a weight would be wrong by its cross terms."""
    policy = shapes.policy("llama", torch.float32)
    block = policy.model.model.layers[0].mlp
    plain = type(block).forward

    def forward(x):
        return plain(block, x) + 0.5 * torch.nn.functional.linear(x, block.up_proj.weight)[..., :24]

    block.forward = forward
    plan = _findings.plan_for(policy.model, policy.parameters_in("all"))
    assert list(plan.remainder) == ["model.layers.0.mlp.up_proj.weight"]


def test_a_module_called_twice_is_exact():
    """Two layers that share one feed-forward module: its uses are joined along the tokens."""
    policy = shapes.policy("llama", torch.float32)
    layers = policy.model.model.layers
    layers[1].mlp = layers[0].mlp
    assert max(worst_errors(policy, shapes.ragged_pairs())) <= 2e-6


def test_lora_adapters_are_exact():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    wrapped = peft.get_peft_model(shapes.model("llama", torch.float32), config)
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    policy = tk.Policy(wrapped, shapes.Letters())
    assert not _findings.plan_for(wrapped, policy.parameters_in("all")).remainder
    assert max(worst_errors(policy, shapes.ragged_pairs())) <= 2e-6


def test_bfloat16_weights_accumulate_in_float32():
    """Products from bfloat16 factors, but never summed in bfloat16: close to those factors' own."""
    policy = shapes.policy("llama", torch.bfloat16)
    pairs = shapes.ragged_pairs()
    stats = tk.pair_stats(policy, pairs, progress=False)
    twin = reference.double(policy.model)
    for i, pair in enumerate(pairs):
        a, b, ab = reference.pair_products(twin, pair)
        got = np.array([stats.chosen_sq_norm[i], stats.rejected_sq_norm[i], stats.inner[i]])
        assert np.all(np.abs(got - [a, b, ab]) <= 0.05 * np.array([a, b, np.sqrt(a * b)]))


def test_padding_rows_of_the_embedding_get_no_gradient():
    """With ``padding_idx`` autograd gives that row none, also where the id stands in the text."""
    policy = shapes.policy("llama", torch.float32)
    policy.model.model.embed_tokens.padding_idx = 5
    assert max(worst_errors(policy, shapes.ragged_pairs())) <= 2e-6


def test_other_runtime_errors_are_not_swallowed(monkeypatch):
    def broken(*_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(per_pair, "_measure", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        tk.pair_stats(shapes.policy("gpt2"), shapes.ragged_pairs(), progress=False)


def adam_after_a_step(model):
    """Adam with second moments of random gradients in its state, and the weights as they were."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    torch.manual_seed(3)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def test_products_under_adams_metric_equal_the_oracle():
    """Pair products, contributions, matrix and kernel all become ⟨·,·⟩_P."""
    policy, pairs = shapes.policy("gpt2", torch.float32), shapes.ragged_pairs()
    optimizer = adam_after_a_step(policy.model)
    adam = tk.Preconditioner.from_optimizer(optimizer, policy.model)
    state = [optimizer.state[p] for p in policy.model.parameters()]
    weights = [1 / ((s["exp_avg_sq"] / (1 - 0.999)).sqrt() + 1e-8) for s in state]
    weight = torch.cat([w.flatten() for w in weights]).double()
    twin = reference.double(policy.model)
    sides = [reference.pair_token_gradients(twin, p) for p in pairs]
    totals = torch.stack([g.sum(0) for both in sides for g in both])
    kernel = (totals * weight) @ totals.T
    size = torch.outer(kernel.diagonal().sqrt(), kernel.diagonal().sqrt()).numpy()

    stats = tk.pair_stats(policy, pairs, preconditioner=adam, progress=False)
    found = tk.gram(policy, pairs, preconditioner=adam, progress=False)
    assert np.all(np.abs(found.matrix - kernel.numpy()) <= 4e-6 * size)
    np.testing.assert_allclose(np.diag(found.matrix)[::2], stats.chosen_sq_norm, rtol=4e-6)
    np.testing.assert_allclose(np.diag(found.matrix, 1)[::2], stats.inner, atol=4e-6 * size.max())
    assert stats.labels.optimizer_metric == "adam" == found.labels.optimizer_metric

    every = torch.cat(sides[0])
    exact = (every * weight) @ every.T
    norm = exact.diagonal().sqrt()
    matrix = tk.token_matrix(policy, pairs[0], preconditioner=adam).matrix
    assert np.all(np.abs(matrix - exact.numpy()) <= 4e-6 * torch.outer(norm, norm).numpy())
    tokens = tk.token_contributions(policy, pairs[0], preconditioner=adam)
    along = ((every * weight) @ totals[0]).numpy()
    assert np.all(np.abs(tokens.with_chosen - along) <= 4e-6 * norm.numpy() * size[0, 0] ** 0.5)


def test_a_preconditioner_of_ones_changes_nothing():
    policy, pairs = shapes.policy("llama"), shapes.ragged_pairs()
    ones = {n: torch.ones_like(p) for n, p in policy.model.named_parameters()}
    plain = tk.pair_stats(policy, pairs, progress=False)
    same = tk.Preconditioner("ones", ones)
    with_ones = tk.pair_stats(policy, pairs, preconditioner=same, progress=False)
    np.testing.assert_allclose(with_ones.inner, plain.inner, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.popitem(), "received none"),
        (lambda w: w.update({next(iter(w)): torch.ones(3)}), "needs shape"),
        (lambda w: next(iter(w.values())).neg_(), "negative"),
    ],
)
def test_a_bad_preconditioner_is_refused_by_name(change, message):
    policy = shapes.policy("gpt2")
    weights = {n: torch.ones_like(p) for n, p in policy.model.named_parameters()}
    change(weights)
    odd = tk.Preconditioner("odd", weights)
    with pytest.raises(ValueError, match=message):
        tk.pair_stats(policy, shapes.ragged_pairs(), preconditioner=odd)


def test_an_optimiser_without_a_preconditioner_is_refused():
    model = shapes.model("gpt2")
    with pytest.raises(ValueError, match="take a step first"):
        tk.Preconditioner.from_optimizer(torch.optim.Adam(model.parameters()), model)
    with pytest.raises(ValueError, match="no diagonal preconditioner"):
        tk.Preconditioner.from_optimizer(torch.optim.Adagrad(model.parameters()), model)
