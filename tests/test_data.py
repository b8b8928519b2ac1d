"""The shipped data: model, tokenizer, chat template and pairs are what data/README.md says."""

import importlib
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

DATA = Path(__file__).parent.parent / "data"
sys.path.insert(0, str(DATA))
build_on_policy, build_pairs, evaluation, language, model_card, training = (
    importlib.import_module(name)
    for name in (
        "build_on_policy", "build_pairs", "evaluation", "language", "model_card", "training",
    )
)  # fmt: skip
SENTIMENT = ("single_token", "short_suffix", "long_suffix")
ODD_TEXTS = (
    "",
    " \n\t\r\n  ",
    "Ça va, 東京? 🦊👩‍👩‍👧 e\u0301 ﷽",
    "\u0000\u0007\ufeff\u202e",
    "<b>&amp;</b> {slot} [a|b] \\n",
    "don't  do   that…",
    "antidisestablishmentarianism 12345.678",
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DATA / "tiny_model")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(DATA / "tiny_model", dtype="auto").eval()


@pytest.fixture(scope="module")
def metrics():
    return json.loads((DATA / "tiny_model" / "metrics.json").read_text(encoding="utf-8"))


def review_of(row: dict) -> str:
    return row["prompt"].rpartition("\n")[0]


def shipped(name: str) -> list[dict]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def test_model_loads_as_float32_and_is_small(model, metrics):
    """float16 weights on disk must not make a float16 model."""
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == metrics["parameters"]
    assert not model.config.tie_word_embeddings
    files = list((DATA / "tiny_model").iterdir())
    assert sum(file.stat().st_size for file in files) <= 10_000_000
    assert {file.suffix for file in files} == {".json", ".jinja", ".safetensors"}


def test_perplexity_on_fresh_text_is_the_recorded_one(model, tokenizer, metrics):
    """A random, half-trained or overfitted model fails here."""
    fresh = evaluation.perplexities(model, tokenizer, count=12, tag="fresh")
    assert set(fresh) == set(language.DOMAINS)
    for domain, value in metrics["perplexity"].items():
        assert fresh[domain] == pytest.approx(value, rel=0.25), domain
        assert value < 12, domain


def test_labels_are_learnt_but_not_saturated(model, tokenizer, metrics):
    """Preference tuning needs a reference that leaves something to learn."""
    found = evaluation.first_token_labels(model, tokenizer, shipped("single_token"))
    assert found == pytest.approx(metrics["labels"]["single_token"], abs=0.03)
    assert found["accuracy"] > 0.7
    assert 0.5 < found["chosen_probability"] < 0.97


def response_gradient(model, tokenizer, prompt: str, response: str) -> torch.Tensor:
    prompt_ids, response_ids = training.completion_ids(prompt, response, tokenizer)
    logps = model(input_ids=torch.tensor([prompt_ids + response_ids])).logits[0].log_softmax(-1)
    scored = logps[len(prompt_ids) - 1 : -1].gather(1, torch.tensor(response_ids)[:, None]).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(scored, list(model.parameters()))])


def test_longer_shared_suffixes_entangle_more(model, tokenizer):
    """The ordering that the notebooks show: single token < short suffix < long suffix."""
    means = []
    for name in SENTIMENT:
        rows = shipped(name)[:6]
        cosines = [
            torch.cosine_similarity(
                response_gradient(model, tokenizer, row["prompt"], row["chosen"]),
                response_gradient(model, tokenizer, row["prompt"], row["rejected"]),
                dim=0,
            ).item()
            for row in rows
        ]
        means.append(sum(cosines) / len(cosines))
    assert means[0] < -0.5
    assert means[0] + 0.2 < means[1] < means[2] - 0.2


def test_special_tokens(model, tokenizer):
    assert tokenizer.is_fast
    assert tokenizer.bos_token == tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.model_max_length == model.config.max_position_embeddings == training.CONTEXT
    assert len(tokenizer) == model.config.vocab_size == 4096
    for token in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"):
        assert len(tokenizer(token)["input_ids"]) == 1
    assert "token_type_ids" not in tokenizer("a")


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_comes_back_unchanged(tokenizer, text):
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(encoded["input_ids"]) == text
    covered = {i for start, end in encoded["offset_mapping"] for i in range(start, end)}
    assert covered == set(range(len(text)))


