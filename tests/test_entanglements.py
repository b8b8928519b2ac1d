"""Predicted changes, regimes and the band: identities on vectors, on models and on a real step."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import shapes
import torch
from hypothesis import given, strategies as st

import toolkit as tk
from toolkit.gradients import PairStats
from toolkit.model import Provenance

SHAPES = list(shapes.CONFIGS)
COLUMNS = [
    "pair_id",
    "chosen_logps",
    "rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_length",
    "rejected_length",
    "chosen_sq_norm",
    "rejected_sq_norm",
    "inner",
    "cosine",
    "kappa",
    "loss",
    "d_chosen",
    "d_rejected",
    "ratio",
    "log_ratio",
    "band_low",
    "band_center",
    "band_high",
    "band_position",
    "chosen_slack",
    "rejected_slack",
    "predicted_chosen_delta",
    "predicted_rejected_delta",
    "predicted_margin_delta",
    "regime",
    "first_order",
    "first_order_lr",
]
LABELS = Provenance("vectors", "all", "float64", True)


def stats_of(chosen, rejected, inner, logps=None):
    """Statistics from ‖g_chosen‖², ‖g_rejected‖² and ⟨g_chosen, g_rejected⟩ of each pair."""
    products = [np.atleast_1d(np.asarray(v, dtype=float)) for v in (chosen, rejected, inner)]
    n = len(products[0])
    four = [np.zeros(n)] * 4 if logps is None else logps
    lengths = [np.full(n, 2), np.full(n, 3)]
    return PairStats([str(i) for i in range(n)], *four, *lengths, *products, labels=LABELS)


def from_vectors(g_chosen, g_rejected):
    products = [(a * b).sum(-1) for a, b in ((g_chosen,) * 2, (g_rejected,) * 2)]
    return stats_of(*products, (g_chosen * g_rejected).sum(-1))


def random_vectors(n=4000, dimension=6, seed=0):
    """Pairs of vectors that cover all cosines and norm ratios, aligned ones often."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n, dimension))
    b = rng.uniform(-1.5, 3, (n, 1)) * a + b * rng.uniform(0.05, 1, (n, 1))
    return a * np.exp(rng.normal(0, 0.7, (n, 1))), b * np.exp(rng.normal(0, 0.7, (n, 1)))


def linear(chosen_logps, rejected_logps, *, d_chosen, d_rejected):
    """A loss whose weights are what the test says."""
    return d_rejected * rejected_logps - d_chosen * chosen_logps


def weighted(stats, d_chosen, d_rejected, lr=1.0):
    return tk.entanglement(stats, linear, lr=lr, d_chosen=d_chosen, d_rejected=d_rejected)


def regime(chosen, rejected, inner, d_chosen=1.0, d_rejected=1.0):
    return weighted(stats_of(chosen, rejected, inner), d_chosen, d_rejected).regime[0]


# --- identities on vectors ---


@pytest.mark.parametrize("ratio", [0.2, 1.0, 2.7])
def test_the_band_the_conditions_and_the_signs_agree(ratio):
    """T5: band position, condition on ⟨·,·⟩ and regime are three forms of one statement."""
    g_w, g_l = random_vectors(seed=int(10 * ratio))
    stats = from_vectors(g_w, g_l)
    result = weighted(stats, 0.3 * ratio, 0.3, lr=0.01)
    step = 0.3 * ratio * g_w - 0.3 * g_l
    chosen, rejected = 0.01 * (g_w * step).sum(-1), 0.01 * (g_l * step).sum(-1)
    np.testing.assert_allclose(result.predicted_chosen_delta, chosen, atol=1e-12)
    np.testing.assert_allclose(result.predicted_rejected_delta, rejected, atol=1e-12)

    named = {(True, False): "ideal", (False, False): "both_down", (True, True): "both_up"}
    assert result.regime.tolist() == [
        named[k] for k in zip(chosen > 0, rejected > 0, strict=True)
    ]  # a KeyError here would be (down, up)
    assert set(result.regime) == set(named.values())

    condition = (stats.inner < ratio * stats.chosen_sq_norm) & (
        stats.inner < stats.rejected_sq_norm / ratio
    )
    np.testing.assert_array_equal(result.regime == "ideal", condition)

    aligned = stats.cosine > 0
    position = result.band_position
    np.testing.assert_array_equal(np.isnan(position), ~aligned)
    assert (result.regime[~aligned] == "ideal").all()
    for name, inside in (
        ("ideal", abs(position) < 1),
        ("both_down", position <= -1),
        ("both_up", position >= 1),
    ):
        np.testing.assert_array_equal(result.regime[aligned] == name, inside[aligned])
    within = (result.band_low < ratio) & (ratio < result.band_high)
    np.testing.assert_array_equal(result.regime == "ideal", within)
    np.testing.assert_allclose(
        result.band_low[aligned] * result.band_high[aligned], result.band_center[aligned] ** 2
    )


