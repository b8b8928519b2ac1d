"""Escaped, self-contained HTML tables: one pair's numbers, and all losses side by side."""

import math
from collections.abc import Iterable

import pandas as pd

from toolkit.plots._frames import caption, holds, require, rows_of
from toolkit.plots._numbers import number, rounded_down
from toolkit.plots._user_text import NO_MATHS, html_text, tag, visible_token
from toolkit.plots._words import COLUMNS, REGIMES, RESPONSE_COLUMNS, Column, regime_of

_T = ".pet-table.pet-table.pet-table"  # tripled: outranks JupyterLab's own rules for tables
_STYLE = f"""<style>
.pet-table{{color:var(--jp-content-font-color1,inherit);
font:13px var(--jp-ui-font-family,sans-serif);overflow-x:auto}}
.pet-table .pet-labels{{font-size:12px;margin:6px 0}}
{_T} tbody tr,{_T} tbody tr:hover{{background:none}}
{_T} table{{border-spacing:0;border-collapse:collapse;margin:0;width:auto;color:inherit}}
{_T} th,{_T} td{{text-align:right;padding:3px 10px;border:0;vertical-align:baseline;
font:13px var(--jp-ui-font-family,sans-serif);font-variant-numeric:tabular-nums}}
{_T} thead th{{font-weight:600;border-bottom:1px solid #909090}}
{_T} tbody th{{font-weight:400}}
{_T} .pet-left{{text-align:left}}
{_T} .pet-mid{{text-align:center}}
{_T} .pet-line{{white-space:nowrap}}
{_T} .pet-wide{{white-space:normal;min-width:9em}}
{_T} tr.pet-picked{{background:rgba(128,128,128,.22);box-shadow:inset 4px 0 0 currentColor}}
{_T} tr.pet-picked th,{_T} tr.pet-picked td{{font-weight:700}}
.pet-table .pet-dot{{display:inline-block;width:.7em;height:.7em;border-radius:50%;
margin-right:5px;border:1px solid rgba(128,128,128,.6)}}
</style>"""
_LOSS_HEADS = {
    "d_chosen": ("d chosen", "loss weight: how hard the loss pulls the chosen response up"),
    "d_rejected": ("d rejected", "loss weight: how hard it pushes the rejected response down"),
    "ratio": ("ratio", "d chosen / d rejected"),
    "predicted_chosen_delta": ("Δ chosen", "predicted change of the log-probability, nats"),
    "predicted_rejected_delta": ("Δ rejected", "predicted change of the log-probability, nats"),
}


def numbers_table(frame, *, picked: str | None = None) -> str:
    """One pair's numbers with words and units, as escaped HTML.

    Args:
        frame: one row per pair (`PairStats`, `Entanglement` or `similarity` frames, or joined);
            columns that are absent are left out. A row (Series) will do.
        picked: the ``pair_id`` to show when the frame holds several.

    Returns:
        Self-contained HTML; the labels of ``frame.attrs`` are the caption.

    Raises:
        ValueError: for a missing ``pair_id``, an unknown one, or several rows without ``picked``.

    Example:
        >>> import pandas as pd
        >>> row = {"pair_id": "a", "chosen_logps": -3.0, "rejected_logps": -4.0}
        >>> frame = pd.DataFrame([row])
        >>> "log-probability" in numbers_table(frame)
        True
    """
    if isinstance(frame, pd.Series):
        attrs, frame = frame.attrs, frame.to_frame().T
        frame.attrs = attrs
    require(frame, "pair_id")
    found = rows_of(frame, "pair_id", picked)
    if len(found) > 1:
        raise ValueError(f"frame has {len(found)} rows of one pair; it needs one row per pair")
    row = found.iloc[0]
    lines = [(column, [pattern.format(side) for side in ("chosen", "rejected")])
             for pattern, column in RESPONSE_COLUMNS.items()]  # fmt: skip
    lines += [(column, [name]) for name, column in COLUMNS.items()]
    rows = [_number_row(row, column, names) for column, names in lines
            if all(name in row for name in names)]  # fmt: skip
    if "regime" in row:
        name = row["regime"]
        words = html_text(REGIMES[name].words) if name in REGIMES else ""
        shown = tag("td", html_text(visible_token(str(name))), "pet-mid", colspan="2")
        rows.append(_row_head("regime") + shown + tag("td", words, "pet-left"))
    pair = f"pair {html_text(visible_token(str(row['pair_id'])))}"
    heads = [(pair, "pet-left", ""), ("chosen", "", ""), ("rejected", "", "")]
    heads.append(("unit, meaning", "pet-left", ""))
    return _table("pet-num", heads, (tag("tr", line) for line in rows), caption(found))


