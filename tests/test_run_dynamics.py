"""The trainings behind notebooks 01 and 05: what a row says, and that the files are complete."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import toolkit as tk

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(DATA))
import run_dynamics  # noqa: E402

sys.path.remove(str(DATA))


def policy():
    return tk.load_model().with_options(append_eos=False)


def test_rows_of_a_format_are_means_over_its_pairs(monkeypatch):
    monkeypatch.setattr(run_dynamics, "LAST", 4)
    monkeypatch.setattr(run_dynamics, "EVERY", 1)
    pairs = tk.load_pairs("single_token", limit=4)
    rows = pd.DataFrame(run_dynamics.falling(policy(), pairs, 3e-4, 0)).set_index("step")
    run = tk.train(
        policy(), pairs, steps=4, lr=3e-4, batch_size=4, probes=pairs, predict=False,
        progress=False,
    )  # fmt: skip
    every = run.to_frame()
    means = every.groupby(["side", "step"])[["logps", "loss", "drawdown"]].mean()
    for side in ("chosen", "rejected"):
        logps = means.loc[side, "logps"]
        np.testing.assert_allclose(rows[f"{side}_delta"], logps - logps[0], atol=1e-4)
    np.testing.assert_allclose(rows["loss"], means.loc["chosen", "loss"], atol=1e-5)
    np.testing.assert_allclose(rows["drawdown"], means.loc["chosen", "drawdown"], atol=1e-4)


def test_rows_of_a_single_prompt_say_where_its_probability_went(monkeypatch):
    monkeypatch.setattr(run_dynamics, "STEPS", (1, 3))
    pair = tk.load_pairs("stance", limit=1)[0]
    rows = pd.DataFrame(run_dynamics.single_prompt(policy(), pair)).set_index("step")
    assert rows.index.tolist() == [0, 1, 3]
    assert (rows["high"] >= rows["prob"]).all() and (rows["drawdown"] >= 0).all()
    assert rows.loc[[1, 3], "word_1"].notna().all() and pd.isna(rows.loc[0, "word_1"])
    gains = rows.loc[3, ["gain_1", "gain_2", "gain_3"]]
    assert gains.is_monotonic_decreasing and gains.iloc[-1] > 0
    moved = rows["prob"] - rows["prob"][0]
    assert rows.loc[3, "own_delta"] == pytest.approx(moved[3], abs=0.2)


def test_files_hold_every_run_of_the_protocols():
    grid, single = (pd.read_csv(file) for file in (run_dynamics.FALLING, run_dynamics.SINGLE))
    runs = grid.groupby(["format", "lr", "seed"])["step"].max()
    assert len(runs) == 3 * len(run_dynamics.RATES) * len(run_dynamics.SEEDS)
    assert (runs == run_dynamics.LAST).all()
    counts = single.groupby("kind")["pair_id"].nunique()
    assert counts.to_dict() == dict.fromkeys(run_dynamics.KINDS, run_dynamics.PROMPTS)
    assert (
        single.groupby("pair_id")["step"].agg(list).map(tuple) == (0, *run_dynamics.STEPS)
    ).all()
    shipped = {pair.id for pair in tk.load_pairs("stance")}
    assert set(single["pair_id"]) <= shipped
