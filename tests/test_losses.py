"""Loss weights: the closed form of DPO, finite differences, user functions and every refusal."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import shapes
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

import toolkit as tk
from toolkit.losses import FIELDS

logps = st.floats(-1e4, 0, allow_subnormal=False)
betas = st.floats(1e-3, 10)


def batch(*rows, ids=None):
    """Six arrays from rows of (chosen, rejected, ref chosen, ref rejected)."""
    columns = np.array(rows, dtype=float).T
    lengths = np.arange(1, len(rows) + 1)
    made = SimpleNamespace(**dict(zip(FIELDS, [*columns, lengths, lengths + 3], strict=True)))
    if ids is not None:
        made.ids = ids
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
    weights = tk.loss_weights("dpo", batch((chosen, rejected, ref_chosen, ref_rejected)), beta=beta)
    u = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    expected = beta * np.exp(-np.logaddexp(0, u))
    np.testing.assert_allclose(weights.d_chosen, expected, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(weights.d_rejected, expected, rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(weights.losses, np.logaddexp(0, -u), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_extreme_margins_stay_finite(margin):
    """log(sigmoid) written naively gives −inf here and a NaN weight."""
    frame = tk.loss_weights("dpo", batch((margin, 0.0, 0.0, 0.0)), beta=1.0).to_frame()
    expected = [max(-margin, 0.0), 0.0 if margin > 0 else 1.0, 0.0 if margin > 0 else 1.0]
    assert frame.loc[0, ["loss", "d_chosen", "d_rejected"]].tolist() == expected


def differentiated(loss, stats, field, step=1e-5, **hparams):
    moved = [SimpleNamespace(**vars(stats)) for _ in range(2)]
    for sign, target in zip((1, -1), moved, strict=True):
        setattr(target, field, getattr(stats, field) + sign * step)
    up, down = (tk.loss_weights(loss, m, **hparams).losses for m in moved)
    return (up - down) / (2 * step)


@pytest.mark.parametrize(
    ("loss", "hparams"),
    [("dpo", {"beta": 0.3}), (simpo, {}), (simpo, {"gamma": 1.5}), (half_squared_chosen, {})],
)
def test_weights_are_the_slopes_of_the_loss(loss, hparams):
    """T2 by finite differences; a mean over pairs in place of the sum divides them by three."""
    stats = batch(*PAIRS)
    weights = tk.loss_weights(loss, stats, **hparams)
    slopes = [differentiated(loss, stats, f"{s}_logps", **hparams) for s in ("chosen", "rejected")]
    np.testing.assert_allclose(weights.d_chosen, -slopes[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(weights.d_rejected, slopes[1], rtol=1e-6, atol=1e-8)


def test_simpo_as_a_users_function_has_the_length_ratio():
    """T2: the lengths reach a user's function, each side its own."""
    stats = batch(*PAIRS)
    weights = tk.loss_weights(simpo, stats)
    ratio = weights.d_chosen / weights.d_rejected
    np.testing.assert_allclose(ratio, stats.rejected_length / stats.chosen_length)
    assert weights.loss == "simpo" and weights.hparams == {"beta": 2.0, "gamma": 0.5}


def test_pairs_do_not_mix_in_a_batch():
    whole = tk.loss_weights("dpo", batch(*PAIRS))
    alone = [tk.loss_weights("dpo", batch(row)) for row in PAIRS]
    np.testing.assert_array_equal(whole.d_chosen, [w.d_chosen[0] for w in alone])
    np.testing.assert_array_equal(whole.losses, [w.losses[0] for w in alone])


@given(logps, logps, logps, logps, st.floats(1e-3, 1e3))
def test_scaling_the_loss_scales_its_weights(chosen, rejected, ref_chosen, ref_rejected, factor):
    """T13."""

    def scaled(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, c):
        margin = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
        return -c * logsigmoid(0.1 * margin)

    stats = batch((chosen, rejected, ref_chosen, ref_rejected))
    one, many = (tk.loss_weights(scaled, stats, c=c) for c in (1.0, factor))
    np.testing.assert_allclose(many.d_chosen, factor * one.d_chosen, rtol=1e-12)
    np.testing.assert_allclose(many.d_rejected, factor * one.d_rejected, rtol=1e-12)


def test_a_function_that_reads_one_side_leaves_the_other_at_zero():
    """Autograd returns None for an unused leaf."""
    weights = tk.loss_weights(half_squared_chosen, batch(*PAIRS))
    np.testing.assert_allclose(weights.d_chosen, [5.0, 30.0, 1.0])
    assert weights.d_rejected.tolist() == [0.0, 0.0, 0.0]


def test_a_users_function_works_everywhere_a_name_does():
    """Naming only some fields, through real statistics, entanglement and its labels."""
    stats = tk.pair_stats(shapes.policy("gpt2"), shapes.ragged_pairs(), progress=False)
    frame = tk.entanglement(stats, half_squared_chosen, lr=0.5).to_frame()
    np.testing.assert_allclose(frame["d_chosen"], -stats.chosen_logps)
    assert frame.attrs["loss"] == "half_squared_chosen" and frame.attrs["lr"] == 0.5
    assert (frame["d_rejected"] == 0).all() and frame["ratio"].isna().all()


def test_a_partial_and_a_callable_object_are_functions_too():
    stats = batch(*PAIRS)
    partial = tk.loss_weights(functools.partial(tk.LOSSES["dpo"].function, beta=0.1), stats)
    np.testing.assert_array_equal(partial.d_chosen, tk.loss_weights("dpo", stats).d_chosen)
    assert partial.loss == "custom" and partial.hparams == {"beta": 0.1}


def test_weights_are_taken_also_where_gradients_are_off():
    """Called inside torch.no_grad(), the leaves would have no graph."""
    with torch.no_grad():
        weights = tk.loss_weights("dpo", batch(PAIRS[2]), beta=0.2)
    assert weights.d_chosen[0] == pytest.approx(0.1)


def test_statistics_are_not_changed():
    stats = batch(*PAIRS)
    before = {f: getattr(stats, f).copy() for f in FIELDS}
    tk.loss_weights(lambda chosen_logps: chosen_logps.clone().mul_(3), stats)
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(stats, name), values)


def test_defaults_are_the_tables_and_do_not_leak_between_calls():
    assert tk.loss_weights("dpo", batch(*PAIRS)).hparams == {"beta": 0.1}
    tk.loss_weights("dpo", batch(*PAIRS), beta=5.0)
    assert dict(tk.LOSSES["dpo"].defaults) == {"beta": 0.1}


def test_frame_and_table():
    frame = tk.loss_weights("dpo", batch(*PAIRS, ids=["a", "b", "c"]), beta=0.2).to_frame()
    assert list(frame.columns) == ["id", "loss", "d_chosen", "d_rejected"]
    assert frame["id"].tolist() == ["a", "b", "c"] and frame.attrs == {"loss": "dpo", "beta": 0.2}
    table = tk.loss_table()
    assert table.index.tolist() == list(tk.LOSSES) and table.index.name == "loss"
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
        tk.loss_weights(loss, batch(*PAIRS), **hparams)
