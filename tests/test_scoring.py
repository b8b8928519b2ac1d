"""Scoring of whole datasets: nothing lost, doubled or recomputed, and the same bits in the end."""

import copy
import functools
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import toolkit as tk
from toolkit.scoring import (
    PairStream,
    _score_engines,
    _score_files,
    _score_rows,
    _score_run,
    _score_settings,
    _score_store,
    read_scores,
    score_pairs,
)

ALL = ("audit", "similarity", "stats", "entanglement")
RAW = [{"prompt": "Is it?", "chosen": " Yes", "rejected": text} for text in (" No", " Never")]
FAST = {"measures": ("similarity",), "progress": False}
exactly = functools.partial(pd.testing.assert_frame_equal, check_exact=True)


@pytest.fixture(scope="module")
def policy():
    return tk.load_model()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "scores.parquet"


@pytest.fixture
def stored(caplog):
    """A function that returns the parts stored since it was last called."""
    caplog.set_level(logging.INFO, "toolkit.scoring")

    def take() -> list[int]:
        found = parts_in(caplog.text)
        caplog.clear()
        return found

    return take


def parts_in(text: str) -> list[int]:
    return [int(index) for index in re.findall(r"part (\d+) stored", text)]


def pairs_of(count: int, name: str = "single_token") -> list[tk.PreferencePair]:
    return list(tk.load_pairs(name, limit=count))


# ---- numbers ----


def test_columns_are_those_of_the_measures_own_functions(policy):
    pairs = pairs_of(6, "refusals")
    scores = score_pairs(policy, pairs, measures=ALL, loss="ipo", tau=0.3, progress=False)
    stats = tk.pair_stats(policy, pairs, progress=False)
    frames = {
        "audit": tk.audit_pairs(pairs, policy),
        "similarity": tk.similarity(policy, pairs),
        "stats": stats.to_frame(),
        "entanglement": tk.entanglement(stats, "ipo", tau=0.3).to_frame(),
    }
    assert scores.columns[:3].tolist() == ["row", "pair_id", "error"]
    assert scores["row"].tolist() == list(range(6))
    assert scores["error"].tolist() == [""] * 6
    for measure, frame in frames.items():
        own = frame.drop(columns=["pair_id", "row"], errors="ignore")
        assert list(own) == [c for c in own if c in _score_settings.MEASURES[measure]], measure
        assert set(own) == set(_score_settings.MEASURES[measure]), measure
        kinds = {"check_dtype": False, "check_names": False}
        pd.testing.assert_frame_equal(scores[list(own)], own, rtol=1e-5, atol=1e-4, **kinds)
    assert scores.attrs["tau"] == 0.3
    assert scores.attrs["loss_name"] == "ipo"
    assert scores.attrs["dtype"] == "float32"


@pytest.mark.parametrize("change", [{"rows_per_part": 3}, {"batch_size": 1}, {"batch_size": 5}])
def test_batches_change_rounding_only(policy, change):
    pairs = pairs_of(8, "refusals")
    kept = {"measures": ALL, "progress": False}
    one, other = (score_pairs(policy, pairs, **kept, **options) for options in ({}, change))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-3)


def test_order_of_the_input_is_the_order_of_the_rows(policy):
    pairs = pairs_of(9, "refusals")
    one = score_pairs(policy, pairs, **FAST, rows_per_part=4)
    other = score_pairs(policy, pairs[::-1], **FAST, rows_per_part=4)
    assert other["pair_id"].tolist() == [p.id for p in reversed(pairs)]
    turned = other[::-1].reset_index(drop=True).assign(row=range(9))
    pd.testing.assert_frame_equal(one, turned, rtol=1e-4, atol=1e-3)


