"""Small random models of the shapes that matter, and encoded pairs for them."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from toolkit import EncodedPair, Policy

VOCAB = 61
PLAIN = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BASE = {**PLAIN, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    # Tied embeddings, Conv1D, learned positions, LayerNorm with biases.
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=24, n_layer=2, n_head=2, pad_token_id=0
    ),
    # Untied, grouped-query attention, RMSNorm.
    "llama": lambda: LlamaConfig(**PLAIN, tie_word_embeddings=False),
    # Tied, biases on q, k and v.
    "qwen2": lambda: Qwen2Config(**PLAIN, tie_word_embeddings=True),
}
# Shapes that bend a rule: scaled embeddings, soft-capping, norms inside heads, fused experts and a
# router, position embeddings with an offset.
ODD_CONFIGS = {
    "gemma": lambda: GemmaConfig(**BASE, head_dim=8),
    "gemma2": lambda: Gemma2Config(**BASE, head_dim=8, sliding_window=32),
    "qwen3": lambda: Qwen3Config(**BASE, head_dim=8),
    "mixtral": lambda: MixtralConfig(
        **BASE, num_local_experts=3, num_experts_per_tok=2, experts_implementation="eager"
    ),
    "opt": lambda: OPTConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        ffn_dim=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=24,
    ),
}


class Letters:
    """A stand-in tokenizer for pairs that are already encoded: it only turns ids into text."""

    eos_token_id = 0

    def decode(self, ids, **_):
        return "".join(f"<{int(i)}>" for i in ids)


def built(config, dtype=torch.float64, seed: int = 0):
    """A random model with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config).to(torch.float64)
    with torch.no_grad():
        for p in made.parameters():
            p.add_((0.15 if p.dim() > 1 else 0.1) * torch.randn_like(p))
    made.tie_weights()
    return made.to(dtype)


def model(shape: str, dtype=torch.float64, seed: int = 0):
    """A random model of one of the shapes above."""
    return built({**CONFIGS, **ODD_CONFIGS}[shape](), dtype, seed)


def policy(shape: str, dtype=torch.float64, seed: int = 0, **options) -> Policy:
    """A policy around :func:`model`."""
    return Policy(model(shape, dtype, seed), Letters(), name=shape, **options)


def encoded(name: str, prompt, chosen, rejected) -> EncodedPair:
    """An encoded pair from three lists of token ids."""

    def side(completion):
        ids = torch.tensor([*prompt, *completion])
        return ids, torch.arange(len(ids)) >= len(prompt)

    return EncodedPair(name, *side(chosen), *side(rejected), append_eos=False, boundary_merge=False)


def swapped(pair: EncodedPair) -> EncodedPair:
    """The pair with chosen and rejected in each other's place."""
    chosen, rejected = (pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask)
    flags = {"append_eos": pair.append_eos, "boundary_merge": pair.boundary_merge}
    return EncodedPair(f"{pair.id} swapped", *rejected, *chosen, **flags)


def ragged_pairs() -> list[EncodedPair]:
    """Pairs of uneven lengths, with shared prefixes and suffixes and id 0 (padding) in the text."""
    return [
        encoded("suffix", [5, 9, 3], [11, 7, 8, 2], [12, 7, 8, 2]),
        encoded("prefix", [4, 4, 0, 6, 1], [20, 21, 22, 0], [20, 21, 23, 0]),
        encoded("long", [3], list(range(10, 22)), [40, 0, 41]),
        encoded("single", [8, 2, 7, 7], [30], [31]),
        encoded("pad", [0, 0], [0, 5, 0], [0, 6]),
    ]


def pad_with(monkeypatch, value: int) -> None:
    """Make every padded batch of token ids use another padding id."""
    pad = torch.nn.utils.rnn.pad_sequence

    def padded(rows, *_, **__):
        return pad(rows, True, float(value) if rows[0].dtype == torch.long else 0.0)

    monkeypatch.setattr(torch.nn.utils.rnn, "pad_sequence", padded)
