"""The policy and its reference: loading, parameter sets, log-probabilities and labels."""

from __future__ import annotations

import contextlib
import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.checks import choice, flag, shown, whole
from toolkit.model._checkpoints import (
    load_causal_lm,
    load_tokenizer,
    quiet,
    same_tokens,
    to_device,
    to_dtype,
    tokenizer_if_any,
    with_adapter,
)
from toolkit.model._forward import Row, evaluation, scored_logps, sequences
from toolkit.model._tokens import token_texts
from toolkit.model.inputs import Skipped, encoded_pairs, skipped_frame
from toolkit.model.turns import alone
from toolkit.pairs import (
    TRUNCATIONS,
    EncodedPair,
    PairError,
    PreferencePair,
    cut_pair,
    encode,
)

SHIPPED_MODEL = Path(__file__).resolve().parents[2] / "data" / "tiny_model"
Params = str | Callable[[str, nn.Parameter], bool]


@dataclass(frozen=True)
class Labels:
    """What a number was measured with; a value without its labels means nothing.

    Attributes:
        model: Name or folder of the model.
        params: The parameter set whose gradients were used (``"all"``, ``"head"``, …).
        dtype: Weight dtype, for example ``"float32"``.
        append_eos: Whether EOS was appended to plain-text completions and scored.
        token_mask: Which completion tokens count (``"all scored tokens"`` unless masked).
        optimizer_metric: The metric of the inner products (``"euclidean"`` is plain SGD).
        ref: The reference model (``"same weights"`` when the policy is its own reference).
        truncation: How pairs that are too long were cut (``"keep_start, 512 tokens"``).
        by_autograd: The parameters whose gradients no layer rule took, but plain autograd, and
            why another way was not taken; empty where the rules took all. Both are exact: two
            labels that differ in this alone are equal.
    """

    model: str
    params: str
    dtype: str
    append_eos: bool
    token_mask: str = "all scored tokens"
    optimizer_metric: str = "euclidean"
    ref: str = "same weights"
    truncation: str = "none"
    by_autograd: str = field(default="", compare=False)

    def to_attrs(self) -> dict[str, object]:
        """Return the labels that say something as a plain dictionary for ``DataFrame.attrs``."""
        return {name: value for name, value in asdict(self).items() if value != ""}


@dataclass(frozen=True)
class PairLogps:
    """Per-token log-probabilities of one pair, in nats.

    Attributes:
        id: The pair's id.
        chosen: Log-probability of each scored chosen token, shape ``[chosen_length]``.
        rejected: The same for the rejected response, shape ``[rejected_length]``.
        ref_chosen: Chosen under the reference model, same shape as ``chosen``.
        ref_rejected: Rejected under the reference model.
        chosen_tokens: Text of each scored chosen token; of several tokens that are pieces of one
            character the first holds it, the others are empty.
        rejected_tokens: The same of the rejected response.
    """

    id: str
    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_tokens: list[str]
    rejected_tokens: list[str]


class ScoredPairs(list[PairLogps]):
    """Log-probabilities of pairs in order, and in `skipped` a frame (row, id, reason) of others.

    Attributes:
        skipped: The pairs that could not be scored, under ``on_error="skip"``.
    """

    def __init__(self, found: Iterable[PairLogps], left_out: Skipped = ()) -> None:
        super().__init__(found)
        self.skipped = skipped_frame(left_out)


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
        _refuse_unsupported(model, "model")
        if ref_model is not None:
            _refuse_unsupported(ref_model, "ref_model")
            _same_vocabulary(model, ref_model)
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
        starts = [start for config in configs for start in _longrope_starts(config)]
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
        return "base model, adapter off" if _has_adapter(self.model) else "same weights"

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

    def labels(self, params: Params) -> Labels:
        """Return the labels of a number measured on this policy with this parameter set."""
        shown = params if isinstance(params, str) else getattr(params, "__name__", "predicate")
        dtype = _dtype_name(self.dtype)
        limit, cut = self.context_length, "none"
        if self.truncation and limit:
            cut = f"{self.truncation}, {limit} tokens"
        return Labels(self.name, shown, dtype, self.append_eos, ref=self.ref_name, truncation=cut)

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
            reason = _unusable(ids, mask, limit, self.vocabulary)
            if reason:
                raise PairError(f"{side}: {reason}", row=getattr(pair, "row", None), id=pair.id)
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
        named = dict(self.model.named_parameters())
        predicate = self._predicate(params)
        chosen = {n: p for n, p in named.items() if predicate(n, p)}
        if not chosen:
            some = ", ".join(list(named)[:3])
            raise ValueError(
                f"params={params!r} matches no parameter; allowed: 'all', 'head', 'lora', a "
                f"regular expression on names such as {some}, or a predicate on (name, parameter)"
            )
        for name, p in chosen.items():
            if not p.is_floating_point():
                raise ValueError(f"params: {name} is {p.dtype}; gradients need a float dtype")
        return chosen

    def _predicate(self, params: Params) -> Callable[[str, nn.Parameter], bool]:
        check_params(params)
        if callable(params):
            return lambda name, p: _answer(params, name, p)
        if params == "all":
            return lambda name, p: p.requires_grad
        if params == "head":
            head = {id(p) for p in self.model.get_output_embeddings().parameters()}
            return lambda name, p: id(p) in head
        if params == "lora":
            return lambda name, p: "lora_" in name
        return lambda name, p: re.search(params, name) is not None


