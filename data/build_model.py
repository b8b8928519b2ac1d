"""Builds the tokenizer and the tiny model from generated text: `python data/build_model.py`."""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from build_pairs import STANCE_KINDS, sentiment_pairs, stance_pairs, tuning_responses
from evaluation import distinct_words, first_token_labels, held_out, perplexities, samples
from formats import tuning_example
from language import DOMAINS, document
from model_card import measured_section, replace_section
from safetensors.torch import save_file
from training import VOCABULARY, mixed_batches, new_model, pretrain, render, train_tokenizer, tune
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
SEED = 20260
TOKENIZER_DOCUMENTS = 12_000
STEPS, BATCH_TOKENS, LEARNING_RATE = 3000, 1536, 6e-3
TUNING_EXAMPLES, REPLAYED, TUNING_BATCH, TUNING_RATE = 3600, 1200, 16, 6e-4
HELD_OUT = 150
MAX_BYTES = 10_000_000


def training_texts(tokenizer, count: int | None = None):
    """Yields the rendered training documents, endlessly or `count` of them."""
    index = 0
    while count is None or index < count:
        yield render(document(f"train-{index}")[1], tokenizer)
        index += 1


def build_tokenizer():
    """Trains the tokenizer on plain text: training documents, and prompts with responses."""
    found = [document(f"train-{index}")[1] for index in range(TOKENIZER_DOCUMENTS)]
    for index in range(TOKENIZER_DOCUMENTS // 4):
        prompt, response = tuning_example(f"tokenizer-{index}")
        found.append(prompt + response if isinstance(prompt, str) else prompt)
    return train_tokenizer(
        doc if isinstance(doc, str) else "\n".join(turn["content"] for turn in doc) for doc in found
    )


def build_pretrained(threads: int):
    """Trains tokenizer and model on the generated documents; returns both and what was measured."""
    start = time.monotonic()
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, SEED)
    seen: set[str] = set()

    def token_lists():
        for text in training_texts(tokenizer):
            seen.add(text)
            yield tokenizer(text)["input_ids"]

    batches = mixed_batches(token_lists(), tokenizer.eos_token_id, BATCH_TOKENS)
    measured = pretrain(model, batches, steps=STEPS, lr=LEARNING_RATE)
    unseen = [text for domain in DOMAINS for text in held_out(domain, HELD_OUT, tokenizer)]
    generation_defaults(model, tokenizer)
    metrics = {
        "seed": SEED,
        "threads": threads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": VOCABULARY,
        "counted_documents": TOKENIZER_DOCUMENTS,
        "distinct_words": distinct_words(training_texts(tokenizer, TOKENIZER_DOCUMENTS)),
        "pretraining": measured,
        "pretrained_perplexity": perplexities(model, tokenizer, count=HELD_OUT),
        "held_out_repeated": sum(text in seen for text in unseen),
        "pretraining_seconds": round(time.monotonic() - start),
    }
    return model, tokenizer, metrics


def tuning_set(tokenizer) -> list:
    """Returns the chosen responses of the pairs, more of their formats, and new documents.

    The documents have no prompt; they keep what pretraining taught.
    """
    examples = tuning_responses()
    shipped = {str(prompt) for prompt, _ in examples}
    more = (tuning_example(f"tune-{index}") for index in range(TUNING_EXAMPLES))
    examples += [example for example in more if str(example[0]) not in shipped]
    for index in range(REPLAYED):
        examples.append(("", render(document(f"replay-{index}")[1], tokenizer)))
    return examples


def generation_defaults(model, tokenizer) -> None:
    """Makes `generate` stop at the end of a text or of a turn."""
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def save_whole(model, tokenizer, folder: Path, metrics: dict | None = None) -> None:
    """Writes the folder whole or not at all, the weights as float16 in safetensors."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as room:
        draft = Path(room) / "model"
        model.config.dtype = torch.float32
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(draft)
        model.generation_config.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        weights = {name: w.half().contiguous() for name, w in model.state_dict().items()}
        save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
        if metrics is not None:
            text = json.dumps(metrics, indent=1, ensure_ascii=False) + "\n"
            (draft / "metrics.json").write_text(text, encoding="utf-8")
        for file in draft.iterdir():
            file.chmod(0o644)
        size = sum(file.stat().st_size for file in draft.iterdir())
        if size > MAX_BYTES:
            raise ValueError(f"the model folder has {size} bytes, allowed are {MAX_BYTES}")
        if folder.exists():
            os.rename(folder, Path(room) / "old")
        os.rename(draft, folder)


def load(folder: Path):
    """Loads model and tokenizer as users do, so that what is measured is what is shipped."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def measure(folder: Path) -> dict:
    """Measures the saved model on unseen documents."""
    model, tokenizer = load(folder)
    stance = {kind: [row for row in stance_pairs() if row["kind"] == kind] for kind in STANCE_KINDS}
    sets = {"single_token": sentiment_pairs("single_token"), **stance}
    return {
        "perplexity": perplexities(model, tokenizer, count=HELD_OUT),
        "held_out_documents": HELD_OUT,
        "labels": {
            name: first_token_labels(model, tokenizer, pairs) for name, pairs in sets.items()
        },
        "samples": samples(model, tokenizer, seed=SEED),
    }


def main() -> None:
    """Runs the whole build, or the tuning alone from a saved pretrained folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "tiny_model")
    parser.add_argument("--pretrained", type=Path, help="tune this folder, skip pretraining")
    parser.add_argument("--keep-pretrained", type=Path, help="also save the model before tuning")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.pretrained:
        model, tokenizer = load(options.pretrained)
        metrics = json.loads((options.pretrained / "metrics.json").read_text())
    else:
        model, tokenizer, metrics = build_pretrained(options.threads)
        if options.keep_pretrained:
            save_whole(model, tokenizer, options.keep_pretrained, metrics)
    start = time.monotonic()
    metrics["tuning"] = tune(
        model, tokenizer, tuning_set(tokenizer), batch=TUNING_BATCH, lr=TUNING_RATE, seed=SEED
    )
    save_whole(model, tokenizer, options.out)
    metrics |= measure(options.out)
    metrics["seconds"] = metrics["pretraining_seconds"] + round(time.monotonic() - start)
    save_whole(model, tokenizer, options.out, metrics)
    replace_section(HERE / "README.md", "measured", measured_section(metrics))
    print(json.dumps({k: v for k, v in metrics.items() if k != "samples"}, indent=1))


if __name__ == "__main__":
    main()
