"""All losses on one pair, without a screen: rows, reach, and changes that are refused."""

import numpy as np
import pytest
from explorers import make_pairs

import toolkit as tk
from toolkit.loss_comparison import LossComparison
from toolkit.measurement import Measurement


@pytest.fixture(scope="module")
def measured():
    policy = tk.load_model()
    stats = tk.pair_stats(policy, make_pairs(), progress=False)
    return Measurement(policy, make_pairs(), "all", stats)


@pytest.fixture
def losses(measured):
    found = LossComparison(measured, ["dpo", "ipo", "slic"])
    found.begin({"beta": 0.1}, lr=1e-3, index=0)
    return found


def test_rows_are_those_of_entanglement(losses, measured):
    losses.pick(3)
    for name in ("dpo", "slic"):
        own = {"beta": 0.1} if name == "dpo" else {}
        stats = measured.given_stats.take([3])
        expected = tk.entanglement(stats, name, lr=1e-3, **own).to_frame().iloc[0]
        row = losses.frame.set_index("loss_name").loc[name]
        for column in ("d_chosen", "predicted_chosen_delta", "predicted_rejected_delta"):
            np.testing.assert_array_equal(row[column], expected[column])


def test_a_hyper_parameter_reaches_the_losses_that_have_it(losses):
    assert losses.reach("lam") == ["slic"] and losses.reach("beta") == ["dpo"]
    before = losses.frame.set_index("loss_name")
    losses.set({"lam": 3.0})
    after = losses.frame.set_index("loss_name")
    assert after.loc["dpo"].equals(before.loc["dpo"])
    assert after.loc["slic", "d_chosen"] != before.loc["slic", "d_chosen"]
    losses.reset()
    assert losses.frame.set_index("loss_name").equals(before)


def test_a_refused_change_changes_nothing(losses):
    before, settings = losses.frame, losses.settings
    for values, message in (
        ({"beta": -1.0}, "beta of dpo"),
        ({"lam": 2.0, "theta": 1.0}, "theta is no setting of these losses"),
        ({"chosen_shift": "x"}, "chosen_shift must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            losses.set(values)
    assert losses.frame is before and losses.settings == settings
