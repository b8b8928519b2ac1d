"""Drawn responses follow the model's own distribution, whatever they are batched with."""

import json
import re

import numpy as np
import pytest
import torch

import toolkit as tk

PROMPTS = [pair.prompt for pair in tk.load_pairs("refusals", limit=3)]
PROMPTS += [pair.prompt for pair in tk.load_pairs("stance", limit=3)]


@pytest.fixture(scope="module")
def policy():
    return tk.load_model()


def test_a_draw_depends_on_neither_the_batch_nor_the_random_state(policy):
    """Draws from the global generator, or one for a whole batch, change with the batch size."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    drawn = tk.sample_responses(policy, PROMPTS, seed=3, max_new_tokens=40)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    single = tk.sample_responses(policy, PROMPTS, seed=3, max_new_tokens=40, batch_size=1)
    # Rounding may carry one number over the border between two tokens, not most of them.
    assert (drawn["response"] == single["response"]).mean() > 0.6
    other = tk.sample_responses(policy, PROMPTS, seed=4, max_new_tokens=40)
    assert (drawn["response"] == other["response"]).mean() < 0.7
    assert drawn.attrs["seed"] == 3 and drawn.attrs["model"] == policy.name


def test_shares_of_drawn_tokens_are_the_models_probabilities(policy):
    """At temperature 2 the shares of 600 tokens lie within four standard errors of softmax."""
    prompt = tk.load_pairs("stance", limit=1)[0].prompt
    ids = policy.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = (policy.model(ids).logits[0, -1].double() / 2).softmax(-1)
    drawn = tk.sample_responses(
        policy, [prompt] * 600, temperature=2.0, max_new_tokens=1, batch_size=200
    )
    assert (drawn["tokens"] == 1).all()
    for word in ("No", "Never", "Yes"):
        [token] = policy.tokenizer(word)["input_ids"]
        share, p = (drawn["response"] == word).mean(), expected[token].item()
        assert p > 0.005
        assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / 600)


def test_a_low_temperature_gives_the_likeliest_tokens(policy):
    cold = tk.sample_responses(policy, PROMPTS, temperature=1e-300, max_new_tokens=5)
    for prompt, response in zip(PROMPTS, cold["response"], strict=True):
        text = prompt
        if not isinstance(prompt, str):
            text = policy.tokenizer.apply_chat_template(
                [dict(m) for m in prompt], tokenize=False, add_generation_prompt=True
            )
        ids = policy.tokenizer(text, return_tensors="pt")["input_ids"]
        made = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=5
        )
        new = made[0, ids.shape[1] :]
        assert policy.tokenizer.decode(new, skip_special_tokens=True) == response


def test_the_models_own_generation_settings_do_not_hold(policy):
    """A model that ships with top_k=1 would give the same response for every seed."""
    settings = policy.model.generation_config
    before, settings.top_k, settings.do_sample = settings.top_k, 1, True
    try:
        drawn = tk.sample_responses(policy, [PROMPTS[0]] * 12, max_new_tokens=3)
    finally:
        settings.top_k, settings.do_sample = before, False
    assert drawn["response"].nunique() > 1


def test_what_is_cut_off_is_not_finished_and_modes_are_kept(policy):
    policy.model.train()
    try:
        drawn = tk.sample_responses(policy, PROMPTS[:2], max_new_tokens=1)
        assert policy.model.training
    finally:
        policy.model.eval()
    assert not drawn["finished"].any()
    whole = tk.sample_responses(policy, PROMPTS[3:])
    assert whole["finished"].all()
    assert not whole["response"].str.contains("<|", regex=False).any()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompts": "one text"}, "prompts must be a list of texts"),
        ({"prompts": PROMPTS[0]}, "prompts must be a list of texts"),
        ({"prompts": []}, "prompts must be a list of texts"),
        ({"prompts": ["", "a"]}, r"prompts\[0\] has no token"),
        ({"prompts": ["a", 3]}, r"prompts\[1\] must be text or a list of messages"),
        ({"prompts": [[{"role": "robot", "content": "Beep"}]]}, r"prompts\[0\]: the chat template"),
        ({"temperature": 0}, "temperature must be a positive number"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a positive integer"),
        ({"max_new_tokens": 1024}, r"prompts\[0\] has \d+ tokens: .* context of 1024"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"seed": -1}, "seed must be"),
        ({"policy": "gpt2"}, "policy must be a toolkit Policy"),
    ],
    ids=lambda value: json.dumps(list(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named(policy, given, said):
    with pytest.raises(ValueError) as caught:
        tk.sample_responses(**({"policy": policy, "prompts": PROMPTS} | given))
    assert re.search(said, str(caught.value))
