"""Malformed rows and damaged files, and the check that what was loaded stands in the source."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import json
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz import Unclear, ends_clearly

import toolkit as tk

ASKED = ["What is it?", "Is it fine, my friend?", "\n\nHuman: hi\n\nAssistant:", "é 日本", ""]
ANSWERS = [" Yes, it is.", " No.", "Yes", "It is fine", "It is not", " ", "", "\x00", "a\u202eb"]
DEEP = []
for _ in range(3000):
    DEEP = [DEEP]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


STRANGE = [
    *(None, 0, -1, 3.5, float("nan"), float("inf"), True, 10**400, 10**5000, b"\xff", "\ud800"),
    *([], {}, [[]], [None], [{}], DEEP, object(), int, pd.NA, pd.NaT, pd.Timestamp(0), {1: 2}),
    *(np.array([1, 2]), np.float32("nan"), np.datetime64("NaT"), decimal.Decimal("NaN")),
    *(datetime.date(1, 1, 1), [user("hi")], [{"role": "user"}], [{"content": 1, "role": "x"}]),
    *([assistant("a"), user("b")], [user("q"), assistant("a")], "[{'role': 'user'}]"),
    *(
        '[{"role": "user", "content": "hi"}]',
        f'[{{"role": {"[" * 3000}',
        "Human: a\n\nAssistant: b",
    ),
]
NAMES = ["prompt", "chosen", "rejected", "id", "instruction", "question", "system", "messages"]
NAMES += ["input", "ask", "Prompt", "topic", "answer_matching_behavior", "label", "completion"]
NAMES += ["answer_not_matching_behavior", "\ud800", "x" * 5000, "", 5, None, 10**5000, ("a", "b")]


def rows(random: Random, folder: Path) -> str:
    """Load rows with strange values, names and layouts."""
    found = [_row(random) for _ in range(random.randint(1, 4))]
    source = found if random.random() < 0.8 else None
    if source is None:
        try:
            source = pd.DataFrame(found)
        except Exception:  # no frame can hold these rows
            return "not built"
    on_error = random.choice(["raise", "skip", "skip"])
    pairs = ends_clearly(lambda: tk.load_pairs(source, on_error=on_error))
    if pairs is None:
        return "refused"
    for pair in pairs:
        _check_source(pair, found[pair.row])
    ends_clearly(lambda: tk.audit_pairs(pairs, _policy()))
    return "loaded" if pairs else "skipped"


def _row(random: Random) -> object:
    if random.random() < 0.03:
        return random.choice(STRANGE)
    question, shared = random.choice(ASKED), random.choice(ASKED) if random.random() < 0.4 else ""
    texts = [shared + text for text in random.choices(ANSWERS, k=2)]
    row = {"prompt": question, "chosen": texts[0], "rejected": texts[1]}
    if random.random() < 0.3:
        row = {"chosen": [user(question), assistant(texts[0])], "prompt": [user(question)]}
        row["rejected"] = [user(question), assistant(texts[1])]
    for _ in range(random.choice([0, 1, 1, 2, 3])):
        name, action = random.choice(list(row) or NAMES), random.random()
        if action < 0.35:
            row.pop(name, None)
        elif action < 0.6:
            row[name] = random.choice(STRANGE)
        elif action < 0.8:
            row[random.choice(NAMES)] = row.pop(name, None)
        else:
            row[random.choice(NAMES)] = random.choice([*STRANGE, *ASKED, *ANSWERS])
    return row


def _check_source(pair: tk.PreferencePair, row: dict) -> None:
    """See that nothing of the texts was lost or made up."""
    for side in ("chosen", "rejected"):
        persona = "answer_matching_behavior" if side == "chosen" else "answer_not_matching_behavior"
        cell, response = row[side if side in row else persona], getattr(pair, side)
        if isinstance(cell, str) and isinstance(response, str):
            if cell not in (response, pair.prompt + response):
                raise Unclear(f"{side} {response!r} is not what stands in {cell!r}")
        elif isinstance(cell, list | tuple):
            contents = [message["content"] for message in (*pair.prompt, *response)]
            if [m["content"] for m in cell] not in (contents, contents[len(pair.prompt) :]):
                raise Unclear(f"{side} {contents} is not what stands in {cell}")
    said = pair.prompt_text + "".join(pair.notes)
    for name in ("prompt", "instruction", "question", "input", "ask", "system"):
        asked = row.get(name)
        if not isinstance(asked, str) or len(asked.split()) < 2 or asked.startswith("[{"):
            continue
        lost = asked.strip() not in said and f"{name!r} is not part" not in said
        if lost and not (name == "ask" and ("prompt" in row or pair.prompt)):
            raise Unclear(f"the {name} {asked!r} is lost: the prompt is {pair.prompt!r}")


def _policy() -> tk.Policy:
    if not hasattr(_policy, "found"):
        _policy.found = tk.load_model()
    return _policy.found


# ---- files ----

GOOD = [
    {"id": str(i), "prompt": f"Is {word} fine?", "chosen": f" Yes, {word} é.", "rejected": " No"}
    for i, word in enumerate(["tea", "the film", "日本", "a, b", 'the "end"', "so\nmany"] * 3)
]
TOKENS = [
    b"\xff",
    b"\x00",
    b'"',
    b"{",
    b"}",
    b"[" * 50,
    b"\n",
    b"\\",
    b"\\ud800",
    b",",
    b"\xef\xbb",
]
TOKENS += [b"NaN", b"1" * 5000, b"[" * 3000, b"null", b'"prompt":', b"\r", b"\xe6", b"PAR1", b"e9"]


def files(random: Random, folder: Path) -> str:
    """Load a file whose bytes were damaged."""
    name = random.choice(["a.jsonl", "a.jsonl.gz", "a.json", "b.json", "a.csv", "part-x.parquet"])
    path = folder / name
    written = random.sample(GOOD, random.randint(1, 12))
    _write(path, written)
    raw = path.read_bytes()
    for _ in range(random.choice([0, 1, 1, 1, 2, 5])):
        raw = _damage(random, raw)
    path.write_bytes(raw)
    on_error = random.choice(["raise", "skip", "skip"])
    pairs = ends_clearly(lambda: tk.load_pairs(path, on_error=on_error))
    if pairs is None:
        return "refused"
    for pair in pairs:
        for text in (pair.chosen, pair.rejected):
            if not isinstance(text, str) or not text.strip():
                raise Unclear(f"{name}: loaded the response {text!r}")
            if not name.endswith((".gz", ".parquet")) and not _occurs(text, raw):
                raise Unclear(f"{name}: {text!r} does not stand in the file")
    return "loaded" if pairs else "skipped"


def _write(path: Path, written: list[dict]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written).encode()
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".jsonl" or path.name == "b.json":
        path.write_bytes(lines)
    elif path.suffix == ".json":
        path.write_text(json.dumps(written, ensure_ascii=False, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(written[0]))
            writer.writeheader()
            writer.writerows(written)
    else:
        table = pa.Table.from_pylist(written)
        pq.write_table(table, path, compression="none", use_dictionary=False)


def _damage(random: Random, raw: bytes) -> bytes:
    start = random.randrange(len(raw) + 1)
    end = min(len(raw), start + random.choice([1, 1, 4, 30, 300]))
    token = random.choice([*TOKENS, random.randbytes(random.choice([1, 8]))])
    return random.choice(
        [
            raw[:start],
            raw[start:],
            raw[:start] + raw[end:],
            raw[:start] + token + raw[start:],
            raw[:start] + token + raw[end:],
            raw[:end] + raw[start:end] + raw[end:],
        ]
    )


def _occurs(text: str, raw: bytes) -> bool:
    """Whether a file holds this text, as it stands or in the spelling of JSON or CSV."""
    plain = text.encode()
    spelt = json.dumps(text, ensure_ascii=False)[1:-1].encode()
    if plain in raw or spelt in raw or plain.replace(b'"', b'""') in raw:
        return True
    return b"\\u" in raw or text.count("\\") != raw.count(b"\\")  # escapes that damage has made
