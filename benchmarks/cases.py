"""The models and batches that are measured: shapes of known models with random weights."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from toolkit import EncodedPair

CONFIGS = {
    "gpt2": GPT2Config,  # tied, Conv1D: GPT-2 small itself
    "llama": lambda: LlamaConfig(  # untied, grouped-query attention
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
    "qwen2": lambda: Qwen2Config(  # tied, biases on q, k and v
        vocab_size=50000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=True,
    ),
}
# Tokens of the prompt, tokens of each completion, pairs in the batch.
LENGTHS = {"64+64": (64, 64, 2), "256+256": (256, 256, 1), "512+16": (512, 16, 1)}


def model(name: str) -> torch.nn.Module:
    """Return the model with random weights, in evaluation mode, float32."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


def batch(model: torch.nn.Module, lengths: str) -> list[EncodedPair]:
    """Return random pairs of these lengths."""
    prompt, completion, pairs = LENGTHS[lengths]
    generator = torch.Generator().manual_seed(1)
    size = model.config.vocab_size

    def side(start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.cat([start, torch.randint(size, (completion,), generator=generator)])
        return ids, torch.arange(len(ids)) >= prompt

    found = []
    for i in range(pairs):
        start = torch.randint(size, (prompt,), generator=generator)
        found.append(
            EncodedPair(str(i), *side(start), *side(start), append_eos=False, boundary_merge=False)
        )
    return found
