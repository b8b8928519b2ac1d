"""The trajectory explorer: running, pausing, stopping, errors, fixed scales, escaping, the twin."""

import asyncio
import doctest
import html
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
import traitlets
from explorers import TEXTS, click, make_pairs as all_pairs, part

import toolkit as tk
from toolkit.dynamics import TrainingRun, watched_run
from toolkit.widgets import _trajectory_words, trajectory_explorer


def make_pairs():
    return all_pairs(4)


BUTTONS = ("run", "pause", "stop", "reset")


def make(policy, **options):
    given = {"steps": 4, "batch_size": 2, "lr": 1e-5, "checkpoint_every": 2, **options}
    return tk.TrajectoryExplorer(policy, make_pairs(), **given)


@pytest.fixture(scope="module")
def finished(policy):
    """A run of four steps that no test changes: only what is shown of it."""
    shown = make(policy).run()
    yield shown
    shown.close()


def button(explorer, name):
    return part(explorer, f"pe-{name}")


def told(explorer):
    """How far the run is, in words."""
    return part(explorer, "pe-progress").children[-1].value


def marks(explorer):
    lines = [line for ax in explorer.panels["lines"].picture.figure.axes for line in ax.lines]
    return [line for line in lines if line.get_gid() == "step"]


def same(a, b):
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    return True


def failing(monkeypatch, at):
    """A training run whose step number ``at`` fails."""
    real = TrainingRun.__next__

    def fails(self):
        if len(self.trajectory) + 1 == at:
            raise ValueError("loss of pair <b>p1</b> is not finite")
        return real(self)

    monkeypatch.setattr(TrainingRun, "__next__", fails)


def test_a_run_to_the_end_is_that_of_train(policy, finished):
    trained = tk.train(
        policy, make_pairs(), steps=4, batch_size=2, lr=1e-5, progress=False, checkpoint_every=2
    )
    assert same(finished.to_frame(), trained.to_frame())
    assert finished.step == 4 and not finished.running and not finished.trajectory.stopped
    assert told(finished) == "4 of 4 steps"
    assert button(finished, "run").description == "Run again"


def test_paused_and_continued_equals_uninterrupted(policy, finished):
    explorer = make(policy)
    for _ in range(4):
        explorer.run(1).pause()
    assert same(explorer.to_frame(), finished.to_frame())


def test_stop_keeps_everything_done_and_run_starts_again(policy, finished):
    explorer = make(policy).run(3)
    assert button(explorer, "run").description == "Continue"
    explorer.stop()
    assert explorer.trajectory.stopped and explorer.to_frame()["step"].max() == 3
    assert explorer.trajectory.checkpoints.keys() == {0, 2, 3}
    assert "Stopped after 3 of 4 steps" in part(explorer, "pe-note").value
    assert "Stopped after 3 of 4 steps" in explorer.to_html()
    explorer.run()
    assert not explorer.trajectory.stopped and same(explorer.to_frame(), finished.to_frame())


def test_reset_goes_back_to_the_start(policy, finished):
    explorer = make(policy).run(2)
    explorer.reset()
    assert explorer.step == 0 and explorer.to_frame()["step"].max() == 0
    assert "Press Run to train" in part(explorer, "pe-status").value
    assert same(explorer.run().to_frame(), finished.to_frame())


def test_settings_are_used_from_the_next_start_on(policy):
    explorer = make(policy).run(1)
    before = explorer.to_frame()
    part(explorer, "pe-lr").value = 1e-4
    part(explorer, "pe-loss").value = "ipo"
    assert "controls have changed" in part(explorer, "pe-note").value
    assert same(explorer.to_frame(), before) and explorer.to_frame().attrs["lr"] == 1e-5
    explorer.run(1)
    attrs = explorer.to_frame().attrs
    assert (attrs["lr"], attrs["loss_name"], explorer.step) == (1e-4, "ipo", 1)
    assert "controls" not in part(explorer, "pe-note").value


def test_hyperparameters_go_only_to_a_loss_that_has_them(policy):
    explorer = make(policy, beta=0.3)
    explorer.configure(loss="ipo")
    explorer.reset()
    assert "beta" not in explorer.to_frame().attrs
    explorer.configure(loss="hinge")
    explorer.reset()
    assert explorer.to_frame().attrs["beta"] == 0.3


def test_bad_settings_leave_the_run_as_it_is(policy):
    explorer = make(policy).run(1)
    before = explorer.to_frame()
    explorer.configure(lr=-1.0)
    button(explorer, "run").click()
    assert "lr must be a positive number, received -1.0" in part(explorer, "pe-note").value
    assert same(explorer.to_frame(), before)


