"""The command line: what it writes, what it says, and how it fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import toolkit as tk
from toolkit.__main__ import main
from toolkit.scoring import _score_engines, score_pairs

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("TOOLKIT_REAL_DATA", ROOT.parent / "shared" / "real"))


def score(out, *words: str) -> int:
    return main(["score", "--out", str(out), "--quiet", *words])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "scores.parquet"


def test_it_writes_what_the_function_returns(out, capsys):
    words = ["--pairs", "refusals", "--limit", "8", "--measures", "entanglement,similarity"]
    words += ["--loss", "simpo", "--beta", "2", "--hparam", "gamma=0.5", "--params", "head"]
    assert score(out, *words) == 0
    options = {"measures": ("entanglement", "similarity"), "loss": "simpo", "params": "head"}
    pairs = tk.load_pairs("refusals", limit=8)
    expected = score_pairs(tk.load_model(), pairs, **options, progress=False, beta=2.0, gamma=0.5)
    found = pd.read_parquet(out)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_exact=True)
    said = capsys.readouterr().out
    for words in (
        "8 pairs, 0 of them could not be scored",
        "cosine of the two gradients: median",
        "ln_ches at 0, 25, 50, 75, 100 %:",
        "Spearman correlation with rejected_length - chosen_length: ches",
        "regimes:",
        f"written to {out}",
    ):
        assert words in said


def test_bad_rows_are_counted_and_shown(out, tmp_path, capsys):
    rows = [{"prompt": "Is it?", "chosen": " Yes", "rejected": text} for text in (" No", "")]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + "{oops\n")
    assert score(out, "--pairs", str(tmp_path / "p.jsonl")) == 0
    said = capsys.readouterr().out
    assert "3 pairs, 2 of them could not be scored" in said
    assert "row 1: rejected is empty" in said
    assert "row 2: bad JSON at line 3" in said
    assert score(out, "--pairs", str(tmp_path / "p.jsonl"), "--no-resume", "--on-error=raise") == 2
    assert "row 1 (id '1'): rejected is empty" in capsys.readouterr().err


def test_longer_pairs_are_refused_or_cut_on_request(out, tmp_path, capsys):
    row = {"prompt": "word " * 40, "chosen": " yes", "rejected": " no"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--pairs", str(tmp_path / "p.jsonl"), "--measures", "stats", "--max-length", "12"]
    assert score(out, *words) == 1
    said = capsys.readouterr().err
    assert "more than max_length 12" in said and "(--truncation keep_start) cuts it" in said
    assert score(out, *words, "--truncation", "keep_end") == 2
    assert "truncation: was None, is 'keep_end'" in capsys.readouterr().err
    assert score(out, *words, "--truncation", "keep_end", "--no-resume") == 0
    cut = tk.load_model().with_options(max_length=12, truncation="keep_end")
    expected = score_pairs(cut, [row], measures="stats", progress=False)
    found = pd.read_parquet(out)
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, check_exact=True)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--pairs", "refusal"], "Did you mean 'refusals'?"),
        (["--pairs", "nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["--pairs", "stance", "--model", "./nowhere"], "no model folder at './nowhere'"),
        (["--pairs", "stance", "--measures", "chess"], "allowed are audit, similarity"),
        (
            ["--pairs", "stance", "--limit", "0"],
            "limit must be None or a positive integer, received 0",
        ),
        (["--pairs", "stance", "--dtype", "int8"], "dtype='int8'"),
        (["--pairs", "stance", "--out", "scores.csv"], "out must end in .parquet"),
        (["--pairs", "stance", "--measures", "entanglement", "--loss", "x"], "loss='x'"),
        (
            ["--pairs", "stance", "--loss", "simpo"],
            "--measures audit,similarity,stats,entanglement",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(out, capsys, words, named):
    assert score(out, *words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert named in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--out", "scores.csv"], "out must end in .parquet"),
        (["--measures", "chess"], "measures: got 'chess'"),
        (["--measures", "entanglement", "--loss", "dpoo"], "loss='dpoo'"),
        (["--measures", "entanglement", "--hparam", "gama=1"], "gama"),
        (["--measures", "entanglement", "--beta", "-1"], "beta"),
        (["--params", "("], "params='('"),
        (["--batch-size", "0"], "batch_size"),
        (["--max-length", "0"], "max_length"),
        (["--rows-per-part", "-1"], "rows_per_part"),
    ],
)
def test_settings_are_checked_before_the_model_is_loaded(out, capsys, words, named):
    assert score(out, "--pairs", "stance", "--model", "./nowhere", *words) == 2
    said = capsys.readouterr().err
    assert named in said
    assert "nowhere" not in said
    assert not list(out.parent.iterdir())


def test_a_folder_of_the_user_is_refused_before_the_model_is_loaded(out, capsys):
    folder = out.with_name("scores.parquet.parts")
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert score(out, "--pairs", "stance", "--model", "./nowhere") == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (folder / "notes.txt").read_text() == "mine"


def test_columns_of_another_name_end_with_a_status_that_says_so(out, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("question,good,bad\nIs it?,Yes,No\n")
    assert score(out, "--pairs", str(tmp_path / "p.csv")) == 2
    said = capsys.readouterr()
    assert "1 row read, and none is a preference pair; row 0:" in said.err
    assert "written to" not in said.out


def test_a_run_that_scored_nothing_does_not_end_well(out, tmp_path, capsys):
    """Every pair is too long: the file holds the reasons, and the status is not that of success."""
    row = {"prompt": "word " * 1200, "chosen": " yes", "rejected": " no"}
    (tmp_path / "p.jsonl").write_text((json.dumps(row) + "\n") * 2)
    for _ in range(2):  # the second finds all of it done
        assert score(out, "--pairs", str(tmp_path / "p.jsonl"), "--measures", "similarity") == 1
        said = capsys.readouterr()
        assert "error: none of the 2 pairs could be scored; row 0: chosen side has" in said.err
        assert "2 pairs, 2 of them could not be scored" in said.out
    assert len(pd.read_parquet(out)) == 2


def test_weights_that_are_not_finite_are_named(out, tmp_path, capsys):
    policy = tk.load_model()
    policy.model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    for part in (policy.model, policy.tokenizer):
        part.save_pretrained(tmp_path / "model")
    assert score(out, "--pairs", "stance", "--limit", "2", "--model", str(tmp_path / "model")) == 2
    said = capsys.readouterr().err
    assert "weight 'model.layers.0.mlp.down_proj.weight'" in said
    assert "NaN or infinite in 1 of" in said
    assert not out.exists()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize("command", ["score", "score --help", "losses"])
def test_a_console_with_few_characters_does_not_end_the_work(tmp_path, encoding, command):
    """The file was complete, and the command failed when it printed its summary."""
    row = {"id": "\u2212\u05d0", "prompt": "Is it?", "chosen": "", "rejected": " No"}
    good = [{"prompt": f"Is it {i}?", "chosen": " Yes" * i, "rejected": " No"} for i in range(1, 5)]
    lines = [json.dumps(r) + "\n" for r in (row, *good, {**row, "chosen": 5, "\u2212": 1})]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    words = command.split()
    if command == "score":
        words += ["--pairs", "p.jsonl", "--out", "scores.parquet", "--measures", "similarity"]
    run = subprocess.run(
        [sys.executable, "-m", "toolkit", *words],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.decode(encoding)


@pytest.mark.parametrize("words", [["--hparam", "gamma"], ["--limit", "many"], ["--engine", "x"]])
def test_bad_words_end_with_status_2(out, capsys, words):
    with pytest.raises(SystemExit) as stop:
        score(out, "--pairs", "stance", *words)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(out, capsys, monkeypatch):
    calls, real = iter(range(9)), _score_engines.score_rows

    def stopping(*args):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(*args)

    words = ["--pairs", "single_token", "--limit", "6", "--rows-per-part", "2"]
    words += ["--measures", "similarity"]
    with monkeypatch.context() as patch:
        patch.setattr(_score_engines, "score_rows", stopping)
        assert score(out, *words) == 130
    assert "run the same command to go on" in capsys.readouterr().err
    assert len(list(out.with_name("scores.parquet.parts").glob("part-*"))) == 1
    assert score(out, *words) == 0
    assert len(pd.read_parquet(out)) == 6


def test_out_of_memory_is_one_line_too(out, capsys, monkeypatch):
    def full(*args):
        raise RuntimeError("not enough memory: you tried to allocate 99 GB\nmore")

    monkeypatch.setattr(_score_engines, "score_rows", full)
    assert score(out, "--pairs", "stance", "--limit", "1") == 2
    assert capsys.readouterr().err.startswith("error: not enough memory: you tried")


def test_losses_are_printed(capsys):
    assert main(["losses"]) == 0
    assert "simpo" in capsys.readouterr().out


def test_help_comes_fast_and_without_torch():
    code = "import sys\nfrom toolkit.__main__ import main\ntry: main(['score', '--help'])\n"
    code += "except SystemExit: assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "--measures" in run.stdout
    assert "exit status:" in run.stdout
    assert all(f"\n  {status} " in run.stdout for status in (0, 1, 2, 130))


@pytest.mark.skipif(not REAL.exists(), reason="set TOOLKIT_REAL_DATA to the folder")
@pytest.mark.parametrize(
    "name", ["hh_harmless_dev.jsonl.gz", "persona_ends_justify_means_dev.jsonl"]
)
def test_real_files_are_scored(out, name, capsys):
    assert score(out, "--pairs", str(REAL / name), "--limit", "24") == 0
    found = pd.read_parquet(out)
    usable = found["error"] == ""
    assert usable.sum() > 10
    assert found.loc[usable, ["ln_ches", "cosine", "chosen_logps"]].notna().all().all()