def test_kappa_below_one_is_ideal_for_dpo():
    """T5: κ by the chosen norm alone (a published slip) calls some both_up pairs ideal."""
    stats = from_vectors(*random_vectors(seed=3))
    result = tk.entanglement(stats, "dpo")
    np.testing.assert_array_equal(result.regime == "ideal", stats.kappa < 1)
    assert {"both_down", "both_up"} < set(result.regime)


@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.lists(st.floats(-3, 3), min_size=3, max_size=3),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
)
def test_positive_weights_never_lower_chosen_and_raise_rejected(g_w, g_l, d_w, d_l):
    """T5, T3: also where a vector is tiny, zero or a multiple of the other."""
    g_w, g_l = np.array([g_w]), np.array([g_l])
    result = weighted(from_vectors(g_w, g_l), d_w, d_l, lr=0.1)
    assert result.regime[0] != "reversed"
    gain = d_w * result.predicted_chosen_delta - d_l * result.predicted_rejected_delta
    norm = 0.1 * ((d_w * g_w - d_l * g_l) ** 2).sum()
    size = (d_w * np.abs(g_w).max() + d_l * np.abs(g_l).max()) ** 2
    assert gain[0] == pytest.approx(norm, rel=1e-6, abs=1e-12 * size)


def test_the_normalised_update_is_always_ideal():
    """T6: a loss with d_chosen/d_rejected = ‖g_rejected‖/‖g_chosen‖, the middle of the band."""
    stats = from_vectors(*random_vectors(seed=4))
    norms = [torch.tensor(v).sqrt() for v in (stats.chosen_sq_norm, stats.rejected_sq_norm)]

    def normalised(chosen_logps, rejected_logps):
        return rejected_logps / norms[1] - chosen_logps / norms[0]

    result = tk.entanglement(stats, normalised, lr=0.1)
    assert (result.regime == "ideal").all()
    aligned = stats.cosine > 0
    np.testing.assert_allclose(result.band_position[aligned], 0, atol=1e-6)
    gain = 0.1 * (1 - stats.cosine)
    np.testing.assert_allclose(
        result.predicted_chosen_delta, gain * np.sqrt(stats.chosen_sq_norm), rtol=1e-6, atol=1e-12
    )
    np.testing.assert_allclose(
        result.predicted_rejected_delta, -gain * np.sqrt(stats.rejected_sq_norm), rtol=1e-6
    )


def test_swapping_the_responses_swaps_the_regimes():
    """T10: for equal weights, both_down becomes both_up, and the band turns around."""
    stats = from_vectors(*random_vectors(seed=5))
    swapped = dataclasses.replace(
        stats, chosen_sq_norm=stats.rejected_sq_norm, rejected_sq_norm=stats.chosen_sq_norm
    )
    one, other = weighted(stats, 0.2, 0.2), weighted(swapped, 0.2, 0.2)
    turned = {"ideal": "ideal", "both_down": "both_up", "both_up": "both_down"}
    assert other.regime.tolist() == [turned[r] for r in one.regime]
    np.testing.assert_allclose(other.band_position, -one.band_position, atol=1e-9)
    np.testing.assert_allclose(other.predicted_chosen_delta, -one.predicted_rejected_delta)


@pytest.mark.parametrize("factor", [1e-30, 7.0, 1e30])
def test_scaling_the_loss_keeps_ratio_and_regime(factor):
    """T13: an absolute tolerance for 'unchanged' would swallow a small loss."""
    stats = from_vectors(*random_vectors(500, seed=6))
    one, many = weighted(stats, 0.4, 0.2), weighted(stats, 0.4 * factor, 0.2 * factor)
    np.testing.assert_allclose(many.ratio, one.ratio)
    np.testing.assert_array_equal(many.regime, one.regime)
    np.testing.assert_allclose(many.predicted_chosen_delta, factor * one.predicted_chosen_delta)


