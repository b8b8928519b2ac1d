"""The policy: a causal language model with its tokenizer and its reference."""

from __future__ import annotations

import copy

import torch
from torch import nn

from toolkit.checks import choice, flag, whole
from toolkit.model._support import (
    longrope_starts,
    refuse_other_vocabulary,
    refuse_unsupported,
    why_unusable,
)
from toolkit.model.parameters import Params, select
from toolkit.model.provenance import Provenance
from toolkit.model.reference import has_adapter
from toolkit.model.turns import alone
from toolkit.pairs import TRUNCATIONS, EncodedPair, PairError, PreferencePair, cut_pair, encode


class Policy:
    """A causal language model with its tokenizer and its reference.

    Args:
        model: A Hugging Face causal LM (live object; it is used in place and never changed).
        tokenizer: Its tokenizer.
        ref_model: The reference of the log-ratios. ``None`` means the policy's own weights, or,
            for a PEFT model, its base model with the adapter off.
        name: Shown in labels and captions; default: the model's ``name_or_path`` or class name.
        append_eos: Append and score EOS after plain-text completions, as TRL does.
        max_length: Refuse pairs with more tokens than this; default: the model's context length.
        truncation: Cut such pairs instead: ``"keep_start"`` or ``"keep_end"`` (see ``encode``).

    Raises:
        ValueError: If the model is not a decoder-only causal LM with an output embedding, or the
            reference has another vocabulary size.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> policy.labels("all").dtype
        'float32'
    """

    def __init__(
        self,
        model,
        tokenizer,
        ref_model=None,
        *,
        name=None,
        append_eos=True,
        max_length=None,
        truncation=None,
    ):
        refuse_unsupported(model, "model")
        if ref_model is not None:
            refuse_unsupported(ref_model, "ref_model")
            refuse_other_vocabulary(model, ref_model)
        self.model, self.tokenizer, self.ref_model = model, tokenizer, ref_model
        self.name = name or getattr(model, "name_or_path", "") or type(model).__name__
        self.append_eos, self.max_length, self.truncation = append_eos, max_length, truncation
        _check_options(self)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.model.parameters())
        return (
            f"Policy({self.name!r}, {type(self.model).__name__}, {count:,} parameters, "
            f"{_dtype_name(self.dtype)}, {self.device}, reference: {self.ref_name})"
        )

    @property
    def device(self) -> torch.device:
        """Device of the output embedding, where logits and losses live."""
        return self.model.get_output_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the output embedding."""
        return self.model.get_output_embeddings().weight.dtype

    @property
    def context_length(self) -> int | None:
        """Longest input in tokens (prompt and completion), or ``None`` where it is unbounded.

        The model and its reference both read every pair, so that the shorter context holds.
        Rotary embeddings of the ``longrope`` kind turn to other factors for the whole batch once
        one row is longer than the model was first trained on: up to there alone is a result
        independent of what it is batched with, and longer rows are refused.
        """
        configs = [model.config.get_text_config() for model in self._models]
        own = [getattr(config, "max_position_embeddings", None) for config in configs]
        starts = [start for config in configs for start in longrope_starts(config)]
        limits = [n for n in (*own, *starts, self.max_length) if n]
        return min(limits) if limits else None

    @property
    def vocabulary(self) -> int:
        """Number of token ids that have an embedding, in the model and in its reference."""
        return min(model.get_input_embeddings().weight.shape[0] for model in self._models)

    @property
    def _models(self) -> list[nn.Module]:
        return [model for model in (self.model, self.ref_model) if model is not None]

    @property
    def ref_name(self) -> str:
        """Name of the reference, ``"same weights"`` when the policy is its own reference."""
        if self.ref_model is not None:
            return getattr(self.ref_model, "name_or_path", "") or type(self.ref_model).__name__
        return "base model, adapter off" if has_adapter(self.model) else "same weights"

    def with_options(self, **options) -> Policy:
        """Return a view on the same weights with another EOS policy, length limit or truncation.

        Args:
            **options: ``append_eos``, ``max_length``, ``truncation`` or ``name``, as for the class.

        Raises:
            ValueError: For any other option, or a value that is not allowed.
        """
        allowed = ("append_eos", "max_length", "truncation", "name")
        unknown = set(options) - set(allowed)
        if unknown:
            raise ValueError(
                f"unknown option {sorted(unknown)[0]!r}: allowed are {', '.join(allowed)}"
            )
        view = copy.copy(self)
        vars(view).update(options)
        _check_options(view)
        return view

    def labels(self, params: Params) -> Provenance:
        """Return the provenance of a number measured on this policy with this parameter set."""
        shown = params if isinstance(params, str) else getattr(params, "__name__", "predicate")
        dtype = _dtype_name(self.dtype)
        limit, cut = self.context_length, "none"
        if self.truncation and limit:
            cut = f"{self.truncation}, {limit} tokens"
        known = self.name, shown, dtype, self.append_eos
        return Provenance(*known, ref=self.ref_name, truncation=cut)

    def encode(self, pair: PreferencePair | EncodedPair) -> EncodedPair:
        """Encode one pair with this policy's EOS policy and length limit (see ``toolkit.encode``).

        Raises:
            PairError: If the pair cannot be scored; the message names the row.
        """
        limit = self.context_length
        if isinstance(pair, EncodedPair):
            encoded = cut_pair(pair, limit, self.truncation)
        else:
            options = {"append_eos": self.append_eos, "truncation": self.truncation}
            encoded = encode(pair, self.tokenizer, max_length=limit, **options)
        for side in ("chosen", "rejected"):
            ids, mask = getattr(encoded, f"{side}_ids"), getattr(encoded, f"{side}_mask")
            reason = why_unusable(ids, mask, limit, self.vocabulary)
            if reason:
                raise PairError(
                    f"{side}: {reason}", row=getattr(pair, "row", None), pair_id=pair.id
                )
        return encoded

    @alone
    def parameters_in(self, params: Params) -> dict[str, nn.Parameter]:
        """Return the parameters of a set by name; a tied parameter appears once.

        Args:
            params: ``"all"`` (every trainable parameter), ``"head"`` (the output embedding; with
                tied weights this is the shared matrix), ``"lora"`` (LoRA's A and B), a regular
                expression searched in names, or a predicate ``(name, parameter) -> bool``.

        Raises:
            ValueError: If nothing matches, the expression is malformed, the predicate fails or
                answers with something else than True or False, or a matched parameter is not
                floating point (quantised weights have no gradient).
        """
        return select(self.model, params)


def _check_options(policy: Policy) -> None:
    flag("append_eos", policy.append_eos)
    whole("max_length", policy.max_length, optional=True)
    choice("truncation", policy.truncation, (None, *TRUNCATIONS))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
