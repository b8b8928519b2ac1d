"""Measuring a few pairs at a time: what is kept, what is estimated, what is refused."""

import numpy as np
import pytest
from explorers import make_pairs

import toolkit as tk
from toolkit import measurement


def test_a_batch_that_was_halved_for_memory_is_one_measurement(policy, monkeypatch):
    """Where memory runs out, ``iter_pair_stats`` yields the batch in parts."""
    pairs = tk.load_pairs("single_token", limit=3)
    real = measurement.iter_pair_stats
    halved = lambda *given, batch_size, **more: real(*given, batch_size=1, **more)  # noqa: E731
    monkeypatch.setattr(measurement, "iter_pair_stats", halved)
    found = measurement.Measurement(policy, pairs, "all")
    found.step(3)
    assert list(found.results()[0].pair_ids) == [pair.id for pair in pairs]


def test_a_measurement_in_parts_is_that_of_all_at_once(policy):
    pairs = make_pairs()
    parts, whole = (measurement.Measurement(policy, pairs, "all") for _ in range(2))
    whole.step(5)
    for count in (1, 2, 7):
        assert not parts.finished
        parts.step(count)
    assert parts.finished and parts.done == 5 and parts.seconds_left == 0
    np.testing.assert_allclose(parts.results()[0].inner, whole.results()[0].inner, rtol=1e-4)


def test_the_results_used_last_are_kept():
    cache = measurement.Cache(2)
    for key in "abcb":
        cache.get(key, str)
    assert ["a" in cache, "b" in cache, "c" in cache] == [False, True, True]


def test_an_estimate_is_nothing_once_the_result_is_kept(policy):
    found = measurement.Measurement(policy, make_pairs(2), "all")
    found.step(2)
    one = measurement.PairResults(found, "dpo", 0.1, None, {}).at(1)
    assert one.seconds("matrix") > 0
    one.matrix()
    assert one.seconds("matrix") == 0 and one.pair.id == "p1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("dpo", 0.0, None, {}), "beta must be a positive number"),
        (("dpo", 0.1, -1.0, {}), "lr must be a positive number"),
        (("dpoo", 0.1, None, {}), "loss='dpoo' is unknown"),
    ],
)
def test_a_step_is_checked_before_anything_is_measured(settings, message):
    with pytest.raises(ValueError, match=message):
        measurement.check_step(*settings)


def test_the_suggested_rate_reaches_the_pair_that_is_shown_first(policy):
    """The worst pair lies beyond a rate that is right for 95 % of them; its sentence says nats."""
    pairs = tk.load_pairs("near_duplicates")
    found = measurement.Measurement(policy, pairs, "all")
    found.step(len(pairs))
    results = measurement.PairResults(found, "dpo", 0.1, None, {})
    assert results.frame["first_order"].iloc[results.worst]
    assert results.frame["first_order"].mean() >= 0.95
