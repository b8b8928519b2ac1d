"""What public functions refuse: in one clear sentence, and before the model has run once."""

import functools
import html
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

import toolkit as tk
from toolkit.gradients import iter_pair_stats

HUGE = 10**400
NUMBERS = [HUGE, float("nan"), float("inf"), True, "0.1", 0, -1]
SETS = ["nothing_like_this", "(", 3, lambda: True, lambda name, p: 1 / 0, lambda name, p: 1]
SIZES = [0, -1, 2.5, True, "8"]
LORA = ["all", {"rank": 2}, {"r": 0}, {"alpha": HUGE}]


@pytest.fixture(scope="module")
def policy():
    return tk.load_model().with_options(append_eos=False)


@functools.cache
def pairs():
    return tk.load_pairs("stance", limit=2)


@pytest.fixture
def runs():
    """A list that grows with every module that runs: empty as long as no model has."""
    seen = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda m, _: seen.append(m))
    yield seen
    hook.remove()


def of_many(function, **defaults):
    return lambda policy, given, **options: function(policy, given, **{**defaults, **options})


def of_one(function, **defaults):
    """A function of one pair, given the first of several."""

    def call(policy, given, **options):
        one = given[0] if given is pairs() else given
        return function(policy, one, **{**defaults, **options})

    return call


def each(policy, given, **options):
    return list(iter_pair_stats(policy, given, **options))


def flow(policy, pair, **options):
    return tk.mass_flow(**{"before": policy, "after": policy, "pair": pair, **options})


QUIET = {"progress": False}
STEP = {"lr": 1e-5, "beta": 0.1}
RUN = {**STEP, "steps": 1}
SCORE = {**QUIET, "measures": ["entanglement"]}
MANY = {
    "per_token_logps": of_many(tk.per_token_logps),
    "pair_stats": of_many(tk.pair_stats, **QUIET),
    "iter_pair_stats": of_many(each),
    "gram": of_many(tk.gram, **QUIET),
    "similarity": of_many(tk.similarity, **QUIET),
    "predict_step": of_many(tk.predict_step, **STEP),
    "train": of_many(tk.train, **RUN, **QUIET),
    "TrainingRun": of_many(tk.TrainingRun, **RUN),
    "PairExplorer": of_many(tk.PairExplorer, live=False),
    "LossExplorer": of_many(tk.LossExplorer, live=False),
    "TrajectoryExplorer": of_many(tk.TrajectoryExplorer, live=False, **RUN),
    "DatasetExplorer": of_many(tk.DatasetExplorer, live=False),
}
ONE = {
    "token_contributions": of_one(tk.token_contributions),
    "token_matrix": of_one(tk.token_matrix),
    "ches_tokens": of_one(tk.ches_tokens),
    "prompt_attributions": of_one(tk.prompt_attributions),
    "mass_flow": of_one(flow),
    "single_token_theory": of_one(tk.single_token_theory),
}
ALL = {**MANY, **ONE, "score_pairs": of_many(tk.score_pairs, **SCORE)}

