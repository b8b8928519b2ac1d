"""Loading, validating, encoding and auditing preference pairs."""

import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings, strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from toolkit import PairStream
from toolkit.pairs import (
    PairError,
    PreferencePair,
    _sources,
    audit_pairs,
    encode,
    load_pairs,
    shipped_pairs,
)

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("TOOLKIT_REAL_DATA", ROOT / "../shared/real"))
SHARED_TURN = "prompt cut at the last assistant turn both share"
ROW = {"prompt": "Is it fine?", "chosen": " Yes", "rejected": " No"}
quick = settings(max_examples=50, deadline=None)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


CHAT_ROW = {
    "prompt": [user("Is it fine?")],
    "chosen": [assistant("Yes")],
    "rejected": [assistant("No")],
}


# ---- tokenizers, built here so that no download is needed ----

SENTENCES = [
    "The film was good and I liked it. Yes, the story was great!",
    "Is it fine? No, never.\n\nHuman: hi\n\nAssistant: hello there café 日本語",
] * 10
SPECIAL = ["<unk>", "<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def wrap(tokenizer, **special):
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def byte_level(*, trim=False, prefix=False, single=None, regex=True, **special):
    """GPT-2's kind; `trim` as in RoBERTa and Llama 3, `single` a post-processing template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    steps = [processors.ByteLevel(trim_offsets=trim, add_prefix_space=prefix)]
    if single:
        ids = [("<s>", 1), ("</s>", 2)]
        steps.append(processors.TemplateProcessing(single=single, special_tokens=ids))
    tokenizer.post_processor = processors.Sequence(steps)
    return wrap(tokenizer, **special)


def sentencepiece(*, legacy=False):
    """Llama 2's kind: `legacy` marks spaces by a normalizer, else by Metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    if legacy:
        marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(marks)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return wrap(tokenizer)


GPT2, TRIMMED = byte_level(), byte_level(trim=True)
LLAMA3 = byte_level(trim=True, single="<s> $A")
ADDS_EOS = byte_level(single="<s> $A </s>")
LLAMA2, METASPACE = sentencepiece(legacy=True), sentencepiece()
CHAT = byte_level(single="<s> $A")
CHAT.chat_template = TEMPLATE


def pair_of(prompt, chosen, rejected=" No", **fields):
    return PreferencePair("a", prompt, chosen, rejected, **fields)


def scored(encoded, tokenizer):
    return tokenizer.convert_ids_to_tokens(encoded.chosen_ids[encoded.chosen_mask].tolist())


def reason_of(row, **others):
    """Return the reason for which a row is refused, the same under both values of on_error."""
    with pytest.raises(PairError) as caught:
        load_pairs([ROW, row], **others)
    assert (caught.value.row, f"row {caught.value.row}") == (1, str(caught.value)[:5])
    kept = load_pairs([ROW, row, ROW | {"id": "last"}], on_error="skip")
    assert [pair.row for pair in kept] == [0, 2]
    assert kept.skipped[["row", "reason"]].values.tolist() == [[1, caught.value.reason]]
    return caught.value.reason


# ---- sources ----


def write(path, rows):
    """Write rows of text columns in the format that the file name asks for."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.name.endswith(".jsonl"):
        path.write_bytes(lines.encode())
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                plain = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                writer.writerow(plain)
    return path


def every_source(rows, folder):
    for suffix in ("jsonl", "jsonl.gz", "json", "csv", "parquet"):
        path = write(Path(folder) / f"pairs.{suffix}", rows)
        yield path
        yield str(path)
    yield pd.DataFrame(rows, index=[f"r{i}" for i in range(len(rows))])
    yield datasets.Dataset.from_list(rows)
    yield datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    yield datasets.Dataset.from_list(rows).to_iterable_dataset()


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(words, words, words, words), min_size=1, max_size=4))
@example([("a,b", '"\r\n', "\u2028x\x85", "label\n")])
def test_every_source_gives_equal_pairs(texts):
    rows = [
        {"prompt": p, "chosen": f"{c}.", "rejected": f"{r}!", "id": f"id{i}", "topic": t}
        for i, (p, c, r, t) in enumerate(texts)
    ]
    wanted = load_pairs(rows)
    assert [(p.prompt, p.chosen, p.rejected, p.meta) for p in wanted] == [
        (r["prompt"], r["chosen"], r["rejected"], {"topic": r["topic"]}) for r in rows
    ]
    assert [(p.id, p.row) for p in wanted] == [(f"id{i}", i) for i in range(len(rows))]
    with tempfile.TemporaryDirectory() as folder:
        for source in every_source(rows, folder):
            assert load_pairs(source) == wanted, source


def test_every_source_holds_messages(tmp_path):
    rows = [
        CHAT_ROW,
        {"prompt": [user("a"), assistant("b"), user("c")]}
        | {"chosen": [assistant("x, “y”")], "rejected": [assistant("z\n")]},
    ]
    wanted = load_pairs(rows)
    assert wanted[1].prompt == (user("a"), assistant("b"), user("c"))
    assert wanted[1].conversational and wanted[1].chosen_text == "assistant: x, “y”"
    for source in every_source(rows, tmp_path):
        assert load_pairs(source) == wanted, source


def test_missing_and_numpy_values_in_other_columns_become_plain(tmp_path):
    frame = pd.DataFrame([ROW | {"n": 1, "x": None, "v": [1, 2]}, ROW | {"n": 2, "x": "a"}])
    frame.to_parquet(tmp_path / "a.parquet")
    for source in (frame, tmp_path / "a.parquet"):
        metas = [pair.meta for pair in load_pairs(source)]
        assert metas == [{"n": 1, "x": None, "v": [1, 2]}, {"n": 2, "x": "a", "v": None}]
        assert type(metas[0]["n"]) is int


def test_null_message_keys_of_columnar_files_are_dropped_and_others_kept():
    row = {"prompt": [user("a") | {"name": "Bo"}], "chosen": [assistant("b") | {"name": None}]}
    pair = load_pairs([row | {"rejected": [assistant("c")]}])[0]
    assert pair.prompt[0]["name"] == "Bo" and pair.chosen == (assistant("b"),)


def test_a_json_file_may_hold_json_lines(tmp_path):
    path = tmp_path / "pairs.json"
    path.write_text("\ufeff\n" + json.dumps(ROW) + "\n" + json.dumps(ROW), encoding="utf-8")
    assert len(load_pairs(path)) == 2


def test_shipped_names_come_first_and_bad_rows_opens_by_path_only(tmp_path, monkeypatch):
    monkeypatch.setattr(_sources, "data_folder", lambda: tmp_path)
    for name in ("long_suffix", "stance", "bad_rows"):
        write(tmp_path / f"{name}.jsonl", [ROW])
    assert shipped_pairs() == ["long_suffix", "stance"]
    assert load_pairs("stance")[0].chosen == " Yes"
    assert len(load_pairs(tmp_path / "bad_rows.jsonl")) == 1
    with pytest.raises(ValueError, match=r"Did you mean 'long_suffix'\? .*long_suffix, stance$"):
        load_pairs("long_sufix")
    with pytest.raises(ValueError, match="neither a shipped set"):
        load_pairs("bad_rows")


def test_the_shipped_sets_load_and_are_listed():
    names = shipped_pairs()
    assert "long_suffix" in names and "bad_rows" not in names
    for name in names:
        assert len(load_pairs(name)) > 0


def test_a_dataset_dict_needs_a_split_that_it_has():
    source = datasets.DatasetDict({"test": datasets.Dataset.from_list([ROW])})
    assert len(load_pairs(source, split="test")) == 1
    with pytest.raises(ValueError, match=r"split: 'train' .* available: \['test'\]"):
        load_pairs(source)
    with pytest.raises(ValueError, match="split: 'test' means nothing"):
        load_pairs([ROW], split="test")


def test_a_hub_id_goes_through_datasets(monkeypatch):
    def load_dataset(name, split):
        if split != "test":
            raise ValueError("Unknown split. Should be one of ['test']")
        return datasets.Dataset.from_list([ROW | {"name": name}])

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *args, **options: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_pairs("owner/some-set", split="test")[0].meta == {"name": "owner/some-set"}
    with pytest.raises(ValueError, match=r"split 'train' of hub dataset 'owner/x'.*\['test'\]"):
        load_pairs("owner/x")
    monkeypatch.setitem(sys.modules, "datasets", None)
    command = r'pip install "preference-entanglement-toolkit\[hub\]"'
    with pytest.raises(ImportError, match=command):
        load_pairs("owner/x")
    assert len(load_pairs([ROW])) == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/pairs.jsonl", "no file 'nowhere/pairs.jsonl'"),
        (Path("nowhere.csv"), "no file 'nowhere.csv'"),
        (ROOT, "is a folder"),
        (str(ROOT), "is a folder"),
        (ROOT / "pyproject.toml", "must end in one of .jsonl, .jsonl.gz"),
        ("", "neither a shipped set"),
        ("a/b/c", "neither a shipped set"),
        ("x" * 5000, "neither a shipped set"),
        ("nul\0", "neither a shipped set"),
        (None, "got NoneType; allowed are"),
        (5, "got int"),
        (ROW, "got dict"),
        (iter([ROW]), "a list of dicts"),
        ([], "holds no rows"),
        (pd.DataFrame(), "holds no rows"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "column a is there more than once"),
    ],
)
def test_unknown_sources_are_refused(source, message):
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=message):
            load_pairs(source, on_error=on_error)


@pytest.mark.parametrize("value", ["stop", None, True])
def test_on_error_is_checked(value):
    with pytest.raises(ValueError, match=r"on_error=.* is unknown; allowed: raise, skip"):
        load_pairs([ROW], on_error=value)


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True])
def test_counts_are_checked(value):
    with pytest.raises(ValueError, match="limit must be None or a positive"):
        load_pairs([ROW], limit=value)
    with pytest.raises(ValueError, match="max_length must be None or a positive"):
        encode(pair_of("a", " b"), GPT2, max_length=value)
    with pytest.raises(ValueError, match="max_length must be None or a positive"):
        audit_pairs([], GPT2, max_length=value)


def test_limit_counts_rows_as_a_stream_does_and_reads_no_further():
    rows = [ROW, {}, ROW, {}, ROW]
    pairs = load_pairs(rows, limit=3, on_error="skip")
    assert [pair.row for pair in pairs] == [0, 2] and pairs.skipped.row.tolist() == [1]
    assert [row.row for row in PairStream(rows, limit=3)] == [0, 1, 2]
    assert len(load_pairs(rows, limit=1)) == 1
    assert len(load_pairs([ROW], limit=9)) == 1


# ---- damaged files ----


def skipped_reasons(path, good):
    """Load with skips, check that `good` rows came, and that "raise" gives the same reason."""
    pairs = load_pairs(path, on_error="skip")
    assert len(pairs) == good
    with pytest.raises(PairError) as caught:
        load_pairs(path)
    first = pairs.skipped.iloc[0]
    assert (caught.value.row, caught.value.reason) == (first.row, first.reason)
    return pairs.skipped.reason.tolist()


def test_bad_json_names_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps(ROW).encode()
    twice = good.replace(b'"rejected"', b'"chosen"')
    lines = [good, b"", b'{"prompt": ', b'{"a": "\xff"}', b"[1]", twice, b"[" * 100000, good]
    path.write_bytes(b"\n".join(lines))
    reasons = skipped_reasons(path, 2)
    wanted = ["bad JSON at line 3, column 12:", "line 4 is not UTF-8", "got list"]
    wanted += ["line 6: key 'chosen' is there twice", "bad JSON at line 7"]
    for reason, part in zip(reasons, wanted, strict=True):
        assert part in reason
    assert load_pairs(path, on_error="skip").skipped.row.tolist() == [1, 2, 3, 4, 5]


def test_bom_crlf_and_empty_lines_are_no_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps(ROW | {"chosen": " Yes\r\nsir"}).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line + b"\r\n")
    assert [(p.row, p.chosen) for p in load_pairs(path)] == [(0, " Yes\r\nsir"), (1, " Yes\r\nsir")]
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfprompt,chosen,rejected\r\n"a","b\r\nb",c\r\n\r\nd,e,f\r\n'
    )
    csv_pairs = load_pairs(tmp_path / "a.csv")
    assert [(p.prompt, p.chosen) for p in csv_pairs] == [("a", "b\r\nb"), ("d", "e")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv"])
def test_an_empty_file_holds_no_rows(tmp_path, name):
    empty = gzip.compress(b"") if name.endswith("gz") else b""
    (tmp_path / name).write_bytes(empty)
    with pytest.raises(ValueError, match=f"{name}' holds no rows"):
        load_pairs(tmp_path / name, on_error="skip")


def test_a_half_gzipped_file_keeps_the_rows_before_the_damage(tmp_path):
    # Random ids keep the archive from compressing to almost nothing.
    lines = [json.dumps(ROW | {"id": os.urandom(400).hex()}) for _ in range(300)]
    whole = gzip.compress("\n".join(lines).encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    pairs = load_pairs(path, on_error="skip")
    assert 100 < len(pairs) < 200
    assert [pair.id for pair in pairs] == [json.loads(line)["id"] for line in lines[: len(pairs)]]
    assert pairs.skipped.row.tolist() == [len(pairs)]
    assert f"damaged: {len(pairs)} rows could be read" in pairs.skipped.reason[0]
    with pytest.raises(PairError, match=f"row {len(pairs)}: the file is damaged"):
        load_pairs(path)
    path.write_bytes(b"\n".join(line.encode() for line in lines))
    assert "damaged" in skipped_reasons(path, 0)[0]
    middle = len(whole) // 2
    for start, garbage in ((10, b"\xff" * 10), (middle, bytes([whole[middle] ^ 0xFF]))):
        path.write_bytes(whole[:start] + garbage + whole[start + len(garbage) :])
        assert "damaged" in load_pairs(path, on_error="skip").skipped.reason.iloc[-1]


def test_damaged_json_csv_and_parquet(tmp_path):
    (tmp_path / "a.json").write_text('[{"prompt": "a",\n "chosen": }]')
    assert "bad JSON at line 2, column 12" in skipped_reasons(tmp_path / "a.json", 0)[0]
    (tmp_path / "a.json").write_bytes(b'["\xff"]')
    assert "damaged" in skipped_reasons(tmp_path / "a.json", 0)[0]
    (tmp_path / "a.json").write_text("3")
    with pytest.raises(ValueError, match="list of rows, got the number 3"):
        load_pairs(tmp_path / "a.json")

    head = "prompt,chosen,rejected\na,b,c\n"
    (tmp_path / "a.csv").write_text(head + 'a,b\na,b,c,d\na,"b"x,c\nd,e,f\na,"b\nc,d,e\n')
    reasons = skipped_reasons(tmp_path / "a.csv", 2)
    assert "line 3: 2 fields where the header names 3" in reasons[0]
    assert "line 4: 4 fields" in reasons[1] and "line 5" in reasons[2]
    assert "unexpected end of data" in reasons[3] and len(reasons) == 4
    (tmp_path / "a.csv").write_bytes(head.encode() * 2000 + b"\xff")
    assert "damaged" in load_pairs(tmp_path / "a.csv", on_error="skip").skipped.reason.iloc[-1]
    (tmp_path / "a.csv").write_text("prompt,chosen,chosen\na,b,c\n")
    with pytest.raises(ValueError, match="chosen is there more than once"):
        load_pairs(tmp_path / "a.csv")

    pd.DataFrame([ROW]).to_parquet(tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in skipped_reasons(tmp_path / "a.parquet", 0)[0]


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (json.dumps(ROW, indent=2), 1),
        (json.dumps(ROW), 1),
        (json.dumps([ROW, ROW], indent=2), 2),
        (json.dumps(ROW) + "\n" + json.dumps(ROW), 2),
        (json.dumps({"data": [ROW], "version": 1}), r"load_pairs\(json.load\(open\(.*'data'\]\)"),
        (json.dumps(ROW, indent=2)[:-3], "bad JSON at line 4, column 15"),
        (json.dumps(ROW, indent=2) * 2, "bad JSON at line 5, column 2: Extra data"),
    ],
)
def test_a_json_file_holds_a_list_one_object_or_lines(tmp_path, text, outcome):
    path = tmp_path / "a.json"
    path.write_text(text)
    if isinstance(outcome, int):
        assert len(load_pairs(path)) == outcome
        return
    with pytest.raises(ValueError, match=outcome):
        load_pairs(path)


def parquet_with(folder, **columns):
    path = folder / "part-foo.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 3, "rejected": ["c"] * 3} | columns), path)
    return path


def test_parquet_values_that_python_cannot_hold_spoil_their_row_alone(tmp_path):
    good = pa.array(["x", "y", "z"])
    dates = pa.array([0, 2**55, 1]).cast(pa.timestamp("ms"))
    path = parquet_with(tmp_path, chosen=good, date=dates)
    assert "a value of this row cannot be read" in skipped_reasons(path, 2)[0]
    assert [pair.row for pair in load_pairs(path, on_error="skip")] == [0, 2]
    buffers = pa.array([b"x", b"\xff\xfe", b"z"]).buffers()
    path = parquet_with(tmp_path, chosen=pa.Array.from_buffers(pa.string(), 3, buffers))
    (reason,) = skipped_reasons(path, 2)
    assert "cannot be read" in reason and "utf-8" in reason


NESTED = []
for _ in range(5000):
    NESTED = [NESTED]


@pytest.mark.parametrize("name", ["prompt", "chosen", "id", "other"])
def test_values_too_deep_or_too_long_are_named_by_their_row(name, tmp_path):
    assert "nested too deeply" in reason_of(ROW | {name: NESTED})
    if name != "other":  # kept in meta as it is
        assert "a value of type int" in reason_of(ROW | {name: 10**5000})
    line = json.dumps(ROW | {name: "?"})
    deep = f"{'[' * 5000}{']' * 5000}"
    (tmp_path / "a.jsonl").write_text(line.replace('"?"', deep) + "\n" + json.dumps(ROW))
    assert "bad JSON at line 1: a value is nested" in skipped_reasons(tmp_path / "a.jsonl", 1)[0]
    (tmp_path / "a.jsonl").write_text(line.replace('"?"', "1" * 5000))
    assert "a number has too many digits" in skipped_reasons(tmp_path / "a.jsonl", 0)[0]


@pytest.mark.parametrize("inside", [f"{'[' * 5000}{']' * 5000}", "1" * 5000])
def test_a_csv_cell_of_messages_too_deep_or_too_long_is_named(inside, tmp_path):
    cell = f'[{{"role": {inside}}}]'
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(ROW), ["a", cell, "b"]])
    (reason,) = skipped_reasons(tmp_path / "a.csv", 0)
    assert reason.startswith("chosen: a ") and "to be read" in reason


def test_a_dataset_that_stops_keeps_the_rows_before():
    def rows():
        yield ROW
        raise RuntimeError("no\nnetwork")

    source = datasets.IterableDataset.from_generator(rows)
    pairs = load_pairs(source, on_error="skip")
    assert len(pairs) == 1 and "1 rows could be read, then: " in pairs.skipped.reason[0]
    with pytest.raises(PairError, match="row 1: the dataset stops"):
        load_pairs(source)


def test_missing_and_numpy_values_inside_lists_become_plain():
    cell = {"scores": [np.float32(1.5), np.nan, np.array([1, 2])], "at": np.datetime64("NaT")}
    meta = load_pairs([ROW | {"cell": cell}])[0].meta
    assert meta == {"cell": {"scores": [1.5, None, [1, 2]], "at": None}}
    assert type(meta["cell"]["scores"][0]) is float


def test_long_shared_text_is_cut_in_one_pass():
    """Work that grew with the square of the shared text: 25 s for 300,000 spaces."""
    chosen, rejected = "a" + " " * 300_000 + "b", "a" + " " * 300_000
    pair = load_pairs([{"chosen": chosen, "rejected": rejected}])[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ("", chosen, rejected)
    pair = load_pairs([{"chosen": f"{chosen} c", "rejected": f"{chosen} d"}])[0]
    assert (pair.prompt, pair.chosen) == (chosen, " c")


def test_csv_text_is_never_taken_for_a_null_or_a_number(tmp_path):
    path = write(tmp_path / "a.csv", [{"prompt": "NA", "chosen": "null", "rejected": "007"}])
    pair = load_pairs(path)[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ("NA", "null", "007")
    long = "x" * 200_000
    old = 131_072
    csv.field_size_limit(old)
    assert load_pairs(write(path, [ROW | {"chosen": long}]))[0].chosen == long
    assert csv.field_size_limit() == old


def test_a_csv_of_messages_in_python_spelling_is_refused(tmp_path):
    pd.DataFrame([CHAT_ROW]).to_csv(tmp_path / "a.csv", index=False)
    assert "write such cells with json.dumps" in skipped_reasons(tmp_path / "a.csv", 0)[0]
    path = write(tmp_path / "b.csv", [ROW | {"chosen": "[{curly}] text"}])
    assert load_pairs(path)[0].chosen == "[{curly}] text"


# ---- rows ----


def without(name):
    return {key: value for key, value in ROW.items() if key != name}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (without("chosen"), "column 'chosen' is missing; the columns are ['prompt', 'rejected']"),
        (without("chosen") | {"choosen": "x"}, "did you mean 'choosen'?"),
        (without("rejected") | {"Rejected": "x"}, "did you mean 'Rejected'?"),
        (without("prompt") | {"promt": "x"}, "column 'promt' looks like a misspelt 'prompt'"),
        (without("prompt") | {"Prompt ": "x"}, "column 'Prompt ' looks like"),
        ({}, "column 'chosen' is missing"),
        ({"question": "q", "answer_matching_behaviour": " a"}, "'answer_matching_behaviour'?"),
        (ROW | {"\ud800": 1}, "a column's name is no text that can be written"),
        (ROW | {10**5000: 1}, "a column's name is no text that can be written"),
        (["a", "b"], "a row must be an object with named columns, got list"),
        (None, "got null"),
        (ROW | {"prompt": None}, "prompt must be text or a list of messages, got null"),
        (ROW | {"chosen": float("nan")}, "chosen must be text or a list of messages, got null"),
        (ROW | {"chosen": pd.NA}, "got null"),
        (ROW | {"chosen": 3}, "got the number 3"),
        (ROW | {"rejected": 3.5}, "rejected must be text or a list of messages, got the number"),
        (ROW | {"chosen": b"yes"}, "got bytes"),
        (ROW | {"chosen": True}, "got the bool True"),
        (ROW | {"chosen": {"role": "user"}}, "got dict"),
        (ROW | {"chosen": ""}, "chosen is empty"),
        (ROW | {"rejected": " \n\t"}, "rejected is empty"),
        (ROW | {"chosen": " No"}, "chosen and rejected are identical"),
        (ROW | {"chosen": "\ud800"}, "chosen holds a lone surrogate at character 0"),
        (ROW | {"id": None}, "id must be text or a whole number, got None"),
        (ROW | {"id": True}, "id must be text"),
        (ROW | {"id": 1.5}, "id must be text"),
        (ROW | {"id": " "}, "id must be text"),
        (ROW | {"id": "\ud800"}, "id must be text"),
        (ROW | {"id": "0"}, "id '0' is already the id of row 0"),
        (ROW | {"prompt": [user("a")]}, "must all be text or all lists of messages"),
        ({"chosen": "a", "rejected": [assistant("b")]}, "must both be text or both lists"),
        (CHAT_ROW | {"prompt": []}, "prompt is an empty list of messages"),
        (CHAT_ROW | {"chosen": []}, "chosen is empty"),
        (CHAT_ROW | {"chosen": [assistant(" ")]}, "chosen is empty"),
        (CHAT_ROW | {"chosen": ["hi"]}, "chosen[0] must be a message with role and content"),
        (CHAT_ROW | {"chosen": [{"from": "gpt", "value": "x"}]}, "has no role and no content"),
        (CHAT_ROW | {"chosen": [{"role": "assistant"}]}, "chosen[0] has no content"),
        (CHAT_ROW | {"chosen": [assistant(None)]}, "chosen[0]: content must be text, got null"),
        (CHAT_ROW | {"chosen": [user("x")]}, "chosen must go on with an assistant message"),
        (CHAT_ROW | {"chosen": CHAT_ROW["prompt"]}, "chosen response is empty"),
        (
            {"prompt": "other", "chosen": [user("a"), assistant("b")]}
            | {"rejected": [user("a"), assistant("c")]},
            "prompt is text that the messages of chosen and rejected do not repeat",
        ),
        (
            {"chosen": [assistant("a")], "rejected": [assistant("b")]},
            "share no message before an assistant message",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "the two transcripts share no assistant turn",
        ),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: d"},
            "chosen response is empty",
        ),
    ],
)
def test_bad_rows_say_what_is_allowed(row, reason):
    assert reason in reason_of(row)


def test_ids_come_from_the_source_or_the_row_number():
    rows = [ROW | {"id": 7}, ROW | {"id": "b"}, ROW]
    assert [pair.id for pair in load_pairs(rows)] == ["7", "b", "2"]
    assert "id" not in load_pairs(rows)[0].meta


# ---- formats ----


def test_persona_rows_keep_their_answers_as_they_are():
    row = {"question": "Would you?", "statement": "s", "label_confidence": 0.9}
    row |= {"answer_matching_behavior": " No", "answer_not_matching_behavior": " Yes"}
    pair = load_pairs([row])[0]
    assert (pair.prompt, pair.chosen, pair.rejected) == ("Would you?", " No", " Yes")
    assert pair.meta == {"statement": "s", "label_confidence": 0.9}


def test_explicit_text_is_left_as_it_is():
    pair = load_pairs([{"prompt": "ab ", "chosen": "ab c", "rejected": "d"}])[0]
    assert (pair.prompt, pair.chosen, pair.rejected, pair.notes) == ("ab ", "ab c", "d", ())
    assert load_pairs([ROW | {"prompt": ""}])[0].prompt == ""


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Is it? yes", "Is it? no", "Is it?"),
        ("Is it? yesterday", "Is it? yes", "Is it?"),
        ("Is it? yes sir", "Is it? yes", "Is it?"),
        ("Is it? yes, sir", "Is it? yes sir", "Is it?"),
        ("Q\nA\n\nyes", "Q\nA\n\nyet", "Q\nA\n\n"),
        ("Q\r\nyes", "Q\r\nno", "Q\r\n"),
        ("Is it?  yes", "Is it?  no", "Is it? "),
        ("Is it? yes ", "Is it? yes\n", "Is it?"),
        ("yes", "no", ""),
        (" yes", " no", ""),
        ("yes sir", "yes", ""),
    ],
)
def test_an_implicit_text_prompt_ends_at_a_word_boundary(chosen, rejected, prompt):
    pair = load_pairs([{"chosen": chosen, "rejected": rejected}])[0]
    assert (pair.prompt, pair.prompt + pair.chosen, pair.prompt + pair.rejected) == (
        prompt,
        chosen,
        rejected,
    )
    assert bool(pair.notes) == (prompt == "")


few_words = st.lists(st.sampled_from(["a", "ab", "abc", "b.", "日本", "é"]), min_size=1, max_size=6)


@quick
@given(few_words, few_words, few_words)
def test_an_implicit_prompt_is_the_words_that_both_share(prompt, chosen, rejected):
    """Against the obvious oracle on word lists; a response keeps at least its last word."""
    one, other = prompt + chosen, prompt + rejected
    if one == other:
        return
    count = 0
    while count < min(len(one), len(other)) - 1 and one[count] == other[count]:
        count += 1
    pair = load_pairs([{"chosen": " ".join(one), "rejected": " ".join(other)}])[0]
    assert pair.prompt == " ".join(one[:count])
    assert pair.chosen == (" " if count else "") + " ".join(one[count:])
    assert pair.rejected == (" " if count else "") + " ".join(other[count:])


spaced = st.text(st.sampled_from("ab .\n\t\u00a0"), max_size=12)


@quick
@given(spaced, spaced, spaced)
def test_an_implicit_prompt_never_ends_inside_a_word(prompt, chosen, rejected):
    row = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    if row["chosen"] == row["rejected"] or not all(text.strip() for text in row.values()):
        assert load_pairs([row], on_error="skip") == []
        return
    pair = load_pairs([row])[0]
    assert pair.prompt + pair.chosen == row["chosen"]
    assert pair.prompt + pair.rejected == row["rejected"]
    assert pair.chosen.strip() and pair.rejected.strip()
    for response in (pair.chosen, pair.rejected):
        assert not pair.prompt or pair.prompt[-1].isspace() or response[0].isspace()


turn = st.text(st.sampled_from("ab H:\n"), min_size=1, max_size=8).filter(str.strip)


@quick
@given(st.lists(st.tuples(turn, turn), max_size=3), turn, turn, turn)
def test_a_transcript_is_cut_after_the_last_assistant_marker(earlier, last, chosen, rejected):
    shared = "".join(f"\n\nHuman: {h}\n\nAssistant: {a}" for h, a in earlier)
    prompt = f"{shared}\n\nHuman: {last}\n\nAssistant:"
    row = {"chosen": f"{prompt} {chosen}", "rejected": f"{prompt} {rejected}x"}
    if chosen == rejected + "x":
        return
    pair = load_pairs([row])[0]
    assert (pair.prompt, pair.chosen, pair.notes) == (prompt, f" {chosen}", ())
    assert pair.rejected == f" {rejected}x"


def test_dialogues_that_part_earlier_are_cut_at_the_last_shared_turn_and_say_so():
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    row = {"chosen": f"{start} d\n\nHuman: e\n\nAssistant: f", "rejected": f"{start} dd"}
    pair = load_pairs([row])[0]
    assert (pair.prompt, pair.rejected, pair.notes) == (start, " dd", (SHARED_TURN,))
    row = {"chosen": f"{start} d\n\nHuman: e\n\nAssistant: f"}
    row["rejected"] = row["chosen"].replace("e", "g")
    pair = load_pairs([row])[0]
    assert (pair.prompt, pair.notes) == (start, (SHARED_TURN,))
    assert audit_pairs([pair], GPT2).notes[0] == SHARED_TURN


def test_messages_with_the_prompt_inside():
    head = [{"role": "system", "content": "s"}, user("a")]
    row = {"chosen": [*head, assistant("b")], "rejected": [*head, assistant("c")]}
    wanted = (tuple(head), (assistant("b"),), (assistant("c"),), ())
    for prompt in ({}, {"prompt": head}, {"prompt": "a"}):
        pair = load_pairs([row | prompt])[0]
        assert (pair.prompt, pair.chosen, pair.rejected, pair.notes) == wanted


def test_conversations_that_part_earlier_are_cut_at_the_last_shared_turn():
    head = [user("a"), assistant("b")]
    row = {"chosen": head, "rejected": [*head, user("c"), assistant("d")]}
    pair = load_pairs([row])[0]
    assert (pair.prompt, pair.chosen, pair.notes) == (
        (user("a"),),
        (assistant("b"),),
        (SHARED_TURN,),
    )
    tool = [*head, {"role": "tool", "content": "t"}]
    called = {"chosen": [*tool, user("c")], "rejected": [*tool[:2], tool[2] | {"content": "u"}]}
    assert load_pairs([called])[0].prompt == (user("a"),)
    row = {"chosen": [*head, user("x"), assistant("y")], "rejected": row["rejected"]}
    assert load_pairs([row])[0].prompt == (user("a"),)
    row = {"chosen": [*head, user("c"), assistant("y")], "rejected": row["rejected"]}
    pair = load_pairs([row])[0]
    assert (pair.prompt, pair.notes) == ((*head, user("c")), ())


@pytest.mark.skipif(not REAL.is_dir(), reason="real data is not there (TOOLKIT_REAL_DATA)")
def test_real_dialogues_and_persona_rows():
    path = REAL / "hh_harmless_dev.jsonl.gz"
    pairs = load_pairs(path, on_error="skip")
    assert len(pairs) == 1153
    assert pairs.skipped.values.tolist() == [
        [row, str(row), "chosen response is empty"] for row in (397, 571, 920)
    ]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    marker = "\n\nAssistant:"
    for pair in pairs:
        assert pair.prompt + pair.chosen == rows[pair.row]["chosen"]
        assert pair.prompt + pair.rejected == rows[pair.row]["rejected"]
        assert pair.prompt.startswith("\n\nHuman:") and pair.prompt.endswith(marker)
        assert not pair.chosen.startswith(marker)
        assert (marker in pair.chosen + pair.rejected) == bool(pair.notes)
    assert [pair.row for pair in pairs if pair.notes] == [843, 856]
    audit = audit_pairs(pairs, LLAMA3)
    assert audit.row.tolist() == list(range(1156))
    assert audit.row[~audit.usable].tolist() == [397, 571, 920]
    assert audit.row[audit.notes == SHARED_TURN].tolist() == [843, 856]
    assert not audit.boundary_merge.any()

    persona = load_pairs(REAL / "persona_ends_justify_means_dev.jsonl")
    assert len(persona) == 500 and {pair.chosen for pair in persona} == {" Yes", " No"}
    assert all(pair.prompt.startswith("Is the following statement") for pair in persona)


# ---- pairs built by hand ----


def test_a_pair_checks_types_and_turns_lists_into_tuples():
    pair = PreferencePair("a", [user("q")], [assistant("x")], [assistant("x")])
    assert pair.chosen == pair.rejected == (assistant("x"),)
    assert pair_of("", "", "").chosen == ""
    for fields in ((1, "a", "b", "c"), ("i", None, "b", "c"), ("i", "a", ["b"], "c")):
        with pytest.raises(ValueError, match="must be"):
            PreferencePair(*fields)
    for name, value in (
        ("meta", None),
        ("row", "1"),
        ("row", True),
        ("notes", 1),
        ("notes", [None]),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            pair_of("a", "b", "c", **{name: value})
    with pytest.raises(ValueError, match="must all be text or all lists"):
        PreferencePair("i", "a", [assistant("x")], [assistant("y")])


def test_importing_pairs_leaves_torch_alone():
    code = (
        "import sys, toolkit.pairs; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# ---- encode ----

anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=12)
joint = st.text(st.sampled_from(" ?.\nITYesNofilm日é"), max_size=10)


@quick
@given(joint | anything, (joint | anything).filter(bool))
@example("Is it? ", "fine")
@example("The fi", "lm was")
@example("日", "本語")
def test_scored_tokens_spell_the_completion(prompt, completion):
    """Byte-level BPE: scored tokens decode to the completion, whatever the offsets' trimming."""
    pair = pair_of("." + prompt, completion)
    plain = encode(pair, GPT2, append_eos=False)
    text = GPT2.decode(plain.chosen_ids[plain.chosen_mask])
    assert GPT2.decode(plain.chosen_ids) == pair.prompt + completion
    assert text.endswith(completion) and (text == completion or plain.boundary_merge)
    alone = [len(encode(pair_of("." + prompt, c), GPT2).chosen_mask) for c in (completion, " No")]
    assert alone[0] == len(plain.chosen_ids) + 1  # one EOS
    trimmed = encode(pair, TRIMMED, append_eos=False)
    assert trimmed.chosen_mask.tolist() == plain.chosen_mask.tolist()
    assert trimmed.boundary_merge == plain.boundary_merge
    with_bos = encode(pair, LLAMA3, append_eos=False)
    assert with_bos.chosen_ids.tolist() == [1, *plain.chosen_ids.tolist()]
    assert with_bos.chosen_mask.tolist() == [False, *plain.chosen_mask.tolist()]


known = st.text(st.sampled_from("  ,.TheYsNowagrlitfm"), max_size=12)


@quick
@given(st.sampled_from([LLAMA2, METASPACE]), known, known.filter(bool))
@example(LLAMA2, "", " Yes")
@example(METASPACE, "", "Yes")
@example(METASPACE, "a ", "Yes")
def test_scored_sentencepiece_tokens_spell_the_completion(tokenizer, prompt, completion):
    encoded = encode(pair_of(prompt, completion), tokenizer)
    text = "".join(scored(encoded, tokenizer)).removesuffix("</s>").replace("▁", " ")
    assert not encoded.chosen_mask[0] and encoded.chosen_ids[0] == 1
    assert text.endswith(completion)
    if not encoded.boundary_merge and prompt:
        assert text == completion


def test_a_straddling_token_is_scored_and_reported():
    for tokenizer in (GPT2, TRIMMED):
        encoded = encode(pair_of("Is it? ", "fine", "No"), tokenizer)
        assert encoded.boundary_merge and scored(encoded, tokenizer)[0].startswith("Ġf")
        assert not encode(pair_of("Is it?", " fine"), tokenizer).boundary_merge
    assert "holds the end of the prompt" in audit_pairs([pair_of("Is it? ", "fine")], GPT2).notes[0]


def test_tokens_that_end_in_trimmed_spaces():
    """Without a splitting regex a token may end in a space that its trimmed offsets leave out."""
    for trim in (False, True):
        tokenizer = byte_level(trim=trim, regex=False, single="<s> $A")
        text = ", The film was good"
        assert any(len(t) > 1 and t.endswith("Ġ") for t in tokenizer.tokenize(text))
        for cut in range(1, len(text)):
            encoded = encode(pair_of(text[:cut], text[cut:]), tokenizer, append_eos=False)
            whole = tokenizer.decode(encoded.chosen_ids[encoded.chosen_mask])
            assert whole.endswith(text[cut:])
            assert encoded.boundary_merge == (whole != text[cut:])


def test_an_added_prefix_space_is_the_completions_only_without_a_prompt():
    tokenizer = byte_level(prefix=True, trim=True, single="<s> $A")
    assert scored(encode(pair_of("", "  x"), tokenizer), tokenizer) == ["Ġ", "Ġ", "x", "</s>"]
    assert scored(encode(pair_of(" ", " x"), tokenizer), tokenizer) == ["Ġ", "x", "</s>"]
    assert scored(encode(pair_of("", "Yes"), METASPACE), METASPACE)[0] == "▁"


def test_masks_lengths_and_shared_prefix():
    encoded = encode(pair_of("Is it?", " Yes, the story", " Yes, the film"), LLAMA3)
    assert encoded.chosen_ids.dtype.is_floating_point is False
    assert str(encoded.chosen_mask.dtype) == "torch.bool" and encoded.chosen_ids.ndim == 1
    for ids, mask, length in (
        (encoded.chosen_ids, encoded.chosen_mask, encoded.chosen_length),
        (encoded.rejected_ids, encoded.rejected_mask, encoded.rejected_length),
    ):
        assert ids.shape == mask.shape and mask[-length:].all() and not mask[:-length].any()
        assert ids[-1] == 2 and (ids == 2).sum() == 1 and ids[0] == 1
    shared = LLAMA3.tokenize(" Yes, the")
    assert encoded.shared_prefix == len(shared) and encoded.append_eos is True
    same = encode(pair_of("Is it?", " Yes", " Yes"), LLAMA3)
    assert same.shared_prefix == same.chosen_length == len(LLAMA3.tokenize(" Yes")) + 1


def test_bos_and_eos_are_never_doubled():
    plain = encode(pair_of("Is it?", " Yes"), ADDS_EOS).chosen_ids.tolist()
    assert plain[0] == 1 and plain.count(1) == 1 and plain[-1] == 2 and plain.count(2) == 1
    for prompt, chosen in (("<s>Is it?", " Yes"), ("Is it?", " Yes</s>")):
        for tokenizer in (ADDS_EOS, LLAMA3):
            assert encode(pair_of(prompt, chosen), tokenizer).chosen_ids.tolist() == plain
    audit = audit_pairs([pair_of("<s>Is it?", " Yes</s>", " No")], ADDS_EOS)
    assert audit.double_bos[0] and audit.double_eos[0] and "none was added" in audit.notes[0]
    assert encode(pair_of("<s>Is it?", " Yes"), GPT2).chosen_ids.tolist() == plain
    empty = encode(pair_of("", "<s>Yes"), LLAMA3)
    assert empty.chosen_ids.tolist() == encode(pair_of("", "Yes"), LLAMA3).chosen_ids.tolist()
    assert empty.chosen_mask.tolist() == [False] + [True] * (len(empty.chosen_ids) - 1)


def test_append_eos_false_leaves_eos_out_even_where_the_tokenizer_adds_it():
    for tokenizer in (ADDS_EOS, LLAMA3):
        encoded = encode(pair_of("Is it?", " Yes"), tokenizer, append_eos=False)
        assert 2 not in encoded.chosen_ids and encoded.append_eos is False


def test_a_tokenizer_without_eos_bos_or_pad():
    tokenizer = byte_level(bos_token=None, eos_token=None)
    assert tokenizer.eos_token is None and tokenizer.pad_token is None
    with pytest.raises(PairError, match=r"pair 'a': .*no EOS.*append_eos=False"):
        encode(pair_of("Is it?", " Yes"), tokenizer)
    assert encode(pair_of("Is it?", " Yes"), tokenizer, append_eos=False).chosen_length > 0
    pairs = [pair_of("Is it?", " Yes")]
    assert not audit_pairs(pairs, tokenizer).usable[0]
    assert audit_pairs(pairs, tokenizer, append_eos=False).usable[0]


def test_the_first_token_needs_one_before_it():
    with pytest.raises(PairError, match="give a prompt, or a tokenizer that adds BOS"):
        encode(pair_of("", "Yes"), GPT2)
    with pytest.raises(PairError, match="no token stands before"):
        encode(pair_of("T", "he"), byte_level(bos_token=None))
    assert encode(pair_of("", "Yes"), LLAMA3).chosen_mask.tolist()[0] is False


def test_too_long_is_an_error_and_never_cut():
    pair = pair_of("Is it?", " Yes" * 20)
    length = len(encode(pair, GPT2).chosen_ids)
    assert len(encode(pair, GPT2, max_length=length).chosen_ids) == length
    message = f"chosen side has {length} tokens, more than max_length {length - 1}"
    with pytest.raises(PairError, match=message):
        encode(pair, GPT2, max_length=length - 1)
    tokenizer = byte_level(model_max_length=5)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    assert len(encode(pair, tokenizer).chosen_ids) == length


def test_a_completion_without_tokens_is_refused():
    stripping = byte_level()
    stripping.backend_tokenizer.normalizer = normalizers.Strip()
    with pytest.raises(PairError, match="gives the completion '  ' no token"):
        encode(pair_of("Is it?", "  "), stripping)
    with pytest.raises(PairError, match="no token"):
        encode(pair_of("", ""), LLAMA3)


def test_messages_go_through_the_template_alone():
    pair = load_pairs([CHAT_ROW])[0]
    encoded = encode(pair, CHAT)
    text = CHAT.decode(encoded.chosen_ids)
    assert text == "<s><|user|>Is it fine?<|end|>\n<|assistant|>Yes<|end|>\n"
    assert CHAT.decode(encoded.chosen_ids[encoded.chosen_mask]) == "Yes<|end|>\n"
    assert encoded.append_eos is False and not encoded.boundary_merge
    audit = audit_pairs([pair], CHAT)
    assert audit.usable[0] and not audit.double_bos[0]
    twice = byte_level()
    twice.chat_template = "{{ bos_token }}" + TEMPLATE
    assert audit_pairs([pair], twice).double_bos[0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template; set tokenizer.chat_template"),
        ("{{ messages | length }}" + TEMPLATE, "does not extend"),
        ("{{ raise_exception('no such role') }}", "refuses the messages: no such role"),
        ("{{ 1 / 0 }}", "refuses the messages: division"),
    ],
)
def test_templates_that_cannot_be_used(template, message):
    tokenizer = byte_level()
    tokenizer.chat_template = template
    with pytest.raises(PairError, match=f"row 0 .*{message}"):
        encode(load_pairs([CHAT_ROW])[0], tokenizer)


