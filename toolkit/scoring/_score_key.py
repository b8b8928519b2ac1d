"""What decides the numbers of a scoring run, as hashes: weights, tokenizer, pairs."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata

import torch
from torch import nn

from toolkit.model import Params, Policy
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair, PreferencePair

FORMAT = 3  # 3: the column pair_id was id
LENGTH = 16  # hexadecimal digits that are kept of a hash


@alone
def run_key(policy: Policy, settings: dict[str, object], params: Params) -> dict[str, object]:
    """Return everything that a score depends on beside the pair: equal keys, equal numbers."""
    model, ref = policy.model, policy.ref_model
    return {
        "format": FORMAT,
        "toolkit": _version(),
        "model weights": weights_hash(model),
        "reference": policy.ref_name if ref is None else weights_hash(ref),
        "parameter set": digest("\n".join(policy.parameters_in(params))),
        "tokenizer": tokenizer_hash(policy.tokenizer),
        "dtype": policy.labels(params).dtype,
        "append_eos": policy.append_eos,
        "context length": policy.context_length,
        "truncation": policy.truncation,
        **settings,
    }


def weights_hash(model: nn.Module) -> str:
    """Hash names, dtypes, shapes and bytes of all weights, one tensor at a time."""
    found = hashlib.sha256(type(model).__name__.encode())
    for name, values in sorted(model.state_dict().items()):
        found.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
        found.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:LENGTH]


def tokenizer_hash(tokenizer) -> str:
    """Hash what turns text into ids: the tokenizer, its special tokens and its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    else:
        content = json.loads(backend.to_str())
        # The last call's padding and truncation, which encoding a pair never uses.
        content = {k: v for k, v in content.items() if k not in ("padding", "truncation")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    return digest([type(tokenizer).__name__, content, special, template])


def row_hash(id: str | None, item: PreferencePair | EncodedPair | str) -> str:
    """Hash one row's content: the pair, or the reason why there is none."""
    if isinstance(item, EncodedPair):
        names = ("chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask")
        return digest([id, *(getattr(item, name).tolist() for name in names)])
    if isinstance(item, PreferencePair):
        return digest([id, item.prompt, item.chosen, item.rejected, item.notes])
    return digest([id, "", item])


def part_hash(rows: list[str]) -> str:
    """Hash the rows of one part."""
    return digest(rows)


def differences(old: dict[str, object], new: dict[str, object]) -> str:
    """Say in words which entries of two keys differ."""
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return "; ".join(f"{name}: was {old.get(name)!r}, is {new.get(name)!r}" for name in names)


def digest(value: object) -> str:
    """Hash a value that JSON can hold."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:LENGTH]


def _version() -> str:
    try:
        return metadata.version("preference-entanglement-toolkit")
    except metadata.PackageNotFoundError:
        return "not installed"