GRADIENTS = ["pair_stats", "iter_pair_stats", "gram", "token_contributions", "token_matrix"]
STEPS = ["predict_step", "train", "TrainingRun", "TrajectoryExplorer"]
PREDICTED = ["PairExplorer", "LossExplorer"]
OPTIONS = [
    (GRADIENTS, "preconditioner", ["adam", 1.0, {}]),
    ([*GRADIENTS, *STEPS, *PREDICTED, "score_pairs"], "params", SETS),
    ([*STEPS, *PREDICTED], "lr", NUMBERS),
    ([*STEPS, *PREDICTED, "single_token_theory", "score_pairs"], "beta", NUMBERS),
    ([*STEPS, *PREDICTED, "single_token_theory", "score_pairs"], "betta", [0.1]),
    ([*STEPS, "PairExplorer", "single_token_theory", "score_pairs"], "loss", ["dpoo", 3, [], None]),
    (["LossExplorer"], "losses", [["dpoo"], [3], [], 3]),
    (["train", "TrainingRun", "TrajectoryExplorer"], "lora", LORA),
    (["train", "TrainingRun", "TrajectoryExplorer"], "steps", SIZES),
    (["train", "TrainingRun"], "seed", [-1, "0", 0.5, HUGE]),
    (["train", "TrainingRun"], "in_place", [None, "yes"]),
    (["train", "TrainingRun"], "forces", [None, "yes", 1]),
    (["train", "TrainingRun"], "checkpoint_every", SIZES),
    (STEPS, "optimizer", ["adagrad", None, 3]),
    (STEPS, "weight_decay", [-1, "0", float("nan"), HUGE]),
    (STEPS, "max_grad_norm", NUMBERS),
    (STEPS, "optimizer_options", ["betas", {"beta": 1}, 3]),
    (STEPS, "probes", [3, [], "long_suffix", [None]]),
    (["predict_step"], "state", ["adam", 3, {"state": {}}]),
    (
        ["per_token_logps", "pair_stats", "gram", "similarity", *STEPS],
        "on_error",
        ["keep", None, 1],
    ),
    (["per_token_logps", "pair_stats", "iter_pair_stats", "gram"], "batch_size", SIZES),
    (["similarity", "score_pairs", "train", "TrainingRun"], "batch_size", SIZES),
    (["similarity"], "head_slack", ["yes", 1, None]),
    (["pair_stats", "iter_pair_stats", "gram"], "memory", [0, True, "1 GiB", 1.5]),
    (["gram"], "projection", SIZES),
    (["gram"], "seed", [-1, "0"]),
    (["prompt_attributions"], "steps", SIZES),
    (["prompt_attributions"], "method", ["saliency", None, []]),
    (["prompt_attributions"], "target", ["both", None]),
    (["mass_flow"], "top_k", SIZES),
    (["mass_flow"], "after", [None, "gpt2", 3]),
    (["mass_flow"], "position", ["some", -1, 9999, True]),
    (["mass_flow"], "groups", ["yes", {"a": "yes"}]),
]
BAD_OPTIONS = [
    pytest.param(name, option, value, id=f"{name}-{option}-{i}")
    for names, option, values in OPTIONS
    for name in names
    for i, value in enumerate(values)
]


def refused(runs, call, *given, **options) -> str:
    """Make the call; return its one clear sentence, which came before the model had run."""
    runs.clear()
    with pytest.raises(ValueError) as found:
        call(*given, **options)
    said = str(found.value)
    assert not runs, f"{len(runs)} modules ran before: {said}"
    # A sentence of ours, not that of a library that met the value by accident.
    assert not re.search(r"object has no attribute|not iterable|ufunc|positional argument$", said)
    return said


@pytest.mark.parametrize("name", ALL)
def test_the_model_runs_when_all_is_well(policy, runs, name):
    """Otherwise the tests below would count nothing."""
    ALL[name](policy, pairs())
    assert runs


@pytest.mark.parametrize("name", ALL)
def test_what_is_no_policy_is_refused(policy, runs, name):
    for given in (None, 3, policy.model, policy.tokenizer):
        said = refused(runs, ALL[name], given, pairs())
        assert re.match(r"(policy|after) must be a toolkit Policy, received ", said)
        assert type(given).__name__ in said and "tk." in said
    if name != "score_pairs":  # it takes a model's name
        assert "tk.load_model('gpt2')" in refused(runs, ALL[name], "gpt2", pairs())


