"""A trajectory in a folder: JSON, Parquet and safetensors, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from toolkit.model._checkpoints import first_line

FORMAT = 1
HEAD, ARRAYS = "trajectory.json", ("logps", "predicted", "ref_logps", "losses", "kl", "in_batch")


def save(trajectory, folder: Path) -> Path:
    """Write to a folder beside the target, then put it in its place."""
    if folder.exists() and not (folder / HEAD).is_file() and _content(folder):
        raise ValueError(f"folder {str(folder)!r} holds something else: give a new or empty one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        whole = Path(scratch) / "new"
        _write(trajectory, whole)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        os.replace(whole, folder)
    return folder


def load(folder: Path) -> dict[str, object]:
    """Return the fields of a saved trajectory."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file as load_arrays
    from safetensors.torch import load_file as load_weights

    if not (folder / HEAD).is_file():
        raise ValueError(f"folder {str(folder)!r} holds no trajectory: there is no {HEAD}")
    try:
        head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        if head["format"] != FORMAT:
            raise ValueError(f"it has format {head['format']}, this version reads {FORMAT}")
        arrays = load_arrays(folder / "numbers.safetensors")
        files = {step: folder / _weights_file(step) for step in head["checkpoints"]}
        return {
            "axis": pd.read_parquet(folder / "tokens.parquet"),
            "steps": _listed(pd.read_parquet(folder / "steps.parquet")),
            **{name: arrays[name] for name in ARRAYS},
            "settings": head["settings"],
            "checkpoints": {step: load_weights(path) for step, path in files.items()},
            "stopped": head["stopped"],
        }
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"cannot load {str(folder)!r}: {first_line(error)}") from error


def _write(trajectory, folder: Path) -> None:
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file as save_weights

    folder.mkdir()
    head = {
        "format": FORMAT,
        "settings": dict(trajectory.settings),
        "stopped": trajectory.stopped,
        "checkpoints": sorted(trajectory.checkpoints),
    }
    text = json.dumps(head, indent=2, ensure_ascii=False, default=str)
    (folder / HEAD).write_text(text, encoding="utf-8")
    arrays = {name: np.ascontiguousarray(getattr(trajectory, name)) for name in ARRAYS}
    save_arrays(arrays, folder / "numbers.safetensors")
    trajectory.axis.to_parquet(folder / "tokens.parquet")
    trajectory.steps.to_parquet(folder / "steps.parquet")
    for step, weights in trajectory.checkpoints.items():
        content = {name: values.contiguous() for name, values in weights.items()}
        save_weights(content, folder / _weights_file(step))


def _listed(steps: pd.DataFrame) -> pd.DataFrame:
    steps["batch_ids"] = [list(ids) for ids in steps["batch_ids"]]
    return steps


def _weights_file(step: int) -> str:
    return f"weights_{step:06d}.safetensors"


def _content(folder: Path) -> bool:
    return not folder.is_dir() or any(folder.iterdir())
