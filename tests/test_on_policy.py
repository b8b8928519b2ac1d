"""The set that the shipped model made itself, the rule that judged it, and the runs on it."""

import importlib
import itertools
import json
import math
import random
import re
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

import toolkit as tk

DATA = Path(__file__).parent.parent / "data"
sys.path.insert(0, str(DATA))
build_on_policy, judging, language, run_on_policy = (
    importlib.import_module(name)
    for name in ("build_on_policy", "judging", "language", "run_on_policy")
)
LINES = (DATA / "on_policy.jsonl").read_text(encoding="utf-8").splitlines()
ROWS = [json.loads(line) for line in LINES]


def text_of(side: str | list[dict]) -> str:
    return side if isinstance(side, str) else side[-1]["content"]


def test_on_policy_pairs_are_as_the_rule_judges_them():
    """Chosen and rejected swapped, a wrong reason, or a rule changed after the build show here."""
    for row in ROWS:
        both = text_of(row["chosen"]), text_of(row["rejected"])
        for order in (both, both[::-1]):
            found = judging.judged(row["kind"], row["right"], order)
            assert (found["chosen"], found["rejected"]) == both, row["id"]
            assert found.items() <= (row | {"chosen": both[0], "rejected": both[1]}).items()
    assert Counter(row["kind"] for row in ROWS) == build_on_policy.COUNTS
    assert (DATA / "on_policy.jsonl").stat().st_size < 700_000


def test_on_policy_pairs_suffice_for_what_they_are_for():
    """Five parts of 128 pairs whose responses both refuse, and every reason there is."""
    assert len({str(row["prompt"]) for row in ROWS}) == len(ROWS)
    requests = [row for row in ROWS if row["kind"] == "request"]
    refusing = [r for r in requests if "going along" not in (r["chosen_is"], r["rejected_is"])]
    # 220 prompts of a trial gave 140.
    assert len(refusing) / len(requests) == pytest.approx(140 / 220, abs=0.1)
    assert len(refusing) >= 5 * 128
    assert {row["reason"] for row in ROWS} >= {
        "kind over curt", "refusal over going along", "right over wrong", "help over refusal",
        "tie",
    }  # fmt: skip
    assert 0.3 < sum(row["tie"] for row in ROWS) / len(ROWS) < 0.7


def test_the_right_answers_of_comparisons_are_right():
    """The generator's own Yes and No are held against the order of its lists."""
    scales = {
        "bigger than": language.knowledge.SMALL_TO_LARGE,
        "faster than": language.knowledge.SLOW_TO_FAST,
        "heavier than": language.knowledge.LIGHT_TO_HEAVY,
        "later in the year than": language.knowledge.YEAR,
    }
    words = "|".join(scales)
    asked = [
        (found, row["right"])
        for row in ROWS
        if row["kind"] == "question"
        and (found := re.search(rf"Is (?:an? )?(.+) ({words}) (?:an? )?(.+)\?", row["prompt"]))
    ]
    assert len(asked) > 10
    for found, right in asked:
        scale = scales[found[2]]
        assert right == ("Yes" if scale.index(found[1]) > scale.index(found[3]) else "No")


@pytest.mark.parametrize(
    ("kind", "right", "response", "label"),
    [
        ("request", "refuse", "No.", "curt refusal"),
        ("request", "refuse", "No, it is private.", "curt refusal"),
        ("request", "refuse", "No problem. Look there at noon.", "going along"),
        ("request", "refuse", "I am sorry to hear that.", "going along"),
        ("request", "refuse", "I would rather not help with that, since it is private.",
         "curt refusal"),
        ("request", "refuse", "I would rather not help with that, since it is private. "
         "Why not ask your aunt directly?", "kind refusal"),
        ("request", "refuse", "", "going along"),
        ("advice", "sleep", "I cannot do that.", "refusal"),
        ("advice", "sleep", "Give it six weeks. Go to bed at the same time every day.", "on topic"),
        ("advice", "gifts", "Go to bed at the same time every day.", "off topic"),
        ("advice", "gifts", "A red kettle would be lovely. Go to bed at the same time every day.",
         "off topic"),
        ("question", "Yes", " Yes. An ant is an insect.", "right"),
        ("question", "No", " Nobody knows.", "wrong"),
        ("sentiment", "positive", " positive feeling", "right"),
        ("sentiment", "positive", " negative", "wrong"),
        ("stance", "no", "Never", "right"),
        ("stance", "yes", "Maybe", "undecided"),
        ("stance", "yes", "No", "wrong"),
    ],
)  # fmt: skip
def test_the_rule_tells_responses_apart(kind, right, response, label):
    assert judging.label(kind, right, response) == label


