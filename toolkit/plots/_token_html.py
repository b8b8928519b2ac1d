"""Escaped, self-contained HTML from frames: aligned token strips.

No JavaScript. Colours and outlines are written inline, because JupyterLab removes the ``<style>``
of an untrusted notebook.
"""

import math
import unicodedata
from collections.abc import Iterable, Iterator

import pandas as pd

from toolkit.plots._frames import caption, holds, one_pair, require
from toolkit.plots._numbers import largest, number, positive, short_number, unit_text
from toolkit.plots._palette import color_of, contrast_text
from toolkit.plots._token_cells import Cell, Piece, align_tokens, cells_of
from toolkit.plots._user_text import NO_MATHS, html_text, tag, visible_token
from toolkit.plots._words import TOKEN_COLUMNS, Column

# Tripled class names outrank JupyterLab's own rules for tables in an output.
_STYLE = """<style>
.pet{color:var(--jp-content-font-color1,inherit);font-family:var(--jp-code-font-family,monospace);
font-size:13px;line-height:1.35;direction:ltr;padding:2px 0 1.8em}
.pet.pet.pet .pet-words{font-family:var(--jp-ui-font-family,sans-serif);font-size:12px;
margin:0 0 6px}
.pet.pet.pet table{border-collapse:separate;border-spacing:3px;margin:0 0 8px;width:auto;
color:inherit;
font-size:13px;table-layout:auto}
.pet.pet.pet tbody tr,.pet.pet.pet tbody tr:hover{background:none}
.pet.pet.pet th,.pet.pet.pet td{padding:2px 5px;text-align:center;white-space:pre;
vertical-align:top;
line-height:1.3;position:relative}
.pet.pet.pet th{font:12px var(--jp-ui-font-family,sans-serif);text-align:right;min-width:4.6em;
padding-top:4px}
.pet.pet.pet td{border-radius:3px;border:2px solid transparent}
.pet.pet.pet td .pet-piece+.pet-piece{border-left:1px dotted #909090}
.pet.pet.pet td small{display:block;font-size:10px}
.pet.pet.pet .pet-gap{border:1px dashed #909090}
.pet.pet.pet td:focus{outline:2px solid #E69F00;outline-offset:1px}
.pet.pet.pet td:focus::after{content:attr(title);position:absolute;left:0;top:calc(100% + 3px);
z-index:9;
background:#222;color:#fff;padding:3px 7px;border-radius:3px;font-size:12px;text-align:left}
.pet.pet.pet .pet-key{display:inline-block;min-width:4.4em;text-align:center;padding:0 4px;
font-size:11px;
box-shadow:inset 0 0 0 1px #909090}
</style>"""


def _vmax(cells: list[Cell], vmax: float | None) -> float:
    return largest(list(_values(cells))) if vmax is None else positive("vmax", vmax)


def _values(cells: Iterable[Cell]) -> Iterator[float]:
    return (piece.value for cell in cells for piece in cell.pieces)


def token_strip_html(
    frame: pd.DataFrame,
    *,
    value: str = "predicted_delta",
    vmax: float | None = None,
    picked: str | None = None,
    width: int = 96,
) -> str:
    """Two aligned token strips, chosen above rejected, each token coloured by ``value``.

    Tokens without an equal partner are outlined, gaps are dashed, repeated tokens never merge.
    Tokens that are pieces of one character share a box: the first shows it, the others a ⋯.
    Every value is also written, predicted changes beyond first order beside the largest of them.

    Args:
        frame: tidy rows with ``side, position, token`` and ``value`` (one pair, or ``picked``).
            Tokens are equal if their ``token_id`` is, or their text where the frame has no ids;
            an empty ``token`` is a further piece of the one before it.
        value: the column to show; ``logp`` is coloured from 0 down, all others around zero.
        vmax: end of the colour scale in the column's unit; None takes the largest magnitude.
            Give it to keep one scale while a control moves.
        picked: the ``pair_id`` to show when the frame holds several.
        width: characters a line before both strips wrap together.

    Returns:
        Self-contained, escaped HTML.

    Raises:
        ValueError: for a missing column, no rows, an unknown pair or a bad ``vmax``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"side": ["chosen", "rejected"], "position": [0, 0],
        ...                       "token": [" good", " bad"], "predicted_delta": [0.1, -0.2]})
        >>> "␣good" in token_strip_html(frame)
        True
    """
    require(frame, "side", "position", "token", value)
    rows = one_pair(frame, picked)
    if value == "predicted_delta" and not holds(rows).all():
        rows, value, vmax = _relative(rows, vmax)
    sides = [cells_of(rows[rows["side"] == side], value) for side in ("chosen", "rejected")]
    columns = align_tokens(*[[cell.key for cell in cells] for cells in sides])
    pairs = [tuple(None if k is None else cells[k] for cells, k in zip(sides, column, strict=True))
             for column in columns]  # fmt: skip
    return _strips(
        frame, pairs, ("chosen", "rejected"), value, _vmax(sides[0] + sides[1], vmax), width
    )


def _relative(rows: pd.DataFrame, vmax: float | None) -> tuple[pd.DataFrame, str, float]:
    """Predicted changes beside the end of their scale: beyond first order they are no nats."""
    end = vmax or largest(rows["predicted_delta"])
    return rows.assign(relative_delta=rows["predicted_delta"] / end), "relative_delta", 1.0


