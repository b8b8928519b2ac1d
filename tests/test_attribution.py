"""Prompt attributions against a hand-written integral, and what they must sum to."""

import warnings

import numpy as np
import pytest
import reference
import shapes
import torch

import toolkit as tk
from toolkit.attribution import BASELINES, METHODS

SHAPES = list(shapes.CONFIGS)
TARGETS = ("chosen", "rejected", "margin")


def baseline_of(model, name):
    weight = model.get_input_embeddings().weight.detach()
    return weight.mean(0) if name == "mean" else torch.zeros_like(weight[0])


@pytest.mark.parametrize(
    ("shape", "baseline"), [*((shape, "mean") for shape in SHAPES), ("gpt2", "zero")]
)
def test_the_integral_equals_a_hand_written_one(shape, baseline):
    """Gauss–Legendre against a fine midpoint rule; a completion that moves along fails here."""
    policy, pair = shapes.policy(shape), shapes.ragged_pairs()[1]
    result = tk.prompt_attributions(policy, pair, baseline=baseline)
    twin = reference.double(policy.model)
    away = baseline_of(twin, baseline)
    for side, (ids, mask) in zip(("chosen", "rejected"), reference.sides(pair), strict=True):
        values, change = reference.prompt_path_integral(twin, ids, mask, 5, away, 80)
        np.testing.assert_allclose(result.values[side], values, atol=3e-3 * np.abs(values).max())
        assert result.differences[side] == pytest.approx(change, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_attributions_sum_to_the_change(shape):
    """Completeness, for every pair that has a prompt; the gap is what is missing from it."""
    policy = shapes.policy(shape)
    for pair in shapes.ragged_pairs():
        result = tk.prompt_attributions(policy, pair, steps=64)
        for target in TARGETS:
            left_over = result.values[target].sum() - result.differences[target]
            assert result.gaps[target] == pytest.approx(left_over, abs=1e-12)
            size = np.abs(result.values[target]).sum() + 0.1
            assert abs(result.gaps[target]) < 2e-3 * size, (pair.id, target)


@pytest.mark.parametrize("shape", SHAPES)
def test_more_steps_leave_a_smaller_gap(shape):
    """A parameter that nothing reads leaves it as it was."""
    policy, pair = shapes.policy(shape), shapes.ragged_pairs()[1]
    gaps = [
        max(abs(g) for g in tk.prompt_attributions(policy, pair, steps=s).gaps.values())
        for s in (4, 16, 64)
    ]
    assert gaps[1] < gaps[0] / 10 and gaps[2] < gaps[1] / 100 + 1e-7


def test_a_path_through_a_jump_reports_its_gap():
    """RMSNorm jumps at zero: the gap must say so, rather than the values being made to fit."""
    pair = shapes.ragged_pairs()[1]
    result = tk.prompt_attributions(shapes.policy("llama"), pair, baseline="zero")
    assert max(map(abs, result.gaps.values())) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_the_margin_is_chosen_minus_rejected(method):
    result = tk.prompt_attributions(
        shapes.policy("llama"), shapes.ragged_pairs()[0], method=method, steps=8
    )
    frame = result.to_frame()
    np.testing.assert_array_equal(frame["margin"], frame["chosen"] - frame["rejected"])
    difference = result.differences["chosen"] - result.differences["rejected"]
    assert result.differences["margin"] == pytest.approx(difference, abs=1e-12)
    assert result.gaps["margin"] == pytest.approx(
        result.gaps["chosen"] - result.gaps["rejected"], abs=1e-12
    )


@pytest.mark.parametrize("target", ["chosen", "rejected"])
def test_one_target_gives_what_the_margin_gives_for_it(target):
    """Asking for the rejected side must not return the chosen one's values."""
    policy, pair = shapes.policy("gpt2"), shapes.ragged_pairs()[0]
    both = tk.prompt_attributions(policy, pair, steps=8)
    one = tk.prompt_attributions(policy, pair, steps=8, target=target)
    assert list(one.values) == list(one.gaps) == list(one.differences) == [target]
    np.testing.assert_array_equal(one.values[target], both.values[target])


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("shape", SHAPES)
def test_input_x_gradient_equals_the_manual_product(shape, baseline):
    """Gradient × (embedding − baseline): without the baseline the two methods would not compare."""
    policy, pair = shapes.policy(shape), shapes.ragged_pairs()[0]
    method = "input_x_gradient"
    result = tk.prompt_attributions(policy, pair, method=method, baseline=baseline)
    away = baseline_of(policy.model, baseline)
    for side, (ids, mask) in zip(("chosen", "rejected"), reference.sides(pair), strict=True):
        embedded = policy.model.get_input_embeddings()(ids).detach().requires_grad_()
        scores = policy.model.eval()(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)
        logp = sum(scores[t - 1, ids[t]] for t in range(len(ids)) if mask[t])
        gradient = torch.autograd.grad(logp, embedded)[0][:3]
        expected = (gradient * (embedded[:3] - away)).sum(-1).detach().numpy()
        np.testing.assert_allclose(result.values[side], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_differences_come_from_the_scored_log_probabilities(shape):
    """f(prompt) is the number that per_token_logps reports, not another forward pass."""
    policy, pair = shapes.policy(shape), shapes.ragged_pairs()[1]
    got = tk.prompt_attributions(policy, pair, method="input_x_gradient").differences
    before = tk.per_token_logps(policy, pair)[0]
    weight = policy.model.get_input_embeddings().weight.detach()
    with torch.no_grad():  # token 0 also ends both completions, but nothing after it is scored
        policy.model.set_input_embeddings(torch.nn.Embedding.from_pretrained(weight.clone()))
        policy.model.get_input_embeddings().weight[[4, 0, 6, 1]] = weight.mean(0)
    after = tk.per_token_logps(policy, pair)[0]
    for side in ("chosen", "rejected"):
        change = float(getattr(before, side).sum() - getattr(after, side).sum())
        assert got[side] == pytest.approx(change, rel=1e-5, abs=1e-6)


def test_an_empty_effect_is_attributed_nothing():
    """A prompt token that the model cannot see gets zero: here all but the last one."""
    policy = shapes.policy("gpt2")
    with torch.no_grad():
        for block in policy.model.transformer.h:
            block.attn.c_proj.weight.zero_()
    pair = shapes.encoded("p", [5, 9, 3], [11, 7], [12, 7])
    values = tk.prompt_attributions(policy, pair).values["margin"]
    assert values[:2] == pytest.approx([0, 0], abs=1e-9) and abs(values[2]) > 1e-2


def test_the_shared_prompt_alone_is_attributed():
    """Where a boundary token differs, it belongs to neither prompt: it must not be mixed up."""
    pair = tk.EncodedPair(
        "p",
        torch.tensor([5, 9, 3, 7]),
        torch.tensor([False, False, False, True]),
        torch.tensor([5, 9, 4, 8, 7]),
        torch.tensor([False, False, False, True, True]),
        append_eos=False,
        boundary_merge=True,
    )
    result = tk.prompt_attributions(shapes.policy("gpt2"), pair, steps=4)
    assert result.tokens == ["<5>", "<9>"] and len(result.values["margin"]) == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_model_is_not_changed_and_nothing_is_warned_of(method, dtype):
    policy = shapes.policy("llama", dtype)
    policy.model.train()
    policy.model.lm_head.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        result = tk.prompt_attributions(policy, shapes.ragged_pairs()[0], method=method, steps=4)
    assert result.values["margin"].dtype == np.float64
    assert policy.model.training and not policy.model.lm_head.weight.requires_grad
    for name, p in policy.model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None


def test_a_bfloat16_policy_agrees_with_a_wider_one():
    """Points of the path rounded to bfloat16 are seen in the gap, not hidden."""
    pair = shapes.ragged_pairs()[0]
    wide = shapes.policy("llama", torch.bfloat16)
    wide.model.to(torch.float32)
    values = [
        tk.prompt_attributions(p, pair, target="chosen", steps=32).values["chosen"]
        for p in (shapes.policy("llama", torch.bfloat16), wide)
    ]
    np.testing.assert_allclose(*values, atol=0.1 * np.abs(values[1]).max())


def test_the_frame_has_its_columns_labels_and_gaps():
    pair = shapes.ragged_pairs()[0]
    result = tk.prompt_attributions(shapes.policy("gpt2"), pair, steps=4, baseline="zero")
    frame = result.to_frame()
    assert {"pair_id", "position", "token", *TARGETS} <= set(frame.columns) and len(frame) == 3
    assert frame["token"].tolist() == ["<5>", "<9>", "<3>"]
    assert frame["position"].tolist() == [0, 1, 2] and set(frame["pair_id"]) == {"suffix"}
    assert frame.attrs["model"] == "gpt2" and frame.attrs["baseline"] == "zero"
    assert frame.attrs["method"] == "integrated_gradients"
    assert frame.attrs["margin_gap"] == result.gaps["margin"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "saliency"}, "method='saliency' is unknown; allowed: integrated_gradients"),
        ({"target": "both"}, "target='both' is unknown; allowed: chosen, rejected, margin"),
        ({"baseline": "noise"}, "baseline='noise' is unknown; allowed: mean, zero"),
        ({"baseline": None}, "baseline=None is unknown"),
        ({"steps": 0}, "steps must be a positive integer, received 0"),
        ({"steps": 2.0}, "steps must be a positive integer, received 2.0"),
        ({"steps": True}, "steps must be a positive integer, received True"),
    ],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tk.prompt_attributions(shapes.policy("gpt2"), shapes.ragged_pairs()[0], **options)


def test_an_empty_prompt_is_refused_by_name():
    """Nothing to attribute to, in one way or the other."""
    policy = shapes.policy("gpt2")
    with pytest.raises(tk.PairError, match="empty-prompt"):
        tk.prompt_attributions(policy, shapes.encoded("empty-prompt", [], [1, 2], [3, 4]))
    parted = tk.EncodedPair(
        "parted",
        torch.tensor([5, 7]),
        torch.tensor([False, True]),
        torch.tensor([6, 7]),
        torch.tensor([False, True]),
        append_eos=False,
        boundary_merge=True,
    )
    with pytest.raises(tk.PairError, match=r"parted.*no prompt token"):
        tk.prompt_attributions(policy, parted)


def test_a_model_without_input_embeddings_is_refused():
    policy = shapes.policy("gpt2")
    own = policy.model.forward
    policy.model.forward = lambda input_ids, use_cache=None: own(input_ids)
    with pytest.raises(ValueError, match="GPT2LMHeadModel takes no input embeddings"):
        tk.prompt_attributions(policy, shapes.ragged_pairs()[0])
