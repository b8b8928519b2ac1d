"""Which models can be measured, how long their input may be, and which tokens they can score."""

from __future__ import annotations

from torch import Tensor


def refuse_unsupported(model, argument: str) -> None:
    """Refuse a model that is no decoder-only causal LM with an output embedding."""
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{argument}: {name} is an encoder-decoder; a decoder-only LM is needed")
    if _sees_the_future(getattr(model, "config", None)):
        raise ValueError(
            f"{argument}: {name} lets a token see those after it; a decoder-only LM is needed"
        )
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise ValueError(
            f"{argument}: {name} has no output embedding; load it with AutoModelForCausalLM"
        )


def refuse_other_vocabulary(model, ref_model) -> None:
    """Refuse a reference that scores another number of tokens."""
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (model, ref_model)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"ref_model scores {sizes[1]} tokens but the model scores {sizes[0]}: both must use "
            "the same tokenizer"
        )


def longrope_starts(config) -> list[int]:
    """Return the lengths at which a model's longrope embeddings turn to their long factors."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
    kinds = [kind for kind in by_layer if kind.get("rope_type") == "longrope"]
    default = getattr(config, "original_max_position_embeddings", None)
    return [kind.get("original_max_position_embeddings", default) for kind in kinds]


def why_unusable(ids: Tensor, mask: Tensor, limit: int | None, vocabulary: int) -> str | None:
    """Say why already encoded tokens cannot be scored; ``None`` where they can."""
    if ids.shape != mask.shape or not mask.any():
        return "the mask must have the shape of the ids and mark at least one scored token"
    if mask[0]:
        return "the first token is scored, but nothing before it predicts it"
    if limit and len(ids) > limit:
        return f"{len(ids)} tokens, but the limit is {limit}"
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        return f"a token id is outside the model's vocabulary of {vocabulary}"
    return None


def _sees_the_future(config) -> bool:
    """Whether this is an encoder (such as BERT) that was not configured as a decoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    causal = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    return getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not causal
