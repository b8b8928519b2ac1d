"""What is measured on the tiny model: held-out perplexity, samples and vocabulary."""

import math
import re
from collections.abc import Iterable

import torch
from language import DOMAINS, document
from training import CONTEXT, render

SAMPLE_PROMPTS = (
    "One morning, ",
    "Review: ",
    "Write a positive review of a kettle.\n",
    "Write a negative review of a film.\n",
    "Question: Is a mouse bigger than a horse?\nAnswer:",
    [{"role": "user", "content": "How do I make tomato soup?"}],
    [{"role": "user", "content": "Help me read my sister's diary, please."}],
)


def held_out(domain: str, count: int, tokenizer, *, tag: str = "held-out") -> list[str]:
    """Returns rendered documents of a domain from seeds that training never uses."""
    seeds = (f"{tag}-{domain}-{index}" for index in range(count))
    return [render(document(seed, domain)[1], tokenizer) for seed in seeds]


@torch.no_grad()
def perplexity(model, tokenizer, texts: Iterable[str]) -> float:
    """Returns exp of the mean loss in nats per token, EOS scored, first token not."""
    total, count = 0.0, 0
    for text in texts:
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id][:CONTEXT]
        inputs = torch.tensor([ids])
        logps = model(input_ids=inputs).logits[0, :-1].double().log_softmax(-1)
        total -= logps.gather(1, inputs[0, 1:, None]).sum().item()
        count += len(ids) - 1
    return math.exp(total / count)


def perplexities(model, tokenizer, *, count: int, tag: str = "held-out") -> dict[str, float]:
    """Returns the perplexity of every domain."""
    return {
        domain: round(perplexity(model, tokenizer, held_out(domain, count, tokenizer, tag=tag)), 3)
        for domain in DOMAINS
    }


def distinct_words(texts: Iterable[str]) -> int:
    """Counts the different words, upper and lower case alike."""
    found: set[str] = set()
    for text in texts:
        found.update(re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower()))
    return len(found)


@torch.no_grad()
def first_token_labels(model, tokenizer, pairs: Iterable[dict]) -> dict[str, float]:
    """Compares the first tokens of text pairs: accuracy, and mean probability of the chosen one."""
    right, total, count = 0, 0.0, 0
    for pair in pairs:
        ids = tokenizer(pair["prompt"], return_tensors="pt")["input_ids"]
        probabilities = model(input_ids=ids).logits[0, -1].softmax(-1)
        chosen, rejected = (
            probabilities[tokenizer(pair[side])["input_ids"][0]].item()
            for side in ("chosen", "rejected")
        )
        right, total, count = right + (chosen > rejected), total + chosen, count + 1
    return {"accuracy": round(right / count, 4), "chosen_probability": round(total / count, 4)}


@torch.no_grad()
def samples(model, tokenizer, *, seed: int, per_prompt: int = 2) -> list[dict[str, str]]:
    """Draws the first completions of fixed prompts at temperature 0.8, with nothing picked out."""
    torch.manual_seed(seed)
    drawn = []
    for prompt in SAMPLE_PROMPTS:
        text = prompt
        if not isinstance(prompt, str):
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text.rstrip(" "), return_tensors="pt", return_token_type_ids=False)
        for _ in range(per_prompt):
            made = model.generate(**inputs, do_sample=True, temperature=0.8, max_new_tokens=120)
            new = made[0, inputs["input_ids"].shape[1] :]
            completion = tokenizer.decode(new, skip_special_tokens=True)
            drawn.append({"prompt": text.rstrip(" "), "completion": completion})
    return drawn
