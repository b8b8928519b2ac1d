"""Reading weights and tokenizers: safetensors from a folder or the hub, adapters, dtype, device."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import torch

from toolkit.checks import shown
from toolkit.extras import require
from toolkit.hub import hub_folder

WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*")
MODEL_FILES = (
    *("*.json", "model.safetensors", "model-*.safetensors"),
    *(*TOKENIZER_FILES, "*.jinja", "merges.txt"),
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def model_folder(name_or_path) -> Path:
    """Return the folder of a model, fetched from the hub where it is no local one."""
    if not isinstance(name_or_path, str | os.PathLike):
        raise ValueError(
            f"a model is given by name or folder, received {type(name_or_path).__name__}"
        )
    path = Path(name_or_path)
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        return path
    if os.path.exists(path):
        raise ValueError(f"{str(path)!r} is a file; a model is given by its folder or hub name")
    if _looks_like_a_path(name_or_path):
        raise ValueError(f"no model folder at {os.fspath(name_or_path)!r}")
    return hub_folder(os.fspath(name_or_path), MODEL_FILES)


def load_causal_lm(folder: Path, name_or_path, dtype):
    """Return the causal LM in a folder, every weight of it; messages call it by its own name."""
    from transformers import AutoModelForCausalLM

    _refuse_other_weights(folder)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # a config can be wrong in as many ways as there are classes
        raise ValueError(f"cannot load {str(name_or_path)!r}: {first_line(error)}") from error
    if info["missing_keys"]:
        raise ValueError(
            f"{str(name_or_path)!r} is no complete causal LM: its weights hold no "
            f"{sorted(info['missing_keys'])[0]}, which would be random"
        )
    left = _left_out(model, info["unexpected_keys"])
    if left:
        raise ValueError(
            f"{str(name_or_path)!r}: its weights hold {left}, for which its config has no layer: "
            "config.json belongs to a smaller model"
        )
    model.name_or_path = str(name_or_path)
    return model


def _refuse_other_weights(folder: Path) -> None:
    """Refuse a folder whose weights are no safetensors, also where only an index names them."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"the folder {folder} holds an adapter, not a model: load its base model and give the "
            "folder as adapter="
        )
    if not any(f for glob in WEIGHT_FILES for f in folder.glob(glob)):
        raise ValueError(
            f"the folder {folder} holds no weights: expected *.safetensors (other formats can "
            "run code when they are read; convert them with save_pretrained)"
        )
    for index in folder.glob("*.index.json"):
        try:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            wrong = next((f for f in files if not str(f).endswith(".safetensors")), None)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"the index {index} cannot be read: {first_line(error)}") from None
        if wrong is not None and "safetensors" in index.name:
            raise ValueError(
                f"the index {index} names {wrong!r}; only .safetensors files are read (other "
                "formats can run code when they are read)"
            )


def _left_out(model, unexpected) -> str | None:
    """A weight of a numbered layer that the model would have, were there one more of its kind."""

    def unnumbered(name: str) -> str:
        return re.sub(r"\.\d+\.", ".#.", name)

    own = {unnumbered(name) for name in model.state_dict()}
    same = (n for n in sorted(unexpected) if "." in n and unnumbered(n) != n)
    return next((n for n in same if unnumbered(n) in own), None)


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


def load_tokenizer(folder: Path, name_or_path):
    """Return the tokenizer in a model's folder; messages call it by the model's own name."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # tokenizer files fail in as many ways as there are formats
        raise ValueError(
            f"no tokenizer found for {str(name_or_path)!r}: {first_line(error)}"
        ) from None
    # Without its files, a tokenizer class of some models is built empty rather than refused.
    if tokenizer.vocab_size == 0:
        raise ValueError(f"no tokenizer found for {str(name_or_path)!r}: its vocabulary is empty")
    return tokenizer


def tokenizer_if_any(folder: Path, name_or_path):
    """Return the tokenizer saved with a model, or ``None`` where there is none."""
    saved = any(f for glob in TOKENIZER_FILES for f in folder.glob(glob))
    return load_tokenizer(folder, name_or_path) if saved else None


def same_tokens(tokenizer, other) -> None:
    """Refuse a reference whose tokenizer gives other ids; one without a tokenizer is taken on."""
    if other is None:
        return
    own, others = tokenizer.get_vocab(), other.get_vocab()
    differ = next((t for t in own if others.get(t) != own[t]), None)
    differ = next((t for t in others if t not in own), None) if differ is None else differ
    if differ is not None:
        raise ValueError(
            f"ref: its tokenizer differs from the model's, first at token {differ!r} (id "
            f"{own.get(differ)} in the model, {others.get(differ)} in the reference): their "
            "log-probabilities would be of different texts"
        )


def _looks_like_a_path(path) -> bool:
    text = os.fspath(path)
    return text.startswith((".", "/", "~")) or text.count("/") > 1


def with_adapter(model, adapter):
    require("peft", "adapter=", "peft")
    from peft import PeftModel

    try:
        if not Path(adapter).is_dir() and _looks_like_a_path(adapter):
            raise ValueError("there is no such folder")
        known = Path(adapter).is_dir()
        folder = Path(adapter) if known else hub_folder(os.fspath(adapter), ADAPTER_FILES)
        if not (folder / "adapter_model.safetensors").is_file():
            raise ValueError("it holds no adapter_model.safetensors, the only format that is read")
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
        _refuse_other_matrices(adapted, folder / "adapter_model.safetensors")
        return adapted
    except Exception as error:  # peft has no class of its own for a bad config
        raise ValueError(f"cannot load adapter {str(adapter)!r}: {first_line(error)}") from error


def _refuse_other_matrices(adapted, file: Path) -> None:
    """Refuse an adapter file that holds fewer or other matrices than its config asks for."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    with safe_open(file, "pt") as weights:
        found = set(weights.keys())
    # peft renames the keys of some methods as it reads them: only lora's are its own.
    lora = {name for name in wanted if "lora_" in name}
    missing = sorted(lora - found)
    if missing:
        raise ValueError(
            f"its weights hold no {missing[0]} ({len(missing)} of {len(lora)} missing)"
        )
    extra = sorted(n for n in found - wanted if "lora_" in n) if lora else []
    if extra:
        raise ValueError(f"its weights hold {extra[0]}, for which the model has no place")


def to_dtype(dtype):
    if isinstance(dtype, str) and dtype == "auto":
        return dtype
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype={shown(dtype)} is unknown; allowed: 'auto', 'float32', 'float64', 'bfloat16', "
            "'float16' or a floating-point torch.dtype"
        )
    return found


def to_device(device) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device={shown(device)} cannot be used: {first_line(error)}") from None
    if found.type == "meta":
        raise ValueError("device='meta' cannot be used: it holds no values")
    return found


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
