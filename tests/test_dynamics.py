"""Predicted steps against hand-written optimisers in float64, and training that can be stopped."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import shapes
import torch
from hand_steps import (
    BETA,
    DECAY,
    RATES,
    Hand,
    gradients,
    live_optimizer,
    logps,
    oracle_losses,
    values,
    weights_hash,
)

import toolkit as tk
from toolkit.dynamics import (
    FORCES,
    TrainingRun,
    Trajectory,
    _optimizers,
    _trajectory_files,
    predict_step,
    responses,
    train,
)
from toolkit.entanglements import REGIMES, regimes

SHAPES = list(shapes.CONFIGS)
SIDES = ("chosen", "rejected")
PARTS = list(FORCES)


def close(shape):
    """Llama-like norms compute in float32 whatever the weights' dtype."""
    return 1e-7 if shape == "gpt2" else 1e-4


def second_step(shape, name):
    """One real step with a live optimiser, then all that is to be predicted of the second."""
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs()[:3]
    lr = RATES.get(name, 1e-4)
    twin = reference.double(policy.model)
    live = live_optimizer(name, list(policy.model.parameters()), lr)
    hands = {n: Hand(name, lr, DECAY) for n, _ in twin.named_parameters()}
    for step in range(2):
        refs = values(twin, pairs)
        losses = oracle_losses(twin, pairs, refs)
        grads = gradients(sum(losses) / len(pairs), twin)
        theta = {n: p.detach().clone() for n, p in twin.named_parameters()}
        move = {n: hands[n].step(theta[n], grads[n]) for n in theta}
        if step == 0:
            for n, p in policy.model.named_parameters():
                p.grad = grads[n].clone()
            live.step()
            live.zero_grad()
            with torch.no_grad():
                for p, mine in zip(twin.parameters(), policy.model.parameters(), strict=True):
                    p.copy_(mine)
    return policy, pairs, twin, live, move


