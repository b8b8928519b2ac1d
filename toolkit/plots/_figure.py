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
    inches = ax.get_window_extent().width / ax.figure.dpi
    text = caption(frame).replace(" ", "\xa0").replace("·\xa0", "· ")  # breaks after a dot alone
    text = "\n".join(textwrap.wrap(text, max(60, int(inches / 0.05))))
    take_out(ax, "caption")
    ax.annotate(text, (0.5, 0), (0, -5), xycoords=ax.xaxis.label, textcoords="offset points",
                ha="center", va="top", fontsize=7, color="#555555", gid="caption",
                parse_math=False)  # fmt: skip
    return ax


def take_out(ax, *gids: str) -> bool:
    """Remove what an earlier call drew under these names (gids); whether it was there.

    Without names everything goes that has one, but the regions of a map.
    """
    drawn = [a for a in (*ax.lines, *ax.collections, *ax.texts, *ax.patches) if a.get_gid()]
    old = [a for a in drawn if a.get_gid() in gids]
    old = old if gids else [a for a in drawn if not a.get_gid().startswith("region")]
    for artist in old:
        artist.remove()
    return bool(old)


def limits_of(values) -> tuple[float, float]:
    """The range of the values with a margin, also where there is one value or none."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin


def zero_lines(ax, sides: str = "xy", **style) -> None:
    """Thin lines through zero, for the axes of which zero divides falls from rises."""
    style = {"color": "#666666", "lw": 0.8, "zorder": 1, "gid": "zero"} | style
    for side in sides:
        (ax.axvline if side == "x" else ax.axhline)(0, **style)


def mark_step(ax, step) -> None:
    """Move the upright line that marks a step, drawing it first if there is none.

    Args:
        ax: Axes of `trajectory`.
        step: the step to mark.

    Example:
        >>> import matplotlib.figure
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> mark_step(ax, 3); mark_step(ax, 4)
        >>> len(ax.lines)
        1
    """
    take_out(ax, "step")
    ax.axvline(step, color="#333333", lw=1.2, ls=":", zorder=5, gid="step")


def note(ax, across: float, up: float, words: str) -> None:
    """What is not drawn, in a corner; nothing where there is nothing to say."""
    box = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 2}
    ax.text(across, up, words, transform=ax.transAxes, ha="right" if across > 0.5 else "left",
            va="top" if up > 0.5 else "bottom", fontsize=8, color="#333333", gid="note", zorder=7,
            visible=bool(words), bbox=box)  # fmt: skip


def beside(ax, texts, across: float = 1.01) -> None:
    """Texts right of the axes, one per line."""
    for line, words in enumerate(texts):
        ax.text(across, line, words, transform=ax.get_yaxis_transform(), va="center", fontsize=8)


def name_lines(ax, names, size: float = 8.0) -> None:
    """Names left of the axes, one per line, in any script and never read as mathematics."""
    ax.set_yticks(range(len(names)), names, fontsize=size, parse_math=False,
                  fontfamily=families())  # fmt: skip


def height_of(lines: int, least: float, each: float = 0.24, around: float = 1.6) -> float:
    """The inches that a figure of so many lines needs, within reason."""
    return float(np.clip(around + each * lines, least, 9))


def change_bars(ax, changes, outlined) -> None:
    """Bars from zero, one per line from the top: rises blue, falls vermillion and hatched."""
    for line, (change, picked) in enumerate(zip(changes, outlined, strict=True)):
        falls = {"color": OKABE_ITO["vermillion"], "hatch": "////"}
        style = falls if change < 0 else {"color": OKABE_ITO["blue"]}
        style |= {"edgecolor": "black", "lw": 2.0} if picked else {"edgecolor": "white", "lw": 0.5}
        ax.barh(line, change, height=0.72, zorder=3, **style)
    ax.set_ylim(len(changes) - 0.4, -0.6)
    zero_lines(ax, "x", color="black", zorder=4)


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
    text = visible_token(text)
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)


def short(text, limit: int = 28) -> str:
    """``text`` drawable and no longer than ``limit``, for tokens, ids and group names."""
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


def color_bar(image, words: str, **options) -> None:
    """The scale of an image's colours, with what they mean beside it."""
    bar = image.figure.colorbar(image, ax=image.axes, shrink=0.8, **options)
    bar.ax.set_ylabel(words, parse_math=False)
    bar.outline.set_linewidth(0.5)


def plain_legend(legend) -> None:
    """Have a legend's names and title written as they are: ``$`` is a price, no mathematics."""
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


def corner_label(ax, regime: str, across: float, up: float, count: str) -> None:
    """A region's name with a count, in a corner and in a dark shade of its colour."""
    drawn = REGIMES[regime]
    box = {"fc": drawn.tint, "ec": "none", "alpha": 0.85, "pad": 2}
    ax.text(across, up, drawn.region + count, transform=ax.transAxes, gid=f"label-{regime}",
            color=0.65 * np.array(to_rgb(drawn.color)), ha="left" if across < 0.5 else "right",
            va="top" if up > 0.5 else "bottom", fontsize=9.5, fontweight="bold", zorder=5,
            bbox=box)  # fmt: skip


def ring(ax, place, gid: str = "ring") -> None:
    """A ring around the picked point, none where its place is not known."""
    ax.scatter(*np.reshape(place, (-1, 2)).T, s=190, facecolors="none", edgecolors="black", lw=2,
               zorder=5, gid=gid)  # fmt: skip


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
