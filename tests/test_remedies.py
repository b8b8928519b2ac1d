"""Update rules against whole gradient vectors in float64, and what they promise at first order."""

import numpy as np
import pytest
import reference
import shapes
import torch

import toolkit as tk
from toolkit.dynamics import FORCES
from toolkit.gradients import Preconditioner
from toolkit.losses import LossWeights
from toolkit.remedies import bound, check_update

RULES = list(tk.UPDATE_RULES)
IDEAL = ["normalised", "normalised_unweighted", "balanced", "project_both"]
BETA = 0.3
SGD = {"optimizer": "sgd", "lr": 1e-3, "beta": BETA}


def vectors(policy, pairs):
    """Both gradients of each pair as whole vectors, from one backward per token."""
    model = reference.double(policy.model)
    return [[g.sum(0) for g in reference.pair_token_gradients(model, pair)] for pair in pairs]


def mean_vectors(policy, pairs):
    """The mean gradient of the chosen responses, and that of the rejected ones."""
    return torch.stack([torch.stack(pair) for pair in vectors(policy, pairs)]).mean(0)


def moved(policy, pairs, **options):
    """What one real step of plain gradient descent moves, over its rate, as one vector."""
    options = {**SGD, "steps": 1, "batch_size": len(pairs), "progress": False, **options}
    before = torch.cat([p.detach().ravel().clone() for p in policy.model.parameters()])
    after = dict(policy.model.named_parameters())
    kept = tk.train(policy, pairs, **options).checkpoints[1]
    return (torch.cat([kept[name].ravel() for name in after]) - before) / options["lr"]


def first_order(weights, chosen_norm, rejected_norm, inner):
    """Change of both log-probabilities for a unit rate."""
    a, b = weights
    return a * chosen_norm**2 - b * inner, a * inner - b * rejected_norm**2


def random_cases(count=10_000, seed=0):
    """Loss weights, norms and inner products of random vectors, from nearly equal to opposed."""
    rng = np.random.default_rng(seed)
    chosen = rng.normal(size=(count, 7))
    mixed = rng.uniform(-1, 1, size=(count, 1)) ** 3
    rejected = mixed * chosen + (1 - abs(mixed)) * rng.normal(size=(count, 7))
    chosen, rejected = (v * 10.0 ** rng.uniform(-4, 4, (count, 1)) for v in (chosen, rejected))
    d = 10.0 ** rng.uniform(-3, 3, size=(2, count))
    norms = [np.linalg.norm(v, axis=1) for v in (chosen, rejected)]
    return *d, *norms, (chosen * rejected).sum(1)


@pytest.mark.parametrize("rule", IDEAL)
def test_ideal_at_first_order_on_ten_thousand_random_cases(rule):
    case = random_cases()
    up, down = first_order(tk.UpdateRule(rule).weights(*case), *case[2:])
    slack = 1e-12 * (case[0] * case[2] ** 2 + case[1] * case[3] ** 2)
    assert (up >= -slack).all() and (down <= slack).all()
    plain_up, plain_down = first_order(tk.UpdateRule("plain").weights(*case), *case[2:])
    assert ((plain_up < 0) | (plain_down > 0)).mean() > 0.1, "these cases need no remedy"


def test_normalised_steps_move_by_the_formula():
    d_chosen, d_rejected, chosen, rejected, inner = case = random_cases(100)
    up, down = first_order(tk.UpdateRule("normalised").weights(*case), *case[2:])
    size, cosine = (d_chosen + d_rejected) / 2, inner / chosen / rejected
    np.testing.assert_allclose(up, size * chosen * (1 - cosine), rtol=1e-9)
    np.testing.assert_allclose(down, -size * rejected * (1 - cosine), rtol=1e-9)


@pytest.mark.parametrize(
    ("shape", "rule"),
    [*((shape, "normalised") for shape in shapes.CONFIGS), *(("gpt2", rule) for rule in IDEAL[1:])],
)
def test_ideal_at_first_order_on_real_gradients(shape, rule):
    policy = shapes.policy(shape)
    for pair in shapes.ragged_pairs():
        frame = tk.predict_step(policy, [pair], update_rule=rule, loss="rpo", **SGD)
        chosen, rejected = frame["predicted_delta"]
        assert chosen > 0 > rejected, pair.id


@pytest.mark.parametrize("rule", RULES)
def test_a_step_equals_that_of_whole_gradients_pair_by_pair(rule):
    """The rescaled minibatch pass gives the step that per-pair gradients give."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    each = [reference.remedied(rule, *g, BETA / 2, BETA / 2) for g in vectors(policy, pairs)]
    got = moved(policy, pairs, update_rule=rule)
    torch.testing.assert_close(got, torch.stack(each).mean(0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_a_step_per_batch_equals_that_of_the_two_sums(rule):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    chosen, rejected = mean_vectors(policy, pairs)
    want = reference.remedied(rule, chosen, rejected, BETA / 2, BETA / 2)
    got = moved(policy, pairs, update_rule=tk.UpdateRule(rule, per="batch"))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_the_same_step_by_log_probabilities_rescaled_under_a_stop_gradient():
    """``a·logp + (1 − a)·sg(logp)`` keeps the loss, scales its gradient."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    chosen, rejected = mean_vectors(policy, pairs)
    a = (rejected.norm() / chosen.norm()).sqrt()
    losses, model = [], reference.double(policy.model)
    for pair in pairs:
        sums = [reference.token_logps(model, *side).sum() for side in reference.sides(pair)]
        refs = [x.detach() for x in sums]
        up, down = (f * x + (1 - f) * x.detach() for f, x in zip((a, 1 / a), sums, strict=True))
        margin = BETA * ((up - refs[0]) - (down - refs[1]))
        losses.append(-torch.nn.functional.logsigmoid(margin))
    grads = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
    got = moved(policy, pairs, update_rule=tk.UpdateRule("balanced", per="batch"))
    want = -torch.cat([g.ravel() for g in grads])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("per", ["pair", "batch"])
