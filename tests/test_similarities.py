"""CHES and its baselines against the definitions, and the identities C1–C8 and C10."""

from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import reference
import shapes
import torch
from hypothesis import given, settings, strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    MistralConfig,
)

import toolkit as tk
from toolkit.similarities import _head_slack, _head_states, ches_tokens
from toolkit.similarities._head_states import row_states
from toolkit.similarities.ches import _edit_distance

SHAPES = list(shapes.CONFIGS)
# The façade gives the function of that name, never the module.
MODULE = import_module("toolkit.similarities.ches")
SCORES = ["ches", "ln_ches", "neg_edit_distance", "last_hidden_inner"]


def row(policy, pair):
    return tk.similarity(policy, pair, progress=False).iloc[0]


def state_sums(policy, pair):
    """S⁺ and S⁻ from the oracle's states."""
    twin = reference.double(policy.model)
    sums = []
    with torch.no_grad():
        for ids, mask in reference.sides(pair):
            sums.append(reference.hidden_states(twin, ids)[:-1][mask[1:]].sum(0))
    return sums


def gemma(dtype=torch.float64, cap=2.0):
    """Scaled embeddings, soft-capped attention and logits, tied head, sliding layers."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=shapes.VOCAB,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        max_position_embeddings=64,
        final_logit_softcapping=cap,
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    return tk.Policy(model, shapes.Letters(), name="gemma2")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_ches_equals_its_definition(shape, dtype):
    """Index rule, layer and lengths: one state too many, or the pre-norm state, fails here."""
    policy, pairs = shapes.policy(shape, dtype), shapes.ragged_pairs()
    frame, twin = tk.similarity(policy, pairs), reference.double(policy.model)
    for pair, got in zip(pairs, frame.itertuples(), strict=True):
        a, b = (float(s.norm()) for s in state_sums(policy, pair))
        n, m = pair.chosen_length, pair.rejected_length
        close = 2e-6 if dtype == torch.float32 else 1e-9 if shape == "gpt2" else 1e-6
        ches, ln_ches = reference.ches(twin, pair)
        assert got.ches == pytest.approx(ches, abs=close * a * (a + b))
        assert got.ln_ches == pytest.approx(ln_ches, abs=close * a / n * (a / n + b / m))
        last = reference.last_hidden_inner(twin, pair)
        assert got.last_hidden_inner == pytest.approx(last, rel=1e-5 if close == 2e-6 else 1e-6)
        assert (got.pair_id, got.chosen_length, got.rejected_length) == (pair.id, n, m)


def test_a_soft_capped_model_gives_the_state_before_its_head():
    """The logits of such a model are no product of the head, its head's input still is a state."""
    policy, pair = gemma(), shapes.ragged_pairs()[0]
    states = row_states(policy.model, reference.sides(pair))
    with torch.no_grad():
        for (ids, _), got in zip(reference.sides(pair), states, strict=True):
            out = policy.model(ids[None], output_hidden_states=True)
            torch.testing.assert_close(got, out.hidden_states[-1][0])
            raw = policy.model.get_output_embeddings()(got)
            assert not torch.allclose(raw, out.logits[0])
            torch.testing.assert_close(2 * torch.tanh(raw / 2), out.logits[0])
    a, b = (s[:-1][m[1:]].sum(0) for s, (_, m) in zip(states, reference.sides(pair), strict=True))
    assert row(policy, pair).ches == pytest.approx(float(a @ b - a @ a))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", list(shapes.ODD_CONFIGS))
def test_odd_shapes_equal_the_definition(shape, dtype):
    """Whatever layout such a model gets, its score is that of its own trunk's states."""
    policy, pairs = shapes.policy(shape, dtype), shapes.ragged_pairs()
    frame, twin = tk.similarity(policy, pairs, progress=False), reference.double(policy.model)
    for pair, got in zip(pairs, frame.ches, strict=True):
        with torch.no_grad():
            a, b = (
                twin.base_model(ids[None]).last_hidden_state[0, :-1][mask[1:]].sum(0)
                for ids, mask in reference.sides(pair)
            )
        size = float(a.norm() * (a.norm() + b.norm()))
        assert got == pytest.approx(float(a @ b - a @ a), abs=2e-6 * size)


