"""The token × token heatmap of gradient products."""

import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator

from toolkit.plots._figure import axes_of, color_bar, column_words, drawable, families, finish
from toolkit.plots._frames import require
from toolkit.plots._numbers import largest, positive, short_number, unit_text
from toolkit.plots._palette import DIVERGING, contrast_text
from toolkit.plots._user_text import CONTINUED

_MAX_CELLS_WITH_NUMBERS = 16
_MAX_TICKS = 40

_BLOCKS = {
    "cross": (["chosen"], ["rejected"]),
    "chosen": (["chosen"], ["chosen"]),
    "rejected": (["rejected"], ["rejected"]),
    "all": (["chosen", "rejected"], ["chosen", "rejected"]),
}


def token_heatmap(frame, *, values="cosine", block="cross", vmax=None, cbar=True, ax=None):
    """Token × token gradient products, blue where two tokens pull together, orange where apart.

    Args:
        frame: `TokenMatrix.to_frame()`: ``side_i, position_i, token_i, side_j, position_j,
            token_j`` and ``values``.
        values: ``"cosine"`` (scale −1..1), ``"inner"`` or another numeric column (robust
            symmetric scale: the 98th percentile of the magnitudes; what lies beyond it is
            marked by the arrows of the colour bar).
        block: ``"cross"`` (chosen rows, rejected columns), ``"chosen"``, ``"rejected"``,
            ``"all"`` (the whole matrix, with separators).
        vmax: end of the scale; None as above.
        cbar: draw the colour bar.
        ax: axes to draw on.

    Returns:
        The Axes. Rows and columns are positions: repeated tokens stay apart.

    Raises:
        ValueError: for a missing column, no rows, an unknown block or a bad ``vmax``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"side_i": ["chosen"], "position_i": [0], "token_i": [" a"],
        ...     "side_j": ["rejected"], "position_j": [0], "token_j": [" b"], "cosine": [0.3]})
        >>> ax = token_heatmap(frame)
    """
    keys = [f"{name}_{k}" for k in "ij" for name in ("side", "position", "token")]
    require(frame, *keys, values)
    if block not in _BLOCKS:
        raise ValueError(f"block must be one of {sorted(_BLOCKS)}, got {block!r}")
    rows, columns = (_axis_tokens(frame, k, sides) for k, sides in zip("ij", _BLOCKS[block],
                                                                       strict=True))  # fmt: skip
    matrix = _matrix(frame, values, rows, columns)
    vmax, extend = _limits(matrix, values, vmax)
    wide, high = np.clip(0.4 * np.array([len(columns), len(rows)]), 2.4, 8.0)
    ax = axes_of(ax, (wide + 2.6, high + 1.6), "compressed")
    image = ax.imshow(matrix, cmap=DIVERGING, vmin=-vmax, vmax=vmax, aspect="equal",
                      interpolation="nearest")  # fmt: skip
    scaled = max(matrix.shape) <= _MAX_CELLS_WITH_NUMBERS
    if scaled:
        _write_numbers(ax, matrix, image, vmax)
    _token_ticks(ax.xaxis, columns, rotation=90)
    _token_ticks(ax.yaxis, rows)
    _separate(ax, rows, columns)
    down, across = _BLOCKS[block]
    ax.set(ylabel=" | ".join(down[::-1]) + " tokens", xlabel=" | ".join(across) + " tokens")
    name = {"cosine": "cosine of token gradients", "inner": "inner product of token gradients"}
    if cbar:
        words = name.get(values) or column_words(values)
        color_bar(image, words, extend=extend, fraction=0.05)
    if scaled and unit_text(vmax):
        ax.set_title(f"numbers{unit_text(vmax)}", loc="left", fontsize=9)
    return finish(ax, frame, grid=False)


def _axis_tokens(frame, axis: str, sides) -> pd.DataFrame:
    """The tokens along one axis, in order: side, position, token."""
    names = {f"{name}_{axis}": name for name in ("side", "position", "token")}
    tokens = frame[list(names)].rename(columns=names).drop_duplicates()
    tokens = tokens[tokens["side"].isin(sides)].sort_values(["side", "position"])
    if tokens.empty:
        raise ValueError(f"frame has no rows whose side_{axis} is one of {sides}")
    if tokens.duplicated(["side", "position"]).any():
        raise ValueError("frame holds several tokens at one position; give one pair's frame")
    return tokens.reset_index(drop=True)


def _matrix(frame, values, rows, columns) -> np.ndarray:
    """The dense matrix, keyed by side and position."""
    keys = [["side_i", "position_i"], ["side_j", "position_j"]]
    table = frame.set_index(keys[0] + keys[1])[values].astype(float).unstack(keys[1])
    table = table.reindex(index=pd.MultiIndex.from_frame(rows[["side", "position"]]))
    table = table.reindex(columns=pd.MultiIndex.from_frame(columns[["side", "position"]]))
    return table.to_numpy()


def _limits(matrix, values, vmax) -> tuple[float, str]:
    """The end of the symmetric scale, and which ends of the colour bar carry an arrow."""
    if vmax is None:
        vmax = 1.0 if values == "cosine" else largest(matrix, 0.98)
    slack = positive("vmax", vmax) * (1 + 1e-6)
    ends = (matrix < -slack).any(), (matrix > slack).any()
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    return float(vmax), extend[ends]


def _write_numbers(ax, matrix, image, vmax) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        color = contrast_text(image.cmap(image.norm(value)))
        text = short_number(value, vmax)
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def _token_ticks(axis, tokens, rotation=0) -> None:
    """Tick labels with visible whitespace and the position as a subscript, thinned when many."""
    step = -(-len(tokens) // _MAX_TICKS)
    subscripts = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    shown = range(0, len(tokens), step)
    named = zip(tokens["token"][::step], tokens["position"][::step], strict=True)
    labels = [_shown(token, place) + str(place).translate(subscripts) for token, place in named]
    axis.set_major_locator(FixedLocator(list(shown)))
    axis.set_ticklabels(labels, rotation=rotation, fontsize=8, parse_math=False,
                        fontfamily=families())  # fmt: skip
    axis.set_tick_params(length=2)


def _shown(token: str, position: int) -> str:
    return CONTINUED if token == "" and position else drawable(token)[:18]


def _separate(ax, rows, columns) -> None:
    """A line between the chosen and the rejected tokens."""
    for tokens, line in ((rows, ax.axhline), (columns, ax.axvline)):
        chosen = int((tokens["side"] == "chosen").sum())
        if 0 < chosen < len(tokens):
            line(chosen - 0.5, color="black", linewidth=1.2)
