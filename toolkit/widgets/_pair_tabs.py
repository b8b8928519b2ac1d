"""The tabs of the pair explorer: each is filled when it is opened; a slow one asks first."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as w
import numpy as np
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.widgets import _pair_text as text
from toolkit.widgets._pair_state import PairState
from toolkit.widgets._parts import png, refill

PATIENCE = 1.5  # seconds that opening a tab may take unasked
TITLES = ("Tokens", "Token × token", "Prompt", "Similarity")
NAMES = {"matrix": "token × token products", "prompt": "prompt attributions"}


class PairTabs:
    """Tabs with the tokens, the token heat-map, the prompt's share and the similarities.

    Args:
        state: What is shown.
        tokens: Content of the first tab, which its owner keeps up to date.
        event: Runs a callback and tells the user when it fails.
        rank: Whether a last tab ranks the pair among all measured ones.
    """

    def __init__(self, state: PairState, tokens: w.Widget, event: Callable, rank: bool = True):
        self.state, self._event = state, event
        self.heat, self.prompt = w.VBox(), w.VBox()
        self._values = self._toggle([("cosine", "cosine"), ("inner product", "inner")])
        self._block = self._toggle([("chosen × rejected", "cross"), ("all × all", "full")])
        targets = [("chosen − rejected", "margin"), ("chosen", "chosen"), ("rejected", "rejected")]
        self._target = self._toggle(targets)
        options = w.HBox([self._values, self._block], layout={"grid_gap": "28px"})
        boxes = [
            tokens,
            w.VBox([options, self.heat]),
            w.VBox([self._target, self.prompt]),
        ]
        if rank:
            self.alike = w.VBox()
            boxes.append(self.alike)
        self.widget = w.Tab(boxes, titles=TITLES[: len(boxes)])
        self.widget.observe(lambda _: self._event(self.show), "selected_index")

    def _toggle(self, options: list[tuple[str, str]]) -> w.ToggleButtons:
        toggle = w.ToggleButtons(options=options)
        toggle.style.button_width = "130px"
        toggle.observe(lambda _: self._event(self.show), "value")
        return toggle

    def show(self) -> None:
        """Fill the open tab for the picked pair."""
        fill = {1: self._show_heat, 2: self._show_prompt, 3: self._show_alike}
        fill.get(self.widget.selected_index, lambda: None)()

    def show_changed(self) -> None:
        """Fill the open tab if it depends on β or the learning rate."""
        if self.widget.selected_index == 3:
            self._show_alike()

    def _show_heat(self) -> None:
        self._when_asked(self.heat, "matrix", self._fill_heat)

    def _show_prompt(self) -> None:
        self._when_asked(self.prompt, "prompt", self._fill_prompt)

    def _when_asked(self, box: w.VBox, kind: str, fill: Callable[[], None]) -> None:
        """Fill the box at once, or behind a button that says how long it takes."""
        seconds = self.state.seconds(kind)
        if seconds <= PATIENCE:
            fill()
            return
        start = w.Button(
            description=f"Compute (about {seconds:.0f} s)", icon="play", layout={"width": "220px"}
        )
        words = w.Label(f"{NAMES[kind]} of this pair; interrupt the kernel to stop")

        def run():
            start.disabled, words.value = True, "Computing …"
            try:
                fill()
            except KeyboardInterrupt:
                words.value = "Stopped."
            finally:
                start.disabled = False

        start.on_click(lambda _: self._event(run))
        refill(box, w.HBox([start, words]))

    def _fill_heat(self) -> None:
        frame, block = self.state.matrix().to_frame(), self._block.value
        tokens = len(frame) ** 0.5 / (1 if block == "full" else 2)
        size = float(np.clip(2.6 + 0.42 * tokens, 4.6, 10))
        figure = Figure(figsize=(size + 1, size), layout="constrained")
        plots.token_heatmap(frame, values=self._values.value, block=block, ax=figure.subplots())
        refill(self.heat, _image(figure))

    def _fill_prompt(self) -> None:
        result, target = self.state.attributions(), self._target.value
        strip = plots.prompt_strip_html(result.to_frame(), value=target)
        refill(self.prompt, w.HTML(text.completeness(result, target)), w.HTML(strip))

    def _show_alike(self) -> None:
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = plots.ches_scatter(self.state.frame, ax=figure.subplots())
        row = self.state.row
        place = [row["ln_ches"]], [row["predicted_chosen_delta"]]
        axes.scatter(*place, s=190, facecolors="none", edgecolors="black", lw=2, zorder=5)
        layout = {"flex_flow": "row wrap", "grid_gap": "8px 32px", "align_items": "center"}
        both = [w.HTML(text.ranks(self.state)), _image(figure)]
        refill(self.alike, w.HBox(both, layout=layout))


def _image(figure: Figure, dpi: int = 150) -> w.Image:
    """The figure as a still image, sharp on dense screens."""
    value = png(figure, dpi, bbox_inches="tight")
    width = int.from_bytes(value[16:20], "big")  # a PNG says its width there
    return w.Image(value=value, layout={"width": f"{100 * width // dpi}px", "height": "auto"})