def prompt_strip_html(
    frame: pd.DataFrame,
    *,
    value: str = "margin",
    vmax: float | None = None,
    picked: str | None = None,
    width: int = 96,
) -> str:
    """One strip of prompt tokens coloured by what each contributes to ``value``.

    Args:
        frame: rows with ``position, token`` and ``value``; where ``in_prompt`` is given, only
            its true rows are shown.
        value: ``margin``, ``chosen``, ``rejected`` or another numeric column.
        vmax: end of the colour scale; None takes the largest magnitude.
        picked: the ``pair_id`` to show when the frame holds several.
        width: characters a line.

    Returns:
        Self-contained, escaped HTML.

    Raises:
        ValueError: for a missing column, no rows, an unknown pair or a bad ``vmax``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"position": [0], "token": ["Why"], "margin": [0.5]})
        >>> "Why" in prompt_strip_html(frame)
        True
    """
    require(frame, "position", "token", value)
    rows = one_pair(frame, picked)
    cells = cells_of(rows[rows["in_prompt"].astype(bool)] if "in_prompt" in rows else rows, value)
    columns = [(cell,) for cell in cells]
    return _strips(frame, columns, ("prompt",), value, _vmax(cells, vmax), width)


def _strips(frame, columns, sides, value, vmax, width) -> str:
    """The legend, the wrapped blocks and the caption of a set of aligned strips."""
    scale = (value, vmax)
    blocks = _wrap(columns, vmax, width)
    body = "".join(_block(block, sides, scale, k, len(blocks)) for k, block in enumerate(blocks))
    foot = tag("div", html_text(caption(frame)), "pet-words") if caption(frame) else ""
    outlined = any(_alone(column) for column in columns)
    cells = [cell for column in columns for cell in column if cell is not None]
    clipped = any(abs(value) > vmax for value in _values(cells))
    legend = _legend(scale, outlined, clipped)
    return tag("div", _STYLE + legend + body + foot, f"pet {NO_MATHS}")


def _alone(column) -> bool:
    """Whether the two responses differ in this column."""
    return None in column or column[0].key != column[-1].key


def _plain(column: str) -> str:
    return visible_token(str(column).replace("_", " "))


def _legend(scale, outlined: bool, clipped: bool) -> str:
    """What the colours mean, in words and numbers."""
    value, vmax = scale
    column = TOKEN_COLUMNS.get(value) or Column(_plain(value))
    keys = []
    for end in (-1.0, -0.5, 0.0) if value == "logp" else (-1.0, -0.5, 0.0, 0.5, 1.0):
        sign = {-1.0: "≤ ", 1.0: "≥ "}.get(end, "") if clipped else ""
        text = sign + short_number(end * vmax, vmax)
        keys.append(tag("span", text, "pet-key", style=_style(end * vmax, scale)))
    label, low, high = map(html_text, (column.label, column.low, column.high))
    words = f"{label}{unit_text(vmax)}: {low} {' '.join(keys)} {high}"
    return tag("div", words + " · outlined: not in the other response" * outlined, "pet-words")


def _style(number: float, scale) -> str:
    value, vmax = scale
    color = color_of(number, vmax, diverging=value != "logp")
    return f"background:{color};color:{contrast_text(color)}"


def _wrap(columns, vmax: float, width: int) -> list:
    """The columns cut into lines of about ``width`` characters."""
    blocks, used = [[]], 0
    for column in columns:
        cells = [cell for cell in column if cell is not None]
        need = max(sum(_columns_wide(piece, vmax) for piece in cell.pieces) for cell in cells)
        if blocks[-1] and used + need > width:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += need
    return blocks


def _columns_wide(piece: Piece, vmax: float) -> int:
    letters = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in piece.shown)
    return 2 + max(letters, len(short_number(piece.value, vmax)))


def _block(block, sides, scale, number: int, total: int) -> str:
    part = f", part {number + 1} of {total}" if total > 1 else ""
    rows = []
    for k, side in enumerate(sides):
        boxes = "".join(_box(column[k], _alone(column), side, scale) for column in block)
        cells = tag("th", side, role="presentation") + boxes
        rows.append(tag("tr", cells, role="list", aria_label=f"{side} tokens{part}"))
    return tag("table", tag("tbody", "".join(rows)), role="presentation")


def _box(cell: Cell | None, alone: bool, side: str, scale) -> str:
    if cell is None:
        return tag("td", "", "pet-gap", role="presentation", aria_hidden="true")
    texts = [_piece_title(piece, side, scale) for piece in cell.pieces]
    first, *others = cell.pieces
    texts[1:] = [f"{text} (a piece of {first.shown})" for text in texts[1:]]
    if others:
        style, inside = "padding:0", "".join(
            tag("span", _inside(piece, scale), "pet-piece", dir="auto", title=text,
                style=f"display:inline-block;padding:2px 5px;{_style(piece.value, scale)}")
            for piece, text in zip(cell.pieces, texts, strict=True)
        )  # fmt: skip
    else:
        style, inside = _style(first.value, scale), _inside(first, scale)
    style += ";border:2px solid #000;box-shadow:0 0 0 1px #fff" * alone
    return tag("td", inside, role="listitem", tabindex="0", dir="ltr" if others else "auto",
               title="; ".join(texts), style=style)  # fmt: skip


def _piece_title(piece: Piece, side: str, scale) -> str:
    exact = "not a number" if math.isnan(piece.value) else number(piece.value, 6)
    return f"{side} {piece.position} · {piece.shown} · {_plain(scale[0])} {exact}"


def _inside(piece: Piece, scale) -> str:
    # The line break is for notebooks that are not trusted: JupyterLab drops the style there.
    number = tag("small", short_number(piece.value, scale[1]), dir="ltr")
    return f"{html_text(piece.shown)}<br>{number}"