def loss_table_html(frame, *, picked=None) -> str:
    """The losses of one pair with their weights and predicted changes, as escaped HTML.

    Args:
        frame: one row per loss: ``loss_name, d_chosen, d_rejected, ratio, regime,
            predicted_chosen_delta, predicted_rejected_delta, settings, note``.
        picked: the ``loss_name`` to mark.

    Returns:
        Self-contained HTML; the labels of ``frame.attrs`` are the caption.

    Raises:
        ValueError: for a missing column, no rows or an unknown ``picked``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"loss_name": ["dpo"], "d_chosen": 0.05, "d_rejected": 0.05,
        ...     "ratio": 1.0, "regime": "ideal", "predicted_chosen_delta": 0.1,
        ...     "predicted_rejected_delta": -0.2, "settings": "β 0.1", "note": ""})
        >>> "both" in loss_table_html(frame)
        False
    """
    require(frame, "loss_name", "regime", *_LOSS_HEADS, "settings", "note")
    rows_of(frame, "loss_name", picked, alone=False)
    heads = [("loss", "pet-left", ""), *((head, "", title) for head, title in _LOSS_HEADS.values())]
    heads += [(head, "pet-left", "") for head in ("regime", "settings", "note")]
    lines = zip(frame.iterrows(), holds(frame), strict=True)
    rows = (_loss_row(row, row["loss_name"] == picked, known) for (_, row), known in lines)
    hypothetical = frame.attrs.get("hypothetical")
    words = f"HYPOTHETICAL: {hypothetical} · " if hypothetical else ""
    return _table("pet-loss", heads, rows, words + caption(frame))


def _table(kind: str, heads: Iterable[tuple[str, str, str]], rows: Iterable[str], foot: str) -> str:
    """A table from its heads (HTML, class, title), its rows (HTML) and the text below it."""
    above = "".join(tag("th", head, cls, scope="col", title=title) for head, cls, title in heads)
    table = f"<table><thead><tr>{above}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    foot = tag("div", html_text(foot), "pet-labels")
    return tag("div", _STYLE + table + foot, f"{kind} pet-table {NO_MATHS}")


def _row_head(html: str) -> str:
    return tag("th", html, "pet-left", scope="row")


def _number_row(row: pd.Series, column: Column, names: list[str]) -> str:
    """A line of the numbers table: a number per side, or one of the pair."""
    beyond = names[0].startswith("predicted_") and not bool(row.get("first_order", True))
    style = {} if len(names) > 1 else {"cls": "pet-mid", "colspan": "2"}
    cells = "".join(tag("td", _change(row[name], name, beyond, 5), **style) for name in names)
    meaning = column.meaning
    if beyond:
        limit = rounded_down(float(row.get("first_order_lr", math.nan)))
        meaning = f"too large a step for first order, which holds up to a learning rate of {limit}"
    return _row_head(column.label) + cells + tag("td", meaning, "pet-left")


def _loss_row(row, picked: bool, known: bool) -> str:
    regime = regime_of(row["regime"])
    dot = tag("span", "", "pet-dot", style=f"background:{regime.color}")
    cells = [_row_head("▸ " * picked + html_text(row["loss_name"]))]
    for name in _LOSS_HEADS:
        change = name.endswith("_delta")
        text = _change(row[name], name, change and not known, 3, change)
        cells.append(tag("td", text, "pet-line"))
    cells.append(tag("td", dot + html_text(regime.words), "pet-left pet-line"))
    cells += [tag("td", html_text(row[name]), f"pet-left pet-{room}")
              for name, room in (("settings", "line"), ("note", "wide"))]  # fmt: skip
    marks = {"cls": "pet-picked", "aria_selected": "true"} if picked else {}
    return tag("tr", "".join(cells), **marks)


def _change(value, name: str, beyond: bool, digits: int, sign: bool = False) -> str:
    """The number; of a predicted change beyond first order the direction alone."""
    value = float(value)
    if not beyond or math.isnan(value):
        return number(value, digits, sign=sign)
    words = ("grows", "shrinks") if "margin" in name else ("rises", "falls")
    return words[0] if value > 0 else words[1] if value < 0 else "stays"
