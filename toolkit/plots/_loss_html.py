"""All losses side by side for one pair, as an escaped, self-contained HTML table."""

import math

from toolkit.plots._figure import REGIME_COLORS
from toolkit.plots._palette import REGIME_WORDS, caption, holds, require
from toolkit.plots._user_text import NO_MATHS, html_text

# Tripled class names outrank JupyterLab's own rules for tables in an output.
_STYLE = """<style>
.pet-loss{color:var(--jp-content-font-color1,inherit);font:13px var(--jp-ui-font-family,sans-serif);
overflow-x:auto}
.pet-loss .pet-labels{font-size:12px;margin:6px 0}
.pet-loss.pet-loss.pet-loss tbody tr,.pet-loss.pet-loss.pet-loss tbody tr:hover{background:none}
.pet-loss.pet-loss.pet-loss table{border-spacing:0;border-collapse:collapse;margin:0;width:auto;
color:inherit}
.pet-loss.pet-loss.pet-loss th,.pet-loss.pet-loss.pet-loss td{text-align:right;padding:2px 9px;
font:13px var(--jp-ui-font-family,sans-serif);border:0;font-variant-numeric:tabular-nums;
vertical-align:baseline;white-space:nowrap}
.pet-loss.pet-loss.pet-loss thead th{font-weight:600;border-bottom:1px solid #909090}
.pet-loss.pet-loss.pet-loss .pet-left{text-align:left}
.pet-loss.pet-loss.pet-loss td.pet-wide{white-space:normal;min-width:9em}
.pet-loss.pet-loss.pet-loss tr.pet-picked{background:rgba(128,128,128,.22);
box-shadow:inset 4px 0 0 currentColor}
.pet-loss.pet-loss.pet-loss tr.pet-picked th,.pet-loss.pet-loss.pet-loss tr.pet-picked td{
font-weight:700}
.pet-loss .pet-dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:5px;
border:1px solid rgba(128,128,128,.6)}
</style>"""
_NUMBERS = ("d_chosen", "d_rejected", "ratio", "predicted_chosen_delta", "predicted_rejected_delta")
_HEADS = {
    "d_chosen": ("d chosen", "loss weight: how hard the loss pulls the chosen response up"),
    "d_rejected": ("d rejected", "loss weight: how hard it pushes the rejected response down"),
    "ratio": ("ratio", "d chosen / d rejected"),
    "predicted_chosen_delta": ("Δ chosen", "predicted change of the log-probability, nats"),
    "predicted_rejected_delta": ("Δ rejected", "predicted change of the log-probability, nats"),
}


def loss_table_html(frame, *, picked=None) -> str:
    """The losses of one pair with their weights and predicted changes, as escaped HTML.

    Args:
        frame: one row per loss: ``loss, d_chosen, d_rejected, ratio, regime,
            predicted_chosen_delta, predicted_rejected_delta, settings, note``.
        picked: the ``loss`` to mark.

    Returns:
        Self-contained HTML; the labels of ``frame.attrs`` are the caption.

    Raises:
        ValueError: for a missing column, no rows or an unknown ``picked``.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"loss": ["dpo"], "d_chosen": 0.05, "d_rejected": 0.05,
        ...     "ratio": 1.0, "regime": "ideal", "predicted_chosen_delta": 0.1,
        ...     "predicted_rejected_delta": -0.2, "settings": "β 0.1", "note": ""})
        >>> "both" in loss_table_html(frame)
        False
    """
    require(frame, "loss", "regime", *_NUMBERS, "settings", "note")
    if picked is not None and picked not in set(frame["loss"]):
        raise ValueError(f"picked={picked!r} is not in the frame's {len(frame)} losses")
    numbers = "".join(
        f'<th scope="col" title="{html_text(title)}">{head}</th>' for head, title in _HEADS.values()
    )
    heads = (
        f'<tr><th scope="col" class="pet-left">loss</th>{numbers}'
        '<th scope="col" class="pet-left">regime</th><th scope="col" class="pet-left">settings</th>'
        '<th scope="col" class="pet-left">note</th></tr>'
    )
    lines = zip(frame.iterrows(), holds(frame), strict=True)
    rows = "".join(_line(row, row["loss"] == picked, known) for (_, row), known in lines)
    hypothetical = frame.attrs.get("hypothetical")
    words = f"HYPOTHETICAL: {hypothetical} · " if hypothetical else ""
    return (
        f'<div class="pet-loss {NO_MATHS}">{_STYLE}<table><thead>{heads}</thead>'
        f"<tbody>{rows}</tbody></table>"
        f'<div class="pet-labels">{html_text(words + caption(frame))}</div></div>'
    )


def _line(row, picked: bool, known: bool) -> str:
    cells = "".join(f"<td>{_shown(row[name], name, known)}</td>" for name in _NUMBERS)
    regime = str(row["regime"])
    dot = f'<span class="pet-dot" style="background:{REGIME_COLORS.get(regime, "#555555")}"></span>'
    words = html_text(REGIME_WORDS.get(regime, regime))
    marks = ' class="pet-picked" aria-selected="true"' if picked else ""
    return (
        f'<tr{marks}><th scope="row" class="pet-left">{"▸ " * picked}{html_text(str(row["loss"]))}'
        f'</th>{cells}<td class="pet-left">{dot}{words}</td>'
        f'<td class="pet-left">{html_text(str(row["settings"]))}</td>'
        f'<td class="pet-left pet-wide">{html_text(str(row["note"]))}</td></tr>'
    )


def _shown(value, name: str, known: bool) -> str:
    """The number; of a predicted change beyond first order the direction alone."""
    if known or not name.endswith("_delta") or not value:
        return _number(value, name)
    return "rises" if value > 0 else "falls"


def _number(value, name: str) -> str:
    value = float(value)
    if math.isnan(value):
        return "n/a"
    text = f"{value:+.3g}" if name.endswith("_delta") else f"{value:.3g}"
    return ("0" if value == 0 else text).replace("-", "−")
