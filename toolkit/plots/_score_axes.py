"""What the scatter and the histogram of scores share: limits, the filter's cut, the note."""

import numpy as np

from toolkit.plots._palette import OKABE_ITO

KEPT, SHADE = OKABE_ITO["blue"], "#E4F0F8"


def count_of(number) -> str:
    return f"{int(number):,} pair{'' if number == 1 else 's'}"


def limits_of(values) -> tuple[float, float]:
    """The range of the values with a margin, also where there is one value or none."""
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return low - margin, high + margin


def add_cut(ax, side: str) -> None:
    span, line = (ax.axvspan, ax.axvline) if side == "x" else (ax.axhspan, ax.axhline)
    span(0, 1, color=SHADE, lw=0, zorder=0, gid=f"shade-{side}")
    line(0, color="black", lw=1.2, ls=(0, (5, 3)), zorder=5, gid=f"cut-{side}")


def move_cut(artists, side: str, limits, cut) -> None:
    """Shade the side of the axis that is kept, with a line at its end."""
    shade, line = artists[f"shade-{side}"], artists[f"cut-{side}"]
    visible = cut is not None and np.isfinite(cut)
    shade.set_visible(visible)
    line.set_visible(visible)
    if visible:
        extent = {"x": limits[0], "width": cut - limits[0]}
        if side == "y":
            extent = {"y": limits[0], "height": cut - limits[0]}
        shade.set(**extent)
        line.set_data(*(([cut, cut], [0, 1]) if side == "x" else ([0, 1], [cut, cut])))


def add_note(ax) -> None:
    """An empty note about what is not drawn, in the upper right corner."""
    box = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 2}
    ax.text(0.99, 0.98, "", transform=ax.transAxes, ha="right", va="top", fontsize=8,
            color="#333333", gid="note", zorder=7, bbox=box)  # fmt: skip
