"""Influence, kernels and frozen-kernel runs, beside materialised gradients and real training."""

import numpy as np
import pytest
import reference
import shapes
import torch
from torch.nn.functional import logsigmoid

import toolkit as tk

SHAPES = ["gpt2", "llama"]
QUIET = {"progress": False}
CLOSE = {"gpt2": 1e-8, "llama": 1e-5}  # Llama's norms compute in float32


def referred(shape, dtype=torch.float64):
    """A policy whose reference is another model, so that the loss weights of pairs differ."""
    found = shapes.policy(shape, dtype)
    return tk.Policy(found.model, found.tokenizer, shapes.model(shape, dtype, seed=1), name=shape)


def start_of(policy, pairs):
    """Log π and log π_ref of every response, by the oracle."""
    with torch.no_grad():
        return [
            np.array([float(reference.token_logps(m, *s).sum())
                      for pair in pairs for s in reference.sides(pair)])
            for m in (reference.double(policy.model), reference.double(policy.ref_model))
        ]  # fmt: skip


def dpo(chosen, rejected, ref_chosen, ref_rejected):
    return -logsigmoid(0.1 * (chosen - ref_chosen - rejected + ref_rejected))


def sppo(chosen, rejected, ref_chosen, ref_rejected):
    return (chosen - ref_chosen - 5) ** 2 + (rejected - ref_rejected + 5) ** 2


def pulls(policy, pairs):
    """(d_chosen, d_rejected) of DPO by the closed form βσ(−βΔ), ``[N, 2]``."""
    own, ref = (x.reshape(-1, 2) for x in start_of(policy, pairs))
    delta = (own - ref) @ [1, -1]
    return np.stack([0.1 / (1 + np.exp(0.1 * delta))] * 2, 1)


# --- influence ---


@pytest.mark.parametrize("shape", SHAPES)
def test_influence_equals_the_oracle(shape):
    """Every training pair on every response of other pairs and of its own, term by term."""
    policy, pairs = referred(shape), shapes.ragged_pairs()
    probes = [pairs[3], shapes.encoded("new", [5, 2], [9, 9], [7]), pairs[0]]
    found = tk.influence(policy, pairs, probes=probes, lr=0.1, beta=0.1, **QUIET)
    twin, weights = reference.double(policy.model), pulls(policy, pairs)
    trained = reference.response_gradients(twin, pairs)
    watched = reference.response_gradients(twin, probes)
    for k in range(len(probes)):
        for side in range(2):
            for i in range(len(pairs)):
                up, down = (float(watched[2 * k + side] @ trained[2 * i + j]) for j in range(2))
                up, down = 0.1 / 5 * weights[i, 0] * up, -0.1 / 5 * weights[i, 1] * down
                size = CLOSE[shape] * (abs(up) + abs(down))
                assert found.from_chosen[k, side, i] == pytest.approx(up, abs=size)
                assert found.from_rejected[k, side, i] == pytest.approx(down, abs=size)
                assert found.values[k, side, i] == pytest.approx(up + down, abs=size)
    assert found.own.nonzero()[0].tolist() == [0, 2] and found.own.nonzero()[1].tolist() == [3, 0]


@pytest.mark.parametrize("loss", ["dpo", "sppo"])
def test_influences_sum_to_the_predicted_step(loss):
    policy, pairs = referred("gpt2"), shapes.ragged_pairs()
    found = tk.influence(policy, pairs, loss=loss, lr=0.01, **QUIET).totals()
    step = tk.predict_step(policy, pairs, loss=loss, lr=0.01)
    slack = 1e-9 * step["predicted_delta"].abs().max()
    np.testing.assert_allclose(found["total"], step["predicted_delta"], atol=slack)
    np.testing.assert_allclose(found["own"], step["own_chosen"] + step["own_rejected"], atol=slack)
    rest = step["others_chosen"] + step["others_rejected"]
    np.testing.assert_allclose(found["others"], rest, atol=slack)


def test_leaving_a_pair_out_removes_its_column():
    policy, pairs = referred("gpt2"), shapes.ragged_pairs()
    whole = tk.influence(policy, pairs, probes=pairs[:2], **QUIET)
    rest = tk.influence(policy, [*pairs[:2], *pairs[3:]], probes=pairs[:2], **QUIET)
    np.testing.assert_allclose(rest.values, np.delete(whole.values, 2, axis=2) * 5 / 4, rtol=1e-9)


def test_a_gram_that_is_there_is_not_measured_again(monkeypatch):
    policy, pairs = referred("gpt2"), shapes.ragged_pairs()
    kernel = tk.gram(policy, [*reversed(pairs)], **QUIET)
    fresh = tk.influence(policy, pairs[:3], probes=pairs[2:], **QUIET)
    monkeypatch.setattr("toolkit.kernel._rows.measured", None)
    again = tk.influence(policy, pairs[:3], probes=pairs[2:], gram=kernel, **QUIET)
    np.testing.assert_allclose(again.values, fresh.values, rtol=1e-7)


