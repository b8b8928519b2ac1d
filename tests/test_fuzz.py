"""Some malformed inputs of every kind, the same ones each time; ``make fuzz`` tries new ones."""

import subprocess
import sys
from pathlib import Path

import fuzz
import fuzz_pairs
import numpy as np
import pandas as pd
import pytest

import toolkit as tk

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("kind", "cases"), [("rows", 200), ("files", 250), ("folders", 20), ("parameters", 120)]
)
def test_malformed_input_ends_in_a_result_or_one_clear_error(kind, cases):
    ends = {fuzz.run(kind, seed) for seed in range(cases)}
    # Both halves of the contract were tried.
    assert "refused" in ends and ends & {"loaded", "result"}


FRAME = pd.DataFrame()


@pytest.mark.parametrize(
    "call",
    [
        lambda: tk.loss_weights(tk.pair_stats, int),
        lambda: tk.audit_pairs(np.array(None), tk.load_model()),
        lambda: tk.PairStream(np.array(None)),
        lambda: tk.score_pairs(tk.load_model(), [], measures=["similarity"], loss=FRAME),
        lambda: tk.train(tk.load_model(), tk.load_pairs("stance", limit=2), lr=1e-5, steps=10**60),
        lambda: tk.PreferencePair([None], "a", "b", "c", row=FRAME),
    ],
    ids=["loss without signature", "array", "stream", "frame as loss", "endless", "row"],
)
def test_what_the_fuzzer_found_is_refused_clearly(call):
    assert fuzz.ends_clearly(call) is None


def raises(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    "error",
    [TypeError("no"), ValueError("not from the toolkit"), KeyError("x"), ImportError("no command")],
)
def test_the_fuzzer_finds_a_strangers_error(error):
    with pytest.raises(fuzz.Unclear, match=type(error).__name__):
        fuzz.ends_clearly(raises(error))


def test_the_fuzzer_takes_results_and_clear_errors():
    assert fuzz.ends_clearly(lambda: 3) == 3
    assert fuzz.ends_clearly(lambda: tk.load_pairs([{}])) is None
    install = 'pip install "preference-entanglement-toolkit[hub]"'
    assert fuzz.ends_clearly(raises(ImportError(install))) is None


@pytest.mark.skipif(not hasattr(fuzz.signal, "setitimer"), reason="this platform has no timer")
def test_the_fuzzer_finds_a_hang(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)

    def hang():
        while True:
            pass

    with pytest.raises(fuzz.Unclear, match="TimeoutError"):
        fuzz.ends_clearly(hang)


def test_the_fuzzer_finds_a_lost_question_and_a_changed_response():
    row = {"prompt": "What is it?", "chosen": " Yes", "rejected": " No"}
    check = fuzz_pairs._check_source
    check(tk.PreferencePair("a", *row.values()), row)
    with pytest.raises(fuzz.Unclear, match="the prompt 'What is it"):
        check(tk.PreferencePair("a", "", " Yes", " No"), row)
    with pytest.raises(fuzz.Unclear, match="is not what stands in"):
        check(tk.PreferencePair("a", "What is it?", "Yes", " No"), row)


def test_the_long_run_starts_and_says_how_it_ended():
    command = [sys.executable, HERE / "fuzz.py", "--only", "files", "--cases", "3", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "files" in done.stdout
