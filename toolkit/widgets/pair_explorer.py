"""Pick a preference pair and see what a training step does to it, and which tokens do it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import ipywidgets as w
import pandas as pd
import traitlets
from matplotlib.figure import Figure
from tqdm import tqdm

from toolkit import plots
from toolkit.checks import choice, positive
from toolkit.gradients import PairStats
from toolkit.measurement import Measurement, PairResult, PairResults, check_step
from toolkit.model import Params, Policy
from toolkit.pairs import PreferencePair
from toolkit.widgets import words
from toolkit.widgets.explorer import Explorer
from toolkit.widgets.panels.controls import button, column, dropdown, log_slider
from toolkit.widgets.panels.figure import Picture, Still, image_html, pointed_at
from toolkit.widgets.panels.pair_tabs import RANK, PairTabs
from toolkit.widgets.panels.panel import Panel, Text
from toolkit.widgets.panels.progress import Progress

BATCH = 8
AT_ONCE = 2.0  # seconds of measuring that are not worth a progress bar
TURN = 0.3  # seconds of measuring between two looks at what the user did
COLORS = {
    "predicted_delta": "predicted change",
    "with_chosen": "pull of the chosen gradient",
    "with_rejected": "pull of the rejected gradient",
    "logp": "log-probability",
}


class PairExplorer(Explorer):
    """Explore preference pairs: what a step does to each response, which tokens, how alike.

    Shown in a notebook it is a table, the entanglement map, token strips and numbers, linked both
    ways. It starts at the worst pair, whose chosen response is predicted to fall most, and so does
    the table; ``worst_first()`` has that order. Pairs are measured at once when that takes no
    longer than two seconds; otherwise the explorer appears with the first few and measures on
    behind a progress bar with a Stop button (in a plain script, behind tqdm; an interrupt keeps
    what is there), and ``measure()`` goes on; what was not picked or set by then starts anew.
    Everything it shows is in reach of Python too, without a screen.

    A notebook keeps no widgets: whoever opens it without running it finds the still copy that is
    written under the explorer when it is shown, and hidden as long as the explorer is alive.
    ``snapshot()`` in a cell of its own keeps another pair or setting.

    Predictions are for one gradient-descent step on one pair alone, at first order.

    Args:
        policy: The model.
        pairs: Preference pairs, ids unique; those that cannot be scored are left out and named.
        stats: ``pair_stats`` of these pairs, when they were measured before.
        similarity: ``similarity`` of these pairs, likewise.
        loss: A key of ``LOSSES`` or a function (see ``loss_weights``).
        params: Parameter set of the gradients.
        beta: β of the loss, where it has one.
        lr: Learning rate; by default one at which first order holds for 95 % of the pairs (see
            ``suggest_lr``) and for the worst one. Beyond that the sentence gives the direction
            alone, and the rate up to which it could say more.
        selection: Id of the pair to start with; by default the worst one, whose chosen response is
            predicted to fall most (or to rise least).
        live: Use ipympl, where installed, so that the map can be clicked.
        **hparams: Other hyper-parameters of the loss.

    Raises:
        ValueError: If ``policy`` is none, ``pairs`` is empty or holds something else, no pair can
            be scored, ``stats`` belong to other pairs, or an option is out of range.

    Example:
        >>> import toolkit as tk
        >>> explorer = tk.PairExplorer(tk.load_model(), tk.load_pairs("long_suffix", limit=4))
        >>> explorer.selection = explorer.to_frame()["pair_id"].iloc[2]
        >>> "predicted_delta" in explorer.tokens()
        True
    """

    selection = traitlets.Any(help="id of the picked pair")
    beta = traitlets.Any(help="β of the loss, None for a loss without one")
    lr = traitlets.Any(help="learning rate of the predicted step")
    color = traitlets.Any("predicted_delta", help=f"column the strips show: {', '.join(COLORS)}")

    every = 4.0  # seconds between two refreshes of table and map while measuring

    def __init__(
        self,
        policy: Policy,
        pairs: Sequence[PreferencePair],
        *,
        stats: PairStats | None = None,
        similarity: pd.DataFrame | None = None,
        loss: str | Callable = "dpo",
        params: Params = "all",
        beta: float = 0.1,
        lr: float | None = None,
        selection: str | None = None,
        live: bool = True,
        **hparams: float,
    ):
        check_step(loss, beta, lr, hparams)
        super().__init__(pairs)
        m = self.measurement = Measurement(policy, pairs, params, stats, similarity)
        self.ids = m.ids
        place = None if selection is None else m.place_of(selection)
        if not m.finished:
            m.step(1)
            m.step(self._turn())
        self.results = PairResults(m, loss, beta, lr, hparams)
        self._picked, self._given_lr = place is not None and place < m.done, lr is not None
        start = selection if self._picked else m.ids[self.results.worst]
        if self.results.has_beta:
            self.beta = beta
        self.lr, self.selection = self.results.lr, start
        self._build(live)
        if not m.finished:
            self.measure() if m.seconds_left <= AT_ONCE else self.background.start()
        if selection is not None:
            self.selection = selection

    # ----------------------------------------------------------------- traits

    @traitlets.validate("selection")
    def _check_selection(self, proposal) -> str:
        m, id = self.measurement, proposal["value"]
        place = m.place_of(id)
        if place >= m.done:
            self._wait()
        if place >= m.done:
            raise ValueError(f"selection={id!r} is not measured yet: measure() continues")
        return id

    @traitlets.validate("beta", "lr")
    def _check_number(self, proposal) -> float:
        name = proposal["trait"].name
        if name == "beta" and not self.results.has_beta:
            raise ValueError(f"beta: the loss {self.results.loss_name} has no β")
        return positive(name, proposal["value"])

    @traitlets.validate("color")
    def _check_color(self, proposal) -> str:
        return choice("color", proposal["value"], COLORS)

    def compute(self, name: str) -> Iterable[str]:
        """Take in what the user has picked or set."""
        self._picked |= name == "selection"
        self._given_lr |= name == "lr"
        if name in ("beta", "lr"):
            self._update()
        return ()

    def _update(self) -> None:
        beta = self.results.beta if self.beta is None else self.beta
        self.results.update(beta, self.lr if self._given_lr else None)

    @property
    def one(self) -> PairResult:
        """The picked pair's results."""
        return self.results.at(self.index)

    @property
    def pair(self) -> PreferencePair:
        """The picked pair."""
        return self.one.pair

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs that cannot be scored: ``row, pair_id, reason``."""
        return self.measurement.skipped_frame

    # ----------------------------------------------------------------- panels

    def _build(self, live: bool) -> None:
        self.add_picker(lowest_first="Δ chosen")
        self.map = Picture(430, 370, live=live)
        self.map.connect("button_press_event", lambda e: self.event(self.pick, pointed_at(e)))
        self._strips, self._scale = w.HTML(), None
        self.stop = button("", lambda: self.event(self._stop_or_go), width=110)
        self.progress = Progress(self.stop)
        pair, step = ("results", "selection"), ("results", "selection", "beta", "lr")
        numbers = Text(
            lambda: plots.numbers_table(self.results.frame, picked=self.selection), on=step
        )
        tokens = column(self._strips, numbers.widget)
        self.tabs = PairTabs(lambda: self.one, tokens, self.event)
        self.panels = {
            "header": Text(lambda: words.pair_header(self.results), on=step),
            "note": Text(self._note, on=["results", "progress"], widget=self.note),
            "status": Text(lambda: words.step_sentence(self.one), on=step),
            "prompt": Text(lambda: words.prompt_box(self.pair), on=pair),
            "strips": Panel(
                self._draw_strips,
                lambda: plots.token_strip_html(self.one.tokens(), value=self.color),
                on=[*step, "color", "fit"], measures=True, widget=self._strips,
            ),
            "numbers": numbers,
            "map": Panel(
                self._draw_map, self._map_html, on=step,
                widget=column(self.map.widget, flex="0 0 auto"),
            ),
            "table": Panel(
                lambda _: self.table.show(words.pair_table(self.results), self.index),
                on=["results"], late=["beta", "lr"],
                widget=column(self.table.widget, flex="1 1 380px", min_width="0"),
            ),
            "row": Panel(lambda _: self.table.select(self.index), on=["selection"]),
            "progress": Panel(self._draw_progress, on=["progress"], widget=self.progress.widget),
            "tabs": Panel(
                self._draw_tabs, on=pair, late=["beta", "lr"], measures=True,
                widget=self.tabs.widget,
            ),
        }  # fmt: skip
        self._build_controls()
        self.open(
            "header", "note", "progress",
            self.beside("table", "map", align_items="flex-start"),
            self.beside("previous", "next", "choose", "color", "fit"),
            self.beside("beta", "lr"),
            "status", "prompt", "tabs",
        )  # fmt: skip

    def _build_controls(self) -> None:
        self.bind("beta", log_slider("β", -3, 1, 320))
        self.parts["beta"].disabled = not self.results.has_beta
        self.bind("lr", log_slider("learning rate", -6, 0, 395))
        self.bind("color", dropdown("colour", COLORS, 270))
        self.parts["stop"] = self.stop
        self.parts["fit"] = button(
            "fit colours", lambda: self.event(self.show, "fit"),
            tip="the colour scale stays while a slider moves; this fits it anew",
        )  # fmt: skip

    def _note(self) -> str:
        error, m = self.background.error, self.measurement
        failed = [] if error is None else [f"Measuring failed. {words.failure(error)}."]
        lost = words.left_out(self.skipped, len(m) + len(m.skipped))
        before = words.skipped_before(self.skipped_before)
        return words.quiet(failed + words.unmeasured(m.done, len(m)) + lost + before)

    def _draw_strips(self, changed: frozenset[str]) -> None:
        """Draw the token strips; the colour scale stays while a slider moves."""
        tokens = self.one.tokens()
        if not changed or changed & {"results", "selection", "color", "fit"}:
            self._scale = float(tokens[self.color].abs().max()) or None
        self._strips.value = plots.token_strip_html(tokens, value=self.color, vmax=self._scale)

    def _draw_map(self, changed: frozenset[str]) -> None:
        with self.map.changing():
            if not changed or "results" in changed:
                self.map.figure.clear()
                self.map.figure.set_layout_engine("constrained")
            self._paint(self.map.figure)
            self.map.redraw()

    def _map_html(self) -> str:
        figure = self._paint(Figure(figsize=(6, 4.6), layout="constrained"))
        return image_html(figure, "entanglement map")

    def _paint(self, figure: Figure) -> Figure:
        axes = figure.axes[0] if figure.axes else figure.subplots()
        plots.entanglement_map(self.results.frame, picked=self.selection, ax=axes)
        return figure

    def _draw_tabs(self, changed: frozenset[str]) -> None:
        self.tabs.show(*([RANK] if changed and not changed & {"results", "selection"} else []))

    # ----------------------------------------------------------------- results without a screen

    def to_frame(self) -> pd.DataFrame:
        """Return one row per pair: the ``entanglement`` frame with the similarity columns.

        Pairs still being measured are waited for, unless measuring was stopped;
        ``attrs["measured"]`` and ``attrs["pairs"]`` say how many there are.
        """
        self._wait()
        return self.results.frame.copy()

    def worst_first(self) -> list[str]:
        """Return the ids of the measured pairs, those whose chosen response falls most first."""
        frame = self.results.frame
        return frame.loc[frame["chosen_slack"].sort_values(kind="stable").index, "pair_id"].tolist()

    def tokens(self) -> pd.DataFrame:
        """Return the picked pair's tokens, with the predicted change of each at this β and lr."""
        return self.one.tokens()

    def figure(self) -> Figure:
        """Return a still figure: the map, the plane of predicted changes, the token heat-map."""
        self._wait()
        frame, id = self.results.frame, self.selection
        figure = Still(figsize=(14, 9), layout="constrained")
        views = [["map", "tokens"], ["plane", "tokens"]]
        axes = figure.subplot_mosaic(views, width_ratios=[1, 1.6])
        plots.entanglement_map(frame, picked=id, ax=axes["map"])
        plots.delta_plane(frame, picked=id, ax=axes["plane"])
        plots.token_heatmap(self.one.matrix().to_frame(), ax=axes["tokens"])
        return figure

    def __repr__(self) -> str:
        m = self.measurement
        return f"PairExplorer({m.done} of {len(m)} pairs measured, picked {self.selection!r})"

    # ----------------------------------------------------------------- measuring

    def measure(self) -> PairExplorer:
        """Measure the pairs that are still missing; an interrupt keeps those that are done."""
        self.background.run()
        return self

    def _bar(self) -> dict[str, object]:
        m = self.measurement
        quick = m.finished or m.seconds_left <= AT_ONCE
        return {"total": len(m), "initial": m.done, "unit": "pair", "disable": quick}

    def _steps(self) -> Iterator[int]:
        m = self.measurement
        while not m.finished:
            before = m.done
            m.step(self._turn())
            yield m.done - before

    def _turn(self) -> int:
        """Number of pairs to measure in one turn: after it one looks at what the user did."""
        m = self.measurement
        return max(1, min(BATCH, int(TURN * m.done / m.seconds))) if m.done else 1

    def _stop_or_go(self) -> None:
        self.background.pause() if self.running else self.background.start()

    def _wait(self) -> None:
        if not self.background.halted and not self.measurement.finished:
            self.measure()

    def _refresh(self) -> None:
        """Show the pairs measured since; what was not picked or set by the user starts anew."""
        m = self.measurement
        if len(self.results.frame) == m.done:
            return
        self._update()
        self.take(lr=self.results.lr)
        if not self._picked:
            self.take(selection=m.ids[self.results.worst])
        self.show("results", "selection", "lr")

    def _draw_progress(self, changed: frozenset[str]) -> None:
        m, count, choose = self.measurement, len(self.results.frame), self.parts["choose"]
        left = (
            f", about {tqdm.format_interval(m.seconds_left)} left" if self.running else ", stopped"
        )
        self.progress.show(m.done, len(m), f"{m.done:,} of {len(m):,} pairs measured{left}")
        self.progress.widget.layout.display = "none" if m.finished else None
        self.stop.description = "Stop" if self.running else "Continue"
        self.stop.icon = "stop" if self.running else "play"
        choose.max, choose.description = count, f"pair 1 … {count:,}"
