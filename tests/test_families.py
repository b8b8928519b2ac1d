"""Model families that bend the layer rules: exact all the same, by whichever way, and labelled."""

import numpy as np
import pytest
import reference
import shapes
import torch
from transformers import (
    BloomConfig,
    CTRLConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Exaone4Config,
    Gemma3TextConfig,
    MiniCPM3Config,
    OlmoConfig,
    Qwen3MoeConfig,
    RwkvConfig,
    xLSTMConfig,
)

import toolkit as tk
from toolkit.gradients import fallback
from toolkit.model.forward import evaluation, sequences

WIDE = {**shapes.BASE, "num_key_value_heads": 4}
LATENT = {
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
SMALL = {"vocab_size": shapes.VOCAB, "hidden_size": 24}
FAMILIES = {
    # Latent attention: linear layers on four dimensions; experts fused into one tensor.
    "minicpm3": lambda: MiniCPM3Config(**WIDE, **LATENT),
    "deepseek_v2": lambda: DeepseekV2Config(
        **WIDE, **LATENT, **MOE, n_routed_experts=4, first_k_dense_replace=1, n_shared_experts=1
    ),
    "deepseek_v3": lambda: DeepseekV3Config(
        **WIDE,
        **LATENT,
        **MOE,
        n_routed_experts=4,
        first_k_dense_replace=1,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
    ),
    # Embeddings scaled in place.
    "ctrl": lambda: CTRLConfig(
        vocab_size=shapes.VOCAB, n_positions=64, n_embd=24, dff=40, n_layer=2, n_head=2
    ),
    # Norms inside heads, before and after the heads change places with the tokens.
    "gemma3": lambda: Gemma3TextConfig(**shapes.BASE, head_dim=8, sliding_window=32),
    "exaone4": lambda: Exaone4Config(**shapes.BASE, sliding_window=32),
    # An activation without a forward derivative.
    "bloom": lambda: BloomConfig(**SMALL, n_layer=2, n_head=2),
    # Norms without weights, projections clipped in place.
    "olmo": lambda: OlmoConfig(**shapes.BASE, clip_qkv=0.5),
    # Experts whose fast kernel has no forward derivative and no float64.
    "qwen3_moe": lambda: Qwen3MoeConfig(**shapes.BASE, **MOE, head_dim=8, num_experts=4),
    "rwkv": lambda: RwkvConfig(**SMALL, num_hidden_layers=2, context_length=64),
    # Norms from heads to their concatenation.
    "xlstm": lambda: xLSTMConfig(
        vocab_size=shapes.VOCAB,
        hidden_size=128,
        num_hidden_layers=2,
        num_heads=2,
        qk_dim_factor=1.0,
        v_dim_factor=1.0,
        chunk_size=8,
    ),
}
# Exponential gates spread rounding: in float64 the same code is within 1e-6.
CLOSE = {("xlstm", torch.float32): 3e-5}


def policy_of(family: str, dtype: torch.dtype) -> tk.Policy:
    model = shapes.built(FAMILIES[family](), dtype)
    if dtype == torch.float64:
        model.config._experts_implementation = "eager"
    return tk.Policy(model, shapes.Letters(), name=family)


def oracle_of(policy: tk.Policy):
    twin = reference.double(policy.model)
    twin.config.use_cache = False
    twin.config._experts_implementation = "eager"
    return twin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exact(family, dtype):
    policy, pair = policy_of(family, dtype), shapes.ragged_pairs()[0]
    experts = policy.model.config._experts_implementation
    chosen, rejected = reference.pair_token_gradients(oracle_of(policy), pair)
    every = torch.cat([chosen, rejected])
    norm, close = every.norm(dim=1), CLOSE.get((family, dtype), 2e-6)

    a, b = chosen.sum(0), rejected.sum(0)
    stats = tk.pair_stats(policy, [pair, pair], progress=False)
    for i in range(2):
        got = [stats.chosen_sq_norm[i], stats.rejected_sq_norm[i], stats.inner[i]]
        size = float(a.norm() * b.norm())
        assert np.abs(np.array(got) - [float(a @ a), float(b @ b), float(a @ b)]).max() <= close * (
            max(size, float(a @ a), float(b @ b))
        )

    tokens, matrix = tk.token_contributions(policy, pair), tk.token_matrix(policy, pair)
    for got, total in ((tokens.with_chosen, a), (tokens.with_rejected, b)):
        error = np.abs(got - (every @ total).numpy())
        assert np.all(error <= close * (norm * total.norm()).numpy())
    error = np.abs(matrix.matrix - (every @ every.T).numpy())
    assert np.all(error <= close * torch.outer(norm, norm).numpy())

    named = dict(policy.model.named_parameters())
    move = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for p in named.values()
    ]
    flat = torch.cat([m.flatten() for m in move]).double()
    with evaluation(policy.model):
        along = fallback.directional_logps(policy.model, sequences([pair]), named, move)
    error = (torch.cat(list(along)).double() - every @ flat).abs()
    assert torch.all(error <= close * norm * flat.norm())
    assert policy.model.config._experts_implementation == experts


def test_labels_say_what_plain_autograd_took():
    moe = policy_of("qwen3_moe", torch.float32)
    pair = shapes.ragged_pairs()[0]
    attrs = tk.pair_stats(moe, pair, progress=False).to_frame().attrs
    assert "experts.gate_up_proj" in attrs["by_autograd"]
    assert "q_proj" not in attrs["by_autograd"]
    dense = shapes.policy("llama", torch.float32)
    assert tk.pair_stats(dense, pair, progress=False).labels.by_autograd == ""
