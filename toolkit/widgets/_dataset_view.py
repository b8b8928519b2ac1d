"""The widgets of the dataset explorer: layout, and callbacks that link table, figures, filter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import ipywidgets as w

from toolkit import plots
from toolkit.widgets import _dataset_text as text
from toolkit.widgets._dataset_export import ExportRow
from toolkit.widgets._dataset_pointer import Pointer
from toolkit.widgets._dataset_state import PARTS, DatasetState
from toolkit.widgets._dataset_table import PartTable
from toolkit.widgets._events import Events
from toolkit.widgets.panels.figure import Picture
from toolkit.widgets.panels.pair_tabs import PairTabs

SETTLE = 0.4  # seconds of rest before the table takes other rows
WIDE = {"description_width": "auto"}
ROW = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "4px 14px"}


class DatasetView(Events):
    """Shows a :class:`DatasetState` and hands what the user does to it.

    Args:
        state: What is shown.
        skipped_before: Rows left out when the pairs were loaded.
        live: Use ipympl for the figures.
    """

    def __init__(self, state: DatasetState, skipped_before: int, live: bool):
        super().__init__()
        self.state, self._skipped_before = state, skipped_before
        self._settle_timer, self._tabs = None, None
        self.table = PartTable(lambda place: self._event(self.pick, place), page=10)
        self.map = Picture(500, 430, live=live)
        self.histograms = Picture(500, 330, live=live)
        self.pointer = Pointer(self.map, self._event, self)
        for name in ("header", "note", "ranking", "say", "prompt", "strips", "numbers"):
            setattr(self, f"_{name}", w.HTML())
        self._build_filter()
        self._build_choice()
        self.exporter = ExportRow(state, self._event)
        self.widget = self._layout()

    # ----------------------------------------------------------------- building

    def _build_filter(self) -> None:
        names = [(plots.visible_text(name.replace("_", " ")), name) for name in self.state.numbers]
        self._columns = {}
        for name, words in (("x", "across"), ("y", "up"), ("by", "rank by")):
            drop = w.Dropdown(options=names, description=words, style=WIDE,
                              layout={"width": "235px"})  # fmt: skip
            drop.observe(
                lambda change, name=name: self._event(self.set_column, name, change["new"]), "value"
            )
            self._columns[name] = drop
        self._keep = w.FloatSlider(
            100, min=0.5, max=100, step=0.5, readout_format=".1f", style=WIDE,
            description="keep the lowest, %", layout={"width": "400px"},
        )  # fmt: skip
        self._keep.observe(
            lambda change: self._event(self.set_keep, round(change["new"] / 100, 6)), "value"
        )

    def _build_choice(self) -> None:
        # A field for a number, because JupyterLab takes the arrow keys away from a dropdown.
        count = len(self.state.pairs)
        self._choose = w.BoundedIntText(
            1, min=1, max=count, description=f"pair 1 … {count:,}", style=WIDE,
            layout={"width": "172px"},
        )  # fmt: skip
        self._choose.observe(lambda change: self._event(self.pick, change["new"] - 1), "value")
        self._steps = []
        for words, icon, by in (("previous", "chevron-left", -1), ("next", "chevron-right", 1)):
            button = w.Button(icon=icon, tooltip=f"{words} row", layout={"width": "40px"})
            button.on_click(lambda _, by=by: self._event(self._step, by))
            self._steps.append(button)
        self._part = w.Dropdown(
            options=PARTS, description="rows", style=WIDE, layout={"width": "128px"}
        )
        self._part.observe(lambda _: self._event(self.show_table), "value")

    def _layout(self) -> w.VBox:
        top = {**ROW, "align_items": "flex-start"}
        side = {"flex": "1 1 380px", "min_width": "0", "grid_gap": "6px"}
        near = {**ROW, "grid_gap": "4px 4px"}
        rows = w.HBox([*self._steps, self._choose, self._part], layout=near)
        table = w.VBox([rows, self.table.widget], layout=side)
        axes = w.HBox([self._columns["x"], self._columns["y"]], layout=ROW)
        picture = w.VBox([self.map.widget, axes, self.pointer.widget], layout={"flex": "0 0 auto"})
        filter_row = w.HBox([self._columns["by"], self._keep], layout=ROW)
        filters = w.VBox([filter_row, self._ranking, self.exporter.widget], layout=side)
        columns = w.VBox([self.histograms.widget], layout={"flex": "0 0 auto"})
        self._more = w.VBox()
        root = w.VBox(
            [
                w.HTML(text.style()), self._header, self._note,
                w.HBox([table, picture], layout=top), w.HBox([filters, columns], layout=top),
                self._say, self._prompt, self._more,
            ],
            layout={"width": "100%", "grid_gap": "6px"},
        )  # fmt: skip
        hooks = {
            "pe-explorer": root, "pe-table": table, "pe-status": self._say, "pe-note": self._note,
            "pe-strips": self._strips, "pe-numbers": self._numbers, "pe-choose": self._choose,
            "de-map": picture, "de-histograms": columns, "de-ranking": self._ranking,
            "de-keep": self._keep, "de-part": self._part, "de-next": self._steps[1],
            **{f"de-{name}": drop for name, drop in self._columns.items()},
        }  # fmt: skip
        for name, widget in hooks.items():
            widget.add_class(name)
        root.add_class("de-explorer")
        return root

    # ----------------------------------------------------------------- what the user does

    def pick(self, index: int) -> None:
        """Pick a pair by its place."""
        if index != self.state.index:
            self.state.index = index
            self.show_pair()

    def _step(self, by: int) -> None:
        """Pick the next row of the table, round its end."""
        place = self.table.place_beside(self.state.index, by)
        if place is not None:
            self.pick(place)

    def set_column(self, name: str, column: str) -> None:
        """Change what is drawn across or up, or what the filter ranks by."""
        try:
            self.state.set_column(name, column)
        finally:
            self._show_controls()
        self.show_words()
        needs_room = {"x": [self.histograms], "y": [self.map, self.histograms], "by": []}
        self.show_pictures(needs_room[name])
        self._settle_soon()

    def set_keep(self, share: float) -> None:
        """Change the share that is kept."""
        try:
            self.state.keep = share
        finally:
            self._show_controls()
        self.show_words()
        self.show_pictures()
        if self._part.value in ("kept", "dropped"):
            self._settle_soon()

    def selected(self) -> None:
        """Show what was selected."""
        self.show_words()
        self.show_map()
        if self._part.value == "selected":
            self.show_table()

    # ----------------------------------------------------------------- showing

    def show_all(self) -> None:
        """Show everything anew, with figures made from nothing."""
        with self.map.changing(), self.histograms.changing():
            self._make_pictures()
            self.show_pictures([self.map, self.histograms])
        self._show_controls()
        self.show_words()
        self.show_table()
        self.show_pair(draw=False)

    def _make_pictures(self) -> None:
        s, frame = self.state, self.state.plot_frame()
        self.map.figure.clear()
        self.histograms.figure.clear()
        left, right = self.histograms.figure.subplots(1, 2)
        self._axes = {"map": self.map.figure.subplots(), "x": left, "y": right}
        for side in ("x", "y"):
            plots.score_histogram(frame, s.columns[side], ax=self._axes[side])
        frame.attrs.update(s.frame.attrs)
        plots.score_scatter(frame, x=s.columns["x"], y=s.columns["y"], ax=self._axes["map"])
        self.pointer.attach(self._axes["map"])

    def show_words(self) -> None:
        """Show the counts, and what is left out."""
        self._header.value = text.header(self.state)
        self._note.value = text.note(self.state, self._skipped_before)
        self._ranking.value = text.ranking(self.state)

    def show_pictures(self, lay_out: Sequence[Picture] = ()) -> None:
        """Draw the scatter and the histograms; other labels need another layout."""
        s, frame = self.state, self.state.plot_frame()
        with self.histograms.changing():
            for side in ("x", "y"):
                cut = text.cut_of(s, side)
                plots.score_histogram(frame, s.columns[side], cut=cut, ax=self._axes[side])
                self._axes[side].set_ylabel("pairs" if side == "x" else "")
                self._axes[side].xaxis.label.set_fontsize(9)
            self._lay_out_and_draw(self.histograms, lay_out)
        with self.map.changing():
            self._update_map(frame)
            self._lay_out_and_draw(self.map, lay_out)

    def _lay_out_and_draw(self, picture: Picture, lay_out: Sequence[Picture]) -> None:
        if picture in lay_out:
            picture.figure.set_layout_engine("constrained", w_pad=0.08)
            picture.figure.draw_without_rendering()
            picture.figure.set_layout_engine("none")
        picture.redraw()

    def show_map(self) -> None:
        """Draw the scatter."""
        with self.map.changing():
            self._update_map(self.state.plot_frame())
            self.map.redraw()

    def _update_map(self, frame) -> None:
        s = self.state
        plots.score_scatter(
            frame, x=s.columns["x"], y=s.columns["y"], by=s.columns["by"], cut=s.cut,
            picked=s.pair.id, ax=self._axes["map"],
        )  # fmt: skip

    def show_table(self) -> None:
        """Show the rows of the chosen part."""
        self.table.show_part(self.state, self._part.value)

    def show_pair(self, draw: bool = True) -> None:
        """Show the picked pair everywhere."""
        with self._silently():
            self._choose.value = self.state.index + 1
        if draw:
            self.show_map()
        self._show_details()
        # Last, because turning to its page keeps the browser busy in a long table.
        self.table.mark(self.state.index)

    def _show_details(self) -> None:
        """Show the picked pair alone, or why there is nothing to show."""
        for name, value in text.details_of(self.state).items():
            getattr(self, f"_{name}").value = value
        try:
            self.state.details()
        except ValueError:
            self._more.children = [self._strips]
            return
        if self._tabs is None:
            # Among others the scatter ranks the pair, no tab.
            tokens = w.VBox([self._strips, self._numbers])
            self._tabs = PairTabs(self.state.details, tokens, self._event, rank=False)
        self._more.children = [self._tabs.widget]
        self._tabs.show()

    def _settle_soon(self) -> None:
        """Show the table once the slider rests: the browser builds it anew."""
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.show_table()
        else:
            self._settle_timer = loop.call_later(SETTLE, self._settle)

    def _settle(self) -> None:
        self._settle_timer = None
        self._event(self.show_table)

    def _show_controls(self) -> None:
        s = self.state
        with self._silently():
            for name, drop in self._columns.items():
                drop.value = s.columns[name]
            self._keep.min = min(self._keep.min, 100 * s.keep)
            self._keep.value = round(100 * s.keep, 4)

    def close(self) -> None:
        """Take the widgets away."""
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        self.close_widgets()
