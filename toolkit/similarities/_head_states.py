"""The states that a model multiplies by its output embedding, without computing its logits.

Three layouts give the same states at different speed. Which of them are exact for a model is
measured on that model, not looked up by its name: see :func:`layout_for`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from toolkit.model.batching import is_out_of_memory
from toolkit.model.forward import (
    Row,
    evaluation,
    forward_arguments,
    head_inputs,
    one_position,
    padded_ids,
    sequences,
)
from toolkit.pairs import EncodedPair
from toolkit.similarities._packed import States, packed_inputs, unpacked

Layout = Callable[[nn.Module, Sequence[EncodedPair]], list[States]]

# Largest difference of a state, relative to the states' mean size, that is put down to rounding.
# Many norms compute in float32 whatever the weights are, so float64 gets no smaller one.
_ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-4}
_COARSE_ROUNDING = 5e-2
_SHORTEST_PROBE = 64
# How configurations name the longest row, and how far back a token sees.
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
# What a model was measured to be exact with: {model: {(settings, probed length): layout}}.
_measured: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()


def pair_states(model: nn.Module, pairs: Sequence[EncodedPair]) -> list[States]:
    """Return the head's inputs of both responses of every pair, by the fastest exact layout.

    Args:
        model: A causal LM; dropout is off meanwhile.
        pairs: Encoded pairs, computed in one batch where the layout allows it.

    Returns:
        For each pair ``(chosen [length, d], rejected [length, d])``, prompt included.

    Raises:
        ValueError: If the model does not pass one state per token to its output embedding.
    """
    longest = max(len(ids) for enc in pairs for ids in (enc.chosen_ids, enc.rejected_ids))
    return layout_for(model, longest)(model, pairs)


def predicting(enc: EncodedPair, states: States) -> list[Tensor]:
    """Return the states at the position before each scored token of each side, in float64."""
    masks = enc.chosen_mask, enc.rejected_mask
    at = [mask.nonzero().squeeze(-1) - 1 for mask in masks]
    return [h[i.to(h.device)].double() for h, i in zip(states, at, strict=True)]


def layout_for(model: nn.Module, length: int) -> Layout:
    """Return the fastest layout that gives this model's own states for rows up to this length.

    A layout is taken only if, on a probe at least this long, it gives the states of the bare
    sequences. The answer is remembered for the model and serves shorter rows too; where it was not
    the fastest, rows of half the length get a probe of their own, for they may fit a window.
    """
    known = _measured.setdefault(model, {})
    attention = getattr(_config(model), "_attn_implementation", None)
    settings = (model.dtype, str(model.device), attention)
    for (found_under, probed), layout in known.items():
        near = probed < max(2 * length, _SHORTEST_PROBE + 1)
        if found_under == settings and length <= probed and (near or layout is packed):
            return layout
    probed = max(length, min([_SHORTEST_PROBE, *_numbers(model, _LIMITS)]))
    known[settings, probed] = _measure(model, probed)
    return known[settings, probed]


def packed(model: nn.Module, pairs: Sequence[EncodedPair]) -> list[States]:
    """Both responses in one row, the shared part computed once."""
    weight = model.get_input_embeddings().weight
    inputs = packed_inputs(pairs, weight.dtype, weight.device)
    return unpacked(_states(model, **inputs), pairs)


def padded(model: nn.Module, pairs: Sequence[EncodedPair]) -> list[States]:
    """One row per response, padded on the right."""
    states = row_states(model, sequences(pairs))
    return list(zip(states[::2], states[1::2], strict=True))


def alone(model: nn.Module, pairs: Sequence[EncodedPair]) -> list[States]:
    """One forward pass a response, without padding."""
    states = []
    for row in sequences(pairs):
        # Rotary frequencies that grow with the longest row seen are reset by a short one.
        row_states(model, [(row[0][:1], row[1][:1])])
        states += row_states(model, [row])
    return list(zip(states[::2], states[1::2], strict=True))


def row_states(model: nn.Module, rows: Sequence[Row]) -> list[Tensor]:
    """Return the states multiplied by the output embedding, one ``[length, d]`` a row.

    Rows are right-padded; padding is cut off.
    """
    ids = padded_ids(rows).to(model.get_input_embeddings().weight.device)
    states = _states(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    return [found[: len(row[0])] for found, row in zip(states, rows, strict=True)]


def _states(model: nn.Module, **inputs: Tensor) -> Tensor:
    """Run the model and return what its head was given, ``[rows, length, d]``."""
    with evaluation(model), torch.no_grad(), head_inputs(model, one_position) as given:
        model(**inputs, use_cache=False)
    if len(given) != 1 or given[0].shape[:2] != inputs["input_ids"].shape:
        raise ValueError(
            f"{type(model).__name__} does not pass one state per token to its output embedding, "
            "so CHES is not defined for it"
        )
    return given[0]


def _measure(model: nn.Module, length: int) -> Layout:
    """Try the layouts on probes up to this length, fastest first."""
    if _rotary_depends_on_length(model):
        return alone
    probes = _probes(length, model.get_input_embeddings().weight.shape[0])
    expected = [alone(model, pairs) for pairs in probes]
    for layout in (packed, padded):
        if layout is packed and not _may_pack(model, length):
            continue
        try:
            found = [layout(model, pairs) for pairs in probes]
        except Exception as error:  # a model may refuse a layout in any way
            if is_out_of_memory(error):  # which says nothing about the layout
                raise
            continue
        if all(_agree(model, *states) for states in zip(found, expected, strict=True)):
            return layout
    return alone


def _probes(length: int, vocabulary: int) -> list[list[EncodedPair]]:
    """Return two batches: one lopsided pair of this length, and a few small ragged pairs.

    The long response shows whether a window was lost, the short one beside it whether its
    neighbour or its neighbour's length reaches it, and the small batch whether rows do.
    """
    generator = torch.Generator().manual_seed(0)
    prompt = min(5, length - 1)

    def pair(*sizes: int) -> EncodedPair:
        start = torch.randint(vocabulary, (prompt,), generator=generator)
        rows = []
        for size in (min(size, length - prompt) for size in sizes):
            ids = torch.cat([start, torch.randint(vocabulary, (size,), generator=generator)])
            rows += [ids, torch.arange(len(ids)) >= prompt]
        return EncodedPair("probe", *rows, append_eos=False, boundary_merge=False)

    return [[pair(3, length)], [pair(7, 3), pair(2, 4)]]


def _agree(model: nn.Module, found: list[States], expected: list[States]) -> bool:
    close = _ROUNDING.get(model.dtype, _COARSE_ROUNDING)
    for got, want in zip(found, expected, strict=True):
        for a, b in zip(got, want, strict=True):
            off = (a.double() - b.double()).norm(dim=-1).max()
            if not off <= close * b.double().norm(dim=-1).mean():
                return False
    return True


def _may_pack(model: nn.Module, length: int) -> bool:
    """Whether anything in the model's own description speaks against packing.

    The probe alone could miss a window or a mixer whose weights happen to be zero still.
    """
    kinds = set(getattr(_config(model), "layer_types", None) or ())
    return (
        {"attention_mask", "position_ids"} <= forward_arguments(model)
        and kinds <= {"full_attention", "sliding_attention", "chunked_attention"}
        and all(length <= window for window in _numbers(model, _WINDOWS))
    )


def _rotary_depends_on_length(model: nn.Module) -> bool:
    config = _config(model)
    rotary = f"{getattr(config, 'rope_parameters', '')} {getattr(config, 'rope_scaling', '')}"
    return "dynamic" in rotary or "longrope" in rotary


def _numbers(model: nn.Module, names: Sequence[str]) -> list[int]:
    found = (getattr(_config(model), name, None) for name in names)
    return [value for value in found if isinstance(value, int) and value > 0]


def _config(model: nn.Module):
    return model.config.get_text_config()