def test_a_sliding_window_is_kept():
    """A 4-D mask would lift it in silence: the pair is longer than the window on both sides."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=shapes.VOCAB,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = AutoModelForCausalLM.from_config(config).to(torch.float64)
    policy = tk.Policy(model, shapes.Letters(), name="mistral")
    pair = shapes.encoded("p", [5, 9, 3, 30, 31], [11, 7, 8, 2, 40, 41], [12, 7, 8, 2, 9])
    expected, _ = reference.ches(reference.double(model), pair)
    assert row(policy, pair).ches == pytest.approx(expected, rel=1e-5)
    lifted = MODULE._scores(pair, *_head_states.packed(model, [pair]))["ches"]
    assert abs(lifted - expected) > 1e-2 * abs(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_shared_tokens_are_run_once(shape):
    """The point of packing: count the tokens that the model is given, probe aside."""
    policy = shapes.policy(shape)
    pair = shapes.encoded("p", range(20), [30, 31, 32, 33], [30, 31, 34])
    tk.similarity(policy, pair, progress=False)
    seen = []
    embedding = policy.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel()))
    tk.similarity(policy, pair, progress=False)
    assert seen == [20 + 2 + 2 + 1]


# --- the index rule ---


@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_scored_token_enters_only_the_last_hidden_product(shape):
    """Its own state predicts nothing that is scored; summing it is the known slip."""
    policy = shapes.policy(shape)
    one, other = (shapes.encoded("p", [5, 9], [7, 8, last], [12, 8, 2]) for last in (2, 33))
    a, b = row(policy, one), row(policy, other)
    assert a.ches == pytest.approx(b.ches, rel=1e-12)
    assert a.ln_ches == pytest.approx(b.ln_ches, rel=1e-12)
    assert abs(a.last_hidden_inner - b.last_hidden_inner) > 1e-3


def test_the_last_prompt_token_enters():
    """Its state predicts the first scored token; two-token responses need it to differ at all."""
    policy = shapes.policy("gpt2")
    a, b = (row(policy, shapes.encoded("p", [5, p], [7, 8], [12, 8])) for p in (9, 10))
    assert abs(a.ches - b.ches) > 1e-3


def test_unscored_tokens_in_the_middle_do_not_enter():
    """A mask with a hole: only states before scored tokens are summed, and the length shrinks."""
    policy, pair = shapes.policy("gpt2"), shapes.encoded("p", [5, 9], [7, 8, 2], [12, 8, 2])
    mask = torch.tensor([False, False, True, False, True])
    holed = tk.EncodedPair(
        "p",
        pair.chosen_ids,
        mask,
        pair.rejected_ids,
        pair.rejected_mask,
        append_eos=False,
        boundary_merge=False,
    )
    expected = reference.ches(reference.double(policy.model), holed)
    got = row(policy, holed)
    assert (got.ches, got.ln_ches) == pytest.approx(expected) and got.chosen_length == 2


# --- identities ---


@pytest.mark.parametrize("shape", SHAPES)
def test_identities_of_pairs(shape):
    """C1, C2, C3 and C10 on one frame."""
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs()
    frame = tk.similarity(policy, [*pairs, *map(shapes.swapped, pairs)])
    first, second = frame[:5].reset_index(), frame[5:].reset_index()
    for i, pair in enumerate(pairs):
        a, b = state_sums(policy, pair)
        size = float((a - b).square().sum())
        assert first.ches[i] + second.ches[i] == pytest.approx(-size, rel=1e-6, abs=1e-9)
        mean = a / pair.chosen_length - b / pair.rejected_length
        total = first.ln_ches[i] + second.ln_ches[i]
        assert total == pytest.approx(-float(mean.square().sum()), rel=1e-6, abs=1e-9)
        assert first.ches[i] <= float(b @ b) / 4 * (1 + 1e-9)
    for name in ("neg_edit_distance", "last_hidden_inner"):
        np.testing.assert_allclose(first[name], second[name])
    assert (first.ches[3], first.ln_ches[3]) == (0, 0)

    same = row(policy, shapes.encoded("same", [5, 6], [7, 8, 9], [7, 8, 9]))
    assert (same.ches, same.ln_ches) == (0, 0), "shared states are the same numbers"
    assert same.neg_edit_distance == 0


@pytest.mark.parametrize("factor", [-2.0, 0.5, 3.0])
def test_scaling_all_states_scales_ches_by_the_square(factor):
    """C4, with the last norm's gain and bias scaled; ``ln_ches`` and the product alike."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    before = tk.similarity(policy, pairs)
    with torch.no_grad():
        for p in policy.model.transformer.ln_f.parameters():
            p.mul_(factor)
    after = tk.similarity(policy, pairs)
    for name in ("ches", "ln_ches", "last_hidden_inner"):
        np.testing.assert_allclose(after[name], factor**2 * before[name], rtol=1e-9, atol=1e-9)