@pytest.mark.parametrize("name", _optimizers.NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_prediction_equals_the_oracle(shape, name):
    """A second step, with state from the first, of every optimiser by its own formula."""
    policy, pairs, twin, live, move = second_step(shape, name)
    frame = predict_step(policy, pairs, optimizer=live, beta=BETA)
    before = np.ravel(values(twin, pairs))
    expected = []
    for pair in pairs:
        for logp in logps(twin, pair):
            own = gradients(logp, twin)
            expected.append(sum(float((own[n] * move[n]).sum()) for n in move))
    with torch.no_grad():
        for n, p in twin.named_parameters():
            p.add_(move[n])
    actual = np.ravel(values(twin, pairs)) - before
    size = np.abs(expected).max()
    np.testing.assert_allclose(frame["logps"], before, rtol=1e-6)
    np.testing.assert_allclose(frame["predicted_delta"], expected, atol=close(shape) * size, rtol=0)
    np.testing.assert_allclose(frame["actual_delta"], actual, atol=close(shape) * size, rtol=0)
    slack = {"atol": close(shape) * size, "rtol": 0}
    np.testing.assert_allclose(frame[PARTS].sum(axis=1), frame["predicted_delta"], **slack)
    np.testing.assert_allclose(
        frame[[*PARTS, "residual"]].sum(axis=1), frame["actual_delta"], rtol=0, atol=1e-12
    )
    assert frame.attrs["split"] == "linear"
    assert (frame["decay"].abs() > 0).all()
    has_momentum = name in ("momentum", "adam", "adamw", "adamp")
    assert (frame["earlier_unsplit"] != 0).all() == has_momentum
    assert not frame[["earlier_chosen", "earlier_rejected"]].any(axis=None)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {"momentum": 0.8, "dampening": 0.3}),
        ("SGD", {"momentum": 0.8, "nesterov": True}),
        ("Adam", {"amsgrad": True}),
        ("RMSprop", {"centered": True, "momentum": 0.5}),
        ("AdamP", {"delta": 50.0, "nesterov": True}),
        ("SGDP", {"delta": 50.0, "momentum": 0.7, "dampening": 0.1}),
        ("Adagrad", {}),
    ],
)
def test_parts_sum_to_the_prediction_whatever_the_options(name, options):
    """The second step of a live optimiser; delta=50 makes AdamP and SGDP project everything."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    package = torch.optim
    if name in ("AdamP", "SGDP"):
        package = pytest.importorskip("pytorch_optimizer")
    kind = getattr(package, name)
    live = kind(policy.model.parameters(), lr=1e-3, weight_decay=DECAY, **options)
    train(policy, pairs, optimizer=live, steps=1, in_place=True, progress=False)
    frame = predict_step(policy, pairs, optimizer=live)
    assert frame["predicted_delta"].notna().all()
    if name == "Adagrad":
        assert frame[PARTS].isna().all(axis=None) and "unknown" in frame.attrs["split"]
        left = frame["actual_delta"] - frame["predicted_delta"]
        pd.testing.assert_series_equal(frame["residual"], left, check_names=False)
        return
    total, expected = frame[PARTS].sum(axis=1), frame["predicted_delta"]
    np.testing.assert_allclose(total, expected, atol=1e-9 * abs(expected).max(), rtol=0)
    assert (frame["projection"] != 0).all() == ("delta" in options)
    assert (frame["earlier_unsplit"] != 0).all()


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_own_part_is_that_of_the_own_gradient(name):
    """Own forces by materialised gradients: a pair's share under the P of the whole batch."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:3]
    frame = predict_step(policy, pairs, optimizer=name, lr=1e-4, beta=BETA)
    twin = reference.double(policy.model)
    losses = oracle_losses(twin, pairs, values(twin, pairs))
    total = gradients(sum(losses) / 3, twin)
    eps, rate = 1e-8, 1e-4
    scales = {"sgd": lambda g: rate, "adam": lambda g: rate / (g.abs() + eps)}
    scales["rmsprop"] = lambda g: rate / (0.1 * g.abs() + eps)
    for i, pair in enumerate(pairs):
        pull = gradients(oracle_losses(twin, [pair], values(twin, [pair]))[0] / 3, twin)
        for side, logp in enumerate(logps(twin, pair)):
            own = gradients(logp, twin)
            expected = -sum(float((own[n] * scales[name](total[n]) * pull[n]).sum()) for n in total)
            row = frame.iloc[2 * i + side]
            assert row["own_chosen"] + row["own_rejected"] == pytest.approx(expected, rel=1e-6)


