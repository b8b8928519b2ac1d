"""The forces of training steps against moments kept apart by hand, and what they leave alone."""

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
    forces,
    pulls,
    responses,
    train,
)

NAMED = list(FORCES)
KINDS = ("chosen", "rejected")


def loss_parts(model, pairs, refs, sides=(1.0, 1.0)):
    """The gradient of the mean DPO loss by its two kinds of terms, by parameter."""
    found = []
    for side, (sign, weight) in enumerate(zip((-1, 1), sides, strict=True)):
        total = 0.0
        for pair, (ref_chosen, ref_rejected) in zip(pairs, refs, strict=True):
            both = logps(model, pair)
            margin = (both[0] - ref_chosen) - (both[1] - ref_rejected)
            pull = BETA * torch.sigmoid(-BETA * margin.detach())
            total = total + sign * weight * pull * both[side] / len(pairs)
        found.append(gradients(total, model))
    return {n: {"chosen": found[0][n], "rejected": found[1][n]} for n in found[0]}


@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "adam", "adamw"])
def test_hand_kept_forces_sum_to_the_optimizers_own_steps(name):
    """The oracle of the forces: ten steps of torch's optimiser, split by what built its moments."""
    twin, pairs = reference.double(shapes.model("gpt2")), shapes.ragged_pairs()[:2]
    refs, lr = values(twin, pairs), RATES.get(name, 1e-3)
    optimizer = live_optimizer(name, list(twin.parameters()), lr)
    hands = {n: reference.SplitMoments(name, lr, DECAY) for n, _ in twin.named_parameters()}
    whole = gradients(sum(oracle_losses(twin, pairs, refs)) / len(pairs), twin)
    for n, part in loss_parts(twin, pairs, refs).items():
        torch.testing.assert_close(sum(part.values()), whole[n], rtol=1e-8, atol=1e-12)
    for step in range(10):
        parts = loss_parts(twin, pairs, refs)
        before = {n: p.detach().clone() for n, p in twin.named_parameters()}
        moves = {n: hands[n].step(before[n], parts[n]) for n in before}
        for n, p in twin.named_parameters():
            p.grad = sum(parts[n].values())
        optimizer.step()
        for n, p in twin.named_parameters():
            torch.testing.assert_close(sum(moves[n].values()), p - before[n], rtol=1e-8, atol=1e-12)
        earlier = sum(float(m["earlier_chosen"].abs().sum()) for m in moves.values())
        assert (earlier > 0) == (step > 0 and name not in ("sgd", "rmsprop"))


def test_hand_kept_forces_of_a_side_without_signal_are_zero():
    twin, pairs = reference.double(shapes.model("gpt2")), shapes.ragged_pairs()[:2]
    parts = [loss_parts(twin, pairs, values(twin, pairs), sides) for sides in ((1, 0), (0, 1))]
    silent = {"rejected": parts[0], "chosen": parts[1]}
    for side, given in silent.items():
        for name, p in twin.named_parameters():
            hand = reference.SplitMoments("adamw", 1e-3)
            moves = [hand.step(p.detach(), given[name]) for _ in range(3)]
            assert all(not m[side].any() and not m[f"earlier_{side}"].any() for m in moves)


def pair_terms(model, pair, ref, size):
    """The gradients of one pair's two terms of the mean DPO loss, by parameter."""
    both = logps(model, pair)
    margin = (both[0] - ref[0]) - (both[1] - ref[1])
    pull = float(BETA * torch.sigmoid(-BETA * margin.detach()) / size)
    return [gradients(sign * pull * x, model) for sign, x in zip((-1, 1), both, strict=True)]


def with_weights(model, weights):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])
    return model


def hand_kept(policy, pairs, probes, trajectory, name, lr):
    """The forces of every step by moments that are kept apart by pair and side, ``[T, 2P, 9]``.

    And by training pair, ``[T, 2P, N, 2]``: in the step of its minibatch, and through the momentum.
    """
    twin = reference.double(policy.model)
    refs = dict(zip([p.id for p in pairs], values(twin, pairs), strict=True))
    moments = {n: reference.SplitMoments(name, lr, DECAY) for n, _ in twin.named_parameters()}
    whole, found, pulls = {n: Hand(name, lr, DECAY) for n in moments}, [], []
    for record in trajectory.steps.itertuples():
        with_weights(twin, trajectory.checkpoints[record.step - 1])
        terms = {}
        for pair in pairs:
            inside = pair.id in record.batch_ids
            built = pair_terms(twin, pair, refs[pair.id], len(record.batch_ids))
            for side, grads in zip(KINDS, built, strict=True):
                factor = record.clip_factor if inside else 0.0
                terms[side, pair.id] = {n: factor * g for n, g in grads.items()}
        moves = {}
        for n, p in twin.named_parameters():
            parts = {key: grads[n] for key, grads in terms.items()}
            named = {"|".join(key): part for key, part in parts.items()}
            moves[n] = moments[n].step(p.detach(), named)
            rest = whole[n].step(p.detach(), sum(parts.values())) - sum(moves[n].values())
            moves[n]["rest"] = rest
        felt = [hand_forces(twin, probe, logp, moves, [p.id for p in pairs]) for probe in probes
                for logp in logps(twin, probe)]  # fmt: skip
        found.append([forces for forces, _ in felt])
        pulls.append([by_pair for _, by_pair in felt])
    return np.array(found), np.array(pulls)


