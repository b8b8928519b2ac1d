"""One pair's numbers as an escaped, self-contained HTML table."""

import math

import pandas as pd

from toolkit.plots._palette import REGIME_WORDS, caption, require, rounded_down
from toolkit.plots._user_text import NO_MATHS, html_text, visible_token

# Tripled class names outrank JupyterLab's own rules for tables in an output.
_STYLE = """<style>
.pet-num{color:var(--jp-content-font-color1,inherit);font:13px var(--jp-ui-font-family,sans-serif)}
.pet-num .pet-labels{font-size:12px;margin:6px 0}
.pet-num.pet-num.pet-num tbody tr,.pet-num.pet-num.pet-num tbody tr:hover{background:none}
.pet-num.pet-num.pet-num table{border-spacing:0;border-collapse:collapse;margin:0;width:auto;
color:inherit}
.pet-num.pet-num.pet-num th,.pet-num.pet-num.pet-num td{text-align:right;vertical-align:baseline;
padding:3px 12px;font:13px var(--jp-ui-font-family,sans-serif);border:0;
font-variant-numeric:tabular-nums}
.pet-num.pet-num.pet-num thead th{font-weight:600;border-bottom:1px solid #909090}
.pet-num.pet-num.pet-num tbody th,
.pet-num.pet-num.pet-num .pet-left{text-align:left;font-weight:400;
white-space:normal}
.pet-num.pet-num.pet-num .pet-mid{text-align:center}
</style>"""

# label, chosen column, rejected column, unit and meaning
_RESPONSE_ROWS = (
    ("log-probability", "chosen_logps", "rejected_logps", "nats, sum over tokens"),
    ("reference log-probability", "ref_chosen_logps", "ref_rejected_logps", "nats"),
    ("scored tokens", "chosen_length", "rejected_length", "tokens"),
    ("squared gradient norm", "chosen_sq_norm", "rejected_sq_norm", "(nats per parameter unit)²"),
    ("loss weight d", "d_chosen", "d_rejected", "how hard the loss pulls"),
    ("slack", "chosen_slack", "rejected_slack", "positive: moves the wanted way"),
    ("predicted change", "predicted_chosen_delta", "predicted_rejected_delta", "nats"),
)
_PAIR_ROWS = (
    ("predicted margin change", "predicted_margin_delta", "nats, chosen − rejected"),
    ("inner product", "inner", "of the two gradients"),
    ("cosine", "cosine", "−1 opposite … 1 the same direction"),
    ("κ", "kappa", "DPO: below 1 is ideal"),
    ("band position", "band_position", "between −1 and 1 is ideal; n/a: always ideal"),
    ("CHES", "ches", "higher: more alike inside the model"),
    ("length-normalised CHES", "ln_ches", "higher: more alike inside the model"),
    ("negative edit distance", "neg_edit_distance", "0: the same text"),
    ("last-hidden inner product", "last_hidden_inner", "of the two last states"),
)


def numbers_table(frame, *, picked: str | None = None) -> str:
    """One pair's numbers with words and units, as escaped HTML.

    Args:
        frame: one row per pair (`PairStats`, `Entanglement` or `similarity` frames, or joined);
            columns that are absent are left out. A row (Series) will do.
        picked: the ``id`` to show when the frame holds several.

    Returns:
        Self-contained HTML; the labels of ``frame.attrs`` are the caption.

    Raises:
        ValueError: for a missing ``id``, an unknown one, or several rows without ``picked``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": ["a"], "chosen_logps": [-3.0], "rejected_logps": [-4.0]})
        >>> "log-probability" in numbers_table(frame)
        True
    """
    if isinstance(frame, pd.Series):
        attrs, frame = frame.attrs, frame.to_frame().T
        frame.attrs = attrs
    require(frame, "id")
    row = _row(frame, picked)
    body = [
        (label, _shown(row, first), _shown(row, second), _unit(row, first, unit))
        for label, first, second, unit in _RESPONSE_ROWS
        if first in row and second in row
    ]
    body += [(label, _shown(row, name), "", _unit(row, name, unit))
             for label, name, unit in _PAIR_ROWS if name in row]  # fmt: skip
    if "regime" in row:
        body.append(
            ("regime", visible_token(str(row["regime"])), "", REGIME_WORDS.get(row["regime"], ""))
        )
    lines = "".join(_number_line(*line) for line in body)
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("chosen", "rejected"))
    return (
        f'<div class="pet-num {NO_MATHS}">{_STYLE}<table><thead><tr>'
        f'<th scope="col" class="pet-left">pair {html_text(visible_token(str(row["id"])))}</th>'
        f'{heads}<th scope="col" class="pet-left">unit, meaning</th></tr></thead>'
        f"<tbody>{lines}</tbody></table>"
        f'<div class="pet-labels">{html_text(caption(frame[frame["id"] == row["id"]]))}</div></div>'
    )


def _row(frame: pd.DataFrame, picked) -> pd.Series:
    """The one row that is shown."""
    if picked is None and len(frame) > 1:
        raise ValueError(f"frame holds {len(frame)} pairs; say picked=, one of its ids")
    rows = frame if picked is None else frame[frame["id"] == picked]
    if rows.empty:
        raise ValueError(f"picked={picked!r} is not in the frame's {len(frame)} ids")
    return rows.iloc[0]


def _number_line(label: str, first: str, second: str, unit: str) -> str:
    numbers = (
        f"<td>{html_text(first)}</td><td>{html_text(second)}</td>"
        if second
        else f'<td colspan="2" class="pet-mid">{html_text(first)}</td>'
    )
    return (
        f'<tr><th scope="row">{html_text(label)}</th>{numbers}<td class="pet-left">{unit}</td></tr>'
    )


def _is_beyond(row: pd.Series, name: str) -> bool:
    """Whether this number is a predicted change that first order cannot state."""
    return name.startswith("predicted_") and not bool(row.get("first_order", True))


def _shown(row: pd.Series, name: str) -> str:
    if not _is_beyond(row, name):
        return _number(row[name])
    words = ("grows", "shrinks") if "margin" in name else ("rises", "falls")
    return words[0] if row[name] > 0 else words[1] if row[name] < 0 else "stays"


def _unit(row: pd.Series, name: str, unit: str) -> str:
    if not _is_beyond(row, name):
        return unit
    limit = rounded_down(float(row.get("first_order_lr", math.nan)))
    return f"too large a step for first order, which holds up to a learning rate of {limit}"


def _number(value) -> str:
    value = float(value)
    return "n/a" if math.isnan(value) else f"{value:.5g}".replace("-", "−")
