"""Bounds on log-ratios: the signs of their multipliers, slackness, and what is refused."""

import numpy as np
import pytest
import shapes
import torch

import toolkit as tk
from toolkit.dynamics import TrainingRun, Trajectory

RUN = {"loss": "dpo", "beta": 0.3, "optimizer": "sgd", "batch_size": 5, "progress": False}
BOUNDS = ("chosen_floor", "rejected_ceiling", "rejected_floor")


def trained(update_rule=None, steps=30, lr=2e-3, **options):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    options = {**RUN, **options}
    if callable(options["loss"]):
        del options["beta"]
    return tk.train(policy, pairs, steps=steps, lr=lr, update_rule=update_rule, **options)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_broken_bound_raises_its_multiplier_and_room_lowers_it_to_zero(name):
    rule = tk.Constrained(**{name: 0.0}, rate=0.5)
    for gap, after in ((2.0, 2.0), (-1.0, 0.5), (-9.0, 0.0)):
        notes = {f"{name}_multiplier": 1.0, f"{name}_gap": gap}
        assert rule.multipliers(notes) == {name: after}
    assert rule.multipliers({}) == {name: 0.0}


@pytest.mark.parametrize(
    ("bound", "side", "sign"),
    [("chosen_floor", "chosen", 1), ("rejected_ceiling", "rejected", -1),
     ("rejected_floor", "rejected", 1)],
)  # fmt: skip
def test_a_multiplier_pulls_its_response_towards_the_bound(bound, side, sign):
    """The term λ·gap alone, by autograd on the log-probabilities."""
    logps = {
        name: torch.tensor([-3.0, -5.0], requires_grad=True) for name in ("chosen", "rejected")
    }
    fields = {f"{p}{s}_logps": x.detach().numpy() for p in ("", "ref_") for s, x in logps.items()}
    found = type("Scores", (), fields)
    zero = type("Weights", (), {"d_chosen": np.zeros(2), "d_rejected": np.zeros(2)})
    rule = tk.Constrained(**{bound: 0.0}, rate=1.0)
    notes = {f"{bound}_multiplier": 0.0, f"{bound}_gap": 0.7}
    chosen, rejected, _ = rule.pulls(zero, found, notes)
    gap = -sign * logps[side]  # of each pair; its mean over the minibatch is the gap
    (grad,) = torch.autograd.grad(0.7 * gap.sum(), logps[side])
    up = {"chosen": chosen, "rejected": -rejected}
    np.testing.assert_allclose(up[side], -grad.numpy(), rtol=1e-6)
    other = {"chosen": "rejected", "rejected": "chosen"}[side]
    assert (up[other] == 0).all()


def test_a_bound_that_never_binds_changes_nothing():
    plain, free = trained(), trained(tk.Constrained(chosen_floor=-100.0))
    assert np.array_equal(plain.logps, free.logps)
    assert (free.steps_frame()["chosen_floor_multiplier"] == 0).all()
    assert (free.steps_frame()["chosen_floor_gap"] < 0).all()


def sinking(chosen_logratio, *, target=-4.0):
    return (chosen_logratio - target) ** 2 / 2


def test_at_the_end_the_floor_holds_with_the_multiplier_of_the_optimum():
    """Minimum of (x − target)²/2 subject to x ≥ floor: λ = floor − target, and no gap is left."""
    options = {"loss": sinking, "steps": 120, "predict": False}
    run = trained(tk.Constrained(chosen_floor=-1.0, rate=0.1), **options).steps_frame()
    gap, multiplier = run["chosen_floor_gap"], run["chosen_floor_multiplier"]
    assert (multiplier >= 0).all() and gap.max() > 0.5, "the floor was never broken"
    assert abs(gap.iloc[-1]) < 0.05 and abs(multiplier.iloc[-1] - 3) < 0.1
    loose = trained(tk.Constrained(chosen_floor=-5.0, rate=0.1), **options).steps_frame()
    assert loose["chosen_floor_gap"].iloc[-1] < -0.9  # at the target, above this floor
    assert loose["chosen_floor_multiplier"].iloc[-1] == 0


def test_going_on_after_a_pause_and_saving_keep_the_multipliers(tmp_path):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    rule = tk.Constrained(chosen_floor=0.0, rejected_ceiling=0.0, rate=0.1)
    options = {k: v for k, v in RUN.items() if k != "progress"} | {"steps": 6, "lr": 2e-3}
    run = TrainingRun(policy, pairs, update_rule=rule, **{**options, "batch_size": 2})
    names = [f"{bound}_multiplier" for bound in ("chosen_floor", "rejected_ceiling")]
    whole = list(run) and run.trajectory.steps_frame()
    run.reset()
    next(run), next(run)
    list(run)
    assert whole[names].equals(run.trajectory.steps_frame()[names])
    assert (whole[names].iloc[0] == 0).all() and (whole[names] > 0).any(axis=None)
    run.trajectory.save(tmp_path / "run")
    kept = Trajectory.load(tmp_path / "run").steps_frame()
    assert kept[names].equals(whole[names])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "Constrained needs a bound: give chosen_floor"),
        ({"chosen_floor": float("nan")}, "chosen_floor must be a finite number"),
        ({"chosen_floor": -1.0, "rate": 0}, "rate must be a positive number"),
        ({"chosen_floor": -1.0, "rule": "normalized"}, "is unknown; allowed: plain"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        tk.Constrained(**settings)


def test_a_floor_above_the_start_is_refused_before_the_first_step():
    with pytest.raises(ValueError, match="chosen_floor=1 is above the start: the chosen"):
        trained(tk.Constrained(chosen_floor=1.0))
    other = shapes.policy("gpt2", ref_model=shapes.model("gpt2", seed=1))
    with pytest.raises(ValueError, match="rejected_ceiling=-500 is below the start"):
        tk.predict_step(
            other, shapes.ragged_pairs(), lr=1e-3,
            update_rule=tk.Constrained(rejected_ceiling=-500.0),
        )  # fmt: skip
