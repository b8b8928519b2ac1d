"""Loss weights: closed forms, finite differences, TRL's own code, user functions, every refusal."""

import ast
import collections
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import shapes
import torch
from hypothesis import example, given, strategies as st
from torch.nn.functional import logsigmoid

import toolkit as tk
from toolkit.losses import FIELDS, quantities
from toolkit.losses.weights import BATCH_LOSSES

logps = st.floats(-1e4, 0, allow_subnormal=False)
betas = st.floats(1e-3, 10)


def batch(*rows, ids=None):
    """Six arrays from rows of (chosen, rejected, ref chosen, ref rejected)."""
    columns = np.array(rows, dtype=float).T
    lengths = np.arange(1, len(rows) + 1)
    made = SimpleNamespace(**dict(zip(FIELDS, [*columns, lengths, lengths + 3], strict=True)))
    if ids is not None:
        made.pair_ids = ids
    return made


PAIRS = [(-5.0, -7.0, -6.0, -6.5), (-30.0, -2.0, -28.0, -3.0), (-1.0, -1.0, -1.0, -1.0)]


def simpo(chosen_logps, rejected_logps, chosen_length, rejected_length, *, beta=2.0, gamma=0.5):
    margin = beta * (chosen_logps / chosen_length - rejected_logps / rejected_length)
    return -logsigmoid(margin - gamma)


def half_squared_chosen(chosen_logps):
    return chosen_logps**2 / 2