def test_error_in_a_step_is_a_sentence_and_keeps_what_is_done(policy, monkeypatch):
    failing(monkeypatch, 3)
    explorer = make(policy)
    with pytest.raises(ValueError, match="not finite"):
        explorer.run()
    assert len(explorer.trajectory) == 2 and isinstance(explorer.error, ValueError)
    note = part(explorer, "pe-note").value
    assert "Step 3 failed" in note and "&lt;b&gt;p1&lt;/b&gt; is not finite" in note
    assert "Step 3 failed" in explorer.to_html()
    monkeypatch.undo()
    assert len(explorer.run().trajectory) == 4 and explorer.error is None


async def until(condition, seconds=600):
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come to that")


def test_background_run_moves_pauses_and_stops(policy, finished):
    async def session():
        explorer = make(policy)
        buttons = {name: button(explorer, name) for name in BUTTONS}
        buttons["run"].click()
        assert explorer.running and buttons["run"].disabled and not buttons["pause"].disabled
        await until(lambda: explorer.watched.done >= 1)
        buttons["pause"].click()
        paused = explorer.watched.done
        await asyncio.sleep(0.1)
        assert explorer.watched.done == paused < 4 and not explorer.running
        buttons["run"].click()
        await until(lambda: not explorer.running)
        assert same(explorer.to_frame(), finished.to_frame())
        explorer.configure(steps=50)
        buttons["run"].click()
        await until(lambda: explorer.watched.done >= 2)
        buttons["stop"].click()
        return explorer

    explorer = asyncio.run(session())
    assert 2 <= len(explorer.trajectory) < 50 and explorer.trajectory.stopped
    assert "Stopped after" in part(explorer, "pe-note").value


def test_a_run_that_diverges_is_stopped_with_a_sentence(policy):
    explorer = make(policy, lr=1e30, optimizer="sgd")
    with pytest.warns(RuntimeWarning, match="diverged at step 1 "):
        explorer.run()
    assert explorer.trajectory.stopped and explorer.error is None and not explorer.running
    note = part(explorer, "pe-note").value
    assert "Training diverged at step 1 with lr=1e+30" in note and "Run or Reset starts" in note
    assert button(explorer, "run").description == "Run"
    again = tk.TrajectoryExplorer(run=explorer.watched.run)
    assert "diverged at step 1" in part(again, "pe-note").value
    explorer.configure(lr=1e-5)
    assert (
        len(explorer.run(2).trajectory) == 2 and "diverged" not in part(explorer, "pe-note").value
    )


def test_a_live_optimizer_keeps_its_own_rates(policy):
    weights = list(policy.model.parameters())
    one = torch.optim.SGD(weights, lr=7e-4)
    several = torch.optim.SGD(
        [{"params": weights[:2]}, {"params": weights[2:], "lr": 1e-6}], lr=7e-4
    )
    shown = tk.TrajectoryExplorer(policy, make_pairs(), optimizer=one, steps=2)
    assert shown.settings["lr"] == 7e-4 and part(shown, "pe-lr").value == 7e-4
    expected = tk.train(policy, make_pairs(), optimizer=one, steps=2, progress=False)
    np.testing.assert_array_equal(shown.run().trajectory.logps, expected.logps)
    assert shown.trajectory.settings["lr"] == 7e-4
    shown = tk.TrajectoryExplorer(policy, make_pairs(), optimizer=several, steps=2)
    assert shown.run().trajectory.settings["lr"] == [7e-4, 1e-6]
    assert part(shown, "pe-lr").description == "learning rate (each group has its own)"
    again = tk.TrajectoryExplorer(trajectory=shown.trajectory)
    assert again.settings["lr"] is None
    shown.configure(lr=1e-4)
    assert part(shown, "pe-lr").description == "learning rate"
    assert shown.run().trajectory.settings["lr"] == 1e-4
    named = tk.TrajectoryExplorer(policy, make_pairs(), steps=2)
    assert named.settings["lr"] == 3e-5


