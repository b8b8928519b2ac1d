"""The bench of remedies: its numbers against runs by hand, what is kept, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import reference
import shapes
import torch

import toolkit as tk
from toolkit.remedies.masks import unshared
from toolkit.remedy_comparison import bench

LR = 1e-3
SHORT = {"lr": LR, "steps": 2, "batch_size": 2, "beta": 0.3, "progress": False}


def run(remedies, **options):
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    return tk.compare_remedies(policy, pairs, remedies, **{**SHORT, "seeds": 1, **options})


def test_rows_say_what_a_run_by_hand_says():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    frame = run(["plain", "normalised", "dpop"], seeds=[3, 5], held_out=pairs[:2])
    assert frame["remedy"].tolist() == ["plain", "normalised", "dpop"] * 2
    assert frame["seed"].tolist() == [3] * 3 + [5] * 3 and not frame.attrs["stopped"]
    by_hand = {"plain": {}, "normalised": {"update_rule": "normalised"},
               "dpop": {"loss": "dpop", "beta": 0.1}}  # fmt: skip
    for row in frame.itertuples():
        given = {**SHORT, "probes": pairs, "seed": row.seed, **by_hand[row.remedy]}
        trajectory = tk.train(policy, pairs, **given)
        fallen = trajectory.drawdown().groupby("side")[["change", "drawdown"]].mean()
        assert row.chosen_change == pytest.approx(fallen.loc["chosen", "change"])
        assert row.chosen_drawdown == pytest.approx(fallen.loc["chosen", "drawdown"])
        assert row.margin_change == pytest.approx(
            fallen.loc["chosen", "change"] - fallen.loc["rejected", "change"]
        )
        assert row.kl == pytest.approx(trajectory.kl[-1].mean())
        after = trajectory.policy_at(2)
        moved = [
            [float((a - b).sum()) for a, b in zip(x, y, strict=True)]
            for x, y in zip(*(logps(p, pairs[:2]) for p in (after, policy)), strict=True)
        ]
        assert row.accuracy == np.mean([chosen > rejected for chosen, rejected in moved])


def logps(policy, pairs):
    found = tk.per_token_logps(policy, pairs)
    return [[torch.as_tensor(p.chosen), torch.as_tensor(p.rejected)] for p in found]


def test_an_interrupt_keeps_whole_rows(monkeypatch):
    real, calls = bench.Bench.row, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(bench.Bench, "row", interrupted)
    frame = run(["plain", "chosen_only"], seeds=3)
    assert frame.attrs["stopped"] and frame["seed"].tolist() == [0, 0, 1]
    assert frame["chosen_change"].notna().all()


def test_data_side_remedies_train_on_some_and_are_measured_on_all():
    policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=4)
    scores = tk.similarity(policy, pairs, progress=False).set_index("pair_id")["ln_ches"]
    kept = [pair.id for pair in tk.lowest_ches(policy, pairs)]
    assert set(kept) == set(scores.nsmallest(2).index)
    seen = []

    def first(policy, pairs):
        seen.append(len(pairs))
        return pairs[:1]

    whole = run({"one": {"pairs": first}, "all": {}})
    assert seen == [5] and whole["chosen_change"].nunique() == 2


@pytest.mark.parametrize(
    ("remedies", "options", "words"),
    [
        (["nothing"], {}, "remedy 'nothing' is unknown; allowed: plain, normalised"),
        ([], {}, "remedies is empty"),
        ("plain", {}, "remedies must be names or a dictionary"),
        (["plain", "plain"], {}, "a name occurs twice"),
        ({"x": {"update_rule": "no"}}, {}, "remedy x: update_rule='no' is unknown"),
        ({"x": {"pairs": 3}}, {}, "remedy x: pairs must be a function"),
        (["plain"], {"steps": 0}, "steps must be a positive integer"),
        (["plain"], {"seeds": 0}, "seeds must be a positive integer"),
        (["plain"], {"seeds": "01"}, "seeds must be a number or a list"),
        (["plain", "dpop"], {"gamma": 1.0}, "remedy plain: dpo has no hyper-parameter 'gamma'"),
        (["plain", tk.Constrained(chosen_floor=1.0)], {}, "chosen_floor=1 is above the start"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_training(monkeypatch, remedies, options, words):
    monkeypatch.setattr(bench.Bench, "row", lambda *args: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=words):
        run(remedies, **options)


def test_the_longest_common_subsequence_is_left_out():
    kept = unshared([1, 2, 3, 4, 5], [2, 9, 4, 5, 1])
    assert kept == ([True, False, True, False, False], [False, True, False, False, True])
    assert unshared([1, 2], [1, 2]) == ([False, False], [False, False])


def test_under_a_mask_products_are_those_of_the_scored_tokens():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()[:2]
    masked = tk.contrast_only(policy, pairs)
    assert [(p.chosen_length, p.rejected_length) for p in masked] == [(1, 1), (1, 1)]
    # Of [11, 7, 8, 2] against [12, 7, 8, 2] the first tokens are left.
    every = reference.pair_token_gradients(reference.double(policy.model), pairs[0])
    inner = tk.pair_stats(policy, masked[:1], progress=False).inner[0]
    assert inner == pytest.approx(float(every[0][0] @ every[1][0]), rel=1e-8)


def test_a_mask_is_shown_token_by_token_and_one_of_another_length_is_refused():
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    masked = tk.contrast_only(policy, pairs[:2])
    frame = tk.mask_frame(policy, pairs[0], masked[0])
    assert frame["mask"].tolist() == [1, 0, 0, 0] * 2
    assert frame["token_id"].tolist() == [11, 7, 8, 2, 12, 7, 8, 2]
    short = replace(masked[0], chosen_mask=masked[0].chosen_mask[:-1])
    for wrong in (masked[1], short):
        with pytest.raises(ValueError, match=r"with a mask of 7 positions, received \d"):
            tk.mask_frame(policy, pairs[0], wrong)


def test_responses_without_a_contrast_are_refused():
    pair = shapes.encoded("part", [5], [1, 2, 3], [1, 3])
    with pytest.raises(tk.PairError, match="every token of the rejected response stands"):
        tk.contrast_only(shapes.policy("gpt2"), [pair])