def test_unequal_weights_can_shrink_the_margin():
    """A.2: with g = 1 and 2 and d_rejected = 1, the margin moves by 1, 0, −1, −49."""
    stats = stats_of(1.0, 4.0, 2.0)
    moves = [
        weighted(stats, d, 1.0).to_frame().loc[0, "predicted_margin_delta"] for d in (1, 2, 3, 51)
    ]
    np.testing.assert_allclose(moves, [1, 0, -1, -49], atol=1e-12)


def test_predictions_are_proportional_to_the_learning_rate():
    stats = from_vectors(*random_vectors(50))
    one, tenth = (weighted(stats, 1.0, 2.0, lr=lr).to_frame() for lr in (1.0, 0.1))
    for name in ("chosen", "rejected", "margin"):
        column = f"predicted_{name}_delta"
        np.testing.assert_allclose(tenth[column], 0.1 * one[column])
    np.testing.assert_array_equal(tenth["chosen_slack"], one["chosen_slack"])


# --- corners ---


@pytest.mark.parametrize(
    ("products", "d", "expected"),
    [
        ((1, 4, -1), (1, 1), "ideal"),
        ((1, 4, 0), (1, 1), "ideal"),
        ((1, 4, 1.5), (1, 1), "both_down"),
        ((4, 1, 1.5), (1, 1), "both_up"),
        ((1, 4, 1.5), (2, 1), "ideal"),
        # The band's edge: one change is exactly zero (κ = 1, position ±1).
        ((1, 4, 1), (1, 1), "both_down"),
        ((4, 1, 1), (1, 1), "both_up"),
        ((3, 4, 1), (0.1, 0.3), "both_down"),  # 0.1·3 − 0.3 is 5.6e-17 in floats
        # Equal gradients, or nothing at all: no first-order change.
        ((2, 2, 2), (1, 1), "unchanged"),
        ((0, 0, 0), (1, 1), "unchanged"),
        ((1, 4, 1.5), (0, 0), "unchanged"),
        # One gradient vanishes: the other response still moves the right way.
        ((0, 4, 0), (1, 1), "ideal"),
        ((4, 0, 0), (1, 1), "ideal"),
        # A hinge that is satisfied leaves only the chosen term.
        ((1, 4, 1.5), (1, 0), "both_up"),
        ((1, 4, -1.5), (1, 0), "ideal"),
        ((1, 4, 0), (1, 0), "ideal"),
        # Past its target, a squared loss pulls the other way.
        ((1, 4, 0.5), (-1, -1), "reversed"),
        ((1, 4, 1.5), (-1, -1), "both_up"),
        ((4, 1, 1.5), (-1, -1), "both_down"),
        ((1, 4, 0.5), (-1, 1), "both_down"),
        ((1, 4, 0.5), (1, -1), "both_up"),
    ],
)
def test_regimes_follow_the_signs_of_the_changes(products, d, expected):
    """The case table of positive weights is wrong for the last five."""
    assert regime(*products, *d) == expected


def test_identical_responses_do_not_change():
    """T14, on a model: rounding must not be read as a direction, nor cos = 1 divide by zero."""
    pairs = [shapes.encoded("same", [5, 6], [7, 8, 9], [7, 8, 9])]
    for shape in SHAPES:
        stats = tk.pair_stats(shapes.policy(shape, torch.float32), pairs, progress=False)
        frame = tk.entanglement(stats, "dpo").to_frame()
        assert frame.loc[0, "regime"] == "unchanged"
        # A difference of float32 products, each good to about 2e-6 of itself.
        size = frame.loc[0, "d_chosen"] * frame.loc[0, "chosen_sq_norm"]
        assert frame.loc[0, "predicted_margin_delta"] == pytest.approx(0, abs=1e-5 * size)


@pytest.mark.parametrize(("d_chosen", "position"), [(2.0, np.inf), (0.5, -np.inf)])
def test_the_band_of_parallel_gradients_has_no_width_and_keeps_its_sides(d_chosen, position):
    """−log(1) is −0, and dividing by it puts the pair at the wrong infinity."""
    result = weighted(stats_of(4.0, 4.0, 4.0), d_chosen, 1.0)
    assert result.band_position[0] == position
    assert result.regime[0] == ("both_up" if position > 0 else "both_down")
    assert result.band_low[0] == result.band_center[0] == result.band_high[0] == 1.0


def test_missing_values_are_missing_rather_than_wrong():
    """A cosine ≤ 0 has no upper edge; without a gradient or a rejected weight there is no ratio."""
    frame = weighted(stats_of([1, 1, 0], [4, 4, 4], [-1, 0, 0]), 1.0, 0.0).to_frame()
    assert frame["ratio"].isna().all() and frame["band_position"].isna().all()
    assert frame["band_high"].tolist()[:2] == [np.inf, np.inf] and np.isnan(frame["band_high"][2])
    assert frame["band_low"].tolist()[:2] == [0.0, 0.0] and np.isnan(frame["cosine"][2])
    assert frame["regime"].tolist() == ["ideal", "ideal", "unchanged"]


