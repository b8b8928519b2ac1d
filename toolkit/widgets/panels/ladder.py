"""A slider through the usual values of a hyper-parameter, the losses' own defaults first."""

from __future__ import annotations

import ipywidgets as w

from toolkit import plots
from toolkit.loss_comparison import SIGNS
from toolkit.widgets.panels.controls import WIDE

# Values that a slider offers beside "default"; a loss without a limit there may refuse some.
LADDERS = {
    "beta": (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 2.5, 5, 10),
    "gamma": (0, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.2, 1.4, 1.6, 2, 3, 5),
    "lam": (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
    "alpha": (0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
    "epsilon": (0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.45),
    "tau": (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
    "delta": (-5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10),
    "z": (0, 0.1, 0.2, 0.5, 1, 2, 5),
}
OTHERS = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10)
DEFAULT = "default"


def ladder(name: str) -> w.SelectionSlider:
    """Return the slider of a hyper-parameter."""
    return w.SelectionSlider(
        options=_options(name, None), description=SIGNS.get(name, name), style=WIDE,
        continuous_update=True, layout={"width": "226px"},
    )  # fmt: skip


def rung(slider: w.SelectionSlider, name: str, value: float | None) -> float | str:
    """Return what the slider shows for a value, ``None`` for the defaults; it makes room for it."""
    if value is None:
        return DEFAULT
    if value not in [option for _, option in slider.options]:
        slider.options = _options(name, value)
    return value


def _options(name: str, value: float | None) -> list[tuple[str, float | str]]:
    """What a slider offers: the table's defaults first, then values, the present one among them."""
    values = {float(v) for v in LADDERS.get(name, OTHERS)} | (
        {value} if value is not None else set()
    )
    return [(DEFAULT, DEFAULT), *((plots.number(v, 6), v) for v in sorted(values))]