def load_model(
    name_or_path: str | os.PathLike | None = None,
    *,
    ref: str | os.PathLike | Policy | None = None,
    adapter: str | os.PathLike | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
) -> Policy:
    """Load any Hugging Face causal LM as a :class:`Policy`.

    Args:
        name_or_path: Hub name or folder; ``None`` loads the tiny model shipped in ``data/``,
            which needs no network.
        ref: Reference model: a name, a folder, or a loaded policy. ``None``: the same weights.
        adapter: Folder or hub name of a PEFT adapter to put on the model (extra ``peft``).
        dtype: ``"auto"`` (the checkpoint's own), ``"float32"``, ``"float64"``, ``"bfloat16"``, or
            a ``torch.dtype``.
        device: ``"cpu"``, ``"cuda"``, …; ``None``: CUDA when present, else CPU.

    Raises:
        ValueError: If there is no such model, the folder holds no safetensors weights, the model
            is not a causal LM, its weights do not fit its config, the reference has another
            tokenizer, or an option is unknown. Only safetensors are read, and code from a model
            repository is never run.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()              # the shipped model, offline
        >>> policy = tk.load_model("gpt2")        # doctest: +SKIP
    """
    path = SHIPPED_MODEL if name_or_path is None else name_or_path
    torch_dtype, where = to_dtype(dtype), to_device(device)
    with quiet() if name_or_path is None else contextlib.nullcontext():
        model = load_causal_lm(path, torch_dtype).to(where)
    if adapter is not None:
        model = with_adapter(model, adapter)
    tokenizer, ref_model = load_tokenizer(path), None
    if isinstance(ref, Policy):
        ref_model = ref.model
        same_tokens(tokenizer, ref.tokenizer)
    elif ref is not None:
        ref_model = load_causal_lm(ref, torch_dtype).to(where)
        same_tokens(tokenizer, tokenizer_if_any(ref))
    name = "tiny (shipped)" if name_or_path is None else str(name_or_path)
    return Policy(model, tokenizer, ref_model, name=name)


def per_token_logps(
    policy: Policy,
    pairs: Sequence[PreferencePair | EncodedPair] | PreferencePair | EncodedPair,
    *,
    batch_size: int | None = None,
    on_error: str = "raise",
) -> ScoredPairs:
    """Return log π(y_t | x, y_<t) of every scored token of both responses, in nats.

    Args:
        policy: The model; the reference is scored too (once, when it has the same weights).
        pairs: Preference pairs, plain or encoded; a single pair is allowed.
        batch_size: Pairs scored at once (default 8). It never changes a result beyond rounding.
        on_error: "raise" stops at the first pair that cannot be scored, before any work; "skip"
            leaves such pairs out and names them in ``.skipped``.

    Returns:
        A list of one :class:`PairLogps` per pair, in order, with ``.skipped``.

    Raises:
        PairError: If a pair cannot be scored; the message names it.
        ValueError: If ``batch_size`` is not a positive integer.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> logps = tk.per_token_logps(policy, tk.load_pairs("single_token", limit=2))
        >>> logps[0].chosen.shape
        torch.Size([2])
    """
    found, results = encoded_pairs(policy, pairs, on_error), []
    for batch in batches(found.pairs, batch_size):
        rows = sequences(batch)
        own, ref = _both_logps(policy, rows)
        for i, enc in enumerate(batch):
            tokens = [token_texts(policy.tokenizer, *row) for row in rows[2 * i : 2 * i + 2]]
            results.append(
                PairLogps(enc.id, *own[2 * i : 2 * i + 2], *ref[2 * i : 2 * i + 2], *tokens)
            )
    return ScoredPairs(results, found.left_out)