def test_halving_the_rate_quarters_the_residual():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:3]
    size = [
        np.abs(predict_step(policy, pairs, lr=lr)["residual"].to_numpy()) for lr in (1e-4, 5e-5)
    ]
    np.testing.assert_allclose(size[0] / size[1], 4, rtol=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_minibatch_prediction_is_the_kernel_times_the_weights(shape):
    """A.5: (η/B)·K·s with s = (d_chosen, −d_rejected)."""
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs()
    frame = predict_step(policy, pairs, loss="cpo", lr=0.01)
    kernel = tk.gram(policy, pairs, progress=False).matrix
    weights = tk.loss_weights(tk.pair_stats(policy, pairs, progress=False), "cpo")
    s = np.stack([weights.d_chosen, -weights.d_rejected], 1).ravel()
    expected = 0.01 / len(pairs) * kernel @ s
    slack = close(shape) * np.abs(expected).max()
    np.testing.assert_allclose(frame["predicted_delta"], expected, atol=slack, rtol=0)


def test_identities_of_a_single_pair():
    """Identity 1 for gradient descent, and its sign-step form (T7)."""
    policy, pair = shapes.policy("gpt2"), shapes.ragged_pairs()[0]
    stats = tk.pair_stats(policy, pair, progress=False)
    weights = tk.loss_weights(stats, "rpo")
    up, down = weights.d_chosen[0], weights.d_rejected[0]
    square = up**2 * stats.chosen_sq_norm - 2 * up * down * stats.inner
    square = float((square + down**2 * stats.rejected_sq_norm)[0])
    frame = predict_step(policy, pair, loss="rpo", lr=0.01)
    chosen, rejected = frame["predicted_delta"]
    assert up * chosen - down * rejected == pytest.approx(0.01 * square, rel=1e-9)
    assert frame[["others_chosen", "others_rejected"]].abs().max(axis=None) < 1e-12
    one = tk.entanglement(stats, "rpo", lr=0.01).predicted_chosen_delta[0]
    own = frame["own_chosen"] + frame["own_rejected"]
    assert own[0] == pytest.approx(one, rel=1e-9)

    twin = reference.double(policy.model)
    own = [gradients(logp, twin) for logp in logps(twin, pair)]
    norm = sum(float((up * own[0][n] - down * own[1][n]).abs().sum()) for n in own[0])
    chosen, rejected = predict_step(policy, pair, loss="rpo", optimizer="sign", lr=1e-3)[
        "predicted_delta"
    ]
    assert up * chosen - down * rejected == pytest.approx(1e-3 * norm, rel=1e-9)


@pytest.mark.parametrize(("name", "times"), [("rmsprop", 10), ("adam", 1)])
def test_first_adaptive_step_is_a_sign_step(name, times):
    """RMSprop without bias correction takes −10·lr·sign(g); Adam −lr·sign(g)."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    first = predict_step(policy, pairs, optimizer=name, lr=1e-5)["predicted_delta"]
    sign = predict_step(policy, pairs, optimizer="sign", lr=1e-5 * times)["predicted_delta"]
    np.testing.assert_allclose(first, sign, rtol=1e-3)


def test_small_adamw_steps_are_predicted_on_the_shipped_model():
    policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=6)
    frame = predict_step(policy, pairs[:4], optimizer="adamw", lr=1e-6, probes=pairs)
    actual = frame["actual_delta"]
    assert 1 - (frame["residual"] ** 2).sum() / ((actual - actual.mean()) ** 2).sum() > 0.99
    assert list(frame["in_batch"]) == [True] * 8 + [False] * 4
    own = frame[["own_chosen", "own_rejected"]]
    assert (own[8:] == 0).all(axis=None) and (own[:8] != 0).all(axis=None)


@pytest.mark.parametrize("name", ["momentum", "adamw", "adamp"])
def test_a_live_optimizer_and_its_model_stay_as_they_are(name):
    policy, pairs = shapes.policy("llama", torch.float32), shapes.ragged_pairs()[:2]
    policy.model.train()
    live = live_optimizer(name, list(policy.model.parameters()), 1e-3)
    for p in policy.model.parameters():
        p.grad = torch.ones_like(p)
    live.step()
    state = json.dumps(live.state_dict(), default=lambda x: x.tolist())
    model = weights_hash(policy.model)
    random = torch.get_rng_state()
    predict_step(policy, pairs, optimizer=live)
    train(policy, pairs, optimizer=live, lr=1e-3, steps=2, progress=False)
    assert json.dumps(live.state_dict(), default=lambda x: x.tolist()) == state
    assert weights_hash(policy.model) == model
    assert all((p.grad == 1).all() for p in policy.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_saved_state_gives_the_momentum_of_a_named_optimizer():
    policy, pairs, _, live, _ = second_step("gpt2", "adam")
    options = {"lr": 1e-4, "weight_decay": DECAY}
    one = predict_step(policy, pairs, optimizer=live)
    other = predict_step(policy, pairs, optimizer="adam", state=live.state_dict(), **options)
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_clipping_scales_the_gradient_alone():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    free = predict_step(policy, pairs, lr=1e-3)
    clipped = predict_step(policy, pairs, lr=1e-3, max_grad_norm=0.5 * free.attrs["grad_norm"])
    assert clipped.attrs["clip_factor"] == pytest.approx(0.5, rel=1e-5)
    for column in ("predicted_delta", *PARTS[:4]):
        np.testing.assert_allclose(clipped[column], free[column] * 0.5, rtol=1e-5)


def test_how_it_is_cut_into_passes_changes_nothing(monkeypatch):
    """Also not for a loss that looks at the whole minibatch."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()

    def centred(chosen_logps, rejected_logps):
        margin = chosen_logps - rejected_logps
        return (margin - margin.mean().detach()) ** 2

    whole = predict_step(policy, pairs, loss=centred, optimizer="adam", lr=1e-4)
    monkeypatch.setattr(responses, "CELLS", 1)
    parts = predict_step(policy, pairs, loss=centred, optimizer="adam", lr=1e-4)
    for column in ("predicted_delta", "actual_delta", *PARTS[:4]):
        np.testing.assert_allclose(whole[column], parts[column], rtol=1e-7)


def test_training_equals_a_loop_written_by_hand():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:3]
    options = {"lr": 1e-3, "weight_decay": DECAY}
    trajectory = train(
        policy, pairs, steps=4, batch_size=2, seed=5, max_grad_norm=0.5, beta=BETA, **options
    )
    twin = reference.double(policy.model)
    refs, losses, norms = values(twin, pairs), [], []
    optimizer = torch.optim.AdamW(twin.parameters(), **options)
    generator, order = torch.Generator().manual_seed(5), []
    for _ in range(2):
        drawn = torch.randperm(3, generator=generator).tolist()
        order += [drawn[:2], drawn[2:]]
    for at in order:
        optimizer.zero_grad()
        batch = [pairs[i] for i in at]
        loss = sum(oracle_losses(twin, batch, [refs[i] for i in at])) / len(at)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)))
        optimizer.step()
        losses.append(float(loss.detach()))
    steps, end = trajectory.steps_frame(), trajectory.to_frame().query("step == 4")
    assert list(steps["batch_ids"]) == [[pairs[i].id for i in at] for at in order]
    np.testing.assert_allclose(steps["loss"], losses, rtol=1e-9)
    np.testing.assert_allclose(steps["grad_norm"], norms, rtol=1e-7)
    np.testing.assert_allclose(end["logps"], np.ravel(values(twin, pairs)), rtol=1e-8)
    for name, p in trajectory.policy_at(4).model.named_parameters():
        torch.testing.assert_close(p, dict(twin.named_parameters())[name], rtol=1e-6, atol=1e-9)


