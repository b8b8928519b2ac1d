"""All losses side by side for one pair: which of them raises the chosen response, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import ipywidgets as w
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.checks import positive
from toolkit.gradients import PairStats
from toolkit.loss_comparison import SHIFTS, LossComparison
from toolkit.measurement import Measurement
from toolkit.model import Params, Policy
from toolkit.pairs import PreferencePair
from toolkit.widgets import _loss_words as text, words
from toolkit.widgets.explorer import Explorer
from toolkit.widgets.panels.controls import WIDE, button, column, dropdown, log_slider, put
from toolkit.widgets.panels.figure import Picture, Still, image_html, pointed_at
from toolkit.widgets.panels.ladder import DEFAULT, ladder, rung
from toolkit.widgets.panels.panel import Panel, Text

FIRST = ("beta", "gamma", "lam", "alpha")  # the others are behind a fold
SETTINGS = ("hparams", "lr", "shift")


class LossExplorer(Explorer):
    """Compare losses on one pair: their weights, their place in the pair's band, their steps.

    Shown in a notebook it is a table of pairs to pick from, a table of losses, the entanglement map
    with every loss at the pair's cosine, and the predicted changes by loss, with sliders for the
    hyper-parameters. A slider moves the losses that have its hyper-parameter; all others stay at
    the table's defaults. As long as the policy is its reference all log-ratios are 0: the two
    sliders "rewards so far" put hypothetical log-probabilities into the loss weights, so that one
    sees how each loss answers once the chosen response has fallen. Gradients stay the measured
    ones. A pair is measured when it is picked, unless ``stats`` has it.

    Everything it shows is in reach of Python too, without a screen. A notebook keeps no widgets:
    whoever opens it without running it finds a still copy; ``snapshot()`` keeps another state.

    Predictions are for one gradient-descent step on one pair alone, at first order.

    Args:
        policy: The model.
        pairs: Preference pairs, ids unique; those that cannot be scored are left out and named.
        stats: ``pair_stats`` of these pairs, when they were measured before.
        losses: Keys of ``LOSSES`` and functions (see ``loss_weights``); all of the table by
            default. A loss that refuses its settings is left out, and ``left_out`` says why.
        beta: β of every loss that has one; ``None`` for each loss's default.
        lr: Learning rate; by default one at which first order holds for 95 % of the pairs (see
            ``suggest_lr``) under the first loss; for the first pair where ``stats`` are not given.
            Losses that pull harder are then beyond first order: their directions alone are told.
        selection: Id of the pair to start with; by default the worst one under the first loss,
            where ``stats`` are given, else the first.
        params: Parameter set of the gradients.
        live: Use ipympl, where installed, so that the pictures can be clicked.
        **hparams: Other hyper-parameters that are not to stay at the table's defaults.

    Raises:
        ValueError: If ``policy`` is none, ``pairs`` is empty or holds something else, no pair can
            be scored, ``stats`` belong to other pairs, a loss is unknown or an option is out of
            range.

    Source:
        arXiv 2410.13828, Table 1 and Section 3; the band form follows arXiv 2604.18239.

    Example:
        >>> import toolkit as tk
        >>> pairs = tk.load_pairs("long_suffix", limit=2)
        >>> explorer = tk.LossExplorer(tk.load_model(), pairs, losses=["dpo", "cpo"])
        >>> explorer.set(beta=0.5, chosen_shift=-2.0)
        >>> explorer.to_frame()["loss_name"].tolist()
        ['dpo', 'cpo']
    """

    selection = traitlets.Any(help="id of the picked pair")
    loss = traitlets.Any(help="name of the picked loss")
    beta = traitlets.Any(help="β of every loss that has one, None where each has its default")
    hparams = traitlets.Any(help="the hyper-parameters that were set; others are at their defaults")
    lr = traitlets.Any(help="learning rate of the predicted step")
    shift = traitlets.Any(help="hypothetical changes of the two log-probabilities, nats")

    def __init__(
        self,
        policy: Policy,
        pairs: Sequence[PreferencePair],
        *,
        stats: PairStats | None = None,
        losses: Sequence[str | Callable] | None = None,
        beta: float | None = 0.1,
        lr: float | None = None,
        selection: str | None = None,
        params: Params = "all",
        live: bool = True,
        **hparams: float,
    ):
        if lr is not None:
            positive("lr", lr)
        super().__init__(pairs)
        measurement = Measurement(policy, pairs, params, stats)
        self.ids, self.losses = measurement.ids, LossComparison(measurement, losses)
        if beta is not None and (beta != 0.1 or self.losses.reach("beta")):
            hparams["beta"] = beta
        place = None if selection is None else measurement.place_of(selection)
        self.losses.begin(hparams, lr, place)
        self.follow()
        self._build(live)

    # ----------------------------------------------------------------- traits

    def chosen(self) -> dict[str, object]:
        """Return what is picked and set, as the traits have it."""
        found = self.losses.settings
        return {
            "selection": self.ids[self.losses.index],
            "loss": self.losses.loss,
            "beta": found.hparams.get("beta"),
            "hparams": dict(found.hparams),
            "lr": found.lr,
            "shift": (found.chosen_shift, found.rejected_shift),
        }

    @traitlets.validate("selection", "loss", "beta", "hparams", "lr", "shift")
    def _check(self, proposal) -> object:
        name, value = proposal["trait"].name, proposal["value"]
        if self.quiet:  # it follows the results
            return value
        if name == "selection":
            self._measure(self.losses.measurement.place_of(value))
        elif name == "loss":
            self.losses.pick_loss(getattr(value, "__name__", value))
        elif name == "hparams":
            self.losses.set({**dict.fromkeys(self.hparams), **value})
        elif name != "shift":
            self.losses.set({name: value})
        elif not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"shift must be two numbers (chosen, rejected), received {value!r}")
        else:
            self.losses.set(dict(zip(SHIFTS, value, strict=True)))
        return self.chosen()[name]

    def _measure(self, place: int) -> None:
        if place == self.losses.index:
            return
        if not self.losses.is_measured(place):
            self.panels["status"].widget.value = words.say(None, "Measuring this pair …")
        try:
            self.losses.pick(place)
        except BaseException:
            self.show("selection")
            raise

    def compute(self, name: str) -> Iterable[str]:
        """Let the picked loss follow, where settings have left it out."""
        return self.follow()

    def set(self, **settings: float | None) -> None:
        """Change hyper-parameters, ``lr``, ``chosen_shift`` or ``rejected_shift``, in one go.

        ``None`` puts a hyper-parameter back to the table's defaults.

        Raises:
            ValueError: If a name is no setting of these losses, a value is no finite number, or no
                loss takes it; nothing is changed then.
        """
        self.losses.set(settings)
        changed = self.follow()
        if changed:
            self.show(*changed)

    def reset(self) -> None:
        """Go back to the settings at the start."""
        self.losses.reset()
        self.follow()
        self.show("fit", *SETTINGS)

    @property
    def pair(self) -> PreferencePair:
        """The picked pair."""
        return self.losses.pair

    @property
    def left_out(self) -> pd.DataFrame:
        """The losses that are not shown: ``loss_name, reason``."""
        return pd.DataFrame(list(self.losses.left_out.items()), columns=["loss_name", "reason"])

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs that cannot be scored: ``row, pair_id, reason``."""
        return self.losses.measurement.skipped_frame

    # ----------------------------------------------------------------- panels

    def _build(self, live: bool) -> None:
        self.add_picker(page=4)
        height = int(np.clip(110 + 15 * len(self.losses.losses), 380, 640))
        self.map, self.bars = Picture(445, height, live=live), Picture(475, height, live=live)
        self.map.connect("button_press_event", lambda e: self.event(self._point_at_map, e))
        self.bars.connect("button_press_event", lambda e: self.event(self._point_at_bars, e))
        self._limits, self._count, self._lines = None, 0, {}
        found, every = self.losses, ["selection", "loss", *SETTINGS]
        weights = [name for name in every if name != "lr"]
        self.panels = {
            "header": Text(lambda: text.header(found), on=every),
            "note": Text(lambda: text.note(found, self.skipped_before), on=every, widget=self.note),
            "texts": Text(lambda: text.texts(found), on=["selection"]),
            "status": Text(lambda: text.sentence(found), on=every),
            "rewards": Text(lambda: text.rewards(found), on=every),
            "map": Panel(self._draw_map, on=[*weights, "fit"], widget=self.map.widget),
            "bars": Panel(
                self._draw_bars, self._pictures_html, on=[*every, "fit"], widget=self.bars.widget
            ),
            "losses": Text(lambda: plots.loss_table_html(found.frame, picked=found.loss), on=every),
            "choice": Panel(self._draw_choice, on=every),
            "table": Panel(
                lambda _: self.table.show(text.table_frame(found), self.index),
                widget=column(self.table.widget, width="100%", min_width="0"),
            ),
            "row": Panel(lambda _: self.table.select(self.index), on=["selection"]),
        }
        self._build_controls()
        top = {"align_items": "flex-start"}
        self.open(
            "header", "note", "table",
            self.beside("previous", "next", "choose", "previous-loss", "next-loss", "loss", "reset",
                     "fit"),
            "texts", "status",
            *self._sliders(**top), "lr", "hypo",
            self.beside("map", "bars", **top), "losses",
        )  # fmt: skip

    def _build_controls(self) -> None:
        self.add_arrows("loss", "previous-loss", "next-loss", self._step_loss)
        self.bind("loss", dropdown("loss", self.losses.frame["loss_name"], 190))
        rate = log_slider("learning rate", -6, 0, 360)
        self.bind("lr", rate, read=lambda value: float(f"{value:.3g}"))
        for place, name in enumerate(SHIFTS):
            slider = w.FloatSlider(
                0.0, min=-5, max=5, step=0.1, style=WIDE, readout_format="+.1f",
                description=f"{name.split('_')[0]} has moved by, nats", layout={"width": "400px"},
            )  # fmt: skip
            self.bind(
                "shift", slider, name, show=lambda shift, place=place: shift[place],
                change=lambda value, name=name: self.set(**{name: value}),
            )  # fmt: skip
        self.parts["reset"] = button(
            "reset", lambda: self.event(self.reset), icon="undo", width=90,
            tip="all settings as at the start",
        )  # fmt: skip
        self.parts["fit"] = button(
            "fit scales", lambda: self.event(self.show, "fit"), width=90,
            tip="the scales stay while a slider moves; this fits them anew",
        )  # fmt: skip
        title = w.HTML("<b>Rewards so far</b> (hypothetical: what if training had already moved …)")
        self.parts["hypo"] = self.below(title, self.beside(*SHIFTS), "rewards")

    def _sliders(self, **layout: str) -> list[w.Widget]:
        """The sliders of all hyper-parameters; those of few losses are behind a fold."""
        boxes = {}
        for name in self.losses.hparams():
            slider = ladder(name)
            self.bind(
                "hparams", slider, f"hparam-{name}",
                show=lambda h, name=name, slider=slider: rung(slider, name, h.get(name)),
                change=lambda v, name=name: self.set(**{name: None if v == DEFAULT else v}),
            )  # fmt: skip
            boxes[name] = self.below(slider, w.HTML(text.moves(self.losses, name)))
        first = self.beside(*[boxes.pop(name) for name in FIRST if name in boxes], **layout)
        if not boxes:
            return [first]
        more = w.Accordion([self.beside(*boxes.values(), **layout)], selected_index=None)
        more.set_title(0, "more hyper-parameters")
        return [first, more]

    def _draw_choice(self, changed: frozenset[str]) -> None:
        """Offer the losses that there are."""
        names = tuple(self.losses.frame["loss_name"])
        if self.parts["loss"].options != names:
            with self.quiet:
                self.parts["loss"].options = names
                put(self.parts["loss"], self.loss)

    def _draw_map(self, changed: frozenset[str]) -> None:
        """Draw the map; its scales stay until another pair is picked or they are to be fitted."""
        fit, frame = _fits(changed), self.losses.frame
        with self.map.changing():
            axes = self.map.axes(anew=fit)
            plots.loss_map(frame, picked=self.loss, ax=axes)
            if self._make_room(self.map, fit):
                plots.loss_map(frame, picked=self.loss, ax=axes)
                fit = True
            self.map.move(plots.moving_parts(axes), anew=fit)

    def _draw_bars(self, changed: frozenset[str]) -> None:
        """Draw the bars; a scale that holds too little is fitted too."""
        fit, frame = _fits(changed), self.losses.frame
        limits = plots.delta_limits(frame)
        with self.bars.changing():
            if fit or limits[1] > self._limits[1] or len(frame) != self._count:
                fit, self._limits, self._count = True, limits, len(frame)
            axes = self.bars.axes(anew=fit)
            plots.delta_bars(frame, **self._options, ax=axes, **({"limits": limits} if fit else {}))
            fit |= self._make_room(self.bars, fit)
            self.bars.move(plots.moving_parts(axes), anew=fit)

    @property
    def _options(self) -> dict[str, object]:
        return {"name": "loss_name", "log": True, "picked": self.loss}

    def _make_room(self, picture: Picture, fit: bool) -> bool:
        """Make room for labels and title, when they need another one: it takes half a drawing."""
        lines = picture.figure.axes[0].get_title(loc="left").count("\n")
        if not fit and self._lines.get(picture) == lines:
            return False
        self._lines[picture] = lines
        picture.lay_out(w_pad=0.1)
        return True

    # ----------------------------------------------------------------- what the user does

    def _step_loss(self, by: int) -> None:
        names = self.losses.frame["loss_name"].tolist()
        self.loss = names[(names.index(self.loss) + by) % len(names)]

    def _point_at_map(self, event) -> None:
        place = pointed_at(event)
        if place is not None:
            self.loss = self.losses.frame["loss_name"].iloc[place]

    def _point_at_bars(self, event) -> None:
        frame = self.losses.frame
        if event.inaxes is not None and -0.5 <= event.ydata <= len(frame) - 0.5:
            self.loss = frame["loss_name"].iloc[plots.delta_order(frame)[round(event.ydata)]]

    # ----------------------------------------------------------------- results without a screen

    def to_frame(self) -> pd.DataFrame:
        """Return one row per loss for the picked pair: weights, ratio, band, predicted changes.

        ``attrs`` holds the labels and, if log-probabilities are assumed, ``"hypothetical"``.
        """
        return self.losses.frame.copy()

    def figure(self) -> Figure:
        """Return a still figure: the map with all losses, and what a step of each changes."""
        return self._paint(Still(figsize=(13, 5.6), layout="constrained"))

    def _pictures_html(self) -> str:
        figure = self._paint(Figure(figsize=(11.4, 5), layout="constrained"))
        return image_html(figure, "map of the losses, and the changes each predicts", 80)

    def _paint(self, figure: Figure) -> Figure:
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
        plots.loss_map(self.losses.frame, picked=self.loss, ax=left)
        plots.delta_bars(self.losses.frame, **self._options, ax=right)
        return figure

    def __repr__(self) -> str:
        count = len(self.losses.frame)
        return f"LossExplorer({count} losses, picked {self.loss!r} on pair {self.selection!r})"


def _fits(changed: frozenset[str]) -> bool:
    """Whether scales are fitted anew: for another pair, or because the user asks for it."""
    return not changed or bool(changed & {"selection", "fit"})
