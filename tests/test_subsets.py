"""Subsets by score: windows, filters, export and the length confound."""

import datetime
import json
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

import toolkit as tk
from toolkit.scoring import export_pairs, filter_pairs, length_confound, quantile_subsets


def frame(values, **columns) -> pd.DataFrame:
    return pd.DataFrame(
        {"pair_id": [str(i) for i in range(len(values))], "ln_ches": values, **columns}
    )


def pairs_of(count: int) -> list[tk.PreferencePair]:
    return [tk.PreferencePair(str(i), "Is it?", " Yes", f" No {i}") for i in range(count)]


def test_windows_are_those_of_the_papers_protocol():
    values = np.random.default_rng(0).permutation(1000).astype(float)
    subsets = quantile_subsets(frame(values), size=100)
    assert {q: (s["ln_ches"].iloc[0], s["ln_ches"].iloc[-1]) for q, s in subsets.items()} == {
        0: (0, 49),
        0.25: (200, 299),
        0.5: (450, 549),  # round(499.5) is 500
        0.75: (699, 798),
        1: (949, 999),
    }
    assert all(s["ln_ches"].is_monotonic_increasing for s in subsets.values())


def test_windows_leave_out_rows_without_a_score_and_name_them():
    subset = quantile_subsets(frame([3.0, None, 1.0, 2.0]), quantiles=(0.5,), size=10)[0.5]
    assert subset["pair_id"].tolist() == ["2", "3", "0"]
    assert subset.attrs["without_score"] == ["1"]


@pytest.mark.parametrize(
    ("count", "keep", "kept"),
    [(370, 0.05, 19), (30, 0.1, 3), (10, 1.0, 10), (1, 0.01, 1), (100, 0.07, 7)],
)
def test_the_lowest_share_is_kept_in_input_order(count, keep, kept):
    values = np.random.default_rng(1).permutation(count).astype(float)
    found = filter_pairs(pairs_of(count), frame(values), keep=keep)
    assert [p.id for p in found] == [str(i) for i in np.flatnonzero(values < kept)]
    assert len(found) + len(found.dropped) == count
    assert isinstance(found, tk.PairList)
    assert tk.audit_pairs(found, tk.load_model()).shape[0] == len(found) if count < 2 else True


def test_pairs_without_a_score_are_named_and_never_kept():
    scores = frame([None, 2.0, np.nan, 1.0], error=["chosen is empty", "", "", ""])
    found = filter_pairs(pairs_of(4), scores, keep=1.0)
    assert [p.id for p in found] == ["1", "3"]
    assert found.dropped["pair_id"].tolist() == ["0", "2"]
    assert found.dropped["reason"].tolist() == [
        "no ln_ches: chosen is empty",
        "no ln_ches: it is missing",
    ]


def test_pairs_and_scores_meet_by_id():
    scores = frame([0.0, 1.0, 2.0]).iloc[::-1]
    assert [p.id for p in filter_pairs(pairs_of(2), scores, keep=0.5)] == ["0"]


