"""Which training pairs did it: a ranked list to pick from, its bars, and the picked pair's text."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as w
import pandas as pd
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.pairs import PreferencePair
from toolkit.plots import html_text, number
from toolkit.widgets import words
from toolkit.widgets.panels.controls import column, row
from toolkit.widgets.panels.figure import image, image_html
from toolkit.widgets.panels.panel import Panel, Quiet, refill

UNKEPT = (
    "Which training pairs did it is kept by <code>forces=&quot;by_pair&quot;</code>, at the price "
    "of a copy of the trained parameters for each of them."
)


class PullsPanel(Panel):
    """What each training pair did to a response over the run, the strongest pull first.

    Args:
        pulls: Returns ``Trajectory.pulls()`` so far, ``None`` where the run keeps none.
        whose: Returns the response, as ``plots.ranked_pulls`` takes it.
        named: Returns the training pair of an id, ``None`` where its text is not known.
        event: Runs a callback and tells the user when it fails.
    """

    def __init__(
        self,
        pulls: Callable[[], pd.DataFrame | None],
        whose: Callable[[], dict[str, str | None]],
        named: Callable[[str], PreferencePair | None],
        event: Callable,
    ):
        self._pulls, self._whose, self._named = pulls, whose, named
        self.ranks = w.Select(rows=12, layout=w.Layout(width="290px", flex="0 0 auto"))
        self.ranks.tooltip = "training pairs, the strongest pull first: pick one to read it"
        self._words, self._text, self._picture = w.HTML(), w.HTML(), w.VBox()
        self._lists = row(self.ranks, self._picture, align_items="flex-start")
        box = column(self._words, self._lists, self._text)
        super().__init__(self._draw, self._html, widget=box)
        self._quiet = Quiet()
        self.ranks.observe(lambda _: None if self._quiet else event(self._show), "value")

    @property
    def picked(self) -> str | None:
        """Id of the picked training pair."""
        return self.ranks.value

    def _draw(self, changed: frozenset[str]) -> None:
        pulls = self._pulls()
        unkept = pulls is None or pulls.empty
        self._words.value = words.quiet([UNKEPT]) if pulls is None else ""
        self._lists.layout.display = "none" if unkept else None
        if unkept:
            return
        ranked, before = plots.ranked_pulls(pulls, **self._whose()), self.picked
        named = zip(ranked["train_pair_id"], ranked["delta"], strict=True)
        options = [(f"{number(delta, sign=True)}  {id}", id) for id, delta in named]
        with self._quiet:
            self.ranks.options = options
            self.ranks.value = before if before in set(ranked["train_pair_id"]) else options[0][1]
        self._show()

    def _show(self) -> None:
        """Mark the picked pair in the bars, and show its text."""
        refill(self._picture, image(self._figure(), 90))
        self._text.value = self._said()

    def _html(self) -> str:
        pulls = self._pulls()
        if pulls is None:
            return words.quiet([UNKEPT])
        return "" if pulls.empty else image_html(self._figure(), "training pairs") + self._said()

    def _figure(self) -> Figure:
        pulls = self._pulls().copy()
        pulls.attrs = {}  # the header says them
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        plots.fall_by_pair(pulls, **self._whose(), picked=self.picked, ax=figure.subplots())
        return figure

    def _said(self) -> str:
        pair = None if self.picked is None else self._named(self.picked)
        if pair is None:
            return ""
        parts = {"prompt": pair.prompt_text, "chosen": pair.chosen_text}
        parts["rejected"] = pair.rejected_text
        lines = (f"<div><b>{name}</b> {html_text(text)}</div>" for name, text in parts.items())
        return f"<div>{html_text(self.picked)}{''.join(lines)}</div>"
