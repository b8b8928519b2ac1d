"""Loading a policy by name or folder; without a name, the tiny model shipped in ``data/``."""

from __future__ import annotations

import contextlib
import os

import torch

from toolkit.model._checkpoints import (
    load_causal_lm,
    load_tokenizer,
    model_folder,
    quiet,
    same_tokens,
    to_device,
    to_dtype,
    tokenizer_if_any,
    with_adapter,
)
from toolkit.model.policy import Policy
from toolkit.pairs import data_folder

SHIPPED_MODEL = data_folder() / "tiny_model"


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
    folder = model_folder(path)
    with quiet() if name_or_path is None else contextlib.nullcontext():
        model = load_causal_lm(folder, path, torch_dtype).to(where)
    if adapter is not None:
        model = with_adapter(model, adapter)
    tokenizer, ref_model = load_tokenizer(folder, path), None
    if isinstance(ref, Policy):
        ref_model = ref.model
        same_tokens(tokenizer, ref.tokenizer)
    elif ref is not None:
        ref_folder = model_folder(ref)
        ref_model = load_causal_lm(ref_folder, ref, torch_dtype).to(where)
        same_tokens(tokenizer, tokenizer_if_any(ref_folder, ref))
    name = "tiny (shipped)" if name_or_path is None else str(name_or_path)
    return Policy(model, tokenizer, ref_model, name=name)