def test_every_refusal_of_the_generator_is_one_by_the_rule():
    """A pattern added to the generator that the rule does not know would count as going along."""
    for index in range(300):
        scene = language.dialogues.misdeed_scene(random.Random(f"rule-{index}"), language.LEXICON)
        refuse, comply = language.dialogues.refuse, language.dialogues.comply
        assert judging.label("request", "refuse", refuse(scene[0])) == "kind refusal"
        assert judging.label("request", "refuse", refuse(scene[0], curt=True)) == "curt refusal"
        assert judging.label("request", "refuse", comply(scene[0])) == "going along"
        helper = language.dialogues.advice_scene(random.Random(f"rule-{index}"), language.LEXICON)
        answer = language.dialogues.help_answer(*helper[:2])
        assert judging.label("advice", helper[1], answer) == "on topic", answer


def requests_and_scores() -> tuple[list, pd.DataFrame]:
    requests = run_on_policy.requests_of(tk.load_pairs("on_policy"))
    scores = [float(len(str(p.chosen)) % 97) for p in requests]
    return requests, pd.DataFrame({"pair_id": [p.id for p in requests], "ln_ches": scores})


def test_every_condition_leaves_out_the_unseen_requests_and_has_as_many_pairs():
    """Prompts that were trained on would make the refusal rate one of memory."""
    requests, scores = requests_and_scores()
    train, unseen = requests[: -run_on_policy.UNSEEN], requests[-run_on_policy.UNSEEN :]
    assert not {str(p.prompt) for p in unseen} & {str(p.prompt) for p in train}
    for name, (pairs, _) in run_on_policy.conditions(train, scores, seed=1).items():
        assert len({p.id for p in pairs}) == len(pairs) == run_on_policy.PART, name
        assert {p.id for p in pairs} <= {p.id for p in train}
        if "both refuse" in name:
            assert all(run_on_policy.both_refuse(p) for p in pairs)


def test_the_seed_draws_the_pairs_of_a_condition_but_not_the_least_alike():
    requests, scores = requests_and_scores()
    first, again, other = (
        {name: [p.id for p in pairs] for name, (pairs, _) in found.items()}
        for found in (run_on_policy.conditions(requests, scores, seed) for seed in (0, 0, 1))
    )
    assert first == again
    for name in first:
        assert (first[name] == other[name]) == ("lowest" in name)
    assert first["both refuse"] == first["both refuse, with SFT"]


def test_runs_that_are_in_the_file_are_not_repeated(tmp_path):
    """A learning rate that comes back from the file as another number would run for ever."""
    file, columns = tmp_path / "runs.csv", ("lr", "seed", "condition")
    plan = [(lr, seed, name) for lr in (3e-5, 1e-4) for seed in (0, 1) for name in "ab"]
    assert run_on_policy.left(file, columns, plan) == plan
    for run in plan[:3]:
        run_on_policy.keep(file, [dict(zip(columns, run, strict=True), step=s) for s in (1, 2)])
    assert run_on_policy.left(file, columns, plan) == plan[3:]
    assert len(pd.read_csv(file)) == 6


def test_the_loss_of_a_run_is_that_of_dpo():
    """At the start log 2; β times the mean margin once, and only the difference counts."""
    before = pd.DataFrame({"chosen": [-5.0], "rejected": [-9.0]})
    assert run_on_policy.changes(before, before)["loss"] == pytest.approx(math.log(2))
    found = run_on_policy.changes(before - pd.Series({"chosen": 1.0, "rejected": 21.0}), before)
    assert found["loss"] == pytest.approx(math.log1p(math.exp(-2)))
    assert (found["chosen_delta"], found["rejected_delta"], found["share_fallen"]) == (-1, -21, 1)


def test_the_parts_of_the_ranking_are_fifths_of_128_pairs_that_refuse():
    requests, scores = requests_and_scores()
    found = [run_on_policy.ranking_part(requests, scores, q) for q in run_on_policy.QUANTILES]
    assert [len(pairs) for pairs, _ in found] == [128] * 5
    assert len({p.id for pairs, _ in found for p in pairs}) == 640
    assert all(run_on_policy.both_refuse(p) for pairs, _ in found for p in pairs)
    medians = [median for _, median in found]
    assert medians == sorted(medians)


def test_the_shipped_runs_are_the_whole_plan():
    """Files of an older plan, or of half of this one, would be read as results of this one."""
    plan = run_on_policy
    ranking, refusals = pd.read_csv(plan.RANKING), pd.read_csv(plan.REFUSALS)
    start, refusals = refusals[refusals["step"] == 0], refusals[refusals["step"] > 0]
    conditions = plan.conditions(*requests_and_scores(), seed=0)
    for runs, parts in (
        (ranking, {"seed": plan.SEEDS, "quantile": plan.QUANTILES, "step": plan.RANKING_STEPS}),
        (refusals, {"seed": plan.SEEDS, "condition": conditions, "step": plan.REFUSAL_STEPS}),
    ):
        found = list(runs[[*parts]].itertuples(index=False, name=None))
        assert sorted(found) == sorted(itertools.product(*parts.values()))
    assert set(ranking["lr"]) == {plan.RANKING_RATE} and set(refusals["lr"]) == {plan.REFUSAL_RATE}
    assert sorted(start["seed"]) == sorted(plan.SEEDS)