def test_a_slow_tokenizer_is_cut_by_the_prompts_own_tokens():
    tokenizer = ByT5Tokenizer()  # bytes + 3, EOS is 1, no BOS
    encoded = encode(pair_of("é?", " y"), tokenizer)
    wanted = [byte + 3 for byte in "é? y".encode()]
    assert encoded.chosen_ids.tolist() == [*wanted, 1]
    assert encoded.chosen_mask.tolist() == [False] * 3 + [True] * 3

    # One that joins "ab" into a "c", and adds BOS.
    merging = ByT5Tokenizer()
    merging.encode = lambda text, add_special_tokens: (
        [0] * add_special_tokens + [ord(char) for char in text.replace("ab", "c")]
    )
    assert encode(pair_of("x", "y"), merging).chosen_ids.tolist() == [0, 120, 121, 1]
    assert encode(pair_of("x", "y"), merging).chosen_mask.tolist() == [False, False, True, True]
    with pytest.raises(PairError, match="this slow tokenizer gives no offsets and merges"):
        encode(pair_of("a", "b"), merging)


def test_encode_refuses_what_is_no_pair_or_tokenizer():
    with pytest.raises(ValueError, match="pair: got dict"):
        encode(ROW, GPT2)
    with pytest.raises(ValueError, match="tokenizer: got str"):
        encode(pair_of("a", "b"), "gpt2")