# --- on models ---


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weighted_gain_is_the_squared_step(shape):
    """T3 on real gradients: d_wΔlw − d_lΔll = lr‖d_w g_w − d_l g_l‖², through pair_stats."""
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs()
    frame = weighted(tk.pair_stats(policy, pairs, progress=False), 0.7, 0.3, lr=0.01).to_frame()
    gain = 0.7 * frame["predicted_chosen_delta"] - 0.3 * frame["predicted_rejected_delta"]
    for expected, pair in zip(gain, pairs, strict=True):
        logps = forward(policy.model, pair)
        step = torch.autograd.grad(0.7 * logps[0] - 0.3 * logps[1], policy.model.parameters())
        norm = sum(float(g.double().square().sum()) for g in step)
        assert expected == pytest.approx(0.01 * norm, rel=1e-6)


def forward(model, pair):
    """Both log-probabilities with a graph, by nothing of the package."""
    sides = ((pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask))
    totals = []
    for ids, mask in sides:
        scores = model.eval()(ids[None]).logits[0, :-1].log_softmax(-1)
        totals.append(scores.gather(-1, ids[1:, None])[:, 0][mask[1:]].sum())
    return totals


def after_a_dpo_step(policy, pair, lr, beta):
    """Actual changes of both log-probabilities after one SGD step on the DPO loss."""
    tuned = copy.deepcopy(policy.model)
    before, ref = forward(tuned, pair), forward(policy.ref_model, pair)
    margin = before[0] - ref[0].detach() - (before[1] - ref[1].detach())
    (-torch.nn.functional.logsigmoid(beta * margin)).backward()
    torch.optim.SGD(tuned.parameters(), lr).step()
    return [(a - b).item() for a, b in zip(forward(tuned, pair), before, strict=True)]


def test_a_real_dpo_step_does_what_was_predicted_up_to_second_order():
    """T4: half the learning rate, a quarter of the residual; not so with a wrong β, σ or lr."""
    pair, beta = shapes.ragged_pairs()[1], 0.5
    own = shapes.policy("gpt2", seed=0)
    policy = tk.Policy(own.model, own.tokenizer, shapes.model("gpt2", seed=1), name="gpt2")
    stats = tk.pair_stats(policy, pair, progress=False)
    assert stats.ref_chosen_logps[0] != stats.chosen_logps[0]
    residuals = []
    for lr in (4e-5, 2e-5, 1e-5):
        frame = tk.entanglement(stats, "dpo", lr=lr, beta=beta).to_frame()
        predicted = frame.loc[0, ["predicted_chosen_delta", "predicted_rejected_delta"]]
        actual = after_a_dpo_step(policy, pair, lr, beta)
        np.testing.assert_allclose(predicted.to_numpy(float), actual, rtol=0.1)
        residuals.append(np.abs(predicted.to_numpy(float) - actual))
    for large, small in itertools.pairwise(residuals):
        np.testing.assert_allclose(large / small, 4, rtol=0.1)


def test_the_frame_has_the_agreed_columns_and_labels():
    policy = shapes.policy("llama")
    stats = tk.pair_stats(policy, shapes.ragged_pairs(), params="head", progress=False)
    result = tk.entanglement(stats, "dpo", lr=0.5, beta=0.2)
    frame = result.to_frame()
    assert list(frame.columns) == COLUMNS and len(frame) == len(result) == 5
    np.testing.assert_allclose(frame["ratio"], 1.0)
    np.testing.assert_allclose(frame["log_ratio"], 0.0)
    margin = frame["predicted_chosen_delta"] - frame["predicted_rejected_delta"]
    np.testing.assert_array_equal(frame["predicted_margin_delta"], margin)
    expected = {**policy.labels("head").to_attrs(), "loss_name": "dpo", "lr": 0.5, "beta": 0.2}
    assert frame.attrs == {**expected, "first_order_nats": 0.3}