def test_norms_under_the_optimisers_own_metric(per):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:1]
    named = dict(policy.model.named_parameters())
    optimizer = torch.optim.RMSprop(named.values(), lr=0.0)
    rng = torch.Generator().manual_seed(1)
    for p in named.values():
        p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype) ** 3
    optimizer.step()
    p = Preconditioner.from_optimizer(optimizer, policy.model)
    diagonal = torch.cat([p.weights[name].ravel() for name in named])
    rule = tk.UpdateRule("normalised", per=per, metric="optimizer")
    one = np.ones(1)
    weights = LossWeights(loss_name="dpo", hparams={}, losses=one, d_chosen=one, d_rejected=one)
    at_work = bound(rule, policy, named, optimizer, named, pairs)
    found, _ = at_work(weights, weights, pairs, {})
    chosen, rejected = vectors(policy, pairs)[0]
    for got, g in ((found.d_chosen, chosen), (found.d_rejected, rejected)):
        np.testing.assert_allclose(got, 1 / float((g * g * diagonal).sum().sqrt()), rtol=1e-8)
    step = diagonal * (found.d_chosen[0] * chosen - found.d_rejected[0] * rejected)
    assert chosen @ step > 0 > rejected @ step


def test_a_rule_acts_before_the_optimiser_and_its_forces_sum_to_the_prediction():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    options = {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.1, "probes": pairs[:2]}
    run = tk.train(
        policy, pairs, steps=4, batch_size=2, update_rule="project_both", forces="by_pair",
        progress=False, **options,
    )  # fmt: skip
    assert run.settings["update_rule"] == "project_both"
    forces = run.forces()
    predicted = run.to_frame().query("step > 0")["predicted_delta"].to_numpy()
    np.testing.assert_allclose(forces[list(FORCES)].sum(axis=1), predicted, rtol=1e-6, atol=1e-9)
    assert (forces["own_chosen"][forces["in_batch"]].abs() > 0).any()
    by_pair = run.pulls().groupby(["step", "pair_id", "side"], sort=False)["batch_delta"].sum()
    of_batch = ["own_chosen", "own_rejected", "others_chosen", "others_rejected"]
    np.testing.assert_allclose(by_pair, forces[of_batch].sum(axis=1), rtol=1e-6, atol=1e-9)


def test_chosen_only_pulls_no_rejected_response():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    frame = tk.predict_step(policy, pairs, update_rule="chosen_only", **SGD)
    assert (frame[["own_rejected", "others_rejected"]] == 0).all(axis=None)


def test_a_vanishing_gradient_or_weight_pulls_nothing():
    zero, one = np.zeros(1), np.ones(1)
    for rule in RULES:
        chosen, rejected = tk.UpdateRule(rule).weights(one, one, zero, one, zero)
        assert np.isfinite([chosen, rejected]).all(), rule
    chosen, rejected = tk.UpdateRule("normalised").weights(one, zero, one, one, one / 2)
    assert chosen > 0 and rejected == 0


def test_a_function_of_ones_own_is_a_rule():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]

    def twice_the_chosen(d_chosen, d_rejected, chosen_norm, rejected_norm, inner):
        return 2 * d_chosen, d_rejected

    own = tk.predict_step(policy, pairs, update_rule=twice_the_chosen, **SGD)
    plain = tk.predict_step(policy, pairs, **SGD)
    assert own.attrs["update_rule"] == "twice_the_chosen"
    np.testing.assert_allclose(own["own_chosen"], 2 * plain["own_chosen"], rtol=1e-9)
    np.testing.assert_allclose(own["own_rejected"], plain["own_rejected"], rtol=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"update_rule": "normalized"}, "update_rule='normalized' is unknown; allowed: plain"),
        ({"update_rule": 3}, "update_rule=3 is unknown; allowed: plain"),
        ({"update_rule": lambda *numbers: numbers[:1]}, "must return two finite arrays of shape"),
        (
            {"update_rule": tk.UpdateRule("normalised", metric="optimizer"), "optimizer": "sign"},
            "needs an optimizer with a diagonal P of its own",
        ),
    ],
)
def test_errors_name_the_rule(options, words):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    with pytest.raises(ValueError, match=words):
        tk.predict_step(policy, pairs, **{**SGD, **options})
    with pytest.raises(ValueError, match=words):
        tk.train(policy, pairs, steps=1, progress=False, **{**SGD, **options})


@pytest.mark.parametrize("setting", [{"per": "token"}, {"metric": "adam"}])
def test_settings_of_a_rule_are_checked(setting):
    with pytest.raises(ValueError, match="allowed"):
        tk.UpdateRule("normalised", **setting)


def test_the_table_names_every_rule():
    table = tk.rule_table()
    assert list(table["rule"]) == RULES and (table[["formula", "source"]] != "").all(axis=None)
    assert check_update(None).name == "plain"
