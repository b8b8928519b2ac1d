"""Pick a preference pair and see what a training step does to it, and which tokens do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import ipywidgets as w
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from toolkit import plots
from toolkit.checks import choice, positive
from toolkit.gradients import PairStats
from toolkit.measurement import Measurement, PairResult, PairResults, check_step
from toolkit.model import Params, Policy
from toolkit.model.inputs import skipped_frame, skipped_pairs
from toolkit.pairs import PreferencePair
from toolkit.widgets import words
from toolkit.widgets.background import Background
from toolkit.widgets.explorer import Explorer
from toolkit.widgets.panels.controls import button, column, dropdown, log_slider, number, row
from toolkit.widgets.panels.figure import Picture, Still, image_html, pointed_at
from toolkit.widgets.panels.pair_tabs import RANK, PairTabs
from toolkit.widgets.panels.panel import Panel, Text
from toolkit.widgets.panels.progress import Progress
from toolkit.widgets.panels.table import PairTable

BATCH = 8
AT_ONCE = 2.0  # seconds of measuring that are not worth a progress bar
TURN = 0.3  # seconds of measuring between two looks at what the user did
REFRESH = 4.0  # seconds between two refreshes of table and map while measuring
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
            ``suggest_lr``). Beyond that the sentence gives the direction alone, and the rate up
            to which it could say more.
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
        >>> explorer.tokens().columns[-1]
        'predicted_delta'
    """

    selection = traitlets.Any(help="id of the picked pair")
    beta = traitlets.Any(help="β of the loss, None for a loss without one")
    lr = traitlets.Any(help="learning rate of the predicted step")
    color = traitlets.Any("predicted_delta", help=f"column the strips show: {', '.join(COLORS)}")

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
        super().__init__()
        self._skipped_before = len(getattr(pairs, "skipped", ()))
        m = self._measurement = Measurement(policy, pairs, params, stats, similarity)
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
        self._background = Background(
            self._steps, progress=lambda: self.show("progress"), refresh=self._take_in,
            rest=self._rest, every=REFRESH, waiting=self.say_waiting, bar=self._bar,
        )  # fmt: skip
        self._build(live)
        self.show("progress")
        self._measure_rest()
        if selection is not None:
            self.selection = selection

    # ----------------------------------------------------------------- traits

    @traitlets.validate("selection")
    def _check_selection(self, proposal) -> str:
        m, id = self._measurement, proposal["value"]
        place = m.place_of(id)
        if place >= m.done:
            self._wait()
        if place >= m.done:
            raise ValueError(f"selection={id!r} is not measured yet: measure() continues")
        return id

    @traitlets.validate("beta")
    def _check_beta(self, proposal) -> float:
        if not self.results.has_beta:
            raise ValueError(f"beta: the loss {self.results.loss_name} has no β")
        return positive("beta", proposal["value"])

    @traitlets.validate("lr")
    def _check_lr(self, proposal) -> float:
        return positive("lr", proposal["value"])

    @traitlets.validate("color")
    def _check_color(self, proposal) -> str:
        return choice("color", proposal["value"], COLORS)

    def compute(self, name: str) -> None:
        """Take in what the user has picked or set."""
        self._picked |= name == "selection"
        self._given_lr |= name == "lr"
        if name in ("beta", "lr"):
            self._update()

    def _update(self) -> None:
        beta = self.results.beta if self.beta is None else self.beta
        self.results.update(beta, self.lr if self._given_lr else None)

    @property
    def one(self) -> PairResult:
        """The picked pair's results."""
        return self.results.at(self._index)

    @property
    def _index(self) -> int:
        return self._measurement.ids.index(self.selection)

    @property
    def pair(self) -> PreferencePair:
        """The picked pair."""
        return self.one.pair

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs that cannot be scored: ``row, pair_id, reason``."""
        return skipped_frame(skipped_pairs(self._measurement.skipped))

    # ----------------------------------------------------------------- panels

    def _build(self, live: bool) -> None:
        self.table = PairTable(lambda row: self.event(self._pick, row), lowest_first="Δ chosen")
        self.map = Picture(430, 370, live=live)
        self.map.connect("button_press_event", lambda e: self.event(self._point_at, e))
        self._strips, self._scale = w.HTML(), None
        step = ("results", "selection", "beta", "lr")
        self.panels = {
            "header": Text(lambda: words.pair_header(self.results), on=step),
            "note": Text(self._note, on=["results", "progress"], widget=self.note),
            "status": Text(lambda: words.step_sentence(self.one), on=step),
            "prompt": Text(
                lambda: words.prompt_box(self.pair.prompt_text), on=["results", "selection"]
            ),
            "strips": Panel(
                self._draw_strips,
                lambda: plots.token_strip_html(self.one.tokens(), value=self.color),
                on=[*step, "color", "fit"],
                measures=True,
            ),
            "numbers": Text(
                lambda: plots.numbers_table(self.results.frame, picked=self.selection), on=step
            ),
            "map": Panel(self._draw_map, self._map_html, on=step),
            "table": Panel(self._draw_table, on=["results"], late=["beta", "lr"]),
            "row": Panel(lambda _: self.table.select(self._index), on=["selection"]),
            "progress": Panel(self._draw_progress, on=["progress"]),
            "tabs": Panel(
                self._draw_tabs, on=["results", "selection"], late=["beta", "lr"], measures=True
            ),
        }
        tokens = w.VBox([self._strips, self.panels["numbers"].widget])
        self.tabs = PairTabs(lambda: self.one, tokens, self.event)
        self._build_controls()
        self._lay_out()

    def _build_controls(self) -> None:
        ids = self._measurement.ids
        self._previous, self._next = [
            button(text, lambda by=by: self.event(self._step, by), icon=f"chevron-{way}")
            for text, way, by in (("previous", "left", -1), ("next", "right", 1))
        ]
        self._choose = number("", 1, 170)
        self.bind(
            "selection", self._choose,
            show=lambda id: ids.index(id) + 1, read=lambda place: ids[place - 1],
        )  # fmt: skip
        self._beta = log_slider("β", -3, 1, 320)
        self._beta.disabled = not self.results.has_beta
        self._lr = log_slider("learning rate", -6, 0, 395)
        self._color = dropdown("colour", COLORS, 270)
        for name in ("beta", "lr", "color"):
            self.bind(name, getattr(self, f"_{name}"))
        self._fit = button(
            "fit colours", lambda: self.event(self.show, "fit"),
            tip="the colour scale stays while a slider moves; this fits it anew",
        )  # fmt: skip
        self.progress = Progress(lambda: self.event(self._stop_or_go))

    def _lay_out(self) -> None:
        part = {
            name: panel.widget for name, panel in self.panels.items() if hasattr(panel, "widget")
        }
        table = column(self.table.widget, flex="1 1 380px", min_width="0")
        picture = column(self.map.widget, flex="0 0 auto")
        rows = [
            row(table, picture, align_items="flex-start"),
            row(self._previous, self._next, self._choose, self._color, self._fit),
            row(self._beta, self._lr),
        ]
        above = part["header"], part["note"], self.progress.widget
        root = column(
            *above, *rows, part["status"], part["prompt"], self.tabs.widget,
            width="100%", grid_gap="6px",
        )  # fmt: skip
        self.open(root, {
            "pe-table": table, "pe-map": picture, "pe-strips": self._strips,
            "pe-progress": self.progress.widget, "pe-stop": self.progress.stop,
            "pe-prev": self._previous, "pe-next": self._next, "pe-choose": self._choose,
            "pe-beta": self._beta, "pe-lr": self._lr, "pe-color": self._color, "pe-fit": self._fit,
            "pe-tabs": self.tabs.widget,
        })  # fmt: skip

    def _note(self) -> str:
        error, m = self._background.error, self._measurement
        failed = [] if error is None else [f"Measuring failed. {words.failure(error)}."]
        return words.quiet(failed + words.missing(m) + words.skipped_before(self._skipped_before))

    def _draw_strips(self, changed: frozenset[str]) -> None:
        """Draw the token strips; the colour scale stays while a slider moves."""
        tokens = self.one.tokens()
        if not changed or changed & {"results", "selection", "color", "fit"}:
            self._scale = float(tokens[self.color].abs().max()) or None
        self._strips.value = plots.token_strip_html(tokens, value=self.color, vmax=self._scale)

    def _draw_map(self, changed: frozenset[str]) -> None:
        frame, figure = self.results.frame, self.map.figure
        with self.map.changing():
            if not changed or "results" in changed:
                figure.clear()
                figure.subplots()
                figure.set_layout_engine("constrained")
            plots.entanglement_map(frame, picked=self.selection, ax=figure.axes[0])
            self.map.redraw()

    def _map_html(self) -> str:
        figure = Figure(figsize=(6, 4.6), layout="constrained")
        plots.entanglement_map(self.results.frame, picked=self.selection, ax=figure.subplots())
        return image_html(figure, "entanglement map")

    def _draw_table(self, changed: frozenset[str]) -> None:
        self.table.show(words.pair_table(self.results), self._index)

    def _draw_tabs(self, changed: frozenset[str]) -> None:
        self.tabs.show(*([RANK] if changed and not changed & {"results", "selection"} else []))

    # ----------------------------------------------------------------- what the user does

    def _pick(self, index: int) -> None:
        self.selection = self._measurement.ids[index]

    def _step(self, by: int) -> None:
        self._pick(self.table.neighbour(self._index, by))

    def _point_at(self, event) -> None:
        """Pick the point of the map that is nearest to the pointer."""
        place = pointed_at(event)
        if place is not None:
            self._pick(place)

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

    def close(self) -> None:
        """Stop measuring and take the widgets away."""
        self._background.cancel()
        super().close()

    def __repr__(self) -> str:
        m = self._measurement
        return f"PairExplorer({m.done} of {len(m)} pairs measured, picked {self.selection!r})"

    # ----------------------------------------------------------------- measuring

    def measure(self) -> PairExplorer:
        """Measure the pairs that are still missing; an interrupt keeps those that are done."""
        self._background.run()
        return self

    def _bar(self) -> dict[str, object]:
        m = self._measurement
        quick = m.finished or m.seconds_left <= AT_ONCE
        return {"total": len(m), "initial": m.done, "unit": "pair", "disable": quick}

    def _measure_rest(self) -> None:
        """Measure what is missing: at once or behind tqdm, or in the background of a kernel."""
        m = self._measurement
        if not m.finished:
            self.measure() if m.seconds_left <= AT_ONCE else self._background.start()

    def _steps(self) -> Iterator[int]:
        """Measure in short turns, between which one can look at what the user did."""
        m = self._measurement
        while not m.finished:
            before = m.done
            m.step(self._turn())
            yield m.done - before

    def _turn(self) -> int:
        """Number of pairs to measure in one turn."""
        m = self._measurement
        return max(1, min(BATCH, int(TURN * m.done / m.seconds))) if m.done else 1

    def _stop_or_go(self) -> None:
        self._background.pause() if self._background.running else self._background.start()

    def _wait(self) -> None:
        if not self._background.halted and not self._measurement.finished:
            self.measure()

    def _take_in(self) -> None:
        """Show the pairs measured since; what was not picked or set by the user starts anew."""
        m = self._measurement
        if len(self.results.frame) == m.done:
            return
        self._update()
        self.take(lr=self.results.lr)
        if not self._picked:
            self.take(selection=m.ids[self.results.worst])
        self.show("results", "selection", "lr")

    def _rest(self) -> None:
        self._take_in()
        self.show("progress")
        self.write_copy()

    def _draw_progress(self, changed: frozenset[str]) -> None:
        """Show how far measuring is, and what is missing."""
        m, count = self._measurement, len(self.results.frame)
        self.progress.show(m.done, len(m), m.seconds_left, self._background.running)
        self._choose.max, self._choose.description = count, f"pair 1 … {count:,}"