def test_reset_while_it_runs_leaves_the_buttons_ready(policy):
    """They were those of a running run, at step 0, until Pause was pressed."""
    explorer = make(policy)

    async def click():
        buttons = {name: button(explorer, name) for name in BUTTONS}
        buttons["run"].click()
        assert buttons["run"].disabled and not buttons["stop"].disabled
        await asyncio.sleep(0.05)
        buttons["reset"].click()
        await asyncio.sleep(0.05)

    asyncio.run(click())
    buttons = {name: button(explorer, name) for name in BUTTONS}
    assert not explorer.running and len(explorer.trajectory) == 0
    assert not buttons["run"].disabled and buttons["run"].description == "Run"
    assert buttons["stop"].disabled and buttons["pause"].disabled
    assert told(explorer).startswith("0 of 4 steps")


def test_error_in_the_background_is_told(policy, monkeypatch):
    failing(monkeypatch, 2)

    async def session():
        explorer = make(policy)
        button(explorer, "run").click()
        await until(lambda: not explorer.running)
        return explorer

    explorer = asyncio.run(session())
    assert "Step 2 failed" in part(explorer, "pe-note").value and len(explorer.trajectory) == 1


def test_interrupt_pauses(policy, finished, monkeypatch):
    real = TrainingRun.__next__

    def interrupted(self):
        if len(self.trajectory) == 2:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(TrainingRun, "__next__", interrupted)
    explorer = make(policy).run()
    monkeypatch.undo()
    assert len(explorer.trajectory) == 2
    assert same(explorer.run().to_frame(), finished.to_frame())


def legend(explorer):
    return re.search(r"step 0, nats.*?</div>", part(explorer, "pe-strips").value)[0]


def limits(explorer):
    return [(ax.get_xlim(), ax.get_ylim()) for ax in explorer.panels["lines"].picture.figure.axes]


def test_slider_moves_everything_but_the_scales(finished):
    """Colours and axes that jump between steps cannot be compared."""
    seen, scales = set(), set()
    for step in (4, 1, 2, 3):
        part(finished, "pe-step").value = step
        found = marks(finished)
        assert len(found) == 5 and {line.get_xdata()[0] for line in found} == {step}
        assert f"After step {step}" in part(finished, "pe-status").value
        assert f"<th>step {step}</th>" in part(finished, "pe-numbers").value
        seen.add(part(finished, "pe-strips").value)
        scales.add((legend(finished), json.dumps(limits(finished))))
    assert len(seen) == 4 and len(scales) == 1
    own = finished.trajectory.axis["pair_id"] == finished.selection
    logps = finished.trajectory.logps[:, own]
    assert finished.watched.largest(True) == np.abs(logps - logps[0]).max()


def test_strips_show_the_numbers_of_the_step(finished):
    finished.step, finished.selection = 3, "p1"
    tokens = finished.tokens()
    since = tokens["logp"] - finished.trajectory.tokens(0).query("pair_id == 'p1'")["logp"].values
    assert f"{since.iloc[0]:.6g}".replace("-", "−") in part(finished, "pe-strips").value
    finished.color = "this_step"
    for name in ("predicted_delta", "actual_delta"):
        shown = f"{tokens[name].iloc[0]:.6g}".replace("-", "−")
        assert shown in part(finished, "pe-strips").value, name
    finished.color = "since_start"


def test_sentence_names_the_regime_and_both_changes(finished):
    finished.step, finished.selection = 2, "p0"
    rows = finished.to_frame().query("step == 2 and pair_id == 'p0'").set_index("side")
    words = part(finished, "pe-status").value
    assert f"<code>{rows['regime'].iloc[0]}</code>" in words
    for name in ("predicted_delta", "actual_delta"):
        assert f"{rows.loc['chosen', name]:+.3g}".replace("-", "−") in words


def verdict(explorer, monkeypatch, predicted, actual):
    """The sentence of a step with these two regimes."""
    frame = explorer.watched.frame.copy()
    frame["regime"], frame["actual_regime"] = predicted, actual
    with monkeypatch.context() as patch:
        patch.setattr(explorer.watched, "frame", frame)
        return _trajectory_words.sentence(explorer.watched)


def test_the_verdict_has_the_colour_of_what_happened(finished, monkeypatch):
    """Predicted ideal, really both fell: the bar used to be green."""
    finished.step, finished.selection = 2, "p0"
    colors = {name: regime.color for name, regime in tk.plots.REGIMES.items()}
    words = verdict(finished, monkeypatch, "ideal", "both_down")
    assert f"border-color: {colors['both_down']}" in words and colors["ideal"] not in words
    assert "The prediction said otherwise</b>: <code>ideal</code>" in words
    same = verdict(finished, monkeypatch, "both_up", "both_up")
    assert f"border-color: {colors['both_up']}" in same and "as predicted" in same
    unknown = verdict(finished, monkeypatch, None, "reversed")
    assert f"border-color: {colors['reversed']}" in unknown and "was not predicted" in unknown


