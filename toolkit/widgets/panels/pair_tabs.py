"""The tabs about one pair: its tokens, their products, the share of the prompt, its rank."""

from __future__ import annotations

import math
from collections.abc import Callable

import ipywidgets as w
import numpy as np
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.attribution import PromptAttributions
from toolkit.measurement import PairResult
from toolkit.plots import html_text
from toolkit.widgets import words
from toolkit.widgets.panels.controls import row
from toolkit.widgets.panels.figure import image
from toolkit.widgets.panels.panel import refill
from toolkit.widgets.panels.tabs import Tabs, when_asked

MEASURES = {
    "ln_ches": "length-normalised CHES",
    "ches": "CHES",
    "neg_edit_distance": "negative edit distance",
    "last_hidden_inner": "inner product of the last states",
    "cosine": "cosine of the two gradients",
    "kappa": "κ",
}
RANK = "Similarity"


class PairTabs(Tabs):
    """Tabs with the tokens, the token heat-map, the prompt's share and the similarities.

    Args:
        one: Returns the pair that is shown.
        tokens: Content of the first tab, which its owner keeps up to date.
        event: Runs a callback and tells the user when it fails.
        rank: Whether a last tab ranks the pair among all measured ones.
    """

    def __init__(
        self, one: Callable[[], PairResult], tokens: w.Widget, event: Callable, rank: bool = True
    ):
        self._one, self._event = one, event
        self.heat, self.prompt = w.VBox(), w.VBox()
        self._values = self._toggle([("cosine", "cosine"), ("inner product", "inner")])
        self._block = self._toggle([("chosen × rejected", "cross"), ("all × all", "full")])
        targets = [("chosen − rejected", "margin"), ("chosen", "chosen"), ("rejected", "rejected")]
        self._target = self._toggle(targets)
        options = row(self._values, self._block, grid_gap="28px")
        tabs = {
            "Tokens": tokens,
            "Token × token": w.VBox([options, self.heat]),
            "Prompt": w.VBox([self._target, self.prompt]),
        }
        fills = {"Token × token": self._show_heat, "Prompt": self._show_prompt}
        if rank:
            self.alike = tabs[RANK] = w.VBox()
            fills[RANK] = self._show_alike
        super().__init__(tabs, fills, event)

    def _toggle(self, options: list[tuple[str, str]]) -> w.ToggleButtons:
        toggle = w.ToggleButtons(options=options)
        toggle.style.button_width = "130px"
        toggle.observe(lambda _: self._event(self.show), "value")
        return toggle

    def _show_heat(self) -> None:
        seconds = self._one().seconds("matrix")
        when_asked(self.heat, "token × token products", seconds, self._fill_heat, self._event)

    def _show_prompt(self) -> None:
        seconds = self._one().seconds("prompt")
        when_asked(self.prompt, "prompt attributions", seconds, self._fill_prompt, self._event)

    def _fill_heat(self) -> None:
        frame, block = self._one().matrix().to_frame(), self._block.value
        tokens = len(frame) ** 0.5 / (1 if block == "full" else 2)
        size = float(np.clip(2.6 + 0.42 * tokens, 4.6, 10))
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        plots.token_heatmap(frame, values=self._values.value, block=block, ax=figure.subplots())
        refill(self.heat, image(figure))

    def _fill_prompt(self) -> None:
        result, target = self._one().attributions(), self._target.value
        strip = plots.prompt_strip_html(result.to_frame(), value=target)
        refill(self.prompt, w.HTML(completeness(result, target)), w.HTML(strip))

    def _show_alike(self) -> None:
        one = self._one()
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        change, axes = "predicted_chosen_delta", figure.subplots()
        plots.score_scatter(one.results.frame, y=change, picked=one.pair.id, ax=axes)
        refill(self.alike, row(w.HTML(ranks(one)), image(figure), grid_gap="8px 32px"))


def ranks(one: PairResult) -> str:
    """Where the picked pair stands among all measured ones."""
    frame, rows = one.results.frame, []
    for name, title in MEASURES.items():
        value, known = one.row[name], int(frame[name].notna().sum())
        place, top = "n/a", ""
        if not math.isnan(value):
            rank = int((frame[name] > value).sum()) + 1
            place, top = f"{rank:,} of {known:,}", f"top {100 * rank / known:.0f} %"
        rows.append((title, plots.number(value), place, top))
    return words.table(("", "this pair", "place, highest first", ""), rows) + words.quiet(
        ["A higher CHES, edit distance nearer 0 or inner product means that the model finds the "
         "two responses more alike."]
    )  # fmt: skip


def completeness(result: PromptAttributions, target: str) -> str:
    """How far the attributions are from adding up, in words."""
    change, gap = result.differences[target], result.gaps[target]
    what = "chosen − rejected" if target == "margin" else f"the {target} log-probability"
    share = f" ({100 * abs(gap / change):.1g} % of it)" if change else ""
    return (
        f"<div>Against a prompt of {html_text(result.baseline)} embeddings, this prompt moves "
        f"<b>{what}</b> by {words.signed(change)} nats. The tokens below add up to "
        f"{words.signed(change + gap)}: the completeness gap is {words.signed(gap)} nats{share}. "
        f'<span class="pe-quiet">{html_text(result.method.replace("_", " "))}</span></div>'
    )
