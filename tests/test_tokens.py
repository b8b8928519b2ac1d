"""Tokens read as the text they stand for, in every script, whatever the tokenizer."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import toolkit as tk
from toolkit.model.tokens import legible_texts, token_texts

TEXTS = {
    "hebrew": " שלום עולם",
    "arabic": " مرحبا بالعالم",
    "emoji": " fine 👩\u200d🚀🙂, really",
    "curly quotes": " I’m “here” — no…",
    "accents": " été à l’œuvre",
    "japanese": " 日本語です",
    "a replacement": " bad \ufffd sign",
    "ascii": " plain, and two  spaces\n",
}


def sentencepiece():
    """Words with ▁ in front, and bytes for all that is in no word, as Llama 2 has them."""
    words = ["<unk>", "▁", "▁plain", "▁fine", ",", "▁really", "▁bad", "▁sign", "m", "I", "▁I"]
    vocabulary = {word: k for k, word in enumerate(words)}
    vocabulary |= {f"<0x{b:02X}>": len(words) + b for b in range(256)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("▁", "I")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def wordpiece():
    pieces = ["[UNK]", "play", "##ing", "##ed", "it", "works"]
    tokenizer = Tokenizer(models.WordPiece({p: k for k, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {"byte-level": lambda: tk.load_model().tokenizer, "sentencepiece": sentencepiece}


def texts_of(tokenizer, ids, scored=slice(None)):
    ids = torch.tensor(ids)
    mask = torch.zeros(len(ids), dtype=torch.bool)
    mask[scored] = True
    return token_texts(tokenizer, ids, mask)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("language", TEXTS)
def test_tokens_joined_read_as_the_text(name, language):
    """A curly quote in the middle of a word used to be three signs of nothing."""
    tokenizer, text = TOKENIZERS[name](), TEXTS[language]
    ids = tokenizer(f"plain:{text}", add_special_tokens=False)["input_ids"]
    before = len(tokenizer("plain:", add_special_tokens=False)["input_ids"])
    found = texts_of(tokenizer, ids, slice(before, None))
    assert "".join(found) == text and len(found) == len(ids) - before
    for k, token in enumerate(found):
        pieces = len(token.encode()) if token else 1
        following = next((j for j, t in enumerate(found[k + 1 :]) if t), len(found) - k - 1)
        assert not token or following < pieces  # a character has no more pieces than bytes


def test_a_word_is_no_other_word():
    """Pieces of Hebrew and Arabic letters were the same sign."""
    tokenizer = tk.load_model().tokenizer
    one, two = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("שלום", "مرحب"))
    assert len(one) == len(two) and texts_of(tokenizer, one) != texts_of(tokenizer, two)


def test_wordpieces_read_as_the_text():
    tokenizer = wordpiece()
    ids = tokenizer("it works playing played", add_special_tokens=False)["input_ids"]
    expected = ["it", " works", " play", "ing", " play", "ed"]
    assert texts_of(tokenizer, ids) == expected
    assert texts_of(tokenizer, ids, [3, 5]) == ["ing", "ed"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bytes_that_are_no_text_are_written_out(name):
    tokenizer = TOKENIZERS[name]()
    quote = tokenizer("’", add_special_tokens=False)["input_ids"]
    quote = [i for i in quote if tokenizer.decode([i]).strip() or len(quote) == 3][-3:]
    assert len(quote) == 3
    assert texts_of(tokenizer, quote[:2]) == [r"\xe2\x80", ""]
    # Scored from its middle on: the first scored piece says what the character is.
    assert texts_of(tokenizer, quote, [1, 2]) == ["’", ""]
    assert texts_of(tokenizer, quote[1:]) == [r"\x80", r"\x99"]
    assert legible_texts(tokenizer, quote) == [r"\xe2", r"\x80", r"\x99"]


@pytest.fixture(scope="module")
def curly():
    return tk.PreferencePair("p", "Where are you", " I’m שלום", " I’m مرحب")


def test_every_frame_of_tokens_has_their_ids(curly):
    policy = tk.load_model()
    enc = policy.encode(curly)
    ids = np.concatenate([enc.chosen_ids[enc.chosen_mask], enc.rejected_ids[enc.rejected_mask]])
    run = tk.train(policy, [curly], steps=1, batch_size=1, lr=1e-5, progress=False)
    frames = {
        "contributions": tk.token_contributions(policy, curly).to_frame(),
        "similarity": tk.ches_tokens(policy, curly),
        "training": run.tokens(1),
    }
    for name, frame in frames.items():
        assert frame["token_id"].tolist() == ids.tolist(), name
        assert "".join(frame.query("side == 'chosen'")["token"]).startswith(" I’m שלום"), name
    matrix = tk.token_matrix(policy, curly).to_frame()
    assert matrix["token_id_j"][: len(ids)].tolist() == ids.tolist()
    assert matrix["token_id_i"][:: len(ids)].tolist() == ids.tolist()
    prompt = tk.prompt_attributions(policy, curly, method="input_x_gradient").to_frame()
    assert prompt["token_id"].tolist() == enc.chosen_ids[: len(prompt)].tolist()
    logps = tk.per_token_logps(policy, curly)[0]
    assert "".join(logps.chosen_tokens).startswith(" I’m שלום")


def test_two_scripts_are_two_words_in_the_strips(curly):
    frame = tk.token_contributions(tk.load_model(), curly).to_frame()
    html = tk.plots.token_strip_html(frame)
    assert "\ufffd" not in html and html.count("in the other response") == 1
    for letter in "שלוםمرحب":
        assert html.count(f">{letter}<br>") == 1, letter
    assert html.count(">’<br>") == 2
    ax = tk.plots.token_heatmap(tk.token_matrix(tk.load_model(), curly).to_frame())
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert "’₁" in labels and "⋯₂" in labels