@pytest.mark.parametrize("name", MANY)
def test_what_are_no_pairs_is_refused(policy, runs, name):
    frame = pd.DataFrame({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    for given in (None, 3, "long_suffix", [], {}, frame, b"x", {"prompt": "a"}):
        said = refused(runs, MANY[name], policy, given)
        assert "pairs must be" in said
    assert "tk.load_pairs('long_suffix')" in refused(runs, MANY[name], policy, "long_suffix")
    for given in ([{"prompt": "a"}], [pairs()[0], None], (pairs()[0], "text")):
        said = refused(runs, MANY[name], policy, given)
        assert re.match(r"pairs\[\d\] is (dict|NoneType|str); allowed: PreferencePair", said)


@pytest.mark.parametrize("name", ONE)
def test_what_is_no_pair_is_refused(policy, runs, name):
    for given in (None, 3, "text", {"prompt": "a"}, [pairs()[0]]):
        said = refused(runs, ONE[name], policy, given)
        assert said.startswith("pair must be one PreferencePair or EncodedPair, received ")


@pytest.mark.parametrize("given", [[{"nonsense": 1}], pd.DataFrame({"a": ["b"]}), [3], None, 5])
def test_rows_without_a_single_pair_are_not_scored(policy, runs, given):
    """A row of NaN was written for each, and a file said to be complete."""
    said = refused(runs, tk.score_pairs, policy, given)
    assert re.search(r"1 row read, and none is a preference pair; row 0|source", said)


def test_one_bad_row_among_good_ones_keeps_its_place(policy):
    rows = [{"nonsense": 1}, {"prompt": "a", "chosen": " b", "rejected": " c"}]
    scores = tk.score_pairs(policy, rows, measures=["similarity"], progress=False)
    assert scores["error"].astype(bool).tolist() == [True, False]


@pytest.mark.parametrize(("name", "option", "value"), BAD_OPTIONS)
def test_a_bad_option_is_named_before_any_work(policy, runs, name, option, value):
    """A misspelt loss, beta, params or lora came to light after 14 to 22 forward passes."""
    said = refused(runs, ALL[name], policy, pairs(), **{option: value})
    assert option.removesuffix("es") in said


@pytest.mark.parametrize("stats", [None, "dpo", 3, pd.DataFrame({"chosen_logps": [1.0]})])
def test_statistics_are_checked(stats):
    with pytest.raises(ValueError, match=r"stats .*tk\.pair_stats"):
        tk.entanglement(stats, "dpo")
    with pytest.raises(ValueError, match=r"stats .*tk\.pair_stats"):
        tk.loss_weights(stats, "dpo")


@pytest.mark.parametrize("frame", [None, "flow", [1]])
def test_a_verdict_needs_a_frame(frame):
    with pytest.raises(ValueError, match=r"frame must be a DataFrame, received .*tk\.mass"):
        tk.displacement_verdict(frame)
    with pytest.raises(ValueError, match="opposite must be a list of group names, received 5"):
        columns = ["pair_id", "position", "role", "group", "given_group", "delta"]
        tk.displacement_verdict(pd.DataFrame(columns=columns), opposite=5)


def test_a_single_pair_and_any_iterable_are_pairs(policy):
    one, many = pairs()[0], pairs()
    assert len(tk.per_token_logps(policy, one)) == 1
    assert len(tk.per_token_logps(policy, iter(many))) == len(tk.per_token_logps(policy, many)) == 2


# --- pairs that cannot be scored ---


def frame_of(result) -> pd.DataFrame:
    return result if isinstance(result, pd.DataFrame) else result.to_frame()


def with_bad() -> list:
    """Good pairs, with two that cannot be scored among them."""
    long = tk.PreferencePair("long", "word " * 1200, " a", " b", row=7)
    empty = tk.PreferencePair("empty", "Is it fine?", "", " No", row=9)
    return [long, pairs()[0], empty, *pairs()[1:]]


SKIPPING = {
    "pair_stats": (tk.pair_stats, QUIET),
    "gram": (tk.gram, QUIET),
    "similarity": (tk.similarity, QUIET),
    "predict_step": (tk.predict_step, STEP),
    "train": (tk.train, {**RUN, **QUIET}),
}


@pytest.mark.parametrize("name", SKIPPING)
def test_pairs_that_cannot_be_scored_are_left_out_and_named(policy, name):
    function, options = SKIPPING[name]
    result = function(policy, with_bad(), on_error="skip", **options)
    found, expected = frame_of(result), frame_of(function(policy, pairs(), **options))
    pd.testing.assert_frame_equal(found, expected)
    rows = found.attrs["skipped"]
    assert [(pair["row"], pair["pair_id"]) for pair in rows] == [(7, "long"), (9, "empty")]
    assert "more than max_length 1024" in rows[0]["reason"] and "no token" in rows[1]["reason"]
    assert not expected.attrs.get("skipped")
    if not isinstance(result, pd.DataFrame):
        assert list(result.skipped) == list(tk.PairList().skipped) == ["row", "pair_id", "reason"]
        assert result.skipped["pair_id"].tolist() == ["long", "empty"]


def test_log_probabilities_name_what_was_left_out(policy):
    found = tk.per_token_logps(policy, with_bad(), on_error="skip")
    assert [pair.pair_id for pair in found] == [pair.id for pair in pairs()]
    assert found.skipped["row"].tolist() == [7, 9]
    assert tk.per_token_logps(policy, pairs()).skipped.empty


@pytest.mark.parametrize("name", [*SKIPPING, "per_token_logps"])
def test_the_error_names_the_next_line(policy, runs, name):
    said = refused(runs, ALL[name], policy, with_bad())
    assert said.startswith("row 7 (id 'long'): chosen side has ")
    assert (
        '; policy.with_options(truncation="keep_start") (--truncation keep_start) cuts it; ' in said
    )
    assert said.endswith('on_error="skip" leaves such pairs out')


def test_probes_are_left_out_too_and_named_once(policy):
    long = with_bad()[0]
    result = tk.train(
        policy, with_bad(), probes=[pairs()[0], long], on_error="skip", **RUN, **QUIET
    )
    assert result.pair_ids == [pairs()[0].id]
    assert result.skipped["pair_id"].tolist() == ["long", "empty"]


def test_a_saved_trajectory_remembers_what_was_left_out(policy, tmp_path):
    found = tk.train(policy, with_bad(), on_error="skip", **RUN, **QUIET)
    again = tk.Trajectory.load(found.save(tmp_path / "run"))
    pd.testing.assert_frame_equal(again.skipped, found.skipped)


def test_parts_of_statistics_keep_what_was_left_out(policy):
    stats = tk.pair_stats(policy, with_bad(), on_error="skip", progress=False)
    assert stats.take([1]).skipped.equals(stats.skipped)
    frame = tk.entanglement(stats, "dpo").to_frame()
    assert [pair["pair_id"] for pair in frame.attrs["skipped"]] == ["long", "empty"]


@pytest.mark.parametrize("name", SKIPPING)
def test_nothing_left_to_score_is_an_error(policy, runs, name):
    function, options = SKIPPING[name]
    said = refused(runs, function, policy, with_bad()[::2][:2], on_error="skip", **options)
    assert said.startswith("pairs: none can be scored; the first one: row 7")


@pytest.mark.parametrize("make", ["PairExplorer", "LossExplorer", "TrajectoryExplorer"])
def test_explorers_name_what_they_leave_out(policy, make):
    options = RUN if make == "TrajectoryExplorer" else {}
    explorer = getattr(tk, make)(policy, with_bad(), live=False, **options)
    assert explorer.skipped["row"].tolist() == [7, 9]
    if make != "LossExplorer":
        assert [pair["pair_id"] for pair in explorer.to_frame().attrs["skipped"]] == [
            "long",
            "empty",
        ]
    page = html.unescape(explorer.to_html())
    assert "pairs cannot be scored and are left out</b>: long, empty" in page
    assert "row 7 (id 'long'): chosen side has" in page
    with pytest.raises(ValueError, match=r"selection='long' (cannot be scored|is no id of)"):
        explorer.selection = "long"
    explorer.close()


def test_a_trajectory_explorer_can_stop_at_the_first_bad_pair(policy):
    with pytest.raises(tk.PairError, match="row 7"):
        tk.TrajectoryExplorer(policy, with_bad(), on_error="raise", live=False, **RUN)


@pytest.mark.parametrize("make", ["PairExplorer", "LossExplorer", "DatasetExplorer"])
def test_explorers_show_what_was_noted_when_a_pair_was_loaded(policy, make):
    noted = [replace(pair, notes=("<b>cut</b> by hand",)) for pair in pairs()]
    explorer = getattr(tk, make)(policy, noted, live=False)
    assert "note: &lt;b&gt;cut&lt;/b&gt; by hand" in explorer.to_html()
    explorer.close()


@pytest.mark.parametrize("eos", [True, False])
def test_a_run_says_how_its_encoded_pairs_end(policy, eos):
    encoded = [policy.with_options(append_eos=eos).encode(pair) for pair in pairs()]
    run = tk.TrainingRun(policy, encoded, **RUN)
    assert run.trajectory.to_frame().attrs["append_eos"] is eos
    step = tk.predict_step(policy, encoded, lr=1e-5)
    assert step.attrs["append_eos"] is eos
    explorer = tk.TrajectoryExplorer(run=run, live=False)
    assert f"EOS {'appended and scored' if eos else 'not appended'}" in explorer.to_html()
    explorer.close()


def test_explorers_say_that_pairs_were_cut(policy):
    cut = policy.with_options(max_length=20, truncation="keep_start")
    long = tk.PreferencePair("long", "Is it fine?", " word" * 1200, " b")
    made = [
        tk.PairExplorer(cut, [long], live=False),
        tk.LossExplorer(cut, [long], live=False, losses=["dpo"]),
        tk.TrajectoryExplorer(cut, [long], live=False, **RUN),
        tk.DatasetExplorer(cut, [long, pairs()[0]], live=False),
    ]
    for explorer in made:
        assert "pairs cut: keep_start, 20 tokens" in explorer.to_html()
        explorer.close()
    assert "pairs cut" not in tk.PairExplorer(policy, pairs(), live=False).to_html()