@pytest.mark.parametrize("where", ["scores", "meta"])
def test_strata_keep_their_own_shares(where):
    kinds = ["a", "a", "b", "b", "b", "b"]
    scores = frame([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    pairs = pairs_of(6)
    if where == "scores":
        scores["kind"] = kinds
    else:
        pairs = [
            tk.PreferencePair(p.id, p.prompt, p.chosen, p.rejected, {"kind": kind})
            for p, kind in zip(pairs, kinds, strict=True)
        ]
    found = filter_pairs(pairs, scores, keep=0.5, stratify="kind")
    assert [p.id for p in found] == ["1", "4", "5"]
    assert found.dropped["reason"][0] == "ln_ches is not among the lowest 0.5 of its kind"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: filter_pairs(pairs_of(2), frame([0.0, 1.0]), keep=0), "keep"),
        (lambda: filter_pairs(pairs_of(2), frame([0.0, 1.0]), by="chess"), "'chess'"),
        (lambda: filter_pairs(pairs_of(2), frame([0.0, 1.0]), by="pair_id"), "'pair_id'"),
        (
            lambda: filter_pairs(pairs_of(1), frame([0.0]).rename(columns={"pair_id": "id"})),
            r'scores\.rename\(columns=\{"id": "pair_id"\}\)',
        ),
        (lambda: filter_pairs(pairs_of(3), frame([0.0, 1.0])), "no row for pair '2'"),
        (lambda: filter_pairs(pairs_of(1) * 2, frame([0.0])), "pairs: id '0' is there twice"),
        (lambda: filter_pairs(pairs_of(1), frame([0.0]), stratify="kind"), "stratify: 'kind'"),
        (lambda: filter_pairs(pairs_of(1), frame([math.nan])), "no pair has a value"),
        (lambda: quantile_subsets(frame([0.0]), quantiles=(1.5,)), "quantiles"),
        (lambda: quantile_subsets(frame([0.0]), size=1), "size"),
        (lambda: length_confound(frame([0.0])), "'rejected_length'"),
        (lambda: export_pairs(pairs_of(1), format="csv"), "format='csv' is unknown"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_length_confound_is_spearmans_correlation():
    from scipy.stats import spearmanr

    random = np.random.default_rng(2)
    chosen, rejected = random.integers(1, 9, (2, 40))
    values = rejected - chosen + random.normal(0, 2, 40)
    scores = frame(values, chosen_length=chosen, rejected_length=rejected)
    expected = spearmanr(values, rejected - chosen).statistic
    assert length_confound(scores) == pytest.approx(expected, abs=1e-12)
    with_gaps = pd.concat([scores, frame([np.nan], chosen_length=[1], rejected_length=[99])])
    assert length_confound(with_gaps) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(length_confound(scores.assign(ln_ches=1.0)))


def texts(pairs) -> list[tuple]:
    return [(p.id, p.prompt, p.chosen, p.rejected, dict(p.meta)) for p in pairs]


@pytest.mark.parametrize("name", ["refusals", "near_duplicates", "stance"])
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_what_is_exported_loads_as_it_was(tmp_path, name, format):
    pairs = tk.load_pairs(name)
    path = export_pairs(pairs, tmp_path / f"pairs.{format}", format)
    assert texts(tk.load_pairs(path)) == texts(pairs)
    assert [p.conversational for p in tk.load_pairs(path)] == [p.conversational for p in pairs]
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_export_to_datasets_and_to_memory(tmp_path):
    datasets = pytest.importorskip("datasets")
    pairs = tk.load_pairs("refusals", limit=5)
    dataset = export_pairs(pairs, format="datasets")
    assert isinstance(dataset, datasets.Dataset)
    assert texts(tk.load_pairs(dataset)) == texts(pairs)
    folder = export_pairs(pairs, tmp_path / "set", "datasets")
    assert texts(tk.load_pairs(datasets.load_from_disk(str(folder)))) == texts(pairs)
    assert texts(tk.load_pairs(export_pairs(pairs))) == texts(pairs)
    assert export_pairs(pairs, format="parquet").num_rows == 5


def test_export_reads_in_trl(tmp_path):
    """TRL tells conversations from text by the columns alone."""
    trl = pytest.importorskip("trl.data_utils")
    for name, conversational in [("refusals", True), ("stance", False)]:
        rows = export_pairs(tk.load_pairs(name, limit=1))
        assert trl.is_conversational(rows[0]) is conversational
        assert json.loads(json.dumps(rows)) == rows


def test_meta_that_hides_a_column_and_mixed_kinds_are_refused():
    pair = tk.PreferencePair("a", "b", "c", "d", {"prompt": "e"})
    with pytest.raises(ValueError, match="'prompt'"):
        export_pairs([pair])
    chat = tk.load_pairs("refusals", limit=1)
    with pytest.raises(ValueError, match="several kinds"):
        export_pairs([*chat, *pairs_of(1)], format="parquet")


@pytest.mark.parametrize("name", ["kept.parquet", "kept.jsonl", "KEPT.PARQUET"])
def test_the_suffix_says_what_is_written(tmp_path, name):
    path = export_pairs(pairs_of(2), tmp_path / name)
    assert (path.read_bytes()[:4] == b"PAR1") is name.lower().endswith("parquet")


@pytest.mark.parametrize(
    ("name", "format", "named"),
    [
        ("kept.parquet", "jsonl", "format: got 'jsonl'.*kept.parquet.*ends in .jsonl"),
        ("kept.jsonl", "parquet", "ends in .parquet"),
        ("kept.csv", None, "kept.csv' says no format; end it in .jsonl or .parquet"),
        ("kept.csv", "jsonl", "ends in .jsonl"),
        ("kept.jsonl", "datasets", "no such suffix"),
    ],
)
def test_a_format_that_is_not_the_suffixs_is_refused(tmp_path, name, format, named):
    with pytest.raises(ValueError, match=named):
        export_pairs(pairs_of(1), tmp_path / name, format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["jsonl", "parquet", "datasets"])
def test_what_is_there_is_replaced_only_on_request(tmp_path, format):
    if format == "datasets":
        pytest.importorskip("datasets")
    path = tmp_path / ("kept" if format == "datasets" else f"kept.{format}")
    export_pairs(pairs_of(1), path, format)
    with pytest.raises(ValueError, match=r"kept.*exists already; give overwrite=True"):
        export_pairs(pairs_of(2), path, format)
    export_pairs(pairs_of(3), path, format, overwrite=True)
    if format != "datasets":
        assert len(tk.load_pairs(path)) == 3


def with_meta(**meta) -> list[tk.PreferencePair]:
    return [*pairs_of(1), tk.PreferencePair("odd", "Is it?", " Yes", " No", meta)]


def test_json_lines_are_standard_json(tmp_path):
    """Dates, Decimals and numpy's values arrive as text, numbers and lists; NaN as null."""
    meta = {
        "when": datetime.datetime(2024, 5, 1, 12, 30),
        "day": datetime.date(2024, 5, 1),
        "stamp": np.datetime64("2024-05-01T12:30", "ns"),
        "price": Decimal("1.5"),
        "count": Decimal("7"),
        "array": np.arange(2.0),
        "list": [np.int64(1), {"deep": (np.float32(0.5), np.bool_(True), math.nan)}],
        "hole": math.nan,
        "none": pd.NA,
        "text": "half \ud800 of a pair",
    }
    path = export_pairs(with_meta(**meta), tmp_path / "kept.jsonl")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[1], parse_constant=refuse)
    assert {name: row[name] for name in meta} == {
        "when": "2024-05-01T12:30:00",
        "day": "2024-05-01",
        "stamp": "2024-05-01T12:30:00",
        "price": 1.5,
        "count": 7,
        "array": [0.0, 1.0],
        "list": [1, {"deep": [0.5, True, None]}],
        "hole": None,
        "none": None,
        "text": "half \ud800 of a pair",
    }
    assert len(tk.load_pairs(path)) == 2


def looped() -> list:
    ring: list = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("value", "format", "named"),
    [
        (math.inf, "jsonl", "JSON has no infinity"),
        (b"raw", "jsonl", "no form for a bytes"),
        ({1: "a"}, "jsonl", "a key must be text, got 1"),
        (10**5000, "jsonl", "more than 64 bits"),
        (looped(), "jsonl", "recursion"),
        (10**30, "parquet", "Arrow cannot hold 1000"),
        ("half \ud800", "parquet", "Arrow cannot hold"),
        (object(), "parquet", "Arrow cannot hold <object"),
        (looped(), "parquet", "recursion"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "value",
)
def test_a_value_without_a_form_is_named_with_its_pair_and_column(tmp_path, value, format, named):
    with pytest.raises(ValueError, match=rf"pairs\[1\] \(id 'odd'\), column 'extra': .*{named}"):
        export_pairs(with_meta(extra=value), tmp_path / f"kept.{format}")
    assert list(tmp_path.iterdir()) == []


def test_parquet_keeps_dates_decimals_and_bytes(tmp_path):
    meta = {"when": datetime.datetime(2024, 5, 1), "price": Decimal("1.5"), "raw": b"a",
            "list": [np.float32(0.5)], "far": math.inf}  # fmt: skip
    path = export_pairs(with_meta(**meta), tmp_path / "kept.parquet")
    row = pd.read_parquet(path).iloc[1]
    assert (row["when"], row["price"], row["raw"]) == (meta["when"], meta["price"], b"a")
    assert (list(row["list"]), row["far"]) == ([0.5], math.inf)