def test_the_actual_regime_is_that_of_the_actual_changes(finished):
    frame = finished.to_frame().query("step == 1").set_index("side")
    up = {side: frame.loc[side, "actual_delta"] > 0 for side in ("chosen", "rejected")}
    names = {(True, False): "ideal", (False, False): "both_down", (True, True): "both_up",
             (False, True): "reversed"}  # fmt: skip
    expected = [names[pair] for pair in zip(up["chosen"], up["rejected"], strict=True)]
    assert frame.loc["chosen", "actual_regime"].tolist() == expected


def test_flow_says_which_kept_step_it_is(finished):
    finished.step, finished.selection = 3, "p1"
    flow = finished.mass_flow()
    assert flow.attrs["step"] == 2  # as near as step 4, and earlier
    t = finished.trajectory
    expected = tk.mass_flow(t.policy_at(0), t.policy_at(2), make_pairs()[1])
    assert same(flow.reset_index(drop=True), expected.reset_index(drop=True))
    assert "step 0 → step 2" in finished.panels["flow"]._words.value
    assert "nearest to 3" in finished.panels["flow"]._words.value
    assert bytes(finished.panels["flow"]._picture.children[0].value).startswith(b"\x89PNG")


def test_flow_waits_until_the_slider_rests(finished, monkeypatch):
    calls, real = [], watched_run.mass_flow
    monkeypatch.setattr(watched_run, "mass_flow", lambda *a: (calls.append(1), real(*a))[1])
    finished.watched._flows.clear()

    async def session():
        for step in (4, 1, 4, 2, 4):
            part(finished, "pe-step").value = step
        assert not calls
        await until(lambda: not finished.panels["flow"].settle.waiting)

    asyncio.run(session())
    assert len(calls) == 1


def test_click_in_the_lines_and_buttons_pick_a_step(finished):
    axes = finished.panels["lines"].picture.figure.axes[0]
    x, y = axes.transData.transform((2.2, np.mean(axes.get_ylim())))
    click(finished.panels["lines"].picture, (x, y))
    assert finished.step == 2
    part(finished, "pe-on").click()
    assert finished.step == part(finished, "pe-step").value == 3
    part(finished, "pe-back").click()
    assert finished.step == 2


def test_runs_are_compared_step_by_step(policy, finished):
    """Two runs linked by probe, step and colour move together."""
    other = make(policy, lr=1e-6, live=False).run()
    for name in ("selection", "step", "color"):
        traitlets.link((finished, name), (other, name))
    part(other, "pe-step").value = 1
    part(finished, "pe-selection").value = "p1"
    assert finished.step == 1 and other.selection == "p1"
    assert "After step 1" in part(finished, "pe-status").value
    finished.color = "this_step"
    assert part(other, "pe-color").value == "this_step"
    finished.color = "since_start"
    other.close()


def test_probe_is_picked_anywhere(finished):
    part(finished, "pe-selection").value = "p3"
    assert finished.selection == "p3"
    assert html.escape(TEXTS["p3"][0]) in part(finished, "pe-prompt").value
    finished.selection = "p0"
    assert part(finished, "pe-selection").value == "p0"


def test_still_copy_holds_the_numbers_of_the_frame(finished):
    finished.selection, finished.step = "p1", 4
    still = finished.to_html()
    rows = finished.to_frame().query("step == 4 and pair_id == 'p1'").set_index("side")
    for side in ("chosen", "rejected"):
        for name in ("logps", "loss", "margin", "kl"):
            assert f"<td>{rows.loc[side, name]:.3g}</td>".replace("-", "−") in still, name
    assert still.count("data:image/png;base64,") == 2 and "http" not in still
    assert "4 of 4 steps" in still and len(still) < 400_000
    assert finished.snapshot().data == still


def test_still_copy_follows_the_run(policy):
    written = []

    class Handle:
        def update(self, shown):
            written.append(shown.data)

    explorer = make(policy)
    explorer._twin, explorer._copy.seconds = Handle(), 0.05
    explorer.run(1)
    assert "1 of 4 steps" in written[-1] and "pe-twin" in written[-1]

    async def session():
        button(explorer, "run").click()
        await until(lambda: not explorer.running)
        await until(lambda: not explorer._copy.waiting)

    asyncio.run(session())
    assert len(written) == 2 and "4 of 4 steps" in written[-1]


