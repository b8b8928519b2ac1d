"""The widgets of the pair explorer: layout, and callbacks that link table, map and controls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import ipywidgets as w
import numpy as np
from tqdm import tqdm

from toolkit import plots
from toolkit.widgets import _pair_text as text
from toolkit.widgets._pair_state import COLORS, PairState
from toolkit.widgets._pair_tabs import PairTabs
from toolkit.widgets._parts import Events, Picture, pointed_at
from toolkit.widgets._table import PairTable

SETTLE = 0.4  # seconds of rest before the table takes new numbers


class PairView(Events):
    """Shows a :class:`PairState` and hands what the user does to it.

    Args:
        state: What is shown.
        skipped_before: Rows left out when the pairs were loaded.
        live: Use ipympl for the map.
        stop_or_go: Called when the Stop button is pressed.
    """

    def __init__(
        self, state: PairState, skipped_before: int, live: bool, stop_or_go: Callable[[], None]
    ):
        super().__init__()
        self.state, self._skipped_before = state, skipped_before
        self._settle_timer, self._scale = None, None
        self.table = PairTable(lambda row: self._event(self.pick, row), lowest_first="Δ chosen")
        self.map = Picture(430, 370, live=live)
        self.map.connect("button_press_event", lambda e: self._event(self._point_at, e))
        self._header, self._note, self._status = w.HTML(), w.HTML(), w.HTML()
        self._prompt, self._strips, self._numbers = w.HTML(), w.HTML(), w.HTML()
        self._build_controls()
        self._build_progress(stop_or_go)
        self.tabs = PairTabs(state, w.VBox([self._strips, self._numbers]), self._event)
        self.widget = self._layout()

    # ----------------------------------------------------------------- building

    def _build_controls(self) -> None:
        s, wide = self.state, {"description_width": "auto"}
        self._previous = w.Button(description="previous", icon="chevron-left")
        self._next = w.Button(description="next", icon="chevron-right")
        for button, step in ((self._previous, -1), (self._next, 1)):
            button.layout.width = "96px"
            button.on_click(lambda _, step=step: self._event(self._step, step))
        # A field for a number, because JupyterLab takes the arrow keys away from a dropdown.
        self._choose = w.BoundedIntText(1, min=1, style=wide, layout={"width": "170px"})
        slider = {
            "style": wide,
            "readout_format": ".3g",
        }
        self._beta = w.FloatLogSlider(
            s.beta, min=-3, max=1, step=0.05, description="β", layout={"width": "320px"}, **slider
        )
        self._beta.disabled = not s.has_beta
        self._lr = w.FloatLogSlider(
            s.lr,
            min=-6,
            max=0,
            step=0.05,
            description="learning rate",
            layout={"width": "395px"},
            **slider,
        )
        options = [(words, name) for name, words in COLORS.items()]
        self._color = w.Dropdown(
            options=options, description="colour", style=wide, layout={"width": "270px"}
        )
        self._rescale = w.Button(
            description="fit colours",
            tooltip="the colour scale stays while a slider moves; this fits it anew",
            layout={"width": "96px"},
        )
        self._rescale.on_click(lambda _: self._event(self.show_strips, True))
        for control, name in (
            (self._beta, "beta"),
            (self._lr, "lr"),
            (self._color, "color"),
        ):
            control.observe(
                lambda change, name=name: self._event(self.set, name, change["new"]), "value"
            )
        self._choose.observe(lambda change: self._event(self.pick, change["new"] - 1), "value")

    def _build_progress(self, stop_or_go: Callable[[], None]) -> None:
        self._bar = w.IntProgress(layout={"width": "300px"})
        self._left, self._stop = w.Label(), w.Button(layout={"width": "110px"})
        self._stop.on_click(lambda _: self._event(stop_or_go))
        self._progress = w.HBox([self._bar, self._left, self._stop])

    def _layout(self) -> w.VBox:
        row = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "4px 12px"}
        table = w.VBox([self.table.widget], layout={"flex": "1 1 380px", "min_width": "0"})
        picture = w.VBox([self.map.widget], layout={"flex": "0 0 auto"})
        colours = self._color, self._rescale
        steps = w.HBox([self._previous, self._next, self._choose, *colours], layout=row)
        settings = w.HBox([self._beta, self._lr], layout=row)
        top = w.HBox([table, picture], layout={**row, "align_items": "flex-start"})
        about = self._header, self._note, self._progress
        below = self._prompt, self.tabs.widget
        root = w.VBox(
            [w.HTML(text.STYLE), *about, top, steps, settings, self._status, *below],
            layout={"width": "100%", "grid_gap": "6px"},
        )
        hooks = {
            "pe-explorer": root,
            "pe-table": table,
            "pe-map": picture,
            "pe-strips": self._strips,
            "pe-numbers": self._numbers,
            "pe-status": self._status,
            "pe-note": self._note,
            "pe-progress": self._progress,
            "pe-stop": self._stop,
            "pe-prev": self._previous,
            "pe-next": self._next,
            "pe-choose": self._choose,
            "pe-beta": self._beta,
            "pe-lr": self._lr,
            "pe-color": self._color,
            "pe-tabs": self.tabs.widget,
        }
        for name, widget in hooks.items():
            widget.add_class(name)
        return root

    # ----------------------------------------------------------------- what the user does

    def pick(self, index: int) -> None:
        """Pick a measured pair by its place."""
        moved = index != self.state.index
        self.state.index = index
        if moved:
            self.show_pair()

    def _step(self, by: int) -> None:
        self.pick(self.table.neighbour(self.state.index, by))

    def _point_at(self, event) -> None:
        """Pick the point of the map that is nearest to the pointer."""
        place = pointed_at(event)
        if place is not None:
            self.pick(place)

    def set(self, name: str, value) -> None:
        """Change ``beta``, ``lr`` or ``color`` and show it."""
        setattr(self.state, name, value)
        if name == "color":
            self.show_strips(rescale=True)
        else:
            self.state.update()
            self._show_numbers()
            self.show_strips()
            self.show_map()
            self._settle_soon()
        self._show_controls()

    # ----------------------------------------------------------------- showing

    def show_all(self) -> None:
        """Show a new set of measured pairs."""
        s = self.state
        with self._silently():
            self._choose.max = len(s.frame)
            self._choose.description = f"pair 1 … {len(s.frame):,}"
        with self.map.changing():
            self.map.figure.clear()
            axes = self.map.figure.subplots()
            self._map_axes = plots.entanglement_map(s.frame, picked=s.pair.id, ax=axes)
            self.map.figure.set_layout_engine("constrained")
        self.show_table()
        self.show_pair()

    def show_pair(self) -> None:
        """Show the picked pair everywhere."""
        s = self.state
        with self._silently():
            self._choose.value = s.index + 1
        self.table.select(s.index)
        self._prompt.value = text.prompt_box(s.pair.prompt_text)
        self._show_numbers()
        self.show_map()
        self._show_controls()
        self.show_strips(rescale=True)
        self.tabs.show()

    def _show_numbers(self) -> None:
        s = self.state
        self._header.value = text.header(s)
        self._status.value = text.sentence(s)
        self._numbers.value = plots.numbers_table(s.frame, picked=s.pair.id)

    def show_strips(self, rescale: bool = False) -> None:
        """Show the token strips; the colour scale stays unless it is to be fitted."""
        tokens = self.state.tokens()
        if rescale:
            self._scale = float(tokens[self.state.color].abs().max()) or None
        self._strips.value = plots.token_strip_html(
            tokens, value=self.state.color, vmax=self._scale
        )

    def show_map(self) -> None:
        """Move the points and the ring of the map."""
        s = self.state
        with self.map.changing():
            plots.update_entanglement_map(self._map_axes, s.frame, picked=s.pair.id)
            self.map.redraw()

    def show_table(self) -> None:
        """Put the current numbers into the table."""
        self.table.show(text.table_frame(self.state), self.state.index)

    def _settle_soon(self) -> None:
        """Show what takes longer once the sliders rest: the browser builds the table anew."""
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._settle()
        else:
            self._settle_timer = loop.call_later(SETTLE, self._settle)

    def _settle(self) -> None:
        self._settle_timer = None
        self.show_table()
        self.tabs.show_changed()

    def _show_controls(self) -> None:
        with self._silently():
            for slider, value in ((self._beta, self.state.beta), (self._lr, self.state.lr)):
                slider.min = min(slider.min, np.floor(np.log10(value)))
                slider.max = max(slider.max, np.ceil(np.log10(value)))
                slider.value = value
            self._color.value = self.state.color

    def show_progress(self, running: bool) -> None:
        """Show how far measuring is, and what is missing."""
        m = self.state.measurement
        self._note.value = text.note(m, self._skipped_before)
        self._progress.layout.display = "none" if m.finished else None
        self._bar.max, self._bar.value = len(m), m.done
        left = f", about {tqdm.format_interval(m.seconds_left)} left" if running else ", stopped"
        self._left.value = f"{m.done:,} of {len(m):,} pairs measured{left}"
        self._stop.description = "Stop" if running else "Continue"
        self._stop.icon = "stop" if running else "play"

    def close(self) -> None:
        """Take the widgets away."""
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        self.close_widgets()