def test_every_kind_of_source_gives_the_same_scores(policy, tmp_path):
    pairs = pairs_of(5)
    rows = [
        {"id": p.id, "prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pd.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "p.csv", index=False)
    sources = [iter(pairs), rows, iter(rows), pd.DataFrame(rows), PairStream(rows)]
    sources += [str(tmp_path / f"p.{suffix}") for suffix in ("jsonl", "parquet", "csv")]
    sources += [PairStream("single_token", limit=5), [policy.encode(p) for p in pairs]]
    one = score_pairs(policy, pairs, **FAST)
    for source in sources:
        exactly(one, score_pairs(policy, source, **FAST))


def test_one_pair_and_a_model_by_its_folder(policy):
    pair, folder = pairs_of(1)[0], Path(tk.__file__).parents[1] / "data" / "tiny_model"
    exactly(score_pairs(folder, pair, **FAST), score_pairs(policy, [pair], **FAST))


def test_rows_are_read_part_by_part(policy, out):
    """A reader that runs ahead would hold a dataset that does not fit into memory."""
    taken, seen = [], []

    def source():
        for pair in pairs_of(12):
            taken.append(pair.id)
            yield pair

    def engine(*args):
        for part in _score_engines_local(*args):
            seen.append(len(taken))
            yield part

    _score_engines_local = _score_engines.local
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_score_engines, "local", engine)
        score_pairs(policy, source(), **FAST, out=out, rows_per_part=4)
    assert seen == [4, 8, 12]


# ---- pairs that cannot be scored ----


def test_pairs_that_cannot_be_scored_keep_their_row(policy):
    good, *others = pairs_of(3)
    long = tk.PreferencePair("long", "word " * 1200, " yes", " no")
    rows = [{"prompt": "a", "chosen": "", "rejected": "b"}]
    rows += [
        {"id": p.id, "prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected}
        for p in (good, long, *others)
    ]
    scores = score_pairs(policy, rows, measures=ALL, progress=False, rows_per_part=2)
    assert scores["row"].tolist() == [0, 1, 2, 3, 4]
    assert scores["pair_id"].tolist() == ["0", good.id, "long", *(p.id for p in others)]
    assert (scores["error"] != "").tolist() == [True, False, True, False, False]
    assert "chosen is empty" in scores["error"][0]
    assert "1024" in scores["error"][2]
    bad = scores[scores["error"] != ""]
    assert bad[["ches", "inner", "chosen_length", "regime", "d_chosen"]].isna().all().all()
    assert not bad["usable"].any()
    alone = score_pairs(policy, iter(rows[:1]), measures=ALL, progress=False)
    assert dict(alone.dtypes) == dict(scores.dtypes)


def test_a_bad_pair_can_stop_the_run(policy):
    rows = [{"prompt": "Is it?", "chosen": " Yes", "rejected": " No"}]
    rows += [{"prompt": "Is it?", "chosen": " Yes"}]
    with pytest.raises(tk.PairError, match=r"row 1.*'rejected' is missing"):
        score_pairs(policy, rows, **FAST, on_error="raise")


def test_rows_that_loading_skipped_come_back_in_their_place(policy):
    rejected = (" No", "", " Never", " Yes")
    rows = [{"prompt": "Is it?", "chosen": " Yes", "rejected": text} for text in rejected]
    scores = score_pairs(policy, tk.load_pairs(rows, on_error="skip"), **FAST)
    exactly(scores, score_pairs(policy, rows, **FAST))
    assert (scores["error"] != "").tolist() == [False, True, False, True]


def test_a_loss_that_is_not_finite_for_one_pair_spares_the_others(policy):
    pairs = pairs_of(4)
    logps = tk.pair_stats(policy, pairs, progress=False).chosen_logps
    hole = float(logps[2])

    def holed(chosen_logps, rejected_logps):
        return -chosen_logps / (chosen_logps - hole).abs().gt(1e-3) + rejected_logps

    scores = score_pairs(policy, pairs, measures="entanglement", loss=holed, progress=False)
    assert (scores["error"] != "").tolist() == [False, False, True, False]
    assert scores["regime"].isna().tolist() == [False, False, True, False]
    assert np.isfinite(scores["inner"]).all()


def test_one_bad_row_does_not_stop_a_run_that_keeps_errors(policy, out):
    """A token without an embedding, an id that no file can hold, a reference that reads less."""
    model = copy.deepcopy(policy.model)
    model.config.max_position_embeddings = 40
    short = tk.Policy(policy.model, copy.deepcopy(policy.tokenizer), model)
    new = [f"<new{i}>" for i in range(short.vocabulary - len(short.tokenizer) + 1)]
    short.tokenizer.add_tokens(new)
    rows = [{"id": str(i), "prompt": "Is it?", "chosen": " Yes", "rejected": " No"} for i in "abcd"]
    rows[1]["id"] = "b\ud800"
    rows[2]["chosen"] = f" Yes{new[-1]}"
    rows[3]["rejected"] = " No" * 60
    live = [tk.PreferencePair(r["id"], r["prompt"], r["chosen"], r["rejected"]) for r in rows]
    for pairs in (rows, live):
        scores = score_pairs(short, pairs, measures=ALL, progress=False, out=out, resume=False)
        assert scores["pair_id"].drop(1).tolist() == ["a", "c", "d"]
        for error, named in zip(
            scores["error"], ("^$", "surrogate|ud800", "vocabulary", "40"), strict=True
        ):
            assert re.search(named, error)
        assert scores["usable"].tolist() == [True, False, False, False]
        assert scores["ches"].notna().tolist() == [True, False, False, False]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["policy", "reference"])
def test_weights_that_are_not_finite_are_named_before_the_run(policy, out, value, role):
    """Every score of such a model is NaN: without the check they are written without an error."""
    model = copy.deepcopy(policy.model)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = value
    models = (model, policy.model) if role == "policy" else (policy.model, model)
    broken = tk.Policy(models[0], policy.tokenizer, models[1])
    said = rf"the {role}'s weight 'model.layers.1.mlp.up_proj.weight' .*1 of .*checkpoint"
    with pytest.raises(ValueError, match=said):
        score_pairs(broken, pairs_of(2), **FAST, out=out)
    assert not list(out.parent.iterdir())


def test_scores_that_are_not_finite_are_errors(policy, monkeypatch):
    """Activations of a narrow dtype overflow for some pairs, with weights that are all right."""
    real = _score_rows.similarity

    def overflowing(*args, **options):
        frame = real(*args, **options)
        frame.loc[frame["pair_id"] == bad, ["ches", "ln_ches"]] = [np.inf, np.nan]
        return frame

    pairs = pairs_of(3)
    bad = pairs[1].id
    monkeypatch.setattr(_score_rows, "similarity", overflowing)
    scores = score_pairs(policy, pairs, **FAST)
    assert (scores["error"] != "").tolist() == [False, True, False]
    assert re.search("ches is inf.*float32", scores["error"][1])
    assert scores[["ches", "ln_ches"]].isna().all(axis=1).tolist() == [False, True, False]
    with pytest.raises(tk.PairError, match=r"row 1 .*ches is inf"):
        score_pairs(policy, pairs, **FAST, on_error="raise")


# ---- interruption ----


PRELOADED = [
    "pyarrow.parquet",
    "pytest",
    "toolkit.scoring",
    "tokenizers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
]


def started(job, *args) -> multiprocessing.Process:
    """A child that has its model and is about to score; from a server that never ran a thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ready = context.Event()
    process = context.Process(target=with_model, args=(ready, job, *args))
    process.start()
    assert ready.wait(600)
    return process


def with_model(ready, job, *args):
    policy = tk.load_model()
    ready.set()
    job(policy, *args)


def die_at(policy, step: int, pairs, out):
    """Score, and die at one of the steps on disk; a file that is about to be renamed is half."""
    steps = iter(range(999))

    def watch(event, args):
        paths = [str(arg) for arg in args if isinstance(arg, str | os.PathLike)]
        if not any(out.name in path for path in paths) or next(steps) != step:
            return
        if event == "os.rename":
            os.truncate(paths[0], os.path.getsize(paths[0]) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    score_pairs(policy, pairs, **FAST, out=out, rows_per_part=2)


def test_death_at_any_step_leaves_whole_parts(policy, tmp_path, stored):
    """SIGKILL at each opening, renaming and removing: what is there is right, and is kept."""
    pairs, deaths, kept = pairs_of(4), 0, set()
    whole = score_pairs(policy, pairs, **FAST, rows_per_part=2)
    for step in range(99):
        out = tmp_path / str(step) / "scores.parquet"
        out.parent.mkdir()
        process = started(die_at, step, pairs, out)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        there = 2 if out.exists() else len(_score_store.Store(out).parts())
        if there:
            exactly(whole[: 2 * there], read_scores(out))
        stored()
        exactly(whole, score_pairs(policy, pairs, **FAST, out=out, rows_per_part=2))
        assert stored() == list(range(there, 2)), "a part was lost, or stored twice"
        assert {path.name for path in out.parent.iterdir()} == {out.name, f".{out.name}.lock"}
        deaths, kept = deaths + 1, kept | {there}
    assert deaths > 9 and kept == {0, 1, 2}, "the deaths did not fall into the work"


def interrupt_after(monkeypatch, parts: int) -> None:
    calls, real = iter(range(999)), _score_rows.score_rows

    def stopping(*args):
        if next(calls) == parts:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(_score_engines, "score_rows", stopping)


@pytest.fixture
def half_done(policy, out, monkeypatch):
    """A run of four parts that was stopped after two; returns the pairs."""
    pairs = pairs_of(8)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            score_pairs(policy, pairs, **FAST, out=out, rows_per_part=2)
    return pairs


def again(policy, pairs, out, **options) -> pd.DataFrame:
    return score_pairs(policy, pairs, **{**FAST, "rows_per_part": 2, "out": out} | options)


def test_partial_results_can_be_read(policy, half_done, out, stored):
    scores = read_scores(out)
    assert scores["row"].tolist() == [0, 1, 2, 3]
    assert scores.attrs["complete"] is False
    assert scores.attrs["model"] == "tiny (shipped)"
    assert list(read_scores(out, columns=["ln_ches", "pair_id"])) == ["ln_ches", "pair_id"]
    whole = again(policy, half_done, out)
    assert stored() == [2, 3]
    assert whole.attrs["complete"] is True
    exactly(whole[:4], scores)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    """Flip the first bit that anything reads: some bytes of a file are never looked at."""
    content = path.read_bytes()
    for position in range(len(content) // 4, len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        if _score_files.read_table(path) is None:
            return
    pytest.fail("no flipped bit is noticed")


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"")])
def test_a_damaged_part_is_found_and_computed_again(policy, half_done, out, stored, damage):
    whole = score_pairs(policy, half_done, **FAST, rows_per_part=2)
    damage(_score_store.Store(out).parts()[1])
    assert read_scores(out)["row"].tolist() == [0, 1]
    stored()
    exactly(whole, again(policy, half_done, out))
    assert stored() == [1, 2, 3]


def test_no_flipped_bit_passes_for_a_number(half_done, out):
    path = _score_store.Store(out).parts()[1]
    whole, content = _score_files.read_table(path), path.read_bytes()
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    for position in range(4, len(content) - footer):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        table = _score_files.read_table(path)
        assert table is None or table.equals(whole), position


def test_a_part_of_other_rows_is_computed_again(policy, half_done, out, stored):
    other = [half_done[1], half_done[0], *half_done[2:]]
    stored()
    exactly(again(policy, other, out), score_pairs(policy, other, **FAST, rows_per_part=2))
    assert stored() == [0, 2, 3]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "parts"])
def test_scores_of_an_earlier_input_are_never_shown_with_those_of_the_new_one(
    policy, half_done, out, monkeypatch, finished
):
    """A row more at the start moves all others: what is stored behind it is of other rows."""
    if finished:
        again(policy, half_done, out)
    moved = [tk.PreferencePair("new", "Is it?", " Yes", " No"), *half_done]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            again(policy, moved, out)
    scores = read_scores(out)
    assert scores["pair_id"].tolist() == [pair.id for pair in moved[:2]]
    assert scores["row"].tolist() == [0, 1]
    assert scores.attrs["complete"] is False
    whole = again(policy, moved, out)
    assert whole["pair_id"].tolist() == [pair.id for pair in moved]
    assert read_scores(out).attrs["complete"] is True


def test_a_run_that_goes_on_shows_what_was_there_all_the_time(policy, half_done, out, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            again(policy, half_done, out)
    assert read_scores(out)["row"].tolist() == [0, 1, 2, 3]


def test_a_finished_run_computes_nothing(policy, half_done, out, stored, monkeypatch):
    whole = again(policy, half_done, out)
    time_before, _ = out.stat().st_mtime_ns, stored()
    interrupt_after(monkeypatch, 0)
    exactly(whole, again(policy, half_done, out, batch_size=3))
    assert stored() == []
    assert out.stat().st_mtime_ns == time_before


def test_more_rows_and_changed_rows_compute_their_parts_alone(policy, half_done, out, stored):
    again(policy, half_done, out)
    more = [*half_done, *pairs_of(11)[8:]]
    more[3] = tk.PreferencePair(more[3].id, more[3].prompt, " Perhaps", more[3].rejected)
    stored()
    exactly(again(policy, more, out), score_pairs(policy, more, **FAST, rows_per_part=2))
    assert stored() == [1, 4, 5]
    fewer = again(policy, more[:5], out)
    assert fewer["row"].tolist() == [0, 1, 2, 3, 4]
    assert stored() == [2]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "parts"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"measures": ("similarity", "audit")}, "measures"),
        ({"params": "head"}, "params: was 'all', is 'head'"),
        ({"rows_per_part": 3}, "rows_per_part: was 2, is 3"),
    ],
)
def test_other_settings_are_refused(policy, half_done, out, change, named, finished):
    if finished:
        again(policy, half_done, out)
    with pytest.raises(ValueError, match=f"{named}.*resume=False"):
        again(policy, half_done, out, **change)
    assert out.with_name("scores.parquet.parts").exists() is not finished
    fresh = again(policy, half_done, out, **change, resume=False)
    exactly(fresh, score_pairs(policy, half_done, **{**FAST, "rows_per_part": 2} | change))


def test_other_weights_tokenizer_and_options_are_refused(policy, half_done, out):
    other = copy.deepcopy(policy)
    with torch.no_grad():
        next(other.model.parameters()).view(-1)[0] += 1e-3
    tokenizer = copy.copy(policy)
    tokenizer.tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.tokenizer.add_tokens(["zebra"])
    frozen = copy.deepcopy(policy)
    next(frozen.model.parameters()).requires_grad_(False)
    referenced = tk.Policy(policy.model, policy.tokenizer, other.model)
    for changed, named in [
        (other, "model weights"),
        (tokenizer, "tokenizer"),
        (policy.with_options(append_eos=False), "append_eos"),
        (policy.with_options(max_length=100), "context length"),
        (frozen, "parameter set"),
        (referenced, "reference"),
    ]:
        with pytest.raises(ValueError, match=named):
            again(changed, half_done, out)
    again(copy.deepcopy(policy), half_done, out)


def test_loss_functions_are_known_by_their_code(policy, out):
    def one(chosen_logps, rejected_logps):
        return rejected_logps - chosen_logps

    def other(chosen_logps, rejected_logps):
        return rejected_logps - 2 * chosen_logps

    other.__name__ = "one"
    options = {"measures": "entanglement", "out": out, "progress": False}
    score_pairs(policy, pairs_of(2), loss=one, **options)
    score_pairs(policy, pairs_of(2), loss=one, **options)
    with pytest.raises(ValueError, match="loss: was 'one"):
        score_pairs(policy, pairs_of(2), loss=other, **options)


def hinge(margin):
    return lambda chosen_logps, rejected_logps: (rejected_logps - chosen_logps + margin).relu()


def test_losses_of_one_factory_are_not_mixed(policy, out):
    """They share their code; only the closure tells a resumed run that the loss is another."""
    options = {"measures": "entanglement", "out": out, "progress": False}
    score_pairs(policy, pairs_of(2), loss=hinge(1.0), **options)
    score_pairs(policy, pairs_of(2), loss=hinge(1.0), **options)
    with pytest.raises(ValueError, match="loss: was '<lambda>"):
        score_pairs(policy, pairs_of(2), loss=hinge(50.0), **options)


def test_a_loss_that_cannot_be_told_apart_needs_a_version(policy, out):
    random = np.random.default_rng(0)

    def loss(chosen_logps, rejected_logps):
        return rejected_logps - chosen_logps + 0 * random.random()

    options = {"measures": "entanglement", "progress": False, "loss": loss}
    with pytest.raises(ValueError, match=r"loss: .*'loss'.*Generator.*loss\.version = '1'"):
        score_pairs(policy, pairs_of(2), out=out, **options)
    assert not list(out.parent.iterdir())
    memory = score_pairs(policy, pairs_of(2), **options)
    assert memory.attrs["loss_name"] == "loss"
    loss.version = "1"
    exactly(memory, score_pairs(policy, pairs_of(2), out=out, **options))
    loss.version = "2"
    with pytest.raises(ValueError, match="loss: was 'loss version 1', is 'loss version 2'"):
        score_pairs(policy, pairs_of(2), out=out, **options)


def test_a_loss_and_its_default_are_one_setting(policy, out, stored):
    options = {"measures": "entanglement", "out": out, "progress": False}
    score_pairs(policy, pairs_of(2), **options)
    stored()
    score_pairs(policy, pairs_of(2), beta=0.1, **options)
    assert stored() == []


def test_two_runs_do_not_write_the_same_file(policy, half_done, out):
    with (
        _score_store.Store(out).lock(),
        pytest.raises(ValueError, match="another run is writing"),
    ):
        again(policy, half_done, out)


def test_the_result_is_read_before_another_run_may_write(policy, half_done, out, monkeypatch):
    """Read after the lock was free, it could hold some rows only, without an error."""
    seen, real = [], _score_run.read

    def reading(store, *args):
        with pytest.raises(ValueError, match="another run is writing"):
            again(policy, half_done, out, resume=False)
        seen.append(store.out)
        return real(store, *args)

    monkeypatch.setattr(_score_run, "read", reading)
    assert len(again(policy, half_done, out)) == 8
    assert seen == [out]


def test_the_lock_is_one_file_for_all_runs(policy, half_done, out):
    """A lock that is deleted and made anew is two locks: both runs believe to be alone."""
    lock = out.with_name(".scores.parquet.lock")
    before = lock.stat().st_ino
    again(policy, half_done, out)
    again(policy, half_done, out, resume=False)
    assert lock.stat().st_ino == before


def test_reading_while_a_run_finishes_gives_whole_results(policy, half_done, out, monkeypatch):
    """The parts vanish once they are merged: a reader that listed them before must look again."""
    real, calls = _score_store.read_table, iter(range(99))

    def slowly(path, *args):
        if next(calls) == 1:
            monkeypatch.setattr(_score_store, "read_table", real)
            again(policy, half_done, out)
        return real(path, *args)

    monkeypatch.setattr(_score_store, "read_table", slowly)
    scores = read_scores(out)
    assert scores["row"].tolist() == list(range(8))
    assert scores.attrs["complete"] is True


def write_notes(folder):
    (folder / "notes.txt").write_text("mine")


def write_parts(folder):
    pd.DataFrame({"a": [1]}).to_parquet(folder / "part-00000000.parquet")


@pytest.mark.parametrize("write", [write_notes, write_parts])
@pytest.mark.parametrize("resume", [True, False])
def test_a_users_folder_is_refused_and_left_alone(policy, out, write, resume):
    folder = out.with_name("scores.parquet.parts")
    folder.mkdir()
    write(folder)
    (name,) = (path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match=f"{name}', which no run wrote; move it away"):
        score_pairs(policy, pairs_of(2), **FAST, out=out, resume=resume)
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("fails", [True, False])
def test_only_what_a_run_wrote_is_removed(policy, out, monkeypatch, fails):
    """Something that is put beside the parts while they are written stays there."""
    folder = out.with_name("scores.parquet.parts")

    def engine(*args):
        write_notes(folder)
        if fails:
            raise RuntimeError("the first part fails")
        yield from real(*args)

    real = _score_engines.local
    monkeypatch.setattr(_score_engines, "local", engine)
    if fails:
        with pytest.raises(RuntimeError, match="first part fails"):
            score_pairs(policy, pairs_of(2), **FAST, out=out)
    else:
        score_pairs(policy, pairs_of(2), **FAST, out=out)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_what_a_kill_left_before_the_first_part_is_not_foreign(policy, out):
    folder = out.with_name("scores.parquet.parts")
    folder.mkdir()
    (folder / "input.tmp").write_text("half a l")
    assert len(score_pairs(policy, pairs_of(2), **FAST, out=out)) == 2
    assert not folder.exists()


def test_a_file_in_the_place_of_the_folder_is_named(policy, out):
    out.with_name("scores.parquet.parts").write_text("mine")
    with pytest.raises(ValueError, match="is a file where a folder of parts must go"):
        score_pairs(policy, pairs_of(2), **FAST, out=out)


def test_a_file_that_holds_something_else_is_left_alone(policy, out):
    pd.DataFrame({"a": [1]}).to_parquet(out)
    with pytest.raises(ValueError, match="holds no scores"):
        score_pairs(policy, pairs_of(2), **FAST, out=out, resume=False)
    assert list(pd.read_parquet(out)) == ["a"]


def test_tokenizer_hash_ignores_how_the_tokenizer_was_used_last(policy):
    from toolkit.scoring._score_key import tokenizer_hash

    tokenizer = copy.deepcopy(policy.tokenizer)
    before = tokenizer_hash(tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    used = tokenizer_hash(tokenizer)
    tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == used
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_hash(tokenizer) != before


# ---- arguments and engines ----


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"measures": ["chess"]}, "measures: got 'chess'; allowed are audit, similarity"),
        ({"measures": []}, "measures: got none"),
        ({"engine": "spark"}, "engine='spark' is unknown; allowed: local, ray"),
        ({"on_error": "skip"}, "on_error"),
        ({"rows_per_part": 0}, "rows_per_part"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"params": "nothing"}, "params='nothing' matches no parameter"),
        ({"out": "scores.csv"}, "out must end in .parquet"),
        ({"resume": 1}, "resume"),
        ({"beta": 0.1}, "beta: nothing uses it without 'entanglement'"),
        ({"loss": "simpo"}, "loss: nothing uses it without 'entanglement'"),
        ({"measures": 5}, "measures: got 5"),
        ({"measures": [["audit"]]}, "measures: got ['audit']"),
        ({"params": "("}, "params='(' is not a valid regular expression"),
        ({"params": 5}, "params must be a string or a predicate"),
        ({"out": 5}, "out must be a path"),
        ({"measures": "entanglement", "loss": "dpoo"}, "dpoo"),
        ({"measures": "entanglement", "gamma": 1.0}, "gamma"),
    ],
)
def test_bad_arguments_are_named(policy, options, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        score_pairs(policy, pairs_of(1), **{**FAST, **options})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"measures": "chess"}, "measures"),
        ({"measures": "entanglement", "loss": "dpoo"}, "dpoo"),
        ({"measures": "entanglement", "bta": 0.1}, "bta"),
        ({"params": "("}, "params"),
        ({"rows_per_part": 3}, "rows_per_part: was 2, is 3"),
        ({"measures": "audit"}, "measures: was"),
    ],
)
def test_settings_are_checked_before_the_model_is_loaded(half_done, out, options, named):
    with pytest.raises(ValueError, match=named):
        again("./nowhere", half_done, out, **options)
    with pytest.raises(ValueError, match="no model folder"):
        again("./nowhere", half_done, out)


def test_a_source_is_refused_only_where_no_row_of_it_is_a_pair(policy):
    """Whole datasets begin with rows of another kind, and were refused for their first 64."""
    bad = [{"prompt": "Is it?", "chosen": " Yes"}] * 70
    scores = score_pairs(policy, [*bad, *RAW[:1]], **FAST)
    assert (scores["error"] == "").tolist() == [False] * 70 + [True]
    with pytest.raises(ValueError, match="70 rows read, and none is a preference pair; row 0: "):
        score_pairs(policy, bad, **FAST)


@pytest.mark.parametrize("source", ["nowhere.jsonl", 5, []])
def test_sources_without_rows_are_refused(policy, source):
    with pytest.raises(ValueError, match="source"):
        score_pairs(policy, source, **FAST)


def test_scores_that_are_not_there_are_named(policy, out):
    with pytest.raises(ValueError, match="holds no scores yet"):
        read_scores(out)
    score_pairs(policy, pairs_of(1), **FAST, out=out)
    with pytest.raises(ValueError, match="'chess' is not there"):
        read_scores(out, columns=["chess"])


def test_time_and_memory_are_told_after_the_first_part(policy, capsys):
    score_pairs(policy, pairs_of(6), measures="similarity", rows_per_part=2)
    assert re.search(
        r"about 0 min \d\d s for the 4 pairs left; [\d,]+ MiB", capsys.readouterr().err
    )


def test_rows_are_counted_without_reading_them_twice(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"a": 1}\n\nnot json\n')
    assert len(PairStream(tmp_path / "p.jsonl")) == 2
    assert len(PairStream("single_token", limit=7)) == 7
    with pytest.raises(TypeError, match="cannot be counted"):
        len(PairStream(iter([])))


def test_rows_of_a_split_are_counted_and_not_the_splits():
    datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")
    rows = [{"prompt": "Is it?", "chosen": " Yes", "rejected": " No"}]
    both = {"train": datasets.Dataset.from_list(rows * 5), "test": datasets.Dataset.from_list(rows)}
    splits = datasets.DatasetDict(both)
    assert len(PairStream(splits)) == len(list(PairStream(splits))) == 5
    assert len(PairStream(splits, split="test")) == 1


def test_missing_ray_is_named_with_its_install_command(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install .*\[ray\]"):
        score_pairs(policy, pairs_of(1), **FAST, engine="ray")


def test_ray_gives_the_same_bits_and_goes_on_from_local_parts(policy, half_done, out, stored):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray gives its own start 30 seconds, which it has no setting for
        if "timed out during startup" not in str(error):
            raise
        ray.shutdown()
        pytest.skip("Ray did not start in time on this machine")
    mixed = [policy.encode(half_done[0]), *half_done[1:3], {"prompt": "Is it?", "chosen": " Yes"}]
    options = {**FAST, "rows_per_part": 2}
    try:
        scores = again(policy, half_done, out, engine="ray")
        of_an_iterator = score_pairs(policy, iter(mixed), **options, engine="ray")
        with pytest.raises(tk.PairError, match=r"row 3.*'rejected' is missing"):
            score_pairs(policy, mixed, **options, engine="ray", on_error="raise")
    finally:
        ray.shutdown()
    assert sorted(stored()[-2:]) == [2, 3]
    exactly(scores, score_pairs(policy, half_done, **options))
    exactly(of_an_iterator, score_pairs(policy, mixed, **options))
