"""Colours that are told apart under every common colour blindness, and text that reads on them."""

from matplotlib.colors import LinearSegmentedColormap, to_hex
from seaborn.utils import relative_luminance

# Okabe and Ito's palette.
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
SIDE_COLORS = {"chosen": OKABE_ITO["sky"], "rejected": OKABE_ITO["orange"]}
KEPT = OKABE_ITO["blue"]  # the pairs that a filter keeps
MISSING = "#BDBDBD"
STEPS = 257  # an odd number: the middle is a colour of its own


def _colormap(name: str, *colors: str) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list(f"pet_{name}", colors, N=STEPS, bad=MISSING)


# falls, no change, rises
DIVERGING = _colormap("diverging", OKABE_ITO["vermillion"], "#F7F7F7", OKABE_ITO["blue"])
# surprising … certain
SEQUENTIAL = _colormap("sequential", "#5B2148", OKABE_ITO["purple"], "#F7F7F7")


def contrast_text(color) -> str:
    """Black or white, whichever reads better on ``color`` (WCAG contrast, always ≥ 4.5).

    Example:
        >>> contrast_text("#0072B2"), contrast_text("#F7F7F7")
        ('#FFFFFF', '#000000')
    """
    light = (relative_luminance(color) + 0.05) ** 2 >= 1.05 * 0.05
    return "#000000" if light else "#FFFFFF"


def color_of(value: float, vmax: float, *, diverging: bool = True) -> str:
    """The ``#rrggbb`` of ``value`` on a scale −vmax..0..vmax, or −vmax..0 if not diverging.

    Example:
        >>> color_of(0.0, 1.0), color_of(-1.0, 1.0), color_of(float("nan"), 1.0)
        ('#F7F7F7', '#D55E00', '#BDBDBD')
    """
    place = (value + vmax) / (2 * vmax if diverging else vmax)
    return to_hex((DIVERGING if diverging else SEQUENTIAL)(place)).upper()
