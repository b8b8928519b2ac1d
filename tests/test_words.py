"""What is said of a step: numbers as far as first order holds, directions and a rate beyond."""

import re

import numpy as np
import pandas as pd
import pytest
from explorers import part

import toolkit as tk
from toolkit import measurement, plots
from toolkit.widgets import _loss_words, pair_explorer
from toolkit.widgets.words import outcome, pair_table


@pytest.fixture(scope="module")
def pairs():
    """Eight near-duplicates, among them near-008, whose chosen response falls most of all."""
    return tk.load_pairs("near_duplicates")[3:11]


@pytest.fixture(scope="module")
def measured(policy, pairs):
    return {
        "stats": tk.pair_stats(policy, pairs, progress=False),
        "similarity": tk.similarity(policy, pairs, progress=False),
    }


def row(chosen, rejected, lr):
    """A row of a step with these changes per unit of rate."""
    limit = 0.3 / max(abs(chosen), abs(rejected)) if chosen or rejected else np.inf
    moves = {"predicted_chosen_delta": lr * chosen, "predicted_rejected_delta": lr * rejected}
    known = {"first_order": lr <= limit, "first_order_lr": limit}
    return {"pair_id": "p", "regime": "both_down", **moves, **known}


def test_a_small_step_is_told_in_nats():
    words = outcome(row(-10, -40, 0.005))
    assert "predicted to <b>LOWER the chosen response by 0.05 nats</b>" in words
    assert "lower the rejected one by 0.2 nats" in words and "grows by 0.15 nats" in words


def test_a_step_beyond_first_order_is_told_by_its_direction_and_a_rate():
    """It used to "raise the chosen response by 30.7 nats"."""
    words = outcome(row(-1784, 10, 1.0))
    assert "sets out to <b>LOWER the chosen response</b> and raise the rejected one:" in words
    assert "nats" not in words and "grows" not in words and "1784" not in words.replace("−", "")
    limit = float(re.search(r"a learning rate of ([\d.e−]+) it can", words)[1].replace("−", "-"))
    assert "nats" in outcome(row(-1784, 10, limit))  # the rate that is named does hold
    assert limit == pytest.approx(0.3 / 1784, rel=0.1)


def test_a_step_that_moves_nothing_is_within_reach():
    assert "leave the chosen response where it is" in outcome(row(0, 0, 1.0))


@pytest.mark.parametrize("value", np.geomspace(1.01e-9, 9.7e3, 40))
def test_rates_are_rounded_down(value):
    shown = float(plots.rounded_down(value).replace("−", "-"))
    assert 0.9 * value <= shown <= value


# --- explorers -----------------------------------------------------------------------------


@pytest.fixture
def explorer(policy, pairs, measured):
    shown = tk.PairExplorer(policy, pairs, live=False, **measured)
    yield shown
    shown.close()


def test_the_first_sentence_is_of_the_worst_pair_at_a_rate_that_holds(explorer, measured):
    frame = explorer.to_frame()
    assert explorer.selection == "near-008" == explorer.worst_first()[0]
    assert frame["first_order"].all() and explorer.lr < 1e-3
    result = tk.entanglement(measured["stats"], "dpo", beta=0.1)
    assert explorer.lr == tk.suggest_lr(result.chosen_slack, result.rejected_slack)
    nats = re.search(r"chosen response by ([\d.]+) nats", part(explorer, "pe-status").value)
    assert 0 < float(nats[1]) < 0.3


def test_worst_first_is_the_order_of_the_predicted_fall(explorer):
    frame = explorer.to_frame().set_index("pair_id").loc[explorer.worst_first()]
    assert frame["predicted_chosen_delta"].is_monotonic_increasing and len(frame) == 8
    table = pair_table(explorer.results)
    ((column, way),) = explorer.table._options(table)["order"]
    assert (table.columns[column], way) == ("Δ chosen", "asc")


def test_beta_moves_the_changes_and_not_the_rate(explorer):
    """A rate that followed β would hide what β does."""
    before, rate, picked = explorer.to_frame(), explorer.lr, explorer.selection
    explorer.beta = 0.05
    assert explorer.lr == rate and explorer.selection == picked
    half = explorer.to_frame()["predicted_chosen_delta"] * 2
    np.testing.assert_allclose(half, before["predicted_chosen_delta"])


def test_beyond_first_order_no_view_states_nats(explorer):
    small = explorer.to_html()
    assert "falls" in small and "read directions" not in small
    explorer.lr = 1.0
    html, table = explorer.to_html(), pair_table(explorer.results)
    sentence = html[html.index('class="pe-say"') : html.index('class="pe-words"')]
    assert "too large for first order" in sentence and "nats" not in sentence
    strips = html[html.index('class="pet ') : html.index('class="pet-num ')]
    assert "too large for first order" in strips and "beyond first order" in strips
    assert "log-probability, nats" not in strips
    numbers = html[html.index('class="pet-num ') :]
    assert "<td>falls</td><td>falls</td>" in numbers and "too large a step" in numbers
    assert set(table["Δ holds"]) == {"sign only"}
    explorer.lr = float(explorer.to_frame()["first_order_lr"].min())
    assert "Δ holds" not in pair_table(explorer.results)


