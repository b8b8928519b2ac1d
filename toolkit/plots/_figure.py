"""What the figures share: their colours and words, fonts that can draw a token, the caption."""

import textwrap
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from toolkit.plots._palette import OKABE_ITO, caption
from toolkit.plots._user_text import visible_token

REGIME_COLORS = {
    "ideal": OKABE_ITO["green"],
    "both_down": OKABE_ITO["vermillion"],
    "both_up": OKABE_ITO["blue"],
    "reversed": "#555555",
    "unchanged": "#999999",
}
REGIME_MARKERS = {"ideal": "o", "both_down": "v", "both_up": "^", "reversed": "X", "unchanged": "s"}
REGION_TINTS = {
    "ideal": "#DDF1EA",
    "both_down": "#F9E3D5",
    "both_up": "#D9EAF5",
    "reversed": "#EEEEEE",
}
REGION_NAMES = {
    "ideal": "ideal: chosen ↑  rejected ↓",
    "both_down": "both fall",
    "both_up": "both rise",
    "reversed": "chosen ↓  rejected ↑",
}
SIDE_COLORS = {"chosen": OKABE_ITO["sky"], "rejected": OKABE_ITO["orange"]}
COLUMN_WORDS = {
    "ln_ches": "length-normalised CHES (higher: more alike)",
    "ches": "CHES (higher: more alike)",
    "neg_edit_distance": "negative edit distance (0: the same text)",
    "last_hidden_inner": "inner product of the two last states",
    "predicted_chosen_delta": "predicted change of chosen log-probability, nats",
    "predicted_rejected_delta": "predicted change of rejected log-probability, nats",
    "predicted_margin_delta": "predicted change of the margin, nats",
    "cosine": "cosine of the two gradients",
    "band_position": "band position (−1 … 1 is ideal)",
    "chosen_logps": "chosen log-probability, nats",
    "rejected_logps": "rejected log-probability, nats",
    "length_difference": "rejected length − chosen length, tokens",
}
_FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "Hiragino Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)


def axes_of(ax, figsize=(6.4, 4.8), layout="constrained"):
    """``ax``, or the axes of a new figure that leaves room for its caption."""
    return ax if ax is not None else plt.subplots(figsize=figsize, layout=layout)[1]


def finish(ax, frame, *, grid: bool = True):
    """The look that all figures share, and the labels of the values under the axes."""
    ax.set_facecolor("white")
    ax.figure.set_facecolor("white")
    ax.spines[["top", "right"]].set_visible(False)
    if grid:
        ax.grid(color="#E6E6E6", linewidth=0.6)
        ax.set_axisbelow(True)
    ax.annotate(
        caption_lines(ax, frame),
        xy=(0.5, 0),
        xycoords=ax.xaxis.label,
        xytext=(0, -5),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=7,
        color="#555555",
        gid="caption",
        parse_math=False,
    )
    return ax


def caption_lines(ax, frame) -> str:
    """The labels of a frame's values, in lines that fit under the axes."""
    inches = ax.get_window_extent().width / ax.figure.dpi
    text = caption(frame).replace(" ", "\xa0").replace("·\xa0", "· ")  # breaks after a dot alone
    return "\n".join(textwrap.wrap(text, max(60, int(inches / 0.05))))


def families() -> list[str]:
    """The user's font families, then installed fonts for scripts that those lack."""
    installed = set(fontManager.get_font_names())
    return [*plt.rcParams["font.family"], *(f for f in _FALLBACK_FONTS if f in installed)]


@lru_cache(maxsize=4)
def _characters(names: tuple[str, ...]) -> frozenset[int]:
    fonts = [get_font(findfont(FontProperties(family=[name]))) for name in names]
    return frozenset().union(*(font.get_charmap() for font in fonts))


def drawable(text: str) -> str:
    """``text`` with what the fonts cannot draw written as escapes, so that no box is shown."""
    known = _characters(tuple(families()))
    text = visible_token(text).replace("␠", "␣")
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)


def short(text, limit: int = 28) -> str:
    """``text`` drawable and no longer than ``limit``, for ids and group names."""
    text = drawable(str(text))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def column_words(name) -> str:
    """What a column holds, for a label; never to be read as mathematics."""
    return COLUMN_WORDS.get(name) or short(str(name).replace("_", " "), 60)


def plain_legend(legend) -> None:
    """Have a legend's names and title written as they are: ``$`` is a price, no mathematics."""
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def row_of(frame, picked) -> int | None:
    """The position of the picked id in the frame."""
    if picked is None:
        return None
    found = np.flatnonzero(frame["id"].to_numpy() == picked)
    if not len(found):
        raise ValueError(f"picked={picked!r} is not in the frame's {len(frame)} ids")
    return int(found[0])


def corner_label(ax, regime: str, across: float, up: float):
    """An empty text for a region's name, in a corner and in a dark shade of its colour."""
    base = REGIME_COLORS[regime]
    color = to_hex([int(base[k : k + 2], 16) / 255 * 0.65 for k in (1, 3, 5)])
    box = {"fc": REGION_TINTS[regime], "ec": "none", "alpha": 0.85, "pad": 2}
    return ax.text(across, up, "", transform=ax.transAxes, gid=f"label-{regime}", color=color,
                   ha="left" if across < 0.5 else "right", va="top" if up > 0.5 else "bottom",
                   fontsize=9.5, fontweight="bold", zorder=5, bbox=box)  # fmt: skip


def group_colors(values) -> dict[str, str]:
    """A colour a group, in the order in which the groups first appear."""
    groups = list(dict.fromkeys(str(value) for value in values))
    colors = [OKABE_ITO[k] for k in ("blue", "orange", "green", "purple", "sky", "vermillion")]
    colors += [OKABE_ITO["black"], OKABE_ITO["yellow"]]
    if len(groups) > len(colors):
        raise ValueError(
            f"hue: at most {len(colors)} groups can be told apart by colour, got {len(groups)}"
        )
    return dict(zip(groups, colors, strict=False))
