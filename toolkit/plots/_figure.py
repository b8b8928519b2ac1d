"""What the figures share: their colours and words, fonts that can draw a token, the caption."""

import textwrap
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

from toolkit.plots._frames import caption
from toolkit.plots._palette import OKABE_ITO
from toolkit.plots._user_text import visible_token
from toolkit.plots._words import REGIMES, along_axis

_FALLBACK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "Hiragino Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
)
_PICKED = "▸ "
_MOVING = {
    *("pairs", "ring", "losses", "leaders", "label-ideal", "label-both_up", "label-both_down"),
    *("chosen", "rejected", "spans", "picked", "name", "title", "caption"),
}


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


def named(ax) -> dict:
    """The artists of the axes that have a name (gid), by it: what a second call moves."""
    return {artist.get_gid(): artist for artist in ax.get_children() if artist.get_gid()}


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
    return along_axis(name) or short(str(name).replace("_", " "), 60)


def marked(name, picked) -> str:
    """A name for a label, with a sign before it where it is the picked one."""
    return _PICKED * (name == picked) + short(name, 20)


def plain_fonts(words) -> dict:
    """Fonts for other scripts, only where they are needed: looking for them takes time."""
    plain = "".join(words).replace(_PICKED, "").isascii()
    return {} if plain else {"fontfamily": families()}


def title_lines(ax, frame, words: str, share: float = 1.0) -> None:
    """Write what the picture leaves out; first of all, that its numbers are hypothetical."""
    letters = max(30, int(15.5 * share * ax.get_window_extent().width / ax.figure.dpi))
    hypothetical = frame.attrs.get("hypothetical", "")
    lines = textwrap.wrap(f"HYPOTHETICAL: {hypothetical}", letters) if hypothetical else []
    lines += textwrap.wrap(words, letters, max_lines=4, placeholder=" …")
    style = {"color": "#8A3C00", "fontweight": "bold"} if hypothetical else {"color": "black"}
    ax.set_title("\n".join(lines), loc="left", fontsize=8, parse_math=False, gid="title", **style)


def moving_parts(ax) -> list:
    """The artists that a second call of `loss_map` or `delta_bars` changes; all others stay.

    Example:
        >>> from matplotlib.figure import Figure
        >>> moving_parts(Figure().subplots())
        []
    """
    return [artist for artist in ax.get_children() if artist.get_gid() in _MOVING]


def plain_legend(legend) -> None:
    """Have a legend's names and title written as they are: ``$`` is a price, no mathematics."""
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def corner_label(ax, regime: str, across: float, up: float):
    """An empty text for a region's name, in a corner and in a dark shade of its colour."""
    color = 0.65 * np.array(to_rgb(REGIMES[regime].color))
    box = {"fc": REGIMES[regime].tint, "ec": "none", "alpha": 0.85, "pad": 2}
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