def test_chat_prompt_is_the_beginning_of_the_conversation(tokenizer):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " How? \n"},
        {"role": "assistant", "content": "Slowly."},
        {"role": "user", "content": "<b>Why</b>?"},
        {"role": "assistant", "content": ""},
    ]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(whole)["input_ids"]
    for end in (2, 4):
        prompt = tokenizer.apply_chat_template(
            turns[:end], tokenize=False, add_generation_prompt=True
        )
        assert whole.startswith(prompt)
        prompt_ids = tokenizer(prompt)["input_ids"]
        assert ids[: len(prompt_ids)] == prompt_ids
    assert whole.endswith("<|end|>")
    with pytest.raises(Exception, match="robot"):
        tokenizer.apply_chat_template([{"role": "robot", "content": "Beep"}], tokenize=False)


def test_pairs_are_rebuilt_byte_for_byte():
    for name, rows in build_pairs.all_sets().items():
        assert build_pairs.to_jsonl(rows).encode() == (DATA / f"{name}.jsonl").read_bytes(), name


def test_sets_are_sound():
    for name in [file.stem for file in DATA.glob("*.jsonl")]:
        rows = shipped(name)
        if name == "bad_rows":
            assert all(row["why"] for row in rows)
            continue
        assert len({row["id"] for row in rows}) == len(rows) >= 48
        assert len({str(row["prompt"]) for row in rows}) > 0.9 * len(rows)
        assert all(row["chosen"] != row["rejected"] for row in rows)


def test_sentiment_sets_share_their_reviews_and_are_balanced():
    first, *others = [shipped(name) for name in SENTIMENT]
    assert sum(row["label"] == "positive" for row in first) * 2 == len(first)
    for rows in others:
        assert [review_of(row) for row in rows] == [review_of(row) for row in first]
        assert [row["id"] for row in rows] == [row["id"] for row in first]
    assert all(row["chosen"] == f" {row['label']}" for row in first)


@pytest.mark.parametrize("name", [*SENTIMENT, "stance"])
def test_contrast_is_one_token(tokenizer, name):
    """The word pairs must stay single tokens, alone and after their prompt."""
    for row in shipped(name):
        prompt, chosen, rejected = (
            tokenizer(text)["input_ids"]
            for text in (
                row["prompt"],
                row["prompt"] + row["chosen"],
                row["prompt"] + row["rejected"],
            )
        )
        assert chosen[: len(prompt)] == rejected[: len(prompt)] == prompt
        assert len(chosen) == len(rejected)
        different = [i for i, (a, b) in enumerate(zip(chosen, rejected, strict=True)) if a != b]
        assert different == [len(prompt)]
        if name in ("single_token", "stance"):
            assert len(chosen) == len(prompt) + 1


def test_near_duplicates_differ_where_they_say():
    for row in shipped("near_duplicates"):
        edits = [edit.split(" → ") for edit in row["swapped"].split(", ") if edit]
        assert len(edits) == {"one word": 1, "two words": 2, "dissimilar": 0}[row["kind"]]
        for old, new in edits:
            assert re.search(rf"\b{old}\b", row["chosen"])
            assert re.search(rf"\b{new}\b", row["rejected"])


def test_generated_text_has_variety_and_no_open_slots():
    """A slot or a choice left open, or an empty list, would show in the text."""
    texts = []
    for index in range(3000):
        document = language.document(f"variety-{index}")[1]
        turns = [document] if isinstance(document, str) else [turn["content"] for turn in document]
        texts.append("\n".join(turns))
    assert not [text for text in texts if re.search(r"[{}|\[\]]|  |\(n\)", text)]
    assert not [
        text for text in texts if re.search(r"\b[Aa] [aeio]\w|\b[Aa]n [bcdfgjklmnpqrstvwxyz]", text)
    ]
    assert evaluation.distinct_words(texts) > 2900
    assert language.document("same") == language.document("same")


def test_packed_rows_start_documents_and_fill_the_context():
    lengths = random.Random(0).choices(range(1, 1400), k=60)
    rows = list(training.pack(([number + 1] * n for number, n in enumerate(lengths)), eos=0))
    assert {len(row) for row in rows} == {training.CONTEXT}
    for row in rows:
        run = 0
        while run < len(row) and row[run] == row[0]:
            run += 1
        assert run == min(lengths[row[0] - 1], training.CONTEXT)


def test_padding_scores_responses_alone():
    inputs, targets = training.pad([([5, 6, 7, 8], 2), ([5, 6], 0)])
    assert inputs.tolist() == [[5, 6, 7, 8], [5, 6, training.PAD_ID, training.PAD_ID]]
    none = training.UNSCORED
    assert targets.tolist() == [[none, none, 7, 8], [5, 6, none, none]]


def test_readme_numbers_are_the_measured_ones(metrics):
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert model_card.measured_section(metrics) in readme
    assert build_on_policy.counts_table(shipped("on_policy")) in readme