def test_frames_hold_the_values_and_blocks_add_up():
    policy, pairs = tk.load_model(), tk.load_pairs("single_token", limit=6)
    found = tk.influence(policy, pairs, probes=pairs[:4], by="label", params="head", **QUIET)
    frame = found.to_frame()
    cell = frame.set_index(["pair_id", "side", "train_pair_id"])["influence"]
    assert cell[pairs[1].id, "rejected", pairs[4].id] == found.values[1, 1, 4]
    both = frame.set_index(["pair_id", "train_pair_id"])[["pair_block", "train_block"]].loc[
        pairs[1].id, pairs[4].id
    ]
    assert set(both["pair_block"]) == {pairs[1].meta["label"]}
    assert set(both["train_block"]) == {pairs[4].meta["label"]}
    blocks, totals = found.blocks(), found.totals()
    totals["pair_block"] = np.repeat([p.meta["label"] for p in pairs[:4]], 2)
    mean = totals.groupby(["side", "pair_block"])[["own", "others"]].mean()
    parts = blocks.groupby(["side", "pair_block"])[["own", "others"]].sum()
    np.testing.assert_allclose(parts, mean, rtol=1e-9)
    counts = blocks.drop_duplicates("train_block").set_index("train_block")["pairs"]
    assert counts.sum() == 6
    ranked = found.pushes(pairs[1].id, "rejected")
    assert ranked["influence"].is_monotonic_increasing and list(ranked["rank"]) == list(range(1, 7))
    lowest = pairs[int(found.values[1, 1].argmin())].id
    assert ranked["train_pair_id"].iloc[0] == lowest
    assert frame.attrs["loss_name"] == "dpo" and frame.attrs["params"] == "head"


def test_influence_ranks_what_training_without_a_pair_would_change():
    """The pairs that push a response down are those without which it ends higher."""
    policy, pairs = shapes.policy("llama"), shapes.ragged_pairs()
    probe = shapes.encoded("new", [5, 9, 3], [11, 7, 8, 5], [13, 7, 8, 2])
    recipe = {"optimizer": "sgd", "steps": 3, "probes": probe, "predict": False, **QUIET}

    def ends(kept):
        # The mean loss is over fewer pairs; the rate makes up for it.
        lr = 2e-4 * len(kept) / len(pairs)
        run = tk.train(policy, kept, lr=lr, batch_size=len(kept), **recipe)
        return run.drawdown()["change"].to_numpy()

    whole = ends(pairs)
    left_out = [whole - ends([p for p in pairs if p is not pair]) for pair in pairs]
    found = tk.influence(policy, pairs, probes=probe, lr=6e-4, **QUIET).values[0]
    np.testing.assert_allclose(np.array(left_out).T, found, atol=0.02 * np.abs(found).max())


# --- signs ---


def test_sign_kernels_equal_the_oracle():
    policy, pairs = referred("gpt2"), shapes.ragged_pairs()
    twin = reference.double(policy.model)
    grads, weights = reference.response_gradients(twin, pairs), pulls(policy, pairs)
    terms = [(w[0] * grads[2 * i], w[1] * grads[2 * i + 1]) for i, w in enumerate(weights)]
    # Where both terms are equal, as everywhere in the head's other rows for a single token.
    signs = torch.stack([(a - b).sign() * ((a - b).abs() > 1e-12 * a.abs()) for a, b in terms])
    for update, left in (("asymmetric_sign", grads[2:6]), ("sign", grads[2:6].sign())):
        expected = (left @ signs.T).view(2, 2, -1).numpy()
        found = tk.influence(
            policy, pairs, probes=pairs[1:3], update=update, lr=0.5, memory=50_000, **QUIET
        )
        # The 48 key biases have no gradient, but one of rounding.
        slack = 24 if update == "sign" else 0
        np.testing.assert_allclose(found.values, 0.5 * expected, rtol=1e-6, atol=slack)
        assert np.isnan(found.from_chosen).all()


def test_an_asymmetric_sign_influence_is_a_sign_step_on_one_pair():
    policy, pairs = referred("gpt2"), shapes.ragged_pairs()
    options = {"update": "asymmetric_sign", "lr": 1e-3, **QUIET}
    found = tk.influence(policy, pairs, probes=pairs[:2], **options)
    for i, pair in enumerate(pairs):
        if pair.id == "single":
            continue  # its terms cancel in most of the head, where a real step follows rounding
        step = tk.predict_step(policy, pair, optimizer="sign", lr=1e-3, probes=pairs[:2])
        expected = step["predicted_delta"].to_numpy().reshape(2, 2)
        np.testing.assert_allclose(found.values[..., i], expected, rtol=1e-3)