def test_an_existing_run_goes_on(policy, finished):
    run = TrainingRun(policy, make_pairs(), steps=4, batch_size=2, lr=1e-5, checkpoint_every=2)
    next(run)
    explorer = tk.TrajectoryExplorer(run=run)
    assert explorer.step == 1 and part(explorer, "pe-lr").disabled
    explorer.run(1)
    assert len(run.trajectory) == 2 and len(explorer.mass_flow())
    assert same(explorer.run().to_frame(), finished.to_frame())
    with pytest.raises(ValueError, match="give policy and pairs"):
        explorer.configure(lr=1.0)


def test_a_finished_trajectory_is_shown(policy, finished, tmp_path):
    saved = finished.trajectory.save(tmp_path / "t")
    explorer = tk.TrajectoryExplorer(trajectory=tk.Trajectory.load(saved))
    assert explorer.step == 4 and button(explorer, "run").disabled
    assert "pairs are not known" in explorer.panels["flow"]._picture.children[0].value
    assert "step 4" in explorer.to_html()
    explorer = tk.TrajectoryExplorer(policy, make_pairs(), trajectory=tk.Trajectory.load(saved))
    assert len(explorer.mass_flow()) and not button(explorer, "run").disabled


def test_without_predictions_or_ipympl(policy):
    explorer = make(policy, predict=False, live=False).run(1)
    assert "was not predicted" in part(explorer, "pe-status").value
    assert bytes(explorer.panels["lines"].picture.widget.value).startswith(b"\x89PNG")
    explorer.color = "this_step"
    assert "actual change" in part(explorer, "pe-strips").value and explorer.figure()


def test_large_models_keep_fewer_weights(policy, monkeypatch):
    assert make(policy, checkpoint_every=None, steps=40).watched.run.checkpoint_every is None
    pairs = make_pairs()
    assert tk.TrajectoryExplorer(policy, pairs, steps=40).watched.run.checkpoint_every == 4
    monkeypatch.setattr(watched_run, "KEPT_WEIGHTS", 1)
    assert tk.TrajectoryExplorer(policy, pairs, steps=40).watched.run.checkpoint_every is None


def test_progress_tells_time_and_memory(policy):
    explorer = make(policy)
    assert re.search(r"0 of 4 steps, time known .* keeps \d+ MiB", told(explorer))
    explorer.run(2)
    assert re.search(r"2 of 4 steps, about \d+:\d+ to go \(.* s a step\)", told(explorer))
    assert math.isfinite(explorer.watched.seconds_left)


def test_own_loss_is_offered_by_name(policy):
    def margin_loss(chosen_logps, rejected_logps):
        return rejected_logps - chosen_logps

    explorer = make(policy, loss=margin_loss).run(1)
    assert "margin_loss" in _trajectory_words.header(explorer.watched)
    assert part(explorer, "pe-loss").options[0] == ("margin_loss", margin_loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.run(0), "n must be"),
        (lambda e: setattr(e, "step", 5), "step must be 0 to 4"),
        (lambda e: setattr(e, "color", "red"), "allowed: since_start, this_step"),
        (lambda e: setattr(e, "selection", "p33"), "close to it: p3"),
        (lambda e: e.configure(epochs=2), "allowed: loss, optimizer, lr, steps, batch_size"),
    ],
)
def test_bad_values_say_what_is_allowed(finished, call, message):
    with pytest.raises(ValueError, match=message):
        call(finished)


def test_example_runs():
    assert doctest.testmod(trajectory_explorer).failed == 0


def test_bad_input_says_what_is_allowed(policy, finished):
    pairs, one = make_pairs(), finished.trajectory
    cases = [
        ((), {}, "policy must be a toolkit Policy, received NoneType"),
        ((policy,), {}, "pairs must be"),
        ((policy, []), {}, "at least one PreferencePair"),
        ((policy, pairs), {"probes": []}, "probes must be a list"),
        ((policy, pairs), {"probes": [pairs[0]] * 2}, "'p0' occurs twice"),
        ((), {"trajectory": pairs}, "trajectory must be a Trajectory, received list"),
        ((), {"run": finished.watched.run, "trajectory": one}, "cannot both be given"),
        ((policy, pairs), {"steps": 0}, "steps must be"),
        ((policy, pairs), {"loss": "dpoo"}, "loss='dpoo' is unknown"),
    ]
    for given, options, message in cases:
        with pytest.raises(ValueError, match=message):
            tk.TrajectoryExplorer(*given, **options)
