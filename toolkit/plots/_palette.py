"""What every view shares: colour-blind-safe colours, numbers, words, captions.

No matplotlib, no torch, no other toolkit module.
"""

import math

import numpy as np
import pandas as pd

from toolkit.plots._user_text import visible_token

# Okabe and Ito's palette, told apart under every common colour blindness.
OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
}
DIVERGING = (OKABE_ITO["vermillion"], "#F7F7F7", OKABE_ITO["blue"])  # falls, no change, rises
SEQUENTIAL = ("#5B2148", OKABE_ITO["purple"], "#F7F7F7")  # surprising ... certain
MISSING = "#BDBDBD"

REGIME_WORDS = {
    "ideal": "chosen rises, rejected falls",
    "both_down": "both fall",
    "both_up": "both rise",
    "reversed": "chosen falls, rejected rises",
    "unchanged": "neither moves (first order)",
}
# column: (what it is, meaning of the low end, meaning of the high end)
VALUE_WORDS = {
    "predicted_delta": ("predicted change of each token's log-probability, nats", "falls", "rises"),
    "relative_delta": (
        "each token's share of a step too large for first order, beside the largest (no nats)",
        "falls",
        "rises",
    ),
    "with_chosen": (
        "inner product with the chosen gradient",
        "raising chosen lowers it",
        "raising chosen raises it",
    ),
    "with_rejected": (
        "inner product with the rejected gradient",
        "lowering rejected raises it",
        "lowering rejected lowers it",
    ),
    "logp": ("log-probability of each token, nats", "surprising", "certain"),
    **{
        words: (words, "fell", "rose")
        for words in (
            "change of each token's log-probability since step 0, nats",
            "actual change of each token's log-probability in this step, nats",
        )
    },
    "chosen": ("contribution to the chosen log-probability, nats", "lowers it", "raises it"),
    "rejected": ("contribution to the rejected log-probability, nats", "lowers it", "raises it"),
    "margin": (
        "contribution to chosen − rejected, nats",
        "towards rejected",
        "towards chosen",
    ),
}
_LABELS = {
    "model": "{}",
    "params": "parameters: {}",
    "dtype": "{}",
    "append_eos": "EOS appended: {}",
    "truncation": "cut: {}",
    "token_mask": "mask: {}",
    "optimizer_metric": "metric: {}",
    "ref": "reference: {}",
    "loss": "loss: {}",
    "lr": "lr: {}",
    "method": "{}",
}
_OF_GRADIENTS = ("params", "optimizer_metric")


def require(frame, *columns: str) -> None:
    """Check that ``frame`` is a DataFrame with rows and with these columns.

    Raises:
        ValueError: naming what is missing, and what was received.

    Example:
        >>> import pandas as pd
        >>> require(pd.DataFrame({"id": ["a"]}), "id")
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


def contrast_text(color: str) -> str:
    """Black or white, whichever reads better on ``color`` (WCAG contrast, always ≥ 4.5).

    Example:
        >>> contrast_text("#0072B2"), contrast_text("#F7F7F7")
        ('#FFFFFF', '#000000')
    """
    return "#000000" if (luminance(color) + 0.05) ** 2 >= 1.05 * 0.05 else "#FFFFFF"


def luminance(color: str) -> float:
    """Relative luminance (0..1) of a ``#rrggbb`` colour, by WCAG 2.

    Example:
        >>> round(luminance("#FFFFFF"), 3)
        1.0
    """
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def color_of(value: float, vmax: float, *, diverging: bool = True) -> str:
    """The ``#rrggbb`` of ``value`` on a scale −vmax..0..vmax, or −vmax..0 if not diverging.

    Example:
        >>> color_of(0.0, 1.0), color_of(-1.0, 1.0), color_of(float("nan"), 1.0)
        ('#F7F7F7', '#D55E00', '#BDBDBD')
    """
    if math.isnan(value):
        return MISSING
    stops = DIVERGING if diverging else SEQUENTIAL
    low, width = -vmax, (2 * vmax if diverging else vmax)
    place = 2 * min(max((value - low) / width, 0.0), 1.0)
    left = stops[int(place)]
    right = stops[min(int(place) + 1, 2)]
    mix = place - int(place)
    parts = [
        round(int(left[k : k + 2], 16) * (1 - mix) + int(right[k : k + 2], 16) * mix)
        for k in (1, 3, 5)
    ]
    return "#" + "".join(f"{part:02X}" for part in parts)


def power_of_thousand(vmax: float) -> int:
    """The exponent e, a multiple of 3, that makes ``vmax / 10**e`` short to write.

    Example:
        >>> power_of_thousand(0.5), power_of_thousand(2.4e-5)
        (0, -6)
    """
    return 0 if vmax == 0 or 0.1 <= vmax < 1000 else 3 * math.floor(math.log10(vmax) / 3)


def short_number(value: float, vmax: float) -> str:
    """``value / 10**power_of_thousand(vmax)``, signed, with the digits that ``vmax`` deserves.

    Example:
        >>> short_number(-1.23e-5, 2.4e-5)
        '−12.3'
    """
    if math.isnan(value):
        return "n/a"
    factor = 10.0 ** power_of_thousand(vmax)
    digits = 2 if vmax / factor < 10 else 1 if vmax / factor < 100 else 0
    text = f"{value / factor:+.{digits}f}"
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "−")


def rounded_down(value: float) -> str:
    """A positive number with two digits, never more than it is.

    Example:
        >>> rounded_down(0.000168), rounded_down(0.02)
        ('0.00016', '0.02')
    """
    if not 0 < value < math.inf:
        return f"{value:g}"
    power = math.floor(math.log10(value)) - 1
    return f"{float(f'{math.floor(value / 10.0**power * (1 + 1e-12))}e{power}'):.2g}".replace(
        "-", "−"
    )


def unit_text(vmax: float) -> str:
    """The ``" ×10⁻⁶"`` that belongs to `short_number`, or nothing.

    Example:
        >>> unit_text(2.4e-5)
        ' ×10⁻⁶'
    """
    power = power_of_thousand(vmax)
    digits = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f" ×10{digits}" if power else ""
