"""Reading weights and tokenizers: safetensors from a folder or the hub, adapters, dtype, device."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")


def load_causal_lm(path, dtype):
    from transformers import AutoModelForCausalLM

    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"a model is given by name or folder, received {type(path).__name__}")
    folder = Path(path)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"the folder {folder} holds an adapter, not a model: load its base model and give the "
            "folder as adapter="
        )
    if folder.is_dir() and not any(f for glob in WEIGHT_FILES for f in folder.glob(glob)):
        raise ValueError(
            f"the folder {folder} holds no weights: expected *.safetensors (other formats can "
            "run code when they are read; convert them with save_pretrained)"
        )
    if not folder.is_dir() and _looks_like_a_path(path):
        raise ValueError(f"no model folder at {str(path)!r}")
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"cannot load {str(path)!r}: {first_line(error)}") from error
    if info["missing_keys"]:
        raise ValueError(
            f"{str(path)!r} is no complete causal LM: its weights hold no "
            f"{sorted(info['missing_keys'])[0]}, which would be random"
        )
    return model


@contextlib.contextmanager
def quiet():
    """Keep transformers from drawing a bar for weights that load in a blink."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_tokenizer(path):
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"no tokenizer found for {str(path)!r}: {first_line(error)}") from None
    # Without its files, a tokenizer class of some models is built empty rather than refused.
    if tokenizer.vocab_size == 0:
        raise ValueError(f"no tokenizer found for {str(path)!r}: its vocabulary is empty")
    return tokenizer


def _looks_like_a_path(path) -> bool:
    text = os.fspath(path)
    return text.startswith((".", "/", "~")) or text.count("/") > 1


def with_adapter(model, adapter):
    try:
        from peft import PeftModel
    except ImportError:
        raise ImportError(
            'adapter= needs peft: pip install "preference-entanglement-toolkit[peft]"'
        ) from None
    try:
        if not Path(adapter).is_dir() and _looks_like_a_path(adapter):
            raise ValueError("there is no such folder")
        folder = adapter if Path(adapter).is_dir() else _adapter_from_hub(adapter)
        if not (Path(folder) / "adapter_model.safetensors").is_file():
            raise ValueError("it holds no adapter_model.safetensors, the only format that is read")
        return PeftModel.from_pretrained(model, folder, is_trainable=True)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"cannot load adapter {str(adapter)!r}: {first_line(error)}") from error


def _adapter_from_hub(adapter) -> str:
    """Fetch safetensors alone: peft itself would fall back to a pickle."""
    from huggingface_hub import snapshot_download

    patterns = ["adapter_config.json", "adapter_model.safetensors"]
    return snapshot_download(os.fspath(adapter), allow_patterns=patterns)


def to_dtype(dtype):
    if dtype == "auto":
        return dtype
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r} is unknown; allowed: 'auto', 'float32', 'float64', 'bfloat16', "
            "'float16' or a floating-point torch.dtype"
        )
    return found


def to_device(device) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={device!r} cannot be used: {first_line(error)}") from None
    if found.type == "meta":
        raise ValueError("device='meta' cannot be used: it holds no values")
    return found


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
