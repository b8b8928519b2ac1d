"""Perplexity of ordinary text, beside a loop over single texts."""

import math

import pytest
import reference
import torch

import toolkit as tk

TEXTS = ["The kettle is on the table.", "Rain.", "My brother told me about this castle tour."]


@pytest.fixture(scope="module")
def policy():
    return tk.load_model()


@pytest.mark.parametrize("append_eos", [True, False])
def test_perplexity_equals_a_loop_over_texts(policy, append_eos):
    """Catches padding that is scored, a first token that is, and a mean of means."""
    twin, total, count = reference.double(policy.model), 0.0, 0
    end = [policy.tokenizer.eos_token_id] * append_eos
    for text in TEXTS:
        ids = torch.tensor(policy.tokenizer(text)["input_ids"] + end)
        logps = reference.token_logps(twin, ids, torch.arange(len(ids)) > 0).detach()
        total, count = total - float(logps.sum()), count + len(logps)
    found = tk.perplexity(policy.with_options(append_eos=append_eos), TEXTS)
    assert found == pytest.approx(math.exp(total / count), rel=1e-6)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("one text", r"list of texts.*use \[text\]"),
        ([], "empty"),
        (["fine text", 3], r"texts\[1\] must be a text"),
        ([""], r"texts\[0\] must have from 2 to 1024 tokens, it has 1"),
        (["word " * 1200], r"texts\[0\] must have from 2 to 1024"),
    ],
)
def test_what_is_no_text_is_refused(policy, texts, words):
    with pytest.raises(ValueError, match=words):
        tk.perplexity(policy, texts)
