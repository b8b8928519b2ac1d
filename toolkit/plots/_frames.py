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
_PLURAL = {"pair_id": "pairs", "loss_name": "losses"}
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

    A tidy frame of one pair says it of all rows in ``attrs["first_order"]``.

    Example:
        >>> holds(pd.DataFrame({"first_order": [True, False]})).tolist()
        [True, False]
    """
    if "first_order" in frame:
        return frame["first_order"].to_numpy(bool)
    return np.full(len(frame), bool(frame.attrs.get("first_order", True)))


def _beyond(frame: pd.DataFrame) -> str:
    within = int(holds(frame).sum())
    if within == 0:
        return "beyond first order: read directions, not sizes"
    return f"first order holds for {within:,} of {len(frame):,}: of the others read directions"


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def one_pair(frame: pd.DataFrame, picked) -> pd.DataFrame:
    """The rows of the one pair that a strip shows."""
    ids = list(dict.fromkeys(frame["pair_id"])) if "pair_id" in frame else []
    if picked is None and len(ids) > 1:
        raise ValueError(f"frame holds {len(ids)} pairs; say picked=, one of {ids[:10]}")
    if picked is None:
        return frame
    if picked not in ids:
        raise ValueError(f"picked={picked!r} is not in the frame; its pairs are {ids[:10]}")
    return frame[frame["pair_id"] == picked]


def row_of(frame, picked, name: str = "pair_id") -> int | None:
    """The position of the row whose ``name`` is the picked one."""
    if picked is None:
        return None
    require(frame, name)
    found = np.flatnonzero(frame[name].to_numpy() == picked)
    if not len(found):
        raise ValueError(
            f"picked={picked!r} is not in the frame's {len(frame)} {_PLURAL.get(name, name)}"
        )
    return int(found[0])


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