# ---- audit ----


def test_the_audit_counts_what_encode_gives_and_keeps_every_row():
    rows = [ROW, {"chosen": 1}, ROW | {"chosen": " Yes" * 30}, ROW | {"chosen": " No"}]
    pairs = load_pairs(rows, on_error="skip")
    policy = SimpleNamespace(tokenizer=LLAMA3, context_length=30)
    audit = audit_pairs(pairs, policy)
    assert audit.pair_id.tolist() == ["0", "1", "2", "3"] and audit.row.tolist() == [0, 1, 2, 3]
    assert audit.usable.tolist() == [True, False, False, False]
    assert audit.identical.fillna(False).tolist() == [False, False, False, True]
    encoded = encode(pairs[0], LLAMA3)
    first = audit.iloc[0]
    assert first.chosen_tokens == encoded.chosen_length
    assert first.rejected_tokens == encoded.rejected_length
    assert first.prompt_tokens == int((~encoded.chosen_mask).sum())
    assert first.total == max(len(encoded.chosen_ids), len(encoded.rejected_ids))
    assert first.shared_prefix == encoded.shared_prefix and first.reason == ""
    long = audit.iloc[2]
    said = f"chosen side has {long.total} tokens, more than max_length 30; "
    assert long.exceeds_context and long.reason.startswith(said)
    assert "column 'rejected' is missing" in audit.reason[1] and pd.isna(audit.total[1])
    assert audit_pairs(pairs, LLAMA3).usable.tolist() == [True, False, True, False]
    assert not audit_pairs(pairs, policy, max_length=3).usable.any()
    for length, usable in ((first.total, True), (first.total - 1, False)):
        assert audit_pairs(pairs[:1], policy, max_length=int(length)).usable[0] == usable
    longer = pair_of("Is it?", " Yes", " Yes, the story")
    assert audit_pairs([longer], LLAMA3).total[0] == len(encode(longer, LLAMA3).rejected_ids)
    assert audit_pairs(pairs, policy, max_length=300).reason[2] == long.reason