def test_strips_beyond_first_order_keep_their_scale(explorer):
    explorer.lr = 1.0
    tokens = explorer.tokens()
    largest = tokens["predicted_delta"].abs().max()
    shown = plots.token_strip_html(tokens)
    assert ">−1.00<" in shown  # the token that falls most
    assert ">−0.50<" in plots.token_strip_html(tokens, vmax=2 * largest)
    bare = pd.DataFrame(tokens.to_dict("list"))  # a concat of frames may lose their attrs
    assert ">−1.00<" in plots.token_strip_html(bare)
    assert "first_order" not in tk.token_contributions(explorer.results.policy, explorer.pair
                                                       ).to_frame()  # fmt: skip


def test_the_start_can_be_chosen(policy, pairs, measured, monkeypatch):
    explorer = tk.PairExplorer(policy, pairs, selection="near-007", lr=2e-3, **measured)
    assert (explorer.selection, explorer.lr) == ("near-007", 2e-3)
    monkeypatch.setattr(measurement, "iter_pair_stats", lambda *a, **k: pytest.fail("model ran"))
    with pytest.raises(ValueError, match=r"selection='near-8' is no id.*near-008"):
        tk.PairExplorer(policy, pairs, selection="near-8")


@pytest.mark.parametrize("picked", [None, "near-005"])
def test_the_start_is_chosen_again_when_all_is_measured(policy, pairs, monkeypatch, picked):
    """Until the user picks or sets something, the first few pairs only stand in for all."""
    monkeypatch.setattr(pair_explorer, "BATCH", 1)
    step, calls = measurement.Measurement.step, []

    def interrupted(self, count):
        calls.append(count)
        if len(calls) == 5:
            raise KeyboardInterrupt
        step(self, count)

    monkeypatch.setattr(measurement.Measurement, "step", interrupted)
    explorer = tk.PairExplorer(policy, pairs, live=False)
    assert explorer.selection != "near-008"  # it is not measured yet
    before = explorer.lr
    if picked:
        explorer.selection, explorer.lr = picked, 2 * before
    explorer.measure()
    assert explorer.selection == (picked or "near-008")
    assert (explorer.lr == 2 * before) if picked else explorer.to_frame()["first_order"].all()


def test_losses_beyond_first_order_are_told_by_their_directions(policy, pairs, measured):
    explorer = tk.LossExplorer(policy, pairs, stats=measured["stats"], live=False)
    frame = explorer.to_frame().set_index("loss_name")
    assert explorer.selection == "near-008" and frame.loc["dpo", "first_order"]
    assert not frame.loc["ipo", "first_order"]  # it pulls two hundred times as hard
    assert "nats" in _loss_words.sentence(explorer.losses).split("Ratio of")[0]
    explorer.loss = "ipo"
    words = _loss_words.sentence(explorer.losses)
    assert "too large for first order" in words and " nats" not in words.split("ℓ =")[0]
    table = plots.loss_table_html(explorer.to_frame())
    line = table[table.index(">ipo<") :].split("</tr>")[0]
    assert line.count(">falls</td>") == 2 and "first order holds for" in table
    chosen = tk.LossExplorer(policy, pairs, selection="near-007", lr=2e-3, live=False)
    assert (chosen.selection, chosen.lr) == ("near-007", 2e-3)


def test_a_dataset_starts_at_its_worst_pair_with_a_rate_for_all(policy, pairs):
    explorer = tk.DatasetExplorer(policy, pairs, live=False)
    slacks = [explorer.to_frame()[f"{side}_slack"] for side in ("chosen", "rejected")]
    assert explorer.selection == "near-008"
    assert explorer.choice.details().results.lr == tk.suggest_lr(*slacks)
    bare = explorer.to_frame()[["pair_id", "ln_ches", "cosine"]]
    other = tk.DatasetExplorer(policy, pairs, scores=bare, live=False)
    assert other.selection == pairs[0].id  # nothing says which is the worst
    assert other.choice.details().results.frame["first_order"].all()
    third = tk.DatasetExplorer(policy, pairs, scores=bare, selection=pairs[3].id, live=False)
    assert third.selection == pairs[3].id


def test_captions_count_what_first_order_holds_for(measured):
    small, large = (tk.entanglement(measured["stats"], lr=lr).to_frame() for lr in (1e-6, 1e-3))
    assert "first order" not in plots.caption(small)
    count = int(large["first_order"].sum())
    assert 0 < count < 8
    assert f"first order holds for {count} of 8" in plots.caption(large)
    assert "beyond first order" in plots.caption(large[~large["first_order"]])
    assert "first order" not in plots.caption(pd.DataFrame({"pair_id": ["a"]}))


def test_bars_hatch_what_is_beyond_first_order(measured):
    frame = tk.entanglement(measured["stats"], "ipo", lr=1e-5).to_frame()
    frame["loss_name"] = frame["pair_id"]
    ax = plots.delta_bars(frame, name="loss_name", log=True)
    spans = {a.get_gid(): a for a in ax.patches if str(a.get_gid()).startswith("beyond")}
    assert spans["beyond+1"].get_x() == 0.3 and spans["beyond-1"].get_visible()
    left = spans["beyond-1"]
    assert left.get_x() + left.get_width() == pytest.approx(-0.3)
    frame.attrs.pop("first_order_nats")
    assert not any(
        a.get_visible()
        for a in plots.delta_bars(frame, name="loss_name", log=True).patches
        if a.get_hatch()
    )