class Rotated(torch.nn.Module):
    def __init__(self, norm, rotation):
        super().__init__()
        self.norm, self.rotation = norm, rotation

    def forward(self, states):
        return self.norm(states) @ self.rotation


def test_rotating_all_states_changes_nothing():
    """C4: with the head rotated too, it is the same model."""
    policy, pairs = shapes.policy("llama"), shapes.ragged_pairs()
    before, logps = tk.similarity(policy, pairs), tk.per_token_logps(policy, pairs)
    torch.manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(24, 24, dtype=torch.float64))[0]
    policy.model.model.norm = Rotated(policy.model.model.norm, rotation)
    with torch.no_grad():
        policy.model.lm_head.weight.copy_(policy.model.lm_head.weight @ rotation)
    after = tk.similarity(policy, pairs)
    np.testing.assert_allclose(after[SCORES], before[SCORES], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(tk.per_token_logps(policy, pairs)[0].chosen, logps[0].chosen)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shared_prefix_matters_only_through_its_sum(shape):
    """C5: CHES = ⟨C + A, B − A⟩ with C the shared states, A and B those after the parting."""
    policy = shapes.policy(shape)
    pair = shapes.encoded("p", [5, 9], [20, 21, 22, 7, 3], [20, 21, 30, 8])
    twin = reference.double(policy.model)
    with torch.no_grad():
        chosen, rejected = (reference.hidden_states(twin, i) for i, _ in reference.sides(pair))
    shared, a, b = chosen[1:4].sum(0), chosen[4:6].sum(0), rejected[4:5].sum(0)
    torch.testing.assert_close(chosen[1:4], rejected[1:4], rtol=1e-6, atol=1e-6)
    assert row(policy, pair).ches == pytest.approx(float((shared + a) @ (b - a)), rel=1e-6)


def test_length_normalised_ches_ignores_repeated_states():
    """C6: a model without positions or mixing sees the same state at every repeated token."""
    policy = shapes.policy("gpt2")
    with torch.no_grad():
        policy.model.transformer.wpe.weight.zero_()
        for block in policy.model.transformer.h:
            block.attn.c_proj.weight.zero_()
    short = row(policy, shapes.encoded("s", [7], [7, 7], [9, 9]))
    long = row(policy, shapes.encoded("l", [7], [7] * 8, [9] * 2))
    assert long.ln_ches == pytest.approx(short.ln_ches, rel=1e-9)
    assert abs(long.ches - short.ches) > 1e-3


def test_for_equal_lengths_the_two_forms_differ_by_the_squared_length():
    """C8; dividing by the prompt's tokens as well would show here."""
    got = row(shapes.policy("llama"), shapes.ragged_pairs()[0])
    assert got.ches == pytest.approx(got.ln_ches * 4**2, rel=1e-12)


# --- nothing but the pair matters ---


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_batch_size_and_order_change_nothing(shape):
    """C7: summing padding states of the shorter row is the published slip."""
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs()
    alone = tk.similarity(policy, pairs, batch_size=1).set_index("pair_id")
    for size, order in ((2, [0, 1, 2, 3, 4]), (8, [4, 2, 0, 1, 3])):
        frame = tk.similarity(policy, [pairs[i] for i in order], batch_size=size)
        assert frame["pair_id"].tolist() == [pairs[i].id for i in order]
        got = frame.set_index("pair_id").loc[alone.index]
        np.testing.assert_allclose(got, alone, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", ["llama", "gemma2"])
@pytest.mark.parametrize("budget", [1, 20, 30, 10_000])
def test_buckets_change_nothing(shape, budget, monkeypatch):
    """However pairs are put together by length, each keeps its row and its numbers."""
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs() * 2
    alone = [row(policy, pair) for pair in pairs]
    monkeypatch.setattr(MODULE, "_token_budget", lambda device: budget)
    options = {"head_slack": shape == "llama", "progress": False}
    frame = tk.similarity(policy, pairs, **options)
    assert frame["pair_id"].tolist() == [pair.id for pair in pairs]
    expected = pd.DataFrame(alone)[SCORES].astype(float)
    np.testing.assert_allclose(frame[SCORES], expected, rtol=1e-6, atol=1e-6)
    if shape == "llama":
        frame = tk.similarity(policy, pairs[::-1], batch_size=3, **options)[::-1]
        np.testing.assert_allclose(frame.head_slack, [slack(policy, p) for p in pairs], rtol=1e-6)


def test_the_budget_counts_padding(monkeypatch):
    """Rows of a bucket are as wide as its longest; the first one sets how many fit."""
    pairs = shapes.ragged_pairs()
    policy = shapes.policy("llama")
    monkeypatch.setattr(MODULE, "_token_budget", lambda device: 40)
    tk.similarity(policy, pairs, progress=False)
    seen = []
    embedding = policy.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    tk.similarity(policy, pairs, progress=False)
    assert seen == [(2, 16), (3, 11)]


def test_the_padding_id_does_not_matter(monkeypatch):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    before = tk.similarity(policy, pairs)
    shapes.pad_with(monkeypatch, 37)
    np.testing.assert_allclose(tk.similarity(policy, pairs)[SCORES], before[SCORES], rtol=1e-9)


def test_large_sums_keep_their_difference_in_bfloat16():
    """Summing bfloat16 states in bfloat16 loses the difference of two near-equal responses."""
    policy = shapes.policy("llama", torch.bfloat16)
    pair = shapes.encoded("p", [5], [7] * 30 + [8, 3], [7] * 30 + [9, 3])
    with torch.no_grad():
        chosen, rejected = (
            policy.model(i[None], output_hidden_states=True).hidden_states[-1][0].double()
            for i, _ in reference.sides(pair)
        )
    a, b = chosen[:-1].sum(0), rejected[:-1].sum(0)
    assert row(policy, pair).ches == pytest.approx(float(a @ (b - a)), rel=0.05)


# --- the slack of the output embedding ---


def slack(policy, pair):
    return tk.similarity(policy, pair, head_slack=True, progress=False).head_slack[0]


def untied(**options):
    """A GPT-2 with a head of its own; ``options`` go to the head."""
    config = GPT2Config(
        vocab_size=shapes.VOCAB, n_positions=64, n_embd=24, n_layer=2, n_head=2, pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64)
    model.lm_head = torch.nn.Linear(24, shapes.VOCAB, **options).to(torch.float64)
    return tk.Policy(model, shapes.Letters(), name="untied")


@pytest.mark.parametrize("chunk", [7, shapes.VOCAB, 8192])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_head_slack_is_the_slack_of_the_head(dtype, chunk, monkeypatch):
    """Against the gradient products, and however the vocabulary is cut."""
    monkeypatch.setattr(_head_slack, "VOCABULARY_CHUNK", chunk)
    policy, pairs = shapes.policy("llama", dtype), shapes.ragged_pairs()
    frame = tk.similarity(policy, pairs, head_slack=True, progress=False)
    stats = tk.pair_stats(policy, pairs, params="head", progress=False)
    size = stats.chosen_sq_norm + abs(stats.inner)
    off = abs(frame.head_slack - (stats.chosen_sq_norm - stats.inner)) / size
    assert off.max() < (2e-6 if dtype == torch.float32 else 1e-9)
    assert "head matrix only" in frame.attrs["head_slack"]


@pytest.mark.parametrize("bias", [False, True])
def test_head_slack_is_of_the_matrix_alone(bias):
    """With a bias and from materialised gradients; the bias has its say in the probabilities."""
    policy = untied(bias=bias)
    for pair in shapes.ragged_pairs():
        twin = reference.double(policy.model)
        products = reference.pair_products(twin, pair, ["lm_head.weight"])
        assert slack(policy, pair) == pytest.approx(products[0] - products[2], rel=1e-9)


def test_head_slack_of_a_tied_matrix_leaves_its_other_use_out():
    tied, twin = shapes.policy("gpt2"), untied(bias=False)
    state = {**tied.model.state_dict()}
    twin.model.load_state_dict(state)
    for pair in shapes.ragged_pairs():
        assert slack(tied, pair) == pytest.approx(slack(twin, pair), rel=1e-9)


def test_head_slack_and_ches_agree_where_all_weights_are_one():
    """With one-hot targets that never repeat and p = 0 the weights are the identity."""
    pair = shapes.encoded("same", [5, 6], [7, 8, 9], [7, 8, 9])
    assert slack(shapes.policy("llama"), pair) == pytest.approx(0, abs=1e-9)
    # One token, one context: (1 − p_a + p_b)‖h‖².
    policy, single = shapes.policy("llama"), shapes.encoded("one", [8, 2, 7], [30], [31])
    with torch.no_grad():
        twin = reference.double(policy.model)
        h = reference.hidden_states(twin, single.chosen_ids)[2]
        p = (twin.lm_head(h)).softmax(0)
    assert slack(policy, single) == pytest.approx(float((1 - p[30] + p[31]) * (h @ h)), rel=1e-6)


def scaled():
    """Logits divided by a constant after the head."""
    torch.manual_seed(0)
    config = GraniteConfig(**shapes.BASE, logits_scaling=4.0)
    model = AutoModelForCausalLM.from_config(config).to(torch.float64)
    return tk.Policy(model, shapes.Letters(), name="granite")


@pytest.mark.parametrize("build", [gemma, lambda: gemma(cap=30.0), scaled])
def test_head_slack_is_nan_where_the_logits_are_no_plain_product(build):
    """The closed form is another one there; a cap far above the logits is a cap all the same."""
    policy = build()
    frame = tk.similarity(policy, shapes.ragged_pairs(), head_slack=True, progress=False)
    assert frame.head_slack.isna().all() and frame.ches.notna().all()
    assert "NaN" in frame.attrs["head_slack"]
    assert not policy.model.get_output_embeddings()._forward_pre_hooks


def test_head_slack_comes_only_on_request():
    frame = tk.similarity(shapes.policy("llama"), shapes.ragged_pairs(), progress=False)
    assert "head_slack" not in frame and "head_slack" not in frame.attrs


# --- tokens ---


@pytest.mark.parametrize("shape", SHAPES)
def test_token_shares_equal_their_definition_and_sum_to_ches(shape):
    policy = shapes.policy(shape)
    twin = reference.double(policy.model)
    for pair in shapes.ragged_pairs():
        frame = ches_tokens(policy, pair)
        chosen, rejected = (frame[frame.side == side] for side in ("chosen", "rejected"))
        a, b = state_sums(policy, pair)
        with torch.no_grad():
            h, k = (reference.hidden_states(twin, ids) for ids, _ in reference.sides(pair))
        h, k = (s[:-1][m[1:]] for s, (_, m) in zip((h, k), reference.sides(pair), strict=True))
        close = 1e-6 * float(a.norm() * (a.norm() + b.norm()))
        np.testing.assert_allclose(chosen.ches_share, h @ (b - a), atol=close)
        np.testing.assert_allclose(rejected.inner_with_chosen, k @ a, atol=close)
        ches = row(policy, pair).ches
        assert chosen.ches_share.sum() == pytest.approx(ches, rel=1e-12, abs=1e-9)
        parts = rejected.inner_with_chosen.sum() - chosen.inner_with_chosen.sum()
        assert parts == pytest.approx(ches, rel=1e-9, abs=1e-9)
        assert rejected.ches_share.isna().all()


def test_the_token_frame_is_tidy():
    frame = ches_tokens(shapes.policy("gpt2"), shapes.ragged_pairs()[2])
    columns = ["pair_id", "side", "position", "token", "token_id", "ches_share"]
    assert list(frame.columns) == [*columns, "inner_with_chosen"]
    assert set(frame.pair_id) == {"long"} and frame.attrs["model"] == "gpt2"
    assert frame.side.tolist() == ["chosen"] * 12 + ["rejected"] * 3
    assert frame.position.tolist() == [*range(12), *range(3)]
    assert frame.token.tolist()[-3:] == ["<40>", "<0>", "<41>"]
    assert frame.token_id.tolist()[-3:] == [40, 0, 41]


# --- edit distance ---

token_lists = st.lists(st.integers(1, 4), min_size=1, max_size=9)


@settings(max_examples=60)
@given(token_lists, token_lists)
def test_edit_distance_equals_the_hand_written_one(chosen, rejected):
    """Normalised by the longer response, over scored tokens: the shared prompt must not dilute."""
    pair = shapes.encoded("p", [5, 5, 5], chosen, rejected)
    expected = reference.levenshtein(chosen, rejected) / max(len(chosen), len(rejected))
    assert _edit_distance(pair) == pytest.approx(expected)


def test_edit_distance_is_negated_in_the_frame():
    frame = tk.similarity(shapes.policy("gpt2"), shapes.ragged_pairs())
    assert frame["neg_edit_distance"].tolist() == pytest.approx([-1 / 4, -1 / 4, -1, -1, -2 / 3])


# --- the model is left alone ---


@pytest.mark.parametrize("shape", SHAPES)
def test_the_model_is_left_as_it_was(shape):
    """A hook that stays would crop the logits of every later call to one position."""
    policy = shapes.policy(shape)
    policy.model.train()
    tk.similarity(policy, shapes.ragged_pairs())
    assert policy.model.training and not policy.model.get_output_embeddings()._forward_pre_hooks
    assert policy.model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, shapes.VOCAB)
    assert all(p.grad is None for p in policy.model.parameters())


def test_the_hook_is_removed_after_an_error():
    policy = shapes.policy("gpt2")
    policy.model.train()
    policy.model.transformer.ln_f.forward = lambda states: 1 / 0
    with pytest.raises(ZeroDivisionError):
        tk.similarity(policy, shapes.ragged_pairs())
    assert not policy.model.lm_head._forward_pre_hooks and policy.model.training


def test_a_model_that_goes_around_its_head_is_refused():
    """The hook is never called then: an empty list must not become an IndexError."""
    policy = shapes.policy("gpt2")
    head = policy.model.lm_head
    policy.model.lm_head = torch.nn.Identity()
    policy.model.get_output_embeddings = lambda: head
    with pytest.raises(ValueError, match="GPT2LMHeadModel does not pass one state per token"):
        tk.similarity(policy, shapes.ragged_pairs())


def test_the_frame_has_the_agreed_columns_and_labels():
    policy = shapes.policy("gpt2")
    frame = tk.similarity(policy, shapes.ragged_pairs()[0])
    assert list(frame.columns) == ["pair_id", *SCORES, "chosen_length", "rejected_length"]
    assert frame.attrs["model"] == "gpt2" and frame.attrs["dtype"] == "float64"


@pytest.mark.parametrize("progress", [True, False])
def test_the_bar_is_shown_on_request(progress, capsys):
    tk.similarity(shapes.policy("gpt2"), shapes.ragged_pairs(), progress=progress)
    assert ("similarity" in capsys.readouterr().err) == progress


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([], {}, "pairs is empty"),
        (["text"], {}, r"pairs\[0\] is str"),
        (None, {"batch_size": 0}, "batch_size must be a positive integer"),
        (None, {"batch_size": True}, "batch_size must be a positive integer"),
    ],
)
def test_bad_input_is_refused(pairs, options, message):
    pairs = shapes.ragged_pairs() if pairs is None else pairs
    with pytest.raises(ValueError, match=message):
        tk.similarity(shapes.policy("gpt2"), pairs, **options)
