"""Axes-level figures and token HTML from frames; no torch, no maths beyond ranks, sums and logs.

Every figure takes a frame first, keywords after it, ``ax=None`` (a new figure), and returns the
Axes. Called again on the same axes, the figures of an explorer (the maps, the bars of changes, the
scores, the anatomy of a fall) show the new frame there.
"""

from toolkit.plots._averaging_figure import averaging_front, averaging_line
from toolkit.plots._delta_figure import delta_bars, delta_limits, delta_order, delta_plane
from toolkit.plots._entanglement_map import entanglement_map
from toolkit.plots._fall_figure import anatomy_of_a_fall, fall_sentence
from toolkit.plots._fall_parts import fall_by_pair, fall_by_token, ranked_pulls
from toolkit.plots._figure import mark_step, moving_parts
from toolkit.plots._frames import caption
from toolkit.plots._influence_map import influence_map
from toolkit.plots._loss_map import loss_map
from toolkit.plots._mass_figure import mass_flow
from toolkit.plots._numbers import number, rounded_down
from toolkit.plots._remedy_figure import remedies
from toolkit.plots._score_figures import length_confound, score_histogram, score_scatter
from toolkit.plots._tables import loss_table_html, numbers_table
from toolkit.plots._token_heatmap import token_heatmap
from toolkit.plots._token_html import prompt_strip_html, token_strip_html
from toolkit.plots._trajectory_figure import predicted_vs_actual, trajectory
from toolkit.plots._user_text import NO_MATHS, html_text, visible_text, visible_token
from toolkit.plots._words import REGIMES, regime_of

__all__ = [
    "NO_MATHS",
    "REGIMES",
    "anatomy_of_a_fall",
    "averaging_front",
    "averaging_line",
    "caption",
    "delta_bars",
    "delta_limits",
    "delta_order",
    "delta_plane",
    "entanglement_map",
    "fall_by_pair",
    "fall_by_token",
    "fall_sentence",
    "html_text",
    "influence_map",
    "length_confound",
    "loss_map",
    "loss_table_html",
    "mark_step",
    "mass_flow",
    "moving_parts",
    "number",
    "numbers_table",
    "predicted_vs_actual",
    "prompt_strip_html",
    "ranked_pulls",
    "regime_of",
    "remedies",
    "rounded_down",
    "score_histogram",
    "score_scatter",
    "token_heatmap",
    "token_strip_html",
    "trajectory",
    "visible_text",
    "visible_token",
]
