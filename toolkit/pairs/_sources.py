"""Where rows come from: shipped sets, files, frames, live data and the hub."""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from toolkit.checks import one_line, shown
from toolkit.extras import require
from toolkit.hub import in_reach, no_answer

from ._files import SUFFIXES, Rows, file_rows, unique_columns
from ._values import RowError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def data_folder() -> Path:
    """Return the repository's `data/` folder beside the package, or what a wheel holds of it."""
    package = Path(__file__).resolve().parents[1]
    data = package.parent / "data"
    return data if (data / "tiny_model").is_dir() else package / "_shipped"


def shipped_names() -> list[str]:
    """Return the names of the shipped sets; `bad_rows` is for tests and opens by path only."""
    return sorted(p.stem for p in data_folder().glob("*.jsonl") if p.stem != "bad_rows")


def read_rows(source: Any, split: str) -> Rows:
    """Return an iterator over the rows of any source that `load_pairs` names."""
    if not isinstance(split, str):
        raise ValueError(f"split: got {shown(split)}; allowed is the name of a split, as text")
    datasets = sys.modules.get("datasets")  # an object of it exists only where it is imported
    if isinstance(source, str):
        source = resolve(source)
        if isinstance(source, str):
            return _from_dataset(_from_hub(source, split))
    if datasets and isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        if split not in source:
            raise ValueError(
                f"split: {shown(split)} is not in this dataset; available: {shown(list(source))}"
            )
        return _from_dataset(source[split])
    if split != "train":
        raise ValueError(
            f"split: {shown(split)} means nothing for this source; only a DatasetDict and a hub id "
            "have splits"
        )
    if isinstance(source, os.PathLike):
        return file_rows(Path(os.path.expanduser(source)))
    if isinstance(source, pd.DataFrame):
        unique_columns(source.columns)
        return enumerate(source.to_dict("records"))
    if isinstance(source, list | tuple):
        return enumerate(source)
    if datasets and isinstance(source, datasets.Dataset | datasets.IterableDataset):
        return _from_dataset(source)
    raise ValueError(
        f"source: got {type(source).__name__}; allowed are a shipped name, a path "
        f"({', '.join(SUFFIXES)}), a DataFrame, a list of dicts, a datasets.Dataset or "
        "DatasetDict, or a hub id 'owner/name'"
    )


def resolve(source: str) -> Path | str:
    """Return the file that a string names, or the string itself where it is a hub id."""
    names = shipped_names()
    if source in names:
        return data_folder() / f"{source}.jsonl"
    path = os.path.expanduser(source)
    if os.path.exists(path):
        return Path(path)
    if source.endswith(SUFFIXES):
        raise ValueError(f"source: no file {source!r}")
    if HUB_ID.fullmatch(source):
        return source
    close = difflib.get_close_matches(source, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shipped = ", ".join(names) or f"none found in {data_folder()}"
    raise ValueError(
        f"source: {shown(source, 200)} is neither a shipped set, nor a file, nor a hub id "
        f"'owner/name'.{hint} Shipped sets: {shipped}"
    )


def _from_hub(name: str, split: str) -> Any:
    require("hub", f"source: {name!r} is not a local file, and reading it from the hub", "datasets")
    import datasets

    if not in_reach(name) and not _cached(datasets.config.HF_DATASETS_CACHE, name):
        raise ValueError(f"source: {no_answer(name)}")
    try:
        return datasets.load_dataset(name, split=split)
    except Exception as error:  # network, authentication, parsing: many unrelated classes
        raise ValueError(
            f"source: cannot load split {split!r} of hub dataset {name!r}: {one_line(error)}"
        ) from error


def _cached(folder: os.PathLike, name: str) -> bool:
    """Whether datasets may have this hub dataset on disk; it spells names its own way."""
    return any(Path(folder).glob(f"{name.split('/')[0]}___*"))


def _from_dataset(dataset: Any) -> Rows:
    row = 0
    try:
        for values in dataset:
            yield row, values
            row += 1
    except Exception as error:  # downloads, decoders and the user's own maps fail in any way
        reason = f"the dataset stops: {row} rows could be read, then: {one_line(error)}"
        yield row, RowError(reason)