def test_a_step_is_within_first_order_up_to_a_third_of_a_nat():
    stats = stats_of([8, 8, 1e-9], [2, 60, 1e-9], [1, 1, 0])
    small, large = (weighted(stats, 1.0, 1.0, lr=lr).to_frame() for lr in (0.01, 0.03))
    assert small["first_order"].tolist() == [True, False, True]
    assert large["first_order"].tolist() == [True, False, True]
    np.testing.assert_allclose(small["first_order_lr"][:2], [0.3 / 7, 0.3 / 59])
    assert small["first_order_lr"].equals(large["first_order_lr"])
    still = weighted(stats_of(0, 0, 0), 1.0, 1.0, lr=1e6)
    assert still.first_order[0] and np.isinf(still.first_order_lr[0])


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=60))
def test_the_suggested_rate_is_one_digit_and_keeps_95_percent_within_reach(slacks):
    slacks = np.array(slacks)
    rate = tk.suggest_lr(slacks, -slacks / 2)
    assert float(f"{rate:.0e}") == rate
    within = (rate * slacks <= 0.3 * (1 + 1e-8)).mean()
    assert 0 < rate <= 1 and within >= (0.95 if len(slacks) >= 20 else 1)
    digit, power = f"{rate:.0e}".split("e")
    larger = float(f"{int(digit) + 1}e{power}")
    assert rate == 1 or (larger * slacks <= 0.3).mean() < (0.95 if len(slacks) >= 20 else 1)


def test_one_degenerate_pair_does_not_set_the_rate_of_a_hundred():
    slacks = np.append(np.full(99, 30.0), 1e9)
    assert tk.suggest_lr(slacks, slacks) == 0.01
    assert tk.suggest_lr([0.0, np.nan], [0.0, np.nan]) == tk.suggest_lr([], []) == 1.0


def test_the_worst_pair_is_the_one_whose_chosen_response_falls_most():
    stats = stats_of([8, 1, 1], [2, 60, 9], [1, 7, 2])
    assert weighted(stats, 1.0, 1.0).worst == 1
    assert weighted(stats.take([0, 0, 2]), 1.0, 0.1).worst == 2


@pytest.mark.parametrize("name, loss", [("near_duplicates", "dpo"), ("refusals", "ipo")])
def test_real_steps_at_the_edge_of_first_order_go_as_predicted(name, loss):
    """The bound is an experience, not a theorem: here it is made again with real SGD steps."""
    policy, pairs = tk.load_model(), tk.load_pairs(name, limit=12)[::4]
    result = tk.entanglement(tk.pair_stats(policy, pairs, progress=False), loss)
    for pair, rate in zip(pairs, result.first_order_lr, strict=True):
        step = tk.predict_step(policy, [pair], loss=loss, optimizer="sgd", lr=float(rate))
        np.testing.assert_allclose(step["predicted_delta"].abs().max(), 0.3, rtol=0.01)
        assert (np.sign(step["predicted_delta"]) == np.sign(step["actual_delta"])).all()
        off = (step["predicted_delta"] - step["actual_delta"]).abs().max()
        assert off < 0.25 * 0.3


@pytest.mark.parametrize("index", [[3, 0], np.array([3, 0]), (-2, 0)])
def test_take_keeps_the_order_asked_for(index):
    stats = from_vectors(*random_vectors(5))
    result = weighted(stats, 1.0, 2.0)
    taken, whole = result.take(index).to_frame(), result.to_frame()
    assert taken.equals(whole.iloc[[3, 0]].reset_index(drop=True))
    assert taken.attrs == whole.attrs


def test_take_reads_a_mask_as_a_mask():
    """Cast to integers, a mask selects pairs 0 and 1 over and over."""
    result = weighted(from_vectors(*random_vectors(4)), 1.0, 2.0)
    assert result.take(np.array([False, True, False, True])).stats.pair_ids == ["1", "3"]
    assert len(result.take([])) == 0


@pytest.mark.parametrize("lr", [0, -1e-3, float("nan"), float("inf"), True, "0.1", None, [0.1]])
def test_a_bad_learning_rate_is_refused(lr):
    with pytest.raises(ValueError, match="lr must be a positive number"):
        tk.entanglement(stats_of(1, 4, 1), "dpo", lr=lr)


@pytest.mark.parametrize("name", ["chosen_sq_norm", "rejected_sq_norm", "inner"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_overflowed_gradient_is_named_rather_than_called_ideal(name, value):
    """Comparisons with NaN are false, which left the default regime, 'ideal'."""
    stats = stats_of([1, 1], [4, 4], [1, 1])
    broken = dataclasses.replace(stats, **{name: np.array([1.0, value])})
    with pytest.raises(ValueError, match="pair '1' are not finite"):
        tk.entanglement(broken, "dpo")