@given(logps, logps, logps, logps, betas)
@example(-1e4, 0.0, 0.0, -1e4, 1.0)
@example(0.0, -1e4, -1e4, 0.0, 1.0)
def test_dpo_weights_equal_their_closed_form(chosen, rejected, ref_chosen, ref_rejected, beta):
    """T2: d = βσ(−βΔ); a dropped β, a wrong sign or an overflow at an extreme margin shows."""
    weights = tk.loss_weights(batch((chosen, rejected, ref_chosen, ref_rejected)), "dpo", beta=beta)
    u = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    expected = beta * np.exp(-np.logaddexp(0, u))
    np.testing.assert_allclose(weights.d_chosen, expected, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(weights.d_rejected, expected, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(weights.losses, np.logaddexp(0, -u), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_extreme_margins_stay_finite(margin):
    """log(sigmoid) written naively gives −inf here and a NaN weight."""
    frame = tk.loss_weights(batch((margin, 0.0, 0.0, 0.0)), "dpo", beta=1.0).to_frame()
    expected = [max(-margin, 0.0), 0.0 if margin > 0 else 1.0, 0.0 if margin > 0 else 1.0]
    assert frame.loc[0, ["loss", "d_chosen", "d_rejected"]].tolist() == expected


def differentiated(loss, stats, field, step=1e-5, **hparams):
    moved = [SimpleNamespace(**vars(stats)) for _ in range(2)]
    for sign, target in zip((1, -1), moved, strict=True):
        setattr(target, field, getattr(stats, field) + sign * step)
    up, down = (tk.loss_weights(m, loss, **hparams).losses for m in moved)
    return (up - down) / (2 * step)


@pytest.mark.parametrize(
    ("loss", "hparams"),
    [("dpo", {"beta": 0.3}), (simpo, {}), (simpo, {"gamma": 1.5}), (half_squared_chosen, {})],
)
def test_weights_are_the_slopes_of_the_loss(loss, hparams):
    """T2 by finite differences; a mean over pairs in place of the sum divides them by three."""
    stats = batch(*PAIRS)
    weights = tk.loss_weights(stats, loss, **hparams)
    slopes = [differentiated(loss, stats, f"{s}_logps", **hparams) for s in ("chosen", "rejected")]
    np.testing.assert_allclose(weights.d_chosen, -slopes[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(weights.d_rejected, slopes[1], rtol=1e-6, atol=1e-8)


def test_simpo_as_a_users_function_has_the_length_ratio():
    """T2: the lengths reach a user's function, each side its own."""
    stats = batch(*PAIRS)
    weights = tk.loss_weights(stats, simpo)
    ratio = weights.d_chosen / weights.d_rejected
    np.testing.assert_allclose(ratio, stats.rejected_length / stats.chosen_length)
    assert weights.loss_name == "simpo" and weights.hparams == {"beta": 2.0, "gamma": 0.5}


def test_pairs_do_not_mix_in_a_batch():
    whole = tk.loss_weights(batch(*PAIRS), "dpo")
    alone = [tk.loss_weights(batch(row), "dpo") for row in PAIRS]
    np.testing.assert_array_equal(whole.d_chosen, [w.d_chosen[0] for w in alone])
    np.testing.assert_array_equal(whole.losses, [w.losses[0] for w in alone])


@given(logps, logps, logps, logps, st.floats(1e-3, 1e3))
def test_scaling_the_loss_scales_its_weights(chosen, rejected, ref_chosen, ref_rejected, factor):
    """T13."""

    def scaled(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, c):
        margin = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
        return -c * logsigmoid(0.1 * margin)

    stats = batch((chosen, rejected, ref_chosen, ref_rejected))
    one, many = (tk.loss_weights(stats, scaled, c=c) for c in (1.0, factor))
    np.testing.assert_allclose(many.d_chosen, factor * one.d_chosen, rtol=1e-12)
    np.testing.assert_allclose(many.d_rejected, factor * one.d_rejected, rtol=1e-12)


def test_a_function_that_reads_one_side_leaves_the_other_at_zero():
    """Autograd returns None for an unused leaf."""
    weights = tk.loss_weights(batch(*PAIRS), half_squared_chosen)
    np.testing.assert_allclose(weights.d_chosen, [5.0, 30.0, 1.0])
    assert weights.d_rejected.tolist() == [0.0, 0.0, 0.0]


def test_a_users_function_works_everywhere_a_name_does():
    """Naming only some fields, through real statistics, entanglement and its labels."""
    stats = tk.pair_stats(shapes.policy("gpt2"), shapes.ragged_pairs(), progress=False)
    frame = tk.entanglement(stats, half_squared_chosen, lr=0.5).to_frame()
    np.testing.assert_allclose(frame["d_chosen"], -stats.chosen_logps)
    assert frame.attrs["loss_name"] == "half_squared_chosen" and frame.attrs["lr"] == 0.5
    assert (frame["d_rejected"] == 0).all() and frame["ratio"].isna().all()


def test_a_partial_and_a_callable_object_are_functions_too():
    stats = batch(*PAIRS)
    partial = tk.loss_weights(stats, functools.partial(tk.LOSSES["dpo"].function, beta=0.1))
    np.testing.assert_array_equal(partial.d_chosen, tk.loss_weights(stats, "dpo").d_chosen)
    assert partial.loss_name == "custom" and partial.hparams == {"beta": 0.1}


def test_weights_are_taken_also_where_gradients_are_off():
    """Called inside torch.no_grad(), the leaves would have no graph."""
    with torch.no_grad():
        weights = tk.loss_weights(batch(PAIRS[2]), "dpo", beta=0.2)
    assert weights.d_chosen[0] == pytest.approx(0.1)


def test_statistics_are_not_changed():
    stats = batch(*PAIRS)
    before = {f: getattr(stats, f).copy() for f in FIELDS}
    tk.loss_weights(stats, lambda chosen_logps: chosen_logps.clone().mul_(3))
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(stats, name), values)


def test_defaults_are_the_tables_and_do_not_leak_between_calls():
    assert tk.loss_weights(batch(*PAIRS), "dpo").hparams == {"beta": 0.1}
    tk.loss_weights(batch(*PAIRS), "dpo", beta=5.0)
    assert dict(tk.LOSSES["dpo"].defaults) == {"beta": 0.1}


def test_frame_and_table():
    frame = tk.loss_weights(batch(*PAIRS, ids=["a", "b", "c"]), "dpo", beta=0.2).to_frame()
    assert list(frame.columns) == ["pair_id", "loss", "d_chosen", "d_rejected"]
    assert frame["pair_id"].tolist() == ["a", "b", "c"]
    assert frame.attrs == {"loss_name": "dpo", "beta": 0.2}
    table = tk.loss_table()
    assert table.index.tolist() == list(tk.LOSSES) and table.index.name == "loss_name"
    assert table.loc["dpo", "trl_loss_type"] == "sigmoid" and table.loc["dpo", "needs_ref"]
    for key, row in tk.LOSSES.items():
        assert row.key == key and row.formula and row.source


def nothing(chosen_logps):
    return torch.zeros_like(chosen_logps)


def no_graph(chosen_logps):
    return chosen_logps.detach()


def infinite_slope(chosen_logps):
    return (chosen_logps - chosen_logps.detach()).sqrt()


def needs_beta(chosen_logps, beta):
    return beta * chosen_logps


@pytest.mark.parametrize(
    ("loss", "hparams", "message"),
    [
        ("dop", {}, r"loss='dop' is unknown; allowed: dpo"),
        (None, {}, r"loss=None is unknown; allowed: dpo"),
        (["dpo"], {}, r"loss=\['dpo'\] is unknown; allowed: dpo"),
        ("sigmoid", {}, r"TRL's word; here it is 'dpo' \(DPOTrainer\) or 'cpo' \(CPOTrainer\)"),
        ("sppo_hard", {}, r"TRL's word; here it is 'sppo' \(DPOTrainer\)"),
        (["sigmoid", "sft"], {}, r"TRL's word; here it is 'rpo' \(DPOTrainer\)"),
        ("aot", {}, r"no weights of one pair: it sorts the chosen − rejected differences"),
        ("aot_unpaired", {}, r"no weights of one pair: it sorts the chosen and the rejected"),
        ("robust", {"epsilon": 0.5}, r"epsilon of robust must lie in \[0, 0.5\), received 0.5"),
        ("exo", {"epsilon": 0}, r"epsilon of exo must lie in \(0, 0.5\), received 0"),
        ("sppo", {"beta": 0}, r"beta of sppo must lie in \(0, inf\), received 0"),
        ("ipo", {"tau": -0.1}, r"tau of ipo must lie in \(0, inf\), received -0.1"),
        ("discopop", {"tau": 2}, r"tau of discopop must lie in \(0, 1\], received 2"),
        ("slic", {"lam": -1}, r"lam of slic must lie in \[0, inf\), received -1"),
        ("dpo", {"betta": 1.0}, r"no hyper-parameter 'betta'; allowed: beta"),
        (half_squared_chosen, {"beta": 1.0}, r"no hyper-parameter 'beta'; allowed: none"),
        (needs_beta, {}, r"needs_beta needs a value for beta"),
        ("dpo", {"beta": float("nan")}, r"beta must be a finite number, received nan"),
        ("dpo", {"beta": float("inf")}, r"beta must be a finite number, received inf"),
        ("dpo", {"beta": True}, r"beta must be a finite number, received True"),
        ("dpo", {"beta": "0.1"}, r"beta must be a finite number, received '0.1'"),
        ("dpo", {"beta": None}, r"beta must be a finite number, received None"),
        ("dpo", {"beta": [0.1]}, r"beta must be a finite number, received \[0.1\]"),
        (lambda chosen_logps: chosen_logps.mean(), {}, r"shape \(3,\); got \(\)"),
        (lambda chosen_logps: chosen_logps[:2], {}, r"shape \(3,\); got \(2,\)"),
        (lambda chosen_logps: [1.0], {}, r"shape \(3,\); got list"),
        (lambda chosen_logps: chosen_logps * float("nan"), {}, r"value nan at pair 0"),
        (lambda chosen_logps: 1 / (chosen_logps + 30), {}, r"value inf at pair 1"),
        (infinite_slope, {}, r"gradient inf at pair 0"),
        (nothing, {}, r"does not depend on chosen_logps or rejected_logps"),
        (no_graph, {}, r"does not depend on chosen_logps or rejected_logps"),
    ],
)
def test_a_bad_loss_is_refused_by_name(loss, hparams, message):
    with pytest.raises(ValueError, match=message):
        tk.loss_weights(batch(*PAIRS), loss, **hparams)


def sigma(x):
    return np.exp(-np.logaddexp(0, -x))


def slope(x):
    """σ'(x)."""
    return np.exp(-np.logaddexp(0, -x) - np.logaddexp(0, x))


def log_odds(mean_logp):
    return mean_logp - np.log(-np.expm1(mean_logp))


def orpo_pull(near, far):
    """σ(o_far − o_near)/(1 − P_near), in the form that loses nothing as P_near nears 1."""
    p, odds = np.exp(near), np.exp(np.minimum(log_odds(far), 700))
    rare = sigma(log_odds(far) - log_odds(near)) / -np.expm1(near)
    return np.where(p > 0.5, odds / np.maximum(p + odds * -np.expm1(near), 0.5), rare)


def closed_forms(s):
    """The weights of docs/formulas.md by hand: (hyper-parameters, d_chosen, d_rejected)."""
    lw, ll, nw, nl = s.chosen_logps, s.rejected_logps, s.chosen_length, s.rejected_length
    rw, rl = lw - s.ref_chosen_logps, ll - s.ref_rejected_logps
    gap = rw - rl
    b, e, t = 0.3, 0.2, 0.05
    u, c, r = b * gap, b * rw, b * rl
    table = {"dpo": ({"beta": b}, *2 * [b * sigma(-u)])}
    both = b * ((1 - e) * sigma(-u) - e * sigma(u))
    table["cdpo"] = {"beta": b, "epsilon": e}, both, both
    both = b * ((1 - e) * sigma(-u) + e * sigma(u)) / (1 - 2 * e)
    table["robust"] = {"beta": b, "epsilon": e}, both, both
    both = b * sigma(-u - 0.4 * (nw - nl))
    table["rdpo"] = {"beta": b, "alpha": 0.4}, both, both
    both = 2 * (1 / (2 * t) - gap)
    table["ipo"] = {"tau": t}, both, both
    both = 2 * (1 / (2 * b) - (rw / nw - rl / nl))
    table["ipo_avg"] = {"beta": b}, both / nw, both / nl
    both = b * sigma(-(b * (lw / nw - ll / nl) - 0.7))
    table["simpo"] = {"beta": b, "gamma": 0.7}, both / nw, both / nl
    active = (ll / nl > lw / nw).astype(float)
    table["rrhf"] = {"lam": 0.6}, active / nw + 0.6, active / nl
    active = (1.5 - lw + ll > 0).astype(float)
    table["slic"] = {"delta": 1.5, "lam": 0.6}, active + 0.6, active
    active = b * (u < 1)
    table["hinge"] = {"beta": b}, active, active
    both = b * sigma(-b * (lw - ll))
    table["cpo"] = {"beta": b, "alpha": 0.6}, both + 0.6, both
    both = b * sigma(-b * (gap - 5 * np.maximum(0, -rw)))
    table["dpop"] = {"beta": b, "lam": 5.0}, both * (1 + 5 * (rw < 0)), both
    options = {"beta": b, "z": 0.4, "desirable_weight": 1.2, "undesirable_weight": 0.9}
    table["kto"] = options, 1.2 * b * slope(c - 0.4), 0.9 * b * slope(0.4 - r)
    table["sppo"] = {"beta": b}, 2 * (1 / (2 * b) - rw), 2 * (1 / (2 * b) + rl)
    low, high = lw / nw, ll / nl
    far = sigma(log_odds(high) - log_odds(low)) / -np.expm1(high)
    table["orpo"] = {"lam": 0.3}, (1 + 0.3 * orpo_pull(low, high)) / nw, 0.3 * far / nl
    both = b * sigma(-u)
    table["rpo"] = {"beta": b, "alpha": 0.6}, both + 0.6 / nw, both
    table["bco"] = {"beta": b, "delta": 0.4}, b * sigma(0.4 - c), b * sigma(r - 0.4)
    table["nca"] = {"beta": b}, b * (sigma(-c) - sigma(c) / 2), b * sigma(r) / 2
    table["apo_zero"] = {"beta": b}, b * slope(c), b * slope(r)
    table["apo_down"] = {"beta": b}, b * (slope(u) - slope(c)), b * slope(u)
    both = b * slope(u) * (np.log((1 - 0.01) / 0.01) - u)
    table["exo"] = {"beta": b, "epsilon": 0.01}, both, both
    # The mixing weight's own slope times (logistic − exponential) is what turns the sign.
    exponential = np.exp(-u - np.logaddexp(0, -u / t))
    turn = slope(u / t) / t * np.logaddexp(0, -u) - exponential * sigma(-u / t) / t
    both = b * (sigma(-u / t) * sigma(-u) + exponential + turn)
    table["discopop"] = {"beta": b, "tau": t}, both, both
    both = b * sigma(-b * (rw / nw - rl / nl))
    table["dpo_norm"] = {"beta": b}, both / nw, both / nl
    table["sft"] = {}, 1 / nw, 0 * nw
    return table


def points(scale, count=200, seed=0):
    """Random log-probabilities of this size in nats, with lengths from 1 to 40."""
    draw = np.random.default_rng(seed)
    made = batch(*(-draw.exponential(scale, (count, 4)) - 1e-3))
    made.chosen_length, made.rejected_length = draw.integers(1, 41, (2, count))
    return made


CORNERS = [
    *[
        (a, b, c, d)
        for a in (-1e-9, -1e4)
        for b in (-1e-9, -1e4)
        for c in (-1.0, -1e4)
        for d in (-5,)
    ],
    (-3.0, -4.0, -3.0, -4.0),
]


@pytest.mark.parametrize("stats", [points(1), points(30), points(2000), batch(*CORNERS)])
@pytest.mark.parametrize("key", tk.LOSSES)
def test_weights_of_every_row_equal_their_closed_form(key, stats):
    """T2: algebra done by hand in numpy; a wrong sign, factor, length or an overflow shows."""
    hparams, d_chosen, d_rejected = closed_forms(stats)[key]
    weights = tk.loss_weights(stats, key, **hparams)
    np.testing.assert_allclose(weights.d_chosen, d_chosen, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(weights.d_rejected, d_rejected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", tk.LOSSES)
def test_weights_of_every_row_are_its_slopes(key):
    """Independent of any algebra: the value and the weights are of one function."""
    stats = points(5, count=40, seed=1)
    weights = tk.loss_weights(stats, key)
    chosen, rejected = (differentiated(key, stats, f"{s}_logps") for s in ("chosen", "rejected"))
    np.testing.assert_allclose(weights.d_chosen, -chosen, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(weights.d_rejected, rejected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("key", tk.LOSSES)
def test_every_row_is_finite_at_the_ends(key):
    """A certain response (logp exactly 0) divides by zero in ORPO; far ones overflow an exp."""
    ends = [0.0, -1e-300, -1e-17, -745.0, -1e6]
    weights = tk.loss_weights(batch(*[(a, b, -3.0, -4.0) for a in ends for b in ends]), key)
    for values in (weights.losses, weights.d_chosen, weights.d_rejected):
        assert np.isfinite(values).all()


def test_orpo_keeps_its_slope_at_a_certain_chosen_response():
    """P → 1 has the limit 1 + λ·odds of the rejected; a clamp alone would lose the λ part."""
    stats = batch((0.0, -1.0, 0, 0), (-1e-14, -1.0, 0, 0))
    stats.rejected_length = np.array([1, 1])
    stats.chosen_length = np.array([1, 1])
    odds = np.exp(-1) / (1 - np.exp(-1))
    weights = tk.loss_weights(stats, "orpo", lam=0.5)
    np.testing.assert_allclose(weights.d_chosen, 1 + 0.5 * odds, rtol=1e-9)


ALWAYS_ONE = ["dpo", "cdpo", "robust", "rdpo", "ipo", "hinge", "exo", "discopop"]
BY_LENGTH = ["simpo", "ipo_avg", "dpo_norm"]


@pytest.mark.parametrize("key", tk.LOSSES)
def test_what_the_table_says_of_the_ratio(key):
    """A.4 in words: which ratios are 1, which are those of the lengths, which are above 1."""
    stats = points(3, count=100, seed=2)
    weights = tk.loss_weights(stats, key)
    d_chosen, d_rejected = weights.d_chosen, weights.d_rejected
    if key in ALWAYS_ONE:
        np.testing.assert_allclose(d_chosen, d_rejected, rtol=1e-12)
        assert tk.LOSSES[key].ratio.startswith("1")
    elif key in BY_LENGTH:
        lengths = stats.rejected_length / stats.chosen_length
        np.testing.assert_allclose(d_chosen, lengths * d_rejected, rtol=1e-12)
        assert tk.LOSSES[key].ratio.startswith("rejected_length / chosen_length")
    else:
        assert not np.allclose(d_chosen, d_rejected)
    if key in {"cpo", "slic", "rpo", "dpop", "rrhf", "sft"}:
        assert (d_chosen >= d_rejected).all() or key == "rrhf"


def at(key, chosen_logratio, rejected_logratio, **hparams):
    """The two weights of one pair with these log-ratios; both responses have ten tokens."""
    stats = batch((chosen_logratio - 20.0, rejected_logratio - 20.0, -20.0, -20.0))
    stats.chosen_length = stats.rejected_length = np.array([10])
    weights = tk.loss_weights(stats, key, **hparams)
    return weights.d_chosen[0], weights.d_rejected[0]


def test_ratios_at_the_reference_and_past_it():
    for key in ("kto", "sppo", "bco", "nca", "apo_zero"):
        chosen, rejected = at(key, 0, 0)
        assert chosen == pytest.approx(rejected) and chosen > 0
    assert at("apo_down", 0, 0)[0] == 0 < at("apo_down", 0, 0)[1]
    both_fell = {key: at(key, -2, -2, beta=0.1) for key in ("sppo", "bco")}
    assert all(chosen > rejected > 0 for chosen, rejected in both_fell.values())
    assert at("nca", 10 * np.log(2) + 0.1, 0, beta=0.1)[0] < 0 < at("nca", 6.8, 0, beta=0.1)[0]
    assert at("dpop", -1, 0, lam=50)[0] == pytest.approx(51 * at("dpop", -1, 0, lam=50)[1])
    assert at("dpop", 1, 0)[0] == pytest.approx(at("dpop", 1, 0)[1])
    assert at("cpo", 200, 0)[0] > 1e6 * at("cpo", 200, 0)[1] > 0
    assert at("slic", 2, 0)[1] == at("rrhf", 2, 0)[1] == at("hinge", 11, 0)[1] == 0
    assert at("slic", 0, 0, lam=0.5) == (1.5, 1.0)
    assert at("robust", 1e4, 0, beta=0.1, epsilon=0.1)[0] == pytest.approx(0.1 * 0.1 / 0.8)


@pytest.mark.parametrize(
    ("key", "inside", "past"), [("ipo", 4.9, 5.1), ("ipo_avg", 49, 51), ("cdpo", 21, 23)]
)
def test_weights_change_sign_past_the_target(key, inside, past):
    assert at(key, inside, 0)[0] > 0 > at(key, past, 0)[0]
    assert at(key, inside, 0)[1] > 0 > at(key, past, 0)[1]


def test_discopop_pushes_backwards_at_the_reference():
    """With TRL's τ = 0.05 the mixing weight turns faster than the losses it mixes."""
    assert at("discopop", 0, 0)[0] < 0 and at("discopop", 0, 0, tau=1.0)[0] > 0
    assert at("discopop", 20, 0)[0] > 0 and at("discopop", -20, 0)[0] > 0


def test_rows_that_meet_in_a_limit():
    """cdpo, robust and exo with no smoothing, slic, rpo, bco and dpop without their extra term."""
    stats = points(10, count=50, seed=3)

    def weights(key, **hparams):
        made = tk.loss_weights(stats, key, **hparams)
        return np.stack([made.losses, made.d_chosen, made.d_rejected])

    dpo = weights("dpo", beta=0.2)
    for key, extra in [("cdpo", "epsilon"), ("robust", "epsilon"), ("rdpo", "alpha")]:
        np.testing.assert_allclose(weights(key, beta=0.2, **{extra: 0.0}), dpo, rtol=1e-14)
    for key, extra in [("rpo", "alpha"), ("dpop", "lam")]:
        np.testing.assert_allclose(weights(key, beta=0.2, **{extra: 0.0}), dpo, rtol=1e-14)
    np.testing.assert_allclose(weights("kto", beta=0.2), weights("apo_zero", beta=0.2), rtol=1e-14)
    stats.chosen_length = stats.rejected_length = np.ones(50)
    np.testing.assert_allclose(weights("dpo_norm", beta=0.2), dpo, rtol=1e-14)
    np.testing.assert_allclose(weights("ipo_avg", beta=0.2), weights("ipo", tau=0.2), rtol=1e-14)


def test_defaults_limits_and_reference_say_what_the_functions_do():
    """A row that claims a reference it never reads misleads whoever skips the reference pass."""
    stats = points(5, count=20, seed=4)
    for key, row in tk.LOSSES.items():
        assert row.ratio and bool(row.trl_loss_type) == bool(row.trl_trainer)
        assert all(row.defaults[name] in limit for name, limit in row.limits.items())
        moved = SimpleNamespace(**vars(stats))
        moved.ref_chosen_logps = stats.ref_chosen_logps - 0.5
        same = [tk.loss_weights(s, key).losses for s in (stats, moved)]
        assert row.needs_ref != np.array_equal(*same), key


def outputs_of(sides, lengths):
    """What TRL reads from a forward pass: one prompt token, then ``lengths`` scored tokens."""
    longest = max(lengths)
    masks = torch.tensor([[0] + [1] * n + [0] * (longest - n) for n in lengths])
    logps = torch.zeros(2, longest, dtype=torch.float64)
    for row, (total, n) in enumerate(zip(sides, lengths, strict=True)):
        logps[row, :n] = total / n
    return logps.requires_grad_(), masks


def bare_trainer(kind, logps, **options):
    """A TRL trainer with nothing but what its loss reads, and the stub of a model it calls."""
    trainer = object.__new__(kind)
    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device="cpu")
    trainer.model, trainer.accelerator = SimpleNamespace(training=True), same
    trainer.aux_loss_enabled, trainer.precompute_ref_logps, trainer.ld_alpha = False, True, None
    trainer.f_divergence_type, trainer.use_weighting = "reverse_kl", False
    trainer._metrics = {"train": collections.defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    vars(trainer).update(options)
    still = torch.zeros_like(logps)
    out = SimpleNamespace(
        log_probs=logps, entropy=still, mean_logits=still, is_top1=torch.zeros_like(logps).bool()
    )
    return trainer, lambda **_: out


def trl_by_dpo(row, sides, refs, lengths, hparams):
    from trl import DPOTrainer

    logps, masks = outputs_of(sides, lengths)
    spelled = row.trl_loss_type
    types = ast.literal_eval(spelled) if spelled.startswith("[") else [spelled]
    trainer, model = bare_trainer(
        DPOTrainer,
        logps,
        loss_types=types,
        loss_weights=[1.0, hparams.get("alpha", 1.0)][: len(types)],
        beta=hparams.get("beta", 0.1),
        label_smoothing=hparams.get("epsilon"),
        args=SimpleNamespace(discopop_tau=hparams.get("tau")),
    )
    ref_chosen, ref_rejected = torch.tensor(refs, dtype=torch.float64)[:, None]
    ids = torch.ones_like(masks)
    inputs = {"input_ids": ids, "attention_mask": ids, "completion_mask": masks}
    inputs |= {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    return trainer._compute_loss(model, inputs, return_outputs=False), logps


def trl_by_kto(row, sides, refs, lengths, hparams):
    from trl import KTOTrainer

    logps, masks = outputs_of(sides, lengths)
    trainer, model = bare_trainer(
        KTOTrainer, logps, loss_type=row.trl_loss_type, calculate_KL=True, **hparams
    )
    kl = torch.full((2,), hparams["z"] / hparams["beta"], dtype=torch.float64)
    trainer._compute_kl_logps = lambda *_: kl
    ids = torch.ones_like(masks)
    inputs = {"input_ids": ids, "attention_mask": ids, "completion_mask": masks}
    inputs |= {"label": torch.tensor([True, False]), "ref_KL_logps": torch.zeros(2)}
    inputs["ref_logps"] = torch.tensor(refs, dtype=torch.float64)
    # Its mean is over the two responses, ours is the pair's sum.
    return 2 * trainer._compute_loss(model, inputs, return_outputs=False), logps


def trl_by_cpo(row, sides, refs, lengths, hparams):
    from trl.experimental.cpo import CPOTrainer

    logps, _ = outputs_of(sides, lengths)
    totals = logps.sum(1)
    nll = -totals[:1] / lengths[0]
    trainer, _ = bare_trainer(CPOTrainer, logps, alpha=0.0, label_smoothing=0.0)
    trainer.loss_type, trainer.beta = row.trl_loss_type, hparams["beta"]
    trainer.simpo_gamma = hparams.get("gamma")
    if row.trl_loss_type == "simpo":
        totals = totals / torch.tensor(lengths)
    losses, *_ = trainer.cpo_loss(totals[:1], totals[1:])
    # TRL's cpo_alpha is ours times the chosen length.
    return (losses + hparams.get("alpha", 0.0) * lengths[0] * nll).sum(), logps


def trl_by_orpo(row, sides, refs, lengths, hparams):
    from trl.experimental.orpo import ORPOTrainer

    logps, _ = outputs_of(sides, lengths)
    mean = logps.sum(1) / torch.tensor(lengths)
    trainer, _ = bare_trainer(ORPOTrainer, logps, beta=hparams["lam"])
    losses, *_ = trainer.odds_ratio_loss(mean[:1], mean[1:])
    return (-mean[:1] - losses).sum(), logps


TRL = {
    "DPOTrainer": trl_by_dpo,
    "KTOTrainer": trl_by_kto,
    "CPOTrainer": trl_by_cpo,
    "ORPOTrainer": trl_by_orpo,
}


@pytest.mark.parametrize("key", [k for k, row in tk.LOSSES.items() if row.trl_loss_type])
def test_value_and_weights_are_those_of_trls_own_code(key):
    """TRL's trainers compute the loss from the same token log-probabilities, a pair at a time."""
    pytest.importorskip("trl")
    stats, row = points(4, count=12, seed=5), tk.LOSSES[key]
    hparams, *_ = closed_forms(stats)[key]
    if key == "bco":
        hparams = {**hparams, "delta": 0.0}
    ours = tk.loss_weights(stats, key, **hparams)
    # TRL computes ORPO, and the smoothing of EXO, in float32.
    rtol = {"orpo": 1e-5, "exo": 1e-6}.get(key, 1e-10)
    for i in range(12):
        sides = [getattr(stats, name)[i] for name in FIELDS[:2]]
        refs = [getattr(stats, name)[i] for name in FIELDS[2:4]]
        lengths = [int(getattr(stats, name)[i]) for name in FIELDS[4:]]
        loss, logps = TRL[row.trl_trainer](row, sides, refs, lengths, hparams)
        (grad,) = torch.autograd.grad(loss, logps)
        found = [loss.item(), -grad[0, 0].item(), grad[1, 0].item()]
        expected = [ours.losses[i], ours.d_chosen[i], ours.d_rejected[i]]
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol / 100)


def test_every_loss_type_of_trls_dpo_trainer_has_a_row_or_a_reason():
    """A loss type that a new TRL brings shows up here."""
    trl = pytest.importorskip("trl")
    described = trl.DPOConfig.__doc__
    start = described.index("Possible values are:", described.index("loss_type ("))
    listed = ast.literal_eval(
        "[" + described[start + 20 : described.index(". If multiple", start)].replace("`", "") + "]"
    )
    ours = {row.trl_loss_type for row in tk.LOSSES.values() if row.trl_trainer == "DPOTrainer"}
    assert set(listed) == (ours - {"['sigmoid', 'sft']"}) | set(BATCH_LOSSES)


@pytest.fixture(scope="module")
def real_trainer(tmp_path_factory):
    """A DPOTrainer as people build it: the shipped model, another reference, four pairs."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    policy, ref = tk.load_model(), tk.load_model()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in ref.model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    # The sides differ in length, or a swap of the two lengths would not show.
    pairs = [
        *tk.load_pairs("near_duplicates", limit=2),
        tk.PreferencePair(
            "short", "Is it fine to steal a bike?\n", "No", "Yes, if nobody sees it."
        ),
        tk.PreferencePair("long", "How are you?\n", "I am fine, and I hope you are too.", "Bad."),
    ]
    policy = tk.Policy(policy.model, policy.tokenizer, ref.model)
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    folder = str(tmp_path_factory.mktemp("trl"))
    config = trl.DPOConfig(
        output_dir=folder, report_to=[], use_cpu=True, bf16=False, disable_dropout=True
    )
    measured = tk.per_token_logps(policy, pairs)
    trainer = trl.DPOTrainer(
        model=policy.model,
        ref_model=ref.model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )
    return trainer, measured


def stats_of(measured):
    sides = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    made = batch(*[[float(getattr(m, s).double().sum()) for s in sides] for m in measured])
    made.chosen_length = np.array([len(m.chosen) for m in measured])
    made.rejected_length = np.array([len(m.rejected) for m in measured])
    return made


@pytest.mark.parametrize(
    "key", [k for k, row in tk.LOSSES.items() if row.trl_trainer == "DPOTrainer"]
)
def test_a_real_trainer_reports_the_loss_of_our_log_probabilities(real_trainer, key):
    """End to end: tokenisation, EOS, lengths and log-probabilities are those that TRL trains on."""
    trainer, measured = real_trainer
    row, stats = tk.LOSSES[key], stats_of(measured)
    spelled = row.trl_loss_type
    trainer.loss_types = ast.literal_eval(spelled) if spelled.startswith("[") else [spelled]
    trainer.loss_weights = [1.0] * len(trainer.loss_types)
    trainer.label_smoothing = row.defaults.get("epsilon", 0.0)
    expected = tk.loss_weights(stats, key).losses
    assert np.ptp(expected) > 1e-3
    for i, wanted in enumerate(expected):
        inputs = trainer.data_collator([trainer.train_dataset[i]])
        with torch.no_grad():
            loss = trainer.compute_loss(trainer.model, inputs)
        assert loss.item() == pytest.approx(wanted, rel=2e-5, abs=2e-6)


# --- what a loss may read ---


def test_a_loss_may_name_what_follows_from_the_log_probabilities():
    """Each derived quantity equals its formula."""
    stats = batch(*PAIRS)
    ratio = {
        s: getattr(stats, f"{s}_logps") - getattr(stats, f"ref_{s}_logps")
        for s in ("chosen", "rejected")
    }
    expected = {
        "chosen_logratio": ratio["chosen"],
        "rejected_logratio": ratio["rejected"],
        "delta": ratio["chosen"] - ratio["rejected"],
        "chosen_mean": stats.chosen_logps / stats.chosen_length,
        "rejected_mean": stats.rejected_logps / stats.rejected_length,
        "chosen_mean_logratio": ratio["chosen"] / stats.chosen_length,
        "rejected_mean_logratio": ratio["rejected"] / stats.rejected_length,
    }
    assert set(expected) == set(quantities.DERIVED)
    for name, values in expected.items():
        loss = eval(f"lambda {name}: {name}")
        np.testing.assert_allclose(tk.loss_weights(stats, loss).losses, values, rtol=1e-12)


def test_a_hyper_parameter_may_have_a_quantitys_name():
    """After the star, or with a default, `delta` is the user's own number."""

    def starred(chosen_logps, *, delta):
        return delta * chosen_logps

    def defaulted(chosen_logps, delta=3.0):
        return delta * chosen_logps

    stats = batch(*PAIRS)
    assert tk.loss_weights(stats, starred, delta=2.0).d_chosen.tolist() == [-2.0] * len(PAIRS)
    assert tk.loss_weights(stats, defaulted).hparams == {"delta": 3.0}
    with pytest.raises(ValueError, match="starred needs a value for delta"):
        tk.loss_weights(stats, starred)


def test_the_table_knows_which_losses_need_a_reference():
    free = {key for key, row in tk.LOSSES.items() if not row.needs_ref}
    assert free == {"simpo", "rrhf", "slic", "cpo", "orpo", "sft"}