def test_trajectory_holds_what_was_measured():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    options = {"lr": 1e-5, "steps": 3, "batch_size": 2, "beta": BETA, "progress": False}
    trajectory = train(policy, pairs[:4], probes=pairs[2:], checkpoint_every=2, **options)
    frame, steps = trajectory.to_frame(), trajectory.steps_frame()
    assert len(frame) == 4 * 3 * 2 and len(steps) == len(trajectory) == 3
    assert trajectory.r_squared() > 0.999 and (steps["r_squared"] > 0.99).all()
    assert set(frame["regime"].dropna()) <= set(REGIMES)
    assert frame.attrs["loss_name"] == "dpo" and frame.attrs["beta"] == BETA
    assert sorted(trajectory.checkpoints) == [0, 2, 3]
    last = frame[frame["step"] == 3].reset_index(drop=True)
    model = trajectory.policy_at(3)
    twin, ref = reference.double(model.model), reference.double(policy.model)
    for i, pair in enumerate(pairs[2:]):
        kl = []
        for side, (ids, mask) in enumerate(reference.sides(pair)):
            row = last.iloc[2 * i + side]
            own, base = (m(ids[None]).logits[0].log_softmax(-1).detach() for m in (twin, ref))
            kl += [float((own[t - 1].exp() * (own - base)[t - 1]).sum())
                   for t in range(len(ids)) if mask[t]]  # fmt: skip
            ratio = float((logps(twin, pair)[side] - logps(ref, pair)[side]).detach())
            assert row["reward"] == pytest.approx(BETA * ratio, rel=1e-6, abs=1e-12)
        assert row["kl"] == pytest.approx(np.mean(kl), rel=1e-6, abs=1e-15)
        margin = last["reward"][2 * i] - last["reward"][2 * i + 1]
        assert row["margin"] == pytest.approx(margin)
        assert row["loss"] == pytest.approx(np.log1p(np.exp(-margin)))
    scored = tk.per_token_logps(model, pairs[2:])
    again = torch.cat([x for pair in scored for x in (pair.ref_chosen, pair.ref_rejected)])
    np.testing.assert_allclose(again, trajectory.ref_logps, rtol=1e-9)
    tokens = trajectory.tokens(2).groupby(["pair_id", "side"], sort=False).sum(numeric_only=True)
    second = frame[frame["step"] == 2]
    for column in ("predicted_delta", "actual_delta"):
        np.testing.assert_allclose(tokens[column], second[column], rtol=1e-9)
    inside = frame[(frame["step"] > 0) & frame["in_batch"]].groupby("step")["pair_id"].unique()
    for step, ids in inside.items():
        assert set(ids) == set(steps["batch_ids"][step - 1]) & {p.id for p in pairs[2:]}
    total = frame.groupby(["pair_id", "side"])["predicted_delta"].sum()
    start = frame[frame["step"] == 0].set_index(["pair_id", "side"])["logps"]
    end = last.set_index(["pair_id", "side"])["predicted_logps"]
    np.testing.assert_allclose((start + total).loc[end.index], end, rtol=1e-12)


