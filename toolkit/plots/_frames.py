"""What the views read of a frame: its columns, its rows of one pair, its labels as a caption."""

import numpy as np
import pandas as pd

from toolkit.plots._user_text import visible_token

_LABELS = {
    "model": "{}",
    "params": "parameters: {}",
    "dtype": "{}",
    "append_eos": "EOS appended: {}",
    "truncation": "cut: {}",
    "token_mask": "mask: {}",
    "optimizer_metric": "metric: {}",
    "ref": "reference: {}",
    "loss_name": "loss: {}",
    "lr": "lr: {}",
    "method": "{}",
}
_PLURAL = {"pair_id": "pairs", "loss_name": "losses", "train_pair_id": "training pairs"}
_OF_GRADIENTS = ("params", "optimizer_metric")


def require(frame, *columns: str) -> None:
    """Check that ``frame`` is a DataFrame with rows and with these columns.

    Raises:
        ValueError: naming what is missing, and what was received.

    Example:
        >>> import pandas as pd
        >>> require(pd.DataFrame({"pair_id": ["a"]}), "pair_id")
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"frame must be a pandas DataFrame, got {type(frame).__name__}")
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(f"frame lacks the column(s) {missing}; it has {list(frame.columns)}")
    if frame.empty:
        raise ValueError(f"frame has no rows; it needs at least one with {list(columns)}")


def caption(frame: pd.DataFrame) -> str:
    """One line with the labels that a value means nothing without, from ``frame.attrs``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame(); frame.attrs = {"model": "gpt2", "params": "all"}
        >>> caption(frame)
        'gpt2 · parameters: all'
    """
    attrs = frame.attrs
    texts = {name: _short(value) for name, value in attrs.items() if value not in (None, "")}
    if texts.get("params") == "none":  # no gradient was taken, under any metric
        texts = {name: text for name, text in texts.items() if name not in _OF_GRADIENTS}
    if texts.get("truncation") == "none":
        del texts["truncation"]
    if "append_eos" in texts:
        texts["append_eos"] = "yes" if attrs["append_eos"] else "no"
    parts = [words.format(visible_token(texts[name])) for name, words in _LABELS.items()
             if name in texts]  # fmt: skip
    if not holds(frame).all():
        parts.append(_beyond(frame))
    parts += [f"{name.replace('_', ' ')}: {attrs[name]:.2g}" for name in attrs
              if name.endswith("gap")]  # fmt: skip
    return " · ".join(parts)


def holds(frame: pd.DataFrame) -> np.ndarray:
    """Whether each row's predicted changes are small enough for first order, as far as known.

    Example:
        >>> holds(pd.DataFrame({"first_order": [True, False]})).tolist()
        [True, False]
    """
    if "first_order" in frame:
        return frame["first_order"].to_numpy(bool)
    return np.ones(len(frame), bool)


def _beyond(frame: pd.DataFrame) -> str:
    within = int(holds(frame).sum())
    if within == 0:
        return "beyond first order: read directions, not sizes"
    return f"first order holds for {within:,} of {len(frame):,}: of the others read directions"


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def rows_of(frame, column: str, value, name: str = "picked", *, alone: bool = True):
    """The rows whose ``column`` is ``value``; all where it is None, and ``alone`` if of one value.

    Raises:
        ValueError: for an unknown value, or one that must be said and is not; it lists them.
    """
    known, kind = list(dict.fromkeys(frame[column])), _PLURAL.get(column, f"{column}s")
    if value is None:
        if alone and len(known) > 1:
            raise ValueError(f"frame holds {len(known)} {kind}; say {name}=, one of {known[:10]}")
        return frame
    if value not in known:
        raise ValueError(f"{name}={value!r} is not in the frame; its {kind} are {known[:10]}")
    return frame[frame[column] == value]


def one_pair(frame: pd.DataFrame, picked, name: str = "picked") -> pd.DataFrame:
    """The rows of the one pair that a picture shows."""
    if picked is None and "pair_id" not in frame:
        return frame
    require(frame, "pair_id")
    return rows_of(frame, "pair_id", picked, name)


def probes(frame, picked, name: str = "picked") -> tuple[pd.DataFrame, str]:
    """The rows of a run's probe, or of all of them, and whose they are in words."""
    rows, count = rows_of(frame, "pair_id", picked, name, alone=False), frame["pair_id"].nunique()
    alone = picked is not None or count == 1
    return rows, str(rows["pair_id"].iloc[0]) if alone else f"mean of {count} probes"


def row_of(frame, picked, name: str = "pair_id") -> int | None:
    """The position of the row whose ``name`` is the picked one."""
    if picked is None:
        return None
    require(frame, name)
    rows_of(frame, name, picked)
    return int(np.flatnonzero(frame[name].to_numpy() == picked)[0])


def finite_values(frame, column) -> np.ndarray:
    """The column as floats, NaN where it has no finite value.

    Raises:
        ValueError: for a missing column, no rows, or a column that holds no numbers.
    """
    require(frame, column)
    if not pd.api.types.is_numeric_dtype(frame[column]):
        raise ValueError(f"column {column!r} holds no numbers but {frame[column].dtype}")
    values = frame[column].astype("float64").to_numpy(copy=True)
    values[~np.isfinite(values)] = np.nan
    return values


def flags(frame, column: str, default: bool) -> np.ndarray:
    """The column as truths, or one truth for all where the frame has no such column."""
    return frame[column].to_numpy(bool) if column in frame else np.full(len(frame), default)
