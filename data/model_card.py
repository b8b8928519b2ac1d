"""Writes the measured parts of data/README.md, such as the metrics of a build."""

import os
from pathlib import Path


def measured_section(metrics: dict) -> str:
    """Returns the numbers and samples of a build as Markdown."""
    pretraining, tuning = metrics["pretraining"], metrics["tuning"]
    before, after = metrics["pretrained_perplexity"], metrics["perplexity"]
    rows = [f"| {domain} | {before[domain]:.2f} | {after[domain]:.2f} |" for domain in after]
    facts = [
        f"- {metrics['parameters']:,} parameters, vocabulary {metrics['vocabulary']:,}, "
        f"seed {metrics['seed']}.",
        f"- {metrics['distinct_words']:,} distinct words in the first "
        f"{metrics['counted_documents']:,} training documents.",
        f"- Pretraining: {pretraining['steps']:,} steps, {pretraining['tokens']:,} tokens, "
        f"{pretraining['seconds'] / 60:.0f} min wall time, "
        f"{pretraining['processor_seconds'] / 60:.0f} min of processor time; "
        f"loss {pretraining['loss']:.3f} nats a token (mean of the last 100 steps).",
        f"- Supervised tuning: {tuning['steps']} steps, {tuning['examples']:,} examples, "
        f"{tuning['seconds'] / 60:.1f} min; loss {tuning['loss']:.3f} nats a response token.",
        f"- Whole build: {metrics['seconds'] / 60:.0f} min with {metrics['threads']} thread(s), "
        "on a machine shared with other work.",
    ]
    labels = metrics["labels"]
    label_rows = [
        f"| {name} | {row['accuracy']:.2f} | {row['chosen_probability']:.2f} |"
        for name, row in labels.items()
    ]
    samples = [
        f"{number}. prompt `{_inline(sample['prompt'])}`\n\n   > {_inline(sample['completion'])}"
        for number, sample in enumerate(metrics["samples"], 1)
    ]
    return "\n".join([
        *facts, "",
        f"Held-out perplexity a token, on {metrics['held_out_documents']} unseen documents a "
        f"domain ({metrics['held_out_repeated']} of them all also occur word for word in "
        "training):", "",
        "| domain | after pretraining | shipped (tuned, float16) |", "|---|---|---|", *rows, "",
        "First response token of the shipped single-token pairs: how often the chosen one is "
        "likelier than the rejected one, and the mean probability of the chosen one:", "",
        "| set | accuracy | mean p(chosen) |", "|---|---|---|", *label_rows, "",
        "Samples: the first two completions of each fixed prompt, temperature 0.8, fixed seed, "
        "nothing picked out, at most 120 tokens:", "",
        *samples,
    ])  # fmt: skip


def _inline(text: str) -> str:
    return text.strip().replace("\n", " ↵ ").replace("`", "'")


def replace_section(readme: Path, name: str, section: str) -> None:
    """Replaces what stands between the two markers of a section of the README."""
    start, stop = f"<!-- {name}: start -->", f"<!-- {name}: stop -->"
    text = readme.read_text(encoding="utf-8")
    head, found, rest = text.partition(start)
    tail = rest.partition(stop)[2]
    if not found or stop not in rest:
        raise ValueError(f"{readme.name} needs the lines {start!r} and {stop!r}")
    part = readme.with_suffix(".part")
    part.write_text(f"{head}{start}\n{section}\n{stop}{tail}", encoding="utf-8")
    os.replace(part, readme)