def test_regimes_follow_the_signs():
    chosen, rejected = np.array([1, -1, 1, -1, 0, np.nan]), np.array([-1, -1, 1, 1, 0, 1])
    assert list(regimes(chosen, rejected)) == [*REGIMES, None]


def test_stopping_keeps_everything_and_going_on_changes_nothing(monkeypatch):
    """An interrupt in the middle of a step, after the weights moved: no half step is left."""
    policy, pairs = shapes.policy("qwen2", torch.float32), shapes.ragged_pairs()
    options = {"lr": 1e-3, "steps": 5, "batch_size": 2, "seed": 3}
    before = weights_hash(policy.model)
    whole = train(policy, pairs, progress=False, **options)
    real, calls = responses.directional, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) in (3, 8):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(responses, "directional", interrupted)
    run = TrainingRun(policy, pairs, **options)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    part = run.trajectory
    assert len(part) == 2 and np.array_equal(part.logps, whole.logps[:3])
    probe = tk.per_token_logps(part.policy_at(2), pairs[:1])[0].chosen
    np.testing.assert_allclose(probe, part.logps[2][: len(probe)], rtol=1e-5)
    assert [record.step for record in run] == [3, 4, 5]
    resumed = run.trajectory
    for name in ("logps", "predicted", "kl", "losses", "in_batch"):
        assert np.array_equal(getattr(resumed, name), getattr(whole, name)), name
    for name, weights in whole.checkpoints[5].items():
        assert torch.equal(weights, resumed.checkpoints[5][name])
    stopped = train(policy, pairs, progress=False, **options)
    assert stopped.stopped and len(stopped) == 1 and not whole.stopped
    assert weights_hash(policy.model) == before
    run.reset()
    assert len(run.trajectory) == 0
    list(run)
    assert np.array_equal(run.trajectory.logps, whole.logps)