def test_the_audit_of_pairs_built_by_hand():
    pairs = [pair_of("Is it?", " Yes", " Yes"), pair_of("", "Yes"), load_pairs([CHAT_ROW])[0]]
    audit = audit_pairs(pairs, GPT2)
    assert audit.identical.tolist() == [True, pd.NA, pd.NA]
    assert audit.usable.tolist() == [True, False, False] and audit.row.isna().tolist()[0]
    assert "cannot be told apart" in audit.notes[0]
    assert "no token stands before" in audit.reason[1] and "chat template" in audit.reason[2]
    assert audit_pairs([], GPT2).columns.tolist() == audit.columns.tolist()
    pair = pair_of("Is it f", "ine", "x")
    uneven = audit_pairs([pair], GPT2)
    assert uneven.rejected_tokens[0] == encode(pair, GPT2).rejected_length == 2
    assert uneven.usable[0] and "tokens differ between the two sides" in uneven.notes[0]


def test_the_audit_counts_eos_as_the_policy_does():
    pair = pair_of("Is it?", " Yes")
    for append_eos in (True, False):
        policy = SimpleNamespace(tokenizer=LLAMA3, context_length=30, append_eos=append_eos)
        scored = encode(pair, LLAMA3, append_eos=append_eos).chosen_length
        assert audit_pairs([pair], policy).chosen_tokens[0] == scored
        assert audit_pairs([pair], LLAMA3, append_eos=append_eos).chosen_tokens[0] == scored
    assert audit_pairs([pair], policy, append_eos=True).chosen_tokens[0] == scored + 1


