"""A trajectory in a folder: JSON, Parquet and safetensors, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from toolkit.checks import one_line

FORMAT = 2
HEAD, NUMBERS = "trajectory.json", "numbers.safetensors"
TOKENS, STEPS = "tokens.parquet", "steps.parquet"
ARRAYS = ("logps", "predicted", "ref_logps", "losses", "kl", "in_batch")
OPTIONAL = ("step_forces", "step_pulls")


def save(trajectory, folder: Path) -> Path:
    """Write to a folder beside the target, then put it in its place."""
    _refuse_foreign(folder, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        whole, old = Path(scratch) / "new", Path(scratch) / "old"
        _write(trajectory, whole)
        if folder.exists():
            os.replace(folder, old)
        try:
            _refuse_foreign(old, folder)  # something may have come since
            os.replace(whole, folder)
        except BaseException:
            if old.exists():
                os.replace(old, folder)
            raise
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
        arrays = load_arrays(folder / NUMBERS)
        files = {step: folder / _weights_file(step) for step in head["checkpoints"]}
        return {
            "axis": pd.read_parquet(folder / TOKENS),
            "steps": _listed(pd.read_parquet(folder / STEPS)),
            **{name: arrays[name] for name in ARRAYS},
            "settings": head["settings"],
            "checkpoints": {step: load_weights(path) for step, path in files.items()},
            "stopped": head["stopped"],
            "divergence": head.get("divergence"),
            **{name: arrays.get(name) for name in OPTIONAL},
            "train_ids": head.get("train_ids", []),
        }
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ValueError(f"cannot load {str(folder)!r}: {one_line(error)}") from error


def _write(trajectory, folder: Path) -> None:
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file as save_weights

    folder.mkdir()
    head = {
        "format": FORMAT,
        "settings": dict(trajectory.settings),
        "stopped": trajectory.stopped,
        "divergence": trajectory.divergence and asdict(trajectory.divergence),
        "checkpoints": sorted(trajectory.checkpoints),
        "train_ids": list(trajectory.train_ids),
    }
    text = json.dumps(head, indent=2, ensure_ascii=False, default=str)
    (folder / HEAD).write_text(text, encoding="utf-8")
    arrays = {name: getattr(trajectory, name) for name in (*ARRAYS, *OPTIONAL)}
    kept = {name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}
    save_arrays(kept, folder / NUMBERS)
    trajectory.axis.to_parquet(folder / TOKENS)
    trajectory.steps.to_parquet(folder / STEPS)
    for step, weights in trajectory.checkpoints.items():
        content = {name: values.contiguous() for name, values in weights.items()}
        save_weights(content, folder / _weights_file(step))


def _listed(steps: pd.DataFrame) -> pd.DataFrame:
    steps["batch_ids"] = [list(ids) for ids in steps["batch_ids"]]
    return steps


def _weights_file(step: int) -> str:
    return f"weights_{step:06d}.safetensors"


def _refuse_foreign(folder: Path, name: Path) -> None:
    """Refuse to replace what was not written by ``save``; ``name`` is what the user calls it."""
    if not folder.exists():
        return
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    foreign = sorted(found - _written(folder))
    if foreign:
        raise ValueError(
            f"folder {str(name)!r} holds something else, {foreign[0]!r}: give a new or empty one"
        )


def _written(folder: Path) -> set[str]:
    """Names of the files that the folder's own head says were written with it."""
    try:
        head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        return {HEAD, NUMBERS, TOKENS, STEPS, *map(_weights_file, head["checkpoints"])}
    except (OSError, KeyError, TypeError, ValueError):
        return set()