def test_in_place_trains_the_policy_itself_against_its_start():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    other = copy.deepcopy(policy.model)
    options = {"lr": 1e-3, "steps": 2, "progress": False}
    apart = train(policy, pairs, **options)
    assert all(torch.equal(a, b) for a, b in zip(
        policy.model.parameters(), other.parameters(), strict=True))  # fmt: skip
    within = train(policy, pairs, in_place=True, predict=False, **options)
    assert np.array_equal(apart.logps, within.logps) and np.isnan(within.predicted).all()
    assert not torch.equal(next(policy.model.parameters()), next(other.parameters()))
    assert all(p.grad is None for p in policy.model.parameters())


def test_lora_trains_its_two_matrices_alone():
    pytest.importorskip("peft")
    policy, pairs = shapes.policy("llama"), shapes.ragged_pairs()[:2]
    before, random = weights_hash(policy.model), torch.get_rng_state()
    lora = {"r": 2, "alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    trajectory = train(policy, pairs, lr=1e-2, steps=3, lora=lora, progress=False)
    assert weights_hash(policy.model) == before
    assert torch.equal(torch.get_rng_state(), random)
    kept = trajectory.checkpoints[3]
    assert kept and all("lora_A" in name or "lora_B" in name for name in kept)
    frame = trajectory.to_frame()
    # Two passes over float64 weights: an adapter that adds nothing still changes the roundings.
    assert (frame.query("step == 0")["reward"].abs() < 1e-12).all()
    assert frame.attrs["ref"] == "base model, adapter off"
    assert trajectory.steps_frame()["loss"].iloc[-1] < trajectory.steps_frame()["loss"].iloc[0]
    trained = dict(trajectory.policy_at(3).model.named_parameters())
    for name, p in policy.model.named_parameters():
        twin = [q for n, q in trained.items() if n.replace(".base_layer", "").endswith(name)]
        assert torch.equal(twin[0], p)


def test_save_and_load_give_the_same_back(tmp_path):
    policy, pairs = shapes.policy("gpt2", torch.float32), shapes.ragged_pairs()[:3]
    trajectory = train(policy, pairs, lr=1e-4, steps=2, batch_size=2, progress=False)
    folder = trajectory.save(tmp_path / "deep" / "run")
    trajectory.save(folder)  # again: replaced as a whole
    assert [p.name for p in folder.parent.iterdir()] == ["run"]
    loaded = Trajectory.load(folder)
    pd.testing.assert_frame_equal(loaded.to_frame(), trajectory.to_frame())
    pd.testing.assert_frame_equal(loaded.steps_frame(), trajectory.steps_frame())
    pd.testing.assert_frame_equal(loaded.tokens(1), trajectory.tokens(1))
    assert loaded.to_frame().attrs == json.loads(json.dumps(trajectory.to_frame().attrs))
    again = dict(loaded.policy_at(2, policy).model.named_parameters())
    for name, p in trajectory.policy_at(2).model.named_parameters():
        assert torch.equal(again[name], p)
    with pytest.raises(ValueError, match="policy must be given"):
        loaded.policy_at(2)


def test_saving_again_removes_only_what_was_written_there(tmp_path):
    """Weights of other steps go; a file of the user's is neither removed nor moved."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:1]
    options = {"lr": 1e-4, "progress": False}
    long = train(policy, pairs, steps=2, checkpoint_every=1, **options)
    short = train(policy, pairs, steps=1, **options)
    folder = long.save(tmp_path / "run")
    assert (folder / "weights_000002.safetensors").is_file()
    short.save(folder)
    assert not (folder / "weights_000002.safetensors").exists()
    for name in ("notes.txt", "weights_000002.safetensors", ".hidden"):
        (folder / name).write_text("mine")
        content = {p.name: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises(ValueError, match=f"holds something else, '{name}': give a new"):
            long.save(folder)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == content
        assert list(tmp_path.iterdir()) == [folder]
        (folder / name).unlink()
    assert len(Trajectory.load(long.save(folder))) == 2


@pytest.mark.parametrize("moment", ["check", "swap"])
def test_what_comes_while_saving_is_not_lost(tmp_path, monkeypatch, moment):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:1]
    trajectory = train(policy, pairs, lr=1e-4, steps=1, progress=False)
    folder = trajectory.save(tmp_path / "run")
    real, write = os.replace, _trajectory_files._write

    def late(trajectory, whole):
        write(trajectory, whole)
        (folder / "notes.txt").write_text("mine")

    def fails(source, target):
        return 1 / 0 if Path(source).name == "new" else real(source, target)

    if moment == "check":
        monkeypatch.setattr(_trajectory_files, "_write", late)
    else:
        monkeypatch.setattr(os, "replace", fails)
    with pytest.raises((ValueError, ZeroDivisionError)):
        trajectory.save(folder)
    assert len(Trajectory.load(folder)) == 1 and list(tmp_path.iterdir()) == [folder]
    assert moment == "swap" or (folder / "notes.txt").read_text() == "mine"


def test_a_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:1]
    trajectory = train(policy, pairs, lr=1e-4, steps=1, progress=False)
    folder = trajectory.save(tmp_path / "run")
    content = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr(pd.DataFrame, "to_parquet", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trajectory.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == content
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(ValueError, match="something else"):
        trajectory.save(tmp_path)
    with pytest.raises(ValueError, match="holds no trajectory"):
        Trajectory.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adagrad"}, "optimizer='adagrad' is unknown; allowed: sgd"),
        ({"lr": 0}, "lr must be a positive number"),
        ({"lr": float("nan")}, "lr must be a positive number"),
        ({"lr": None}, "lr must be given"),
        ({"weight_decay": -1}, "weight_decay must be"),
        ({"max_grad_norm": 0}, "max_grad_norm must be"),
        ({"optimizer_options": {"beta": 1}}, "optimizer_options of sgd"),
        ({"loss": "nothing"}, "loss='nothing' is unknown"),
        ({"gamma": 1}, "no hyper-parameter 'gamma'"),
        ({"params": "nothing"}, "matches no parameter"),
        ({"state": {"state": {}}}, "state is no state_dict"),
    ],
)
def test_errors_name_the_parameter(options, words):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:1]
    with pytest.raises(ValueError, match=words):
        predict_step(policy, pairs, **{"lr": 1e-3, **options})
    if "state" not in options:
        with pytest.raises(ValueError, match=words):
            settings = {"lr": 1e-3, "steps": 1, "optimizer": "sgd", **options}
            train(policy, pairs, progress=False, **settings)


def test_training_refuses_what_cannot_be_done():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    options = {"lr": 1e-3, "steps": 2, "progress": False}
    for name, value in {"steps": 0, "batch_size": 0, "checkpoint_every": 1.5}.items():
        with pytest.raises(ValueError, match=name):
            train(policy, pairs, **{**options, name: value})
    with pytest.raises(ValueError, match="pairs is empty"):
        train(policy, [], **options)
    with pytest.raises(ValueError, match="pairs is empty"):
        predict_step(policy, [], lr=1e-3)
    stranger = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    with pytest.raises(ValueError, match="none of the policy's parameters"):
        predict_step(policy, pairs, optimizer=stranger)
    with pytest.raises(ValueError, match="lora has no option 'rank'"):
        train(policy, pairs, lora={"rank": 2}, **options)
    trajectory = train(policy, pairs, **{**options, "steps": 5})
    with pytest.raises(ValueError, match="nearest kept step is 5"):
        trajectory.policy_at(4)
    with pytest.raises(ValueError, match="step must be 0 to 5"):
        trajectory.tokens(6)


def test_a_loss_that_is_not_finite_names_its_pair():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:3]
    for loss in (lambda chosen_logps: torch.where(chosen_logps < -1e9, 0, chosen_logps).sqrt(),):
        with pytest.raises(ValueError, match=r"pair 0 \('suffix'\)"):
            predict_step(policy, pairs, loss=loss, lr=1e-3)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[40] = torch.nan
    with pytest.raises(ValueError, match="pair 'suffix' is not finite"):
        predict_step(policy, pairs, lr=1e-3)


def exploding(at, when):
    """A loss that is infinite from the minibatch of step ``at`` on, or for the probes after it."""
    batches = 0

    def loss(chosen_logps, rejected_logps):
        nonlocal batches
        kind = "probes" if len(chosen_logps) == 2 else "batch"
        batches += kind == "batch"
        value = -(chosen_logps - rejected_logps)
        return value * (torch.inf if kind == when and batches >= at else 1.0)

    return loss


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("when", ["batch", "probes"])
def test_a_run_that_diverges_keeps_what_was_measured(when, in_place, tmp_path):
    """The third step fails: before it was taken, or when what it led to is measured."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    options = {"lr": 1e-3, "batch_size": 1, "probes": pairs[:2], "progress": False}
    calm = train(policy, pairs, steps=2, loss=exploding(99, when), **options)
    with pytest.warns(RuntimeWarning, match=r"training diverged at step 3 with lr=0\.001"):
        found = train(policy, pairs, steps=6, loss=exploding(3, when), in_place=in_place, **options)
    np.testing.assert_array_equal(found.logps, calm.logps)
    np.testing.assert_array_equal(found.predicted, calm.predicted)
    assert found.stopped and len(found) == 2 and found.divergence.step == 3
    assert found.divergence.lr == 1e-3 and "at pair 0" in found.divergence.reason
    said = str(found.divergence)
    assert said in repr(found) and "the 2 steps before it are kept" in said
    assert said.endswith("such as lr=0.0001")
    assert found.to_frame().attrs["divergence"] == said and found.to_frame().attrs["stopped"]
    last = dict(found.policy_at(2).model.named_parameters())
    ends = dict(calm.policy_at(2).model.named_parameters())
    assert all(torch.equal(p, ends[name]) for name, p in last.items())
    if in_place:
        own = dict(policy.model.named_parameters())
        assert all(torch.equal(p, ends[name]) for name, p in own.items())
    loaded = Trajectory.load(found.save(tmp_path / "run"))
    assert loaded.divergence == found.divergence and calm.divergence is None
    assert "divergence" in calm.to_frame().attrs and calm.to_frame().attrs["divergence"] is None


def test_a_step_far_too_large_ends_the_run_for_real():
    policy, pairs = shapes.policy("gpt2", torch.float32), shapes.ragged_pairs()
    run = tk.TrainingRun(policy, pairs, steps=9, lr=1e30, optimizer="sgd")
    with pytest.warns(RuntimeWarning, match="diverged at step 1 "):
        assert list(run) == []
    assert list(run) == [] and len(run.trajectory.steps_frame()) == 0
    assert run.trajectory.divergence.step == 1 and np.isfinite(run.trajectory.logps).all()
    run.reset()
    assert run.divergence is None and not run.trajectory.stopped


def test_a_loss_that_is_not_finite_from_the_start_is_an_error():
    """Nothing was trained that could be kept, and no smaller step would help."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    for loss in (exploding(1, "batch"), exploding(0, "probes")):
        with pytest.raises(ValueError, match="at pair 0"):
            train(policy, pairs, steps=2, lr=1e-3, batch_size=1, probes=pairs[:2], loss=loss)


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pytorch_optimizer", None)
    with pytest.raises(ImportError, match=r'pip install "preference-.*\[optimizers\]"'):
        predict_step(shapes.policy("gpt2"), shapes.ragged_pairs()[:1], optimizer="adamp", lr=1e-3)


def test_train_shows_the_arguments_of_the_run():
    import inspect

    assert {*inspect.signature(TrainingRun).parameters, "progress"} == set(
        inspect.signature(train).parameters
    )
