"""The widgets of the explorer of losses: layout, and callbacks that link controls and pictures."""

from __future__ import annotations

import ipywidgets as w
import numpy as np

from toolkit import plots
from toolkit.widgets import _loss_text as text
from toolkit.widgets._events import Events
from toolkit.widgets._loss_state import SHIFTS, LossState
from toolkit.widgets.panels.figure import Picture, pointed_at
from toolkit.widgets.panels.table import PairTable

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
FIRST = ("beta", "gamma", "lam", "alpha")  # the others are behind a fold
DEFAULT = "default"
WIDE = {"description_width": "auto"}


class LossView(Events):
    """Shows a :class:`LossState` and hands what the user does to it.

    Args:
        state: What is shown.
        skipped_before: Rows left out when the pairs were loaded.
        live: Use ipympl for the pictures.
    """

    def __init__(self, state: LossState, skipped_before: int, live: bool):
        super().__init__()
        self.state, self._skipped_before = state, skipped_before
        self.pairs = PairTable(lambda row: self._event(self.pick, row), page=4)
        lines = len(state.losses)
        height = int(np.clip(110 + 15 * lines, 380, 640))
        self.map, self.bars = Picture(445, height, live=live), Picture(475, height, live=live)
        self.map.connect("button_press_event", lambda e: self._event(self._point_at_map, e))
        self.bars.connect("button_press_event", lambda e: self._event(self._point_at_bars, e))
        self._map_axes, self._bars_axes = None, None
        self._limits, self._count, self._lines = None, 0, {}
        names = ("_header", "_note", "_texts", "_say", "_rewards", "_table")
        for name in names:
            setattr(self, name, w.HTML())
        self._build_choice()
        self._build_settings()
        self.widget = self._layout()

    # ----------------------------------------------------------------- building

    def _build_choice(self) -> None:
        # Buttons and a field, because JupyterLab takes the arrow keys away from a dropdown.
        count = len(self.state.measurement)
        self._choose = w.BoundedIntText(
            1, min=1, max=count, description=f"pair 1 … {count:,}", style=WIDE,
            layout={"width": "170px"},
        )  # fmt: skip
        self._choose.observe(lambda c: self._event(self.pick, c["new"] - 1), "value")
        self._previous, self._next = self._steps("pair", self._step_pair)
        self._loss = w.Dropdown(
            options=self.state.frame["loss"].tolist(), description="loss", style=WIDE,
            layout={"width": "190px"},
        )  # fmt: skip
        self._loss.observe(lambda c: self._event(self.pick_loss, c["new"]), "value")
        self._previous_loss, self._next_loss = self._steps("loss", self._step_loss)

    def _steps(self, what: str, call) -> list[w.Button]:
        buttons = []
        for words, icon, by in (("previous", "chevron-left", -1), ("next", "chevron-right", 1)):
            button = w.Button(icon=icon, tooltip=f"{words} {what}", layout={"width": "40px"})
            button.on_click(lambda _, by=by: self._event(call, by))
            buttons.append(button)
        return buttons

    def _build_settings(self) -> None:
        s = self.state
        self._sliders = {name: self._slider(name) for name in s.hparams()}
        self._lr = w.FloatLogSlider(
            s.settings.lr, min=-6, max=0, step=0.05, description="learning rate", style=WIDE,
            readout_format=".3g", layout={"width": "360px"},
        )  # fmt: skip
        self._lr.observe(lambda c: self._event(self.set, {"lr": float(f"{c['new']:.3g}")}), "value")
        self._shifts = {}
        for name in SHIFTS:
            slider = w.FloatSlider(
                0.0, min=-5, max=5, step=0.1, style=WIDE, readout_format="+.1f",
                description=f"{name.split('_')[0]} has moved by, nats", layout={"width": "400px"},
            )  # fmt: skip
            slider.observe(lambda c, name=name: self._event(self.set, {name: c["new"]}), "value")
            self._shifts[name] = slider
        self._reset = w.Button(
            description="reset", icon="undo", tooltip="all settings as at the start",
            layout={"width": "90px"},
        )  # fmt: skip
        self._reset.on_click(lambda _: self._event(self.reset))
        self._fit = w.Button(
            description="fit scales", layout={"width": "90px"},
            tooltip="the scales stay while a slider moves; this fits them anew",
        )  # fmt: skip
        self._fit.on_click(lambda _: self._event(self.show_pictures, True))

    def _slider(self, name: str) -> w.SelectionSlider:
        slider = w.SelectionSlider(
            options=_options(name, None), description=text.setting(name), style=WIDE,
            continuous_update=True, layout={"width": "226px"},
        )  # fmt: skip
        slider.observe(
            lambda c: self._event(self.set, {name: None if c["new"] == DEFAULT else c["new"]}),
            "value",
        )
        return slider

    def _layout(self) -> w.VBox:
        row = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "4px 14px"}
        top = {**row, "align_items": "flex-start"}
        table = w.VBox([self.pairs.widget], layout={"width": "100%", "min_width": "0"})
        pair = [self._previous, self._next, self._choose]
        loss = [self._previous_loss, self._next_loss, self._loss]
        choice = w.HBox([*pair, *loss, self._reset, self._fit], layout=row)
        boxes = {
            name: w.VBox([slider, w.HTML(text.moves(self.state, name))])
            for name, slider in self._sliders.items()
        }
        first = [boxes.pop(name) for name in FIRST if name in boxes]
        settings = [w.HBox([*first], layout=top)]
        if boxes:
            more = w.Accordion([w.HBox([*boxes.values()], layout=top)], selected_index=None)
            more.set_title(0, "more hyper-parameters")
            settings.append(more)
        title = w.HTML("<b>Rewards so far</b> (hypothetical: what if training had already moved …)")
        shifts = w.HBox([*self._shifts.values()], layout=row)
        hypothetical = w.VBox([title, shifts, self._rewards])
        pictures = w.HBox([self.map.widget, self.bars.widget], layout=top)
        hooks = {
            "le-pairs": table, "le-map": self.map.widget, "le-bars": self.bars.widget,
            "le-say": self._say, "le-table": self._table, "le-note": self._note,
            "le-choose": self._choose, "le-prev": self._previous, "le-next": self._next,
            "le-loss": self._loss, "le-prev-loss": self._previous_loss,
            "le-next-loss": self._next_loss, "le-lr": self._lr, "le-reset": self._reset,
            "le-fit": self._fit, "le-hypo": hypothetical,
            **{f"le-{name}": slider for name, slider in (self._sliders | self._shifts).items()},
        }  # fmt: skip
        root = w.VBox(
            [w.HTML(text.style()), self._header, self._note, table, choice, self._texts, self._say,
             *settings, self._lr, hypothetical, pictures, self._table],
            layout={"width": "100%", "grid_gap": "6px"},
        )  # fmt: skip
        for name, widget in {**hooks, "pe-explorer": root}.items():
            widget.add_class(name)
        root.add_class("le-explorer")
        return root

    # ----------------------------------------------------------------- what the user does

    def pick(self, index: int) -> None:
        """Pick a pair by its place."""
        if index == self.state.index:
            return
        if not self.state.is_measured(index):
            self._say.value = '<div class="pe-say">Measuring this pair …</div>'
        try:
            self.state.pick(index)
        finally:
            self.show_pair()

    def pick_loss(self, name: str) -> None:
        """Pick a loss by its name."""
        if name is not None and name != self.state.loss:
            self.state.loss = name
            self.show_words()
            self.show_pictures()
            self._show_controls()

    def set(self, values: dict) -> None:
        """Change settings and show what follows; a value that is refused leaves all as it was."""
        try:
            self.state.set(values)
        finally:
            self._show_controls()
        self.show_words()
        self.show_pictures(pictures=("bars",) if set(values) == {"lr"} else ("map", "bars"))

    def reset(self) -> None:
        """Go back to the settings at the start."""
        self.state.reset()
        self.show_pair()

    def _step_pair(self, by: int) -> None:
        self.pick(self.pairs.neighbour(self.state.index, by))

    def _step_loss(self, by: int) -> None:
        names = self.state.frame["loss"].tolist()
        self.pick_loss(names[(names.index(self.state.loss) + by) % len(names)])

    def _point_at_map(self, event) -> None:
        place = pointed_at(event)
        if place is not None:
            self.pick_loss(self.state.frame["loss"].iloc[place])

    def _point_at_bars(self, event) -> None:
        frame = self.state.frame
        if event.inaxes is not None and -0.5 <= event.ydata <= len(frame) - 0.5:
            self.pick_loss(frame["loss"].iloc[plots.delta_order(frame)[round(event.ydata)]])

    # ----------------------------------------------------------------- showing

    def show_all(self) -> None:
        """Show everything for the first time."""
        self.pairs.show(text.table_frame(self.state), self.state.index)
        self.show_pair()

    def show_pair(self) -> None:
        """Show the picked pair everywhere."""
        self.pairs.select(self.state.index)
        self._texts.value = text.texts(self.state)
        self.show_words()
        self.show_pictures(fit=True)
        self._show_controls()

    def show_words(self) -> None:
        """Show the sentence, the table and what is left out."""
        s = self.state
        self._header.value = text.header(s)
        self._note.value = text.note(s, self._skipped_before)
        self._say.value = text.sentence(s)
        self._rewards.value = text.rewards(s)
        self._table.value = plots.loss_table_html(s.frame, picked=s.loss)

    def show_pictures(self, fit: bool = False, pictures=("map", "bars")) -> None:
        """Draw the pictures; the scales stay unless they are to be fitted or hold too little."""
        if "map" in pictures:
            with self.map.changing():
                self._show_map(fit)
        if "bars" in pictures:
            with self.bars.changing():
                self._show_bars(fit)

    def _show_map(self, fit: bool) -> None:
        s, figure = self.state, self.map.figure
        if self._map_axes is None or fit:
            fit = True
            figure.clear()
            self._map_axes = figure.subplots()
        plots.loss_map(s.frame, picked=s.loss, ax=self._map_axes)
        if self._lay_out(self.map, fit, self._map_axes):
            plots.loss_map(s.frame, picked=s.loss, ax=self._map_axes)
            fit = True
        self.map.move(plots.moving_parts(self._map_axes), anew=fit)

    def _show_bars(self, fit: bool) -> None:
        s, figure, limits = self.state, self.bars.figure, plots.delta_limits(self.state.frame)
        if fit or limits[1] > self._limits[1] or len(s.frame) != self._count:
            fit, self._limits, self._count = True, limits, len(s.frame)
            figure.clear()
            self._bars_axes = figure.subplots()
        fitted = {"limits": limits} if fit else {}
        plots.delta_bars(
            s.frame, name="loss", log=True, picked=s.loss, ax=self._bars_axes, **fitted
        )
        fit |= self._lay_out(self.bars, fit, self._bars_axes)
        self.bars.move(plots.moving_parts(self._bars_axes), anew=fit)

    def _lay_out(self, picture: Picture, fit: bool, axes) -> bool:
        """Make room for labels and title, when they need another one: it takes half a drawing."""
        lines = axes.get_title(loc="left").count("\n")
        if not fit and self._lines.get(picture) == lines:
            return False
        self._lines[picture] = lines
        picture.figure.set_layout_engine("constrained", w_pad=0.1)
        picture.figure.draw_without_rendering()
        picture.figure.set_layout_engine("none")
        return True

    def _show_controls(self) -> None:
        s, settings = self.state, self.state.settings
        with self._silently():
            self._choose.value = s.index + 1
            names = tuple(s.frame["loss"])
            if self._loss.options != names:
                self._loss.options = names
            self._loss.value = s.loss
            for name, slider in self._sliders.items():
                _point_slider(slider, name, settings.hparams.get(name))
            self._lr.min = min(self._lr.min, np.floor(np.log10(settings.lr)))
            self._lr.max = max(self._lr.max, np.ceil(np.log10(settings.lr)))
            self._lr.value = settings.lr
            for name, slider in self._shifts.items():
                value = getattr(settings, name)
                slider.min, slider.max = min(slider.min, value), max(slider.max, value)
                slider.value = value

    def close(self) -> None:
        """Take the widgets away."""
        self.close_widgets()


def _options(name: str, value: float | None) -> list[tuple[str, float | str]]:
    """What a slider offers: the table's defaults first, then values, the present one among them."""
    values = {float(v) for v in LADDERS.get(name, OTHERS)} | (
        {value} if value is not None else set()
    )
    return [(DEFAULT, DEFAULT), *((plots.number(v, 6), v) for v in sorted(values))]


def _point_slider(slider: w.SelectionSlider, name: str, value: float | None) -> None:
    value = DEFAULT if value is None else value
    if value not in [option for _, option in slider.options]:
        slider.options = _options(name, value)
    slider.value = value