@alone
def _both_logps(policy: Policy, rows: Sequence[Row]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the rows' log-probabilities under the policy and under its reference."""
    with evaluation(policy.model), torch.no_grad():
        own = scored_logps(policy.model, rows)
    return own, reference_logps(policy, rows, own)


def reference_logps(policy: Policy, rows: Sequence[Row], own: list[Tensor]) -> list[Tensor]:
    """Return the rows' log-probabilities under the reference; ``own`` where that is the policy."""
    with reference(policy) as ref_model, torch.no_grad():
        return own if ref_model is None else scored_logps(ref_model, rows)


@contextlib.contextmanager
def reference(policy: Policy) -> Iterator[nn.Module | None]:
    """Yield the reference model in evaluation mode, or ``None`` when it is the policy itself."""
    if policy.ref_model is not None:
        with evaluation(policy.ref_model) as ref_model:
            yield ref_model
    elif _has_adapter(policy.model):
        with evaluation(policy.model) as model, _adapter_off(model):
            yield model
    else:
        yield None


@contextlib.contextmanager
def _adapter_off(model) -> Iterator[None]:
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        # On its way out peft makes every adapter weight trainable, frozen ones too.
        for p, flag in flags:
            p.requires_grad_(flag)


def batches(items: Sequence, size: int | None) -> Iterator[Sequence]:
    """Yield consecutive slices of ``size`` items (default 8).

    Raises:
        ValueError: If ``size`` is not a positive integer.
    """
    size = 8 if size is None else size
    whole("batch_size", size)
    for i in range(0, len(items), size):
        yield items[i : i + size]


def _longrope_starts(config) -> list[int]:
    """Lengths at which a model's longrope embeddings turn to their long factors."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = [kind for kind in rope.values() if isinstance(kind, dict)] or [rope]
    kinds = [kind for kind in by_layer if kind.get("rope_type") == "longrope"]
    default = getattr(config, "original_max_position_embeddings", None)
    return [kind.get("original_max_position_embeddings", default) for kind in kinds]


def _has_adapter(model) -> bool:
    return hasattr(model, "disable_adapter")


def _refuse_unsupported(model, argument: str) -> None:
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


def _sees_the_future(config) -> bool:
    """Whether this is an encoder (such as BERT) that was not configured as a decoder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    causal = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    return getattr(config, "model_type", None) in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not causal


def _check_options(policy: Policy) -> None:
    flag("append_eos", policy.append_eos)
    whole("max_length", policy.max_length, optional=True)
    choice("truncation", policy.truncation, (None, *TRUNCATIONS))


def _answer(predicate: Callable, name: str, p: nn.Parameter) -> bool:
    """Ask a user's predicate about one parameter.

    Raises:
        ValueError: If it fails, or its answer is neither True nor False.
    """
    known = getattr(predicate, "__name__", type(predicate).__name__)
    called = f"params: {known}({name!r}, parameter)"
    try:
        found = predicate(name, p)
    except Exception as error:  # it is the caller's code and can fail in any way
        raise ValueError(
            f"{called} failed with {type(error).__name__}: {error}; a predicate takes the name "
            "and the parameter and returns True or False"
        ) from error
    if not isinstance(found, bool):
        raise ValueError(f"{called} must return True or False, received {shown(found)}")
    return found


def check_params(params: Params) -> None:
    """Refuse what is no parameter set of any model (see ``Policy.parameters_in``).

    Raises:
        ValueError: If it is neither a string nor a predicate, or no valid expression.
    """
    if callable(params):
        return
    if not isinstance(params, str):
        raise ValueError(f"params must be a string or a predicate, received {shown(params)}")
    try:
        re.compile(params)
    except re.error as error:
        raise ValueError(f"params={params!r} is not a valid regular expression: {error}") from None


def _unusable(ids: Tensor, mask: Tensor, limit: int | None, vocabulary: int) -> str | None:
    """Why already encoded tokens cannot be scored, or ``None``."""
    if ids.shape != mask.shape or not mask.any():
        return "the mask must have the shape of the ids and mark at least one scored token"
    if mask[0]:
        return "the first token is scored, but nothing before it predicts it"
    if limit and len(ids) > limit:
        return f"{len(ids)} tokens, but the limit is {limit}"
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        return f"a token id is outside the model's vocabulary of {vocabulary}"
    return None


def _same_vocabulary(model, ref_model) -> None:
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (model, ref_model)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"ref_model scores {sizes[1]} tokens but the model scores {sizes[0]}: both must use "
            "the same tokenizer"
        )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