# --- kernels of margins, and how they turn ---


def test_margin_kernel_equals_the_oracle_and_is_positive():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    grads = reference.response_gradients(reference.double(policy.model), pairs)
    margins = grads[::2] - grads[1::2]
    frame = tk.margin_kernel(tk.gram(policy, pairs, **QUIET))
    matrix = frame.pivot(index="pair_id_i", columns="pair_id_j", values="inner")
    names = [pair.id for pair in pairs]
    expected = (margins @ margins.T).numpy()
    found = matrix.loc[names, names].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
    assert np.linalg.eigvalsh(found).min() > -1e-9 * np.abs(found).max()
    assert frame["cosine"][:: len(pairs) + 1].to_numpy() == pytest.approx(1)


def test_alignment_sees_growth_and_turning():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    kernel = tk.gram(policy, pairs, **QUIET)
    grown = type(kernel)(kernel.pair_ids, kernel.sides, 3 * kernel.matrix, 0.0, kernel.labels)
    found = tk.kernel_alignment(kernel, grown)
    assert found["alignment"].to_numpy() == pytest.approx(1)
    assert found["relative_change"].to_numpy() == pytest.approx(2)
    ends = {}
    for lr in (1e-6, 1e-2):
        run = tk.train(policy, pairs, lr=lr, steps=3, predict=False, **QUIET)
        after = tk.gram(run.policy_at(3), pairs, **QUIET)
        ends[lr] = tk.kernel_alignment(kernel, after)
    assert (ends[1e-2]["alignment"] < ends[1e-6]["alignment"] - 0.01).all()
    assert (ends[1e-6]["alignment"] > 0.999).all()
    a, b = kernel.matrix, after.matrix
    expected = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    assert found.attrs["params"] == "all"
    assert ends[1e-2]["alignment"][0] == pytest.approx(expected)


def test_alignment_refuses_other_pairs_and_other_parameters():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:3]
    kernel = tk.gram(policy, pairs, **QUIET)
    for other, words in (
        (tk.gram(policy, pairs[:2], **QUIET), "same pairs"),
        (tk.gram(policy, pairs, params="head", **QUIET), "same params"),
        (kernel.matrix, r"after must be a Gram.*tk\.gram"),
    ):
        with pytest.raises(ValueError, match=words):
            tk.kernel_alignment(kernel, other)


# --- frozen-kernel dynamics ---

ROUNDS = [[0, 1], [2, 3, 4], [4, 4], [0, 3]]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("name", "loss"), [("dpo", dpo), ("sppo", sppo)])
@pytest.mark.parametrize("minibatches", [False, True])
def test_frozen_dynamics_are_exact_on_a_linear_model(name, loss, momentum, minibatches):
    """Many large steps of the tangent model, by torch's own optimiser, to rounding."""
    policy, pairs = referred("gpt2"), shapes.ragged_pairs()
    gradients = reference.response_gradients(reference.double(policy.model), pairs)
    lr = 0.02 if name == "dpo" else 2e-5
    batches = ROUNDS * 5 if minibatches else [list(range(5))] * 20
    start = start_of(policy, pairs)
    expected = reference.tangent_run(gradients, *start, batches, lr, momentum, loss)
    length = {"steps": 20}
    if minibatches:
        length = {"batches": [[pairs[i].id for i in batch] for batch in batches]}
    frame = tk.frozen_kernel_dynamics(
        policy, pairs, lr=lr, loss=name, momentum=momentum, **length, **QUIET
    )
    found = frame["logps"].to_numpy().reshape(expected.shape)
    moved = np.abs(expected - expected[0]).max()
    assert moved > 0.3
    np.testing.assert_allclose(found, expected, atol=1e-8 * moved)
    own, ref = (torch.tensor(x).view(-1, 2) for x in (expected[-1], start[1]))
    losses = loss(own[:, 0], own[:, 1], ref[:, 0], ref[:, 1])
    np.testing.assert_allclose(frame["loss"].to_numpy()[-10::2], losses, rtol=1e-6)


def test_frozen_dynamics_follow_probes_in_a_preconditioned_metric():
    policy, pairs = referred("gpt2"), shapes.ragged_pairs()
    torch.manual_seed(0)
    weights = {n: torch.rand_like(p) for n, p in policy.model.named_parameters()}
    metric = tk.Preconditioner("random", weights)
    scale = torch.cat([w.reshape(-1) for w in weights.values()]).sqrt()
    gradients = scale * reference.response_gradients(reference.double(policy.model), pairs)
    batches = [[0, 1, 2]] * 10
    expected = reference.tangent_run(gradients, *start_of(policy, pairs), batches, 0.02, 0, dpo)
    frame = tk.frozen_kernel_dynamics(
        policy, pairs[:3], probes=pairs[2:4], lr=0.02, steps=10, preconditioner=metric, **QUIET
    )
    found = frame["logps"].to_numpy().reshape(11, 4)
    np.testing.assert_allclose(found, expected[:, 4:8], atol=1e-8 * np.ptp(expected))
    assert frame.attrs["optimizer_metric"] == "random"