def hand_forces(twin, probe, logp, moves, ids):
    own, row = gradients(logp, twin), dict.fromkeys([*FORCES, "rest"], 0.0)
    by_pair = np.zeros((len(ids), 2))
    for n, parts in moves.items():
        for key, move in parts.items():
            side, _, pair_id = key.partition("|")
            if pair_id:
                felt = float((own[n] * move).sum())
                by_pair[ids.index(pair_id), int(side.startswith("earlier"))] += felt
            if pair_id and not side.startswith("earlier"):
                side = ("own_" if pair_id == probe.id else "others_") + side
            row[side] += float((own[n] * move).sum())
    return list(row.values()), by_pair


@pytest.mark.parametrize("name", _optimizers.NAMES)
def test_forces_equal_hand_kept_moments(name):
    """Ten steps with batches of two and of one, decay and clipping; one probe is never trained."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    trained, probes, lr = pairs[:3], [pairs[0], pairs[2], pairs[4]], RATES.get(name, 1e-4)
    if name in ("adamp", "sgdp"):
        pytest.importorskip("pytorch_optimizer")
    found = train(
        policy,
        trained,
        probes=probes,
        optimizer=name,
        lr=lr,
        steps=10,
        batch_size=2,
        weight_decay=DECAY,
        max_grad_norm=0.5,
        checkpoint_every=1,
        forces="by_pair",
        progress=False,
        beta=BETA,
    )
    assert {len(ids) for ids in found.steps["batch_ids"]} == {1, 2}
    assert (found.steps["clip_factor"] < 1).any()
    expected, by_pair = hand_kept(policy, trained, probes, found, name, lr)
    frame = found.forces()
    size = np.abs(expected).max()
    order = [[p.id for p in trained].index(id) for id in found.train_ids]
    np.testing.assert_allclose(found.step_pulls, by_pair[:, :, order], rtol=0, atol=1e-7 * size)
    by_step = found.pulls().groupby(["step", "pair_id", "side"], sort=False)
    summed = by_step[["batch_delta", "earlier_delta", "delta"]].sum()
    for column, names in {
        "batch_delta": NAMED[:4],
        "earlier_delta": NAMED[4:6],
        "delta": NAMED[:6],
    }.items():
        parts = frame[names].sum(axis=1)
        np.testing.assert_allclose(summed[column], parts, rtol=0, atol=1e-9 * size)
    got = frame[NAMED].to_numpy().reshape(10, 6, -1)
    if name in ("adamp", "sgdp"):  # the rest: decay and projection, which hang together
        np.testing.assert_allclose(
            got[..., -2:].sum(-1), expected[..., -1], rtol=0, atol=1e-7 * size
        )
        expected[..., -3:-1] = got[..., -2:]
    else:
        np.testing.assert_allclose(expected[..., -1], 0, rtol=0, atol=1e-7 * size)
    np.testing.assert_allclose(got, expected[..., :-1], rtol=0, atol=1e-7 * size)
    np.testing.assert_allclose(
        got.sum(-1).ravel(),
        found.to_frame().query("step > 0")["predicted_delta"],
        rtol=0,
        atol=1e-9 * size,
    )
    np.testing.assert_allclose(
        frame[[*NAMED, "residual"]].sum(axis=1), frame["actual_delta"], rtol=0, atol=1e-12 * size
    )
    own, inside = frame[["own_chosen", "own_rejected"]], frame["in_batch"]
    assert (own[~inside] == 0).all(axis=None) and (own[inside] != 0).all(axis=None)
    momentum = name in ("momentum", "adam", "adamw", "adamp")
    later = frame[frame["step"] > 1]
    assert (later["earlier_chosen"] != 0).all() == (later["earlier_rejected"] != 0).all()
    assert (later["earlier_chosen"] != 0).all() == momentum
    assert (frame["earlier_unsplit"] == 0).all()


def lifted(chosen_logps):
    """A loss of the chosen response alone, as supervised fine-tuning has it."""
    return -chosen_logps


def lowered(rejected_logps):
    """A loss of the rejected response alone."""
    return rejected_logps


@pytest.mark.parametrize("name", ["momentum", "adamw", "sign"])
@pytest.mark.parametrize(("loss", "silent"), [(lifted, "rejected"), (lowered, "chosen")])
def test_a_side_without_a_learning_signal_has_no_force(name, loss, silent):
    policy, pairs = shapes.policy("qwen2", torch.float32), shapes.ragged_pairs()
    options = {"steps": 4, "batch_size": 2, "lr": 1e-3, "optimizer": name, "progress": False}
    frame = train(policy, pairs, loss=loss, forces=True, **options).forces()
    for column in FORCES[:6]:
        if column.endswith(silent):
            assert (frame[column] == 0).all(), column
    (other,) = {*KINDS} - {silent}
    alone = frame["in_batch"] & (frame["step"] == 3)  # the last of five pairs
    assert ((frame[f"others_{other}"] != 0) == ~alone).all()
    assert (frame[f"own_{other}"] != 0).equals(frame["in_batch"])


@pytest.mark.parametrize("cells", [responses.CELLS, 1])
@pytest.mark.parametrize("name", _optimizers.NAMES)
def test_forces_leave_the_training_as_it_is_bit_for_bit(monkeypatch, name, cells):
    """Also where the passes are made once more because their graphs do not fit together."""
    if name in ("adamp", "sgdp"):
        pytest.importorskip("pytorch_optimizer")
    monkeypatch.setattr(responses, "CELLS", cells)
    policy, pairs = shapes.policy("qwen2", torch.float32), shapes.ragged_pairs()
    before = weights_hash(policy.model)
    options = {"lr": 1e-3, "steps": 3, "batch_size": 2, "optimizer": name, "weight_decay": DECAY}
    options |= {"max_grad_norm": 0.5, "progress": False}
    bare, found = (train(policy, pairs, forces=flag, **options) for flag in (False, "by_pair"))
    for field in ("logps", "predicted", "kl", "losses", "in_batch"):
        assert np.array_equal(getattr(bare, field), getattr(found, field)), field
    for weights, same in zip(
        bare.checkpoints[3].values(), found.checkpoints[3].values(), strict=True
    ):
        assert torch.equal(weights, same)
    assert weights_hash(policy.model) == before
    assert bare.step_forces is None and np.isfinite(found.step_forces).all()


def test_forces_survive_a_stop_and_a_reset(monkeypatch):
    """An interrupt while forces are taken, after the weights and the moments went on."""
    policy, pairs = shapes.policy("gpt2", torch.float32), shapes.ragged_pairs()
    options = {"lr": 1e-3, "steps": 5, "batch_size": 2, "forces": "by_pair"}
    whole = train(policy, pairs, progress=False, **options)
    real, calls = forces._gradient, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) in (14, 33):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(forces, "_gradient", interrupted)
    run = TrainingRun(policy, pairs, **options)
    for done in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            list(run)
        part = run.trajectory
        assert np.array_equal(part.step_forces, whole.step_forces[:done])
        assert np.array_equal(part.step_pulls, whole.step_pulls[:done])
        assert len(part.forces()) == done * 10
    list(run)
    assert np.array_equal(run.trajectory.step_forces, whole.step_forces)
    run.reset()
    assert run.trajectory.step_forces.shape == (0, 10, len(FORCES))
    assert run.trajectory.forces().empty and run.trajectory.pulls().empty
    list(run)
    assert np.array_equal(run.trajectory.step_forces, whole.step_forces)
    assert np.array_equal(run.trajectory.step_pulls, whole.step_pulls)


def test_forces_are_saved_with_the_trajectory(tmp_path):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    options = {"lr": 1e-4, "steps": 2, "progress": False}
    for flag in ("by_pair", False):
        trajectory = train(policy, pairs, forces=flag, **options)
        loaded = Trajectory.load(trajectory.save(tmp_path / "run"))
        pd.testing.assert_frame_equal(loaded.drawdown(), trajectory.drawdown(), check_exact=True)
        if flag:
            pd.testing.assert_frame_equal(loaded.forces(), trajectory.forces(), check_exact=True)
            pd.testing.assert_frame_equal(loaded.pulls(), trajectory.pulls(), check_exact=True)
    with pytest.raises(ValueError, match=r"kept no forces.*forces=True"):
        loaded.forces()
    with pytest.raises(ValueError, match=r"kept no pulls.*forces='by_pair'"):
        loaded.pulls()


def test_pulls_that_would_not_fit_are_refused_before_the_run(monkeypatch):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    monkeypatch.setattr(pulls, "MOST_BYTES", 4 * sum(p.numel() for p in policy.model.parameters()))
    options = {"lr": 1e-3, "steps": 2, "batch_size": 2}
    TrainingRun(policy, pairs, forces=True, **options)
    with pytest.raises(ValueError, match=r"forces='by_pair' would keep .* 4 training pairs; at mo"):
        TrainingRun(policy, pairs, forces="by_pair", **options)
    with pytest.raises(ValueError, match="forces='pairs' is unknown"):
        TrainingRun(policy, pairs, forces="pairs", **options)


@pytest.mark.parametrize("in_place", [True, False])
def test_moments_that_an_optimizer_brings_stay_apart(in_place):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    live = live_optimizer("adamw", list(policy.model.parameters()), 1e-4)
    train(policy, pairs, optimizer=live, steps=2, in_place=True, progress=False)
    options = {"optimizer": live, "steps": 3, "forces": True}
    one = tk.predict_step(policy, pairs, optimizer=live)
    run = TrainingRun(policy, pairs, in_place=in_place, **options)
    list(run)
    frame = run.trajectory.forces()
    assert (frame["earlier_unsplit"] != 0).all()
    steps = frame.groupby("step")[NAMED].sum()
    assert (steps["earlier_chosen"] != 0).tolist() == [False, True, True]
    for column in FORCES:
        np.testing.assert_allclose(frame[column][:4], one[column], rtol=1e-9, atol=1e-15)
    again = frame.copy()
    run.reset()
    list(run)
    pd.testing.assert_frame_equal(run.trajectory.forces(), again, check_exact=True)


def test_a_pair_that_is_twice_in_the_minibatch_pulls_twice():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    options = {"optimizer": "sgd", "lr": 1e-3, "probes": pairs[:1]}
    once = tk.predict_step(policy, [pairs[0], pairs[1]], **options)
    twice = tk.predict_step(policy, [pairs[0], pairs[0], pairs[1]], **options)
    for kind in KINDS:
        np.testing.assert_allclose(twice[f"own_{kind}"], 4 / 3 * once[f"own_{kind}"])
        np.testing.assert_allclose(twice[f"others_{kind}"], 2 / 3 * once[f"others_{kind}"])


def test_forces_of_an_unknown_optimizer_are_not_made_up():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    live = torch.optim.Adagrad(policy.model.parameters(), lr=1e-3)
    found = train(policy, pairs, optimizer=live, steps=2, forces="by_pair", progress=False)
    assert found.pulls()["delta"].isna().all() and len(found.pulls()) == 2 * 4 * 2
    assert found.forces()[[*NAMED, "residual"]].isna().all(axis=None)
    assert found.forces()["actual_delta"].notna().all()


def test_lora_and_tied_weights_have_their_forces():
    pytest.importorskip("peft")
    policy, pairs = shapes.policy("qwen2"), shapes.ragged_pairs()[:2]
    lora = {"r": 2, "alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    found = train(policy, pairs, lr=1e-2, steps=3, lora=lora, forces=True, progress=False)
    frame, predicted = found.forces(), found.to_frame().query("step > 0")["predicted_delta"]
    total = frame[NAMED].sum(axis=1)
    np.testing.assert_allclose(total, predicted, rtol=0, atol=1e-4 * predicted.abs().max())


def test_drawdown_is_the_largest_fall_from_an_earlier_high():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    found = train(policy, pairs, steps=8, lr=3e-3, batch_size=1, progress=False)
    frame, every = found.drawdown(), found.to_frame()
    assert (frame["drawdown"] > 0).any()
    for row in frame.itertuples():
        own = every[(every["pair_id"] == row.pair_id) & (every["side"] == row.side)]
        logps = own["logps"].to_numpy()
        falls = {(s, e): logps[s] - logps[e] for s in range(9) for e in range(s, 9)}
        most = max(falls.values())
        assert row.drawdown == pytest.approx(most, abs=1e-15)
        assert falls[row.high_step, row.low_step] == pytest.approx(most, abs=1e-15)
        probs = np.exp(logps)
        deepest = max(probs[s] - probs[e] for s in range(9) for e in range(s, 9))
        assert row.prob_drawdown == pytest.approx(deepest, abs=1e-15)
        assert row.change == logps[-1] - logps[0] == row.final - row.start
        so_far = [max(falls[s, e] for s in range(k + 1) for e in range(s, k + 1)) for k in range(9)]
        np.testing.assert_allclose(own["drawdown"], so_far, rtol=0, atol=1e-15)


def test_two_forces_that_nearly_cancel_move_the_shipped_model():
    """In float32: each side's force is many times the change, and their sum is the prediction."""
    policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=8)
    options = {"lr": 3e-5, "steps": 2, "batch_size": 4, "probes": pairs[:2]}
    found = train(policy, pairs, forces=True, progress=False, **options)
    frame, predicted = found.forces(), found.to_frame().query("step > 0")["predicted_delta"]
    total = frame[NAMED].sum(axis=1).to_numpy()
    force = frame[[c for c in NAMED if c.endswith("_chosen")]].sum(axis=1).abs().max()
    np.testing.assert_allclose(total, predicted, rtol=0, atol=1e-4 * force)
    assert force > 10 * predicted.abs().max()