@pytest.mark.parametrize("pairs", [None, 3, "stance", {}, ROW])
def test_the_audit_refuses_what_are_no_pairs(pairs):
    with pytest.raises(ValueError, match="pairs must be a list of PreferencePair"):
        audit_pairs(pairs, GPT2)
    with pytest.raises(ValueError, match="append_eos must be True or False"):
        audit_pairs([], GPT2, append_eos="yes")


def test_the_audit_of_rows_that_were_all_skipped():
    pairs = load_pairs([{}, {}], on_error="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audit = audit_pairs(pairs, GPT2)
    assert audit.notes.tolist() == ["", ""] and not audit.usable.any()
    assert audit.dtypes.to_dict() == audit_pairs([pair_of("a", " b")], GPT2).dtypes.to_dict()


@quick
@given(st.permutations(range(5)))
def test_the_audit_does_not_depend_on_the_order_of_the_pairs(order):
    pairs = load_pairs([ROW | {"chosen": " Yes" * (i + 1)} for i in range(5)])
    whole = audit_pairs(pairs, LLAMA3)
    mixed = audit_pairs([pairs[i] for i in order], LLAMA3)
    pd.testing.assert_frame_equal(mixed, whole.iloc[list(order)].reset_index(drop=True))


# ---- truncation ----


def trl_sides(pair, limit, mode):
    """What TRL's own collator makes of a pair: ids and scored positions of both sides."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    full = encode(pair, GPT2)
    rows = {"prompt_ids": full.chosen_ids[~full.chosen_mask].tolist()}
    for side in ("chosen", "rejected"):
        ids, mask = getattr(full, f"{side}_ids"), getattr(full, f"{side}_mask")
        rows[f"{side}_ids"] = ids[mask].tolist()
    collate = DataCollatorForPreference(0, max_length=limit, truncation_mode=mode)
    batch = collate([rows])
    for row in range(2):
        length = int(batch["attention_mask"][row].sum())
        mask = batch["completion_mask"][row][:length].bool()
        mask[0] = False  # its trainer shifts the mask: the first token is predicted by none
        yield batch["input_ids"][row][:length], mask


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("limit", [7, 8, 10, 14, 15, 40])
def test_sides_are_cut_as_trl_cuts_them(mode, limit):
    pair = pair_of("Is it fine?", " Yes, all of it", " No")
    cut = encode(pair, GPT2, max_length=limit, truncation=mode)
    ours = [(cut.chosen_ids, cut.chosen_mask), (cut.rejected_ids, cut.rejected_mask)]
    for (ids, mask), (trl_ids, trl_mask) in zip(ours, trl_sides(pair, limit, mode), strict=True):
        assert ids.tolist() == trl_ids.tolist() and mask.tolist() == trl_mask.tolist()
        assert len(ids) <= limit
    full = encode(pair, GPT2)
    assert cut.truncated == (len(full.chosen_ids) > limit) and not full.truncated


def test_a_side_without_completion_left_is_refused():
    pair = pair_of("Is it fine?" * 5, " Yes")
    with pytest.raises(PairError, match=r"of them the prompt's: cut to max_length 6 by 'keep_st"):
        encode(pair, GPT2, max_length=6, truncation="keep_start")
    assert encode(pair, GPT2, max_length=6, truncation="keep_end").chosen_length
    with pytest.raises(PairError, match="no completion token to score"):
        encode(pair, GPT2, max_length=1, truncation="keep_end")


def test_nothing_is_cut_unasked():
    pair = pair_of("Is it fine?", " Yes")
    with pytest.raises(
        PairError, match=r'truncation="keep_start"\) \(--truncation keep_start\) cuts it'
    ):
        encode(pair, GPT2, max_length=3)
    for mode in ("keep_middle", True, 1, ""):
        with pytest.raises(ValueError, match=r"truncation=.* allowed: None, keep_start, keep_end"):
            encode(pair, GPT2, max_length=3, truncation=mode)
        with pytest.raises(ValueError, match="truncation="):
            audit_pairs([pair], GPT2, max_length=3, truncation=mode)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_the_audit_says_what_was_cut(mode):
    pairs = [pair_of("Is it fine?", " Yes, all of it", " No"), pair_of("Is it " * 9, " Yes")]
    audit = audit_pairs(pairs, GPT2, max_length=12, truncation=mode)
    for row, pair in zip(audit.itertuples(), pairs, strict=True):
        assert row.exceeds_context
        try:
            cut = encode(pair, GPT2, max_length=12, truncation=mode)
        except PairError as error:
            assert not row.usable and row.reason == error.reason
            continue
        full = encode(pair, GPT2)
        assert row.usable and row.reason == ""
        assert (row.chosen_tokens, row.rejected_tokens) == (cut.chosen_length, cut.rejected_length)
        gone = [len(a) - len(b) for a, b in ((full.chosen_ids, cut.chosen_ids),
                                             (full.rejected_ids, cut.rejected_ids))]  # fmt: skip
        lost = full.chosen_length - cut.chosen_length, full.rejected_length - cut.rejected_length
        assert row.notes.endswith(
            f"cut ({mode}) by {gone[0]} chosen and {gone[1]} rejected tokens; "
            f"{lost[0]} and {lost[1]} of the completions are not scored"
        )
    assert "cut" not in audit_pairs(pairs, GPT2, max_length=500, truncation=mode).notes[0]


@pytest.mark.parametrize("pairs", [None, 3, "long_suffix", pair_of("a", " b")])
def test_an_audit_needs_a_list_of_pairs(pairs):
    with pytest.raises(ValueError, match=r"pairs must be a list of PreferencePair, .*load_pairs"):
        audit_pairs(pairs, GPT2)