def test_small_steps_are_lazy_and_large_ones_are_not():
    """Beside a real run with its own minibatches: the gap is of second order in the rate."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    gaps = []
    for lr in (2e-3, 1e-3):
        run = tk.train(
            policy, pairs, optimizer="sgd", lr=lr, steps=4, batch_size=2, predict=False, **QUIET
        )
        lazy = tk.frozen_kernel_dynamics(
            policy, pairs, lr=lr, batches=run.steps["batch_ids"], **QUIET
        )
        real = run.to_frame()
        assert (lazy[["step", "pair_id", "side"]] == real[["step", "pair_id", "side"]]).all(None)
        gaps.append((lazy["logps"] - real["logps"]).abs().max())
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.15)


def test_a_frozen_single_pair_never_turns():
    """σ(−u) > 0 and a frozen kernel: both log-probabilities move one way for ever."""
    policy, pairs = shapes.policy("llama"), shapes.ragged_pairs()
    for pair in pairs:
        frame = tk.frozen_kernel_dynamics(policy, pair, lr=0.05, steps=30, **QUIET)
        for _, logps in frame.groupby("side")["logps"]:
            assert len(set(np.sign(np.diff(logps)))) == 1


# --- refusals ---


@pytest.mark.parametrize(
    ("call", "options", "words"),
    [
        (tk.influence, {"update": "adam"}, "update='adam' is unknown; allowed: sgd, sign"),
        (tk.influence, {"lr": 0}, "lr must be a positive number"),
        (tk.influence, {"by": "topic"}, "by='topic' is no column of pair 'suffix'; it has: none"),
        (tk.influence, {"by": 3}, "by must be a key"),
        (tk.influence, {"loss": "nothing"}, "loss='nothing' is unknown"),
        (tk.influence, {"gram": 3}, r"gram must be a Gram.*tk\.gram"),
        (tk.frozen_kernel_dynamics, {"lr": 1}, "give steps or batches"),
        (tk.frozen_kernel_dynamics, {"lr": 1, "steps": 1, "batches": [["pad"]]}, "not both"),
        (tk.frozen_kernel_dynamics, {"lr": 1, "steps": 0}, "steps must be"),
        (tk.frozen_kernel_dynamics, {"lr": 1, "steps": 1, "momentum": 1}, "momentum must be below"),
        (tk.frozen_kernel_dynamics, {"lr": 1, "batches": []}, "batches is empty"),
        (tk.frozen_kernel_dynamics, {"lr": 1, "batches": "pad"}, "batches must be lists"),
        (tk.frozen_kernel_dynamics, {"lr": 1, "batches": ["pad"]}, r"batches\[0\] must be a list"),
        (tk.frozen_kernel_dynamics, {"lr": 1, "batches": [["odd"]]}, r"batches\[0\] names 'odd'"),
        (tk.frozen_kernel_dynamics, {"lr": -1, "steps": 1}, "lr must be a positive number"),
    ],
)
def test_bad_arguments_are_refused_before_any_gradient(call, options, words, monkeypatch):
    monkeypatch.setattr("toolkit.kernel._rows.measured", None)
    with pytest.raises(ValueError, match=words):
        call(shapes.policy("gpt2"), shapes.ragged_pairs(), **options, **QUIET)


def test_a_gram_must_hold_the_pairs_and_brings_its_own_parameters():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    kernel = tk.gram(policy, pairs[:2], **QUIET)
    with pytest.raises(ValueError, match="holds pair 'long' 0 times"):
        tk.influence(policy, pairs, gram=kernel, **QUIET)
    with pytest.raises(ValueError, match="params is that of gram"):
        tk.influence(policy, pairs[:2], gram=kernel, params="head", **QUIET)
    with pytest.raises(ValueError, match="gram serves update='sgd' alone"):
        tk.influence(policy, pairs[:2], gram=kernel, update="sign", **QUIET)


def test_unknown_probe_side_and_missing_blocks_are_refused():
    found = tk.influence(shapes.policy("gpt2"), shapes.ragged_pairs()[:2], **QUIET)
    with pytest.raises(ValueError, match="pair_id='odd' is no probe; allowed: suffix, prefix"):
        found.pushes("odd")
    with pytest.raises(ValueError, match="side='left' is unknown"):
        found.pushes("suffix", "left")
    with pytest.raises(ValueError, match="no blocks"):
        found.blocks()
