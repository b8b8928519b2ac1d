"""Pick a preference pair and see what a training step does to it, and which tokens do it."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Sequence

import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from toolkit import plots
from toolkit.checks import choice, positive
from toolkit.gradients import PairStats
from toolkit.model import Params, Policy
from toolkit.model.inputs import skipped_frame, skipped_pairs
from toolkit.model.turns import told_of_waiting
from toolkit.pairs import PreferencePair
from toolkit.widgets import _pair_text as text
from toolkit.widgets._pair_state import COLORS, Measurement, PairState, check_step
from toolkit.widgets._pair_view import PairView
from toolkit.widgets._parts import Still

BATCH = 8
AT_ONCE = 2.0  # seconds of measuring that are not worth a progress bar
TURN = 0.3  # seconds of measuring between two looks at what the user did
REFRESH = 4.0  # seconds between two refreshes of table and map while measuring


class PairExplorer:
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
        >>> explorer.selection = explorer.to_frame()["id"].iloc[2]
        >>> explorer.tokens().columns[-1]
        'predicted_delta'
    """

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
        self._measurement = Measurement(policy, pairs, params, stats, similarity)
        place = None if selection is None else self._place_of(selection)
        if not self._measurement.finished:
            self._measurement.step(1)
            self._measurement.step(self._turn())
        self._skipped_before = len(getattr(pairs, "skipped", ()))
        self._task: asyncio.Task | None = None
        self._stopped = False
        self._state = PairState(self._measurement, loss, beta, lr, hparams)
        if place is not None and place < self._measurement.done:
            self._state.index = place
        self._view = PairView(self._state, self._skipped_before, live, self._stop_or_go)
        self.widget = self._view.widget
        self._twin = None
        self._view.show_all()
        self._view.show_progress(False)
        self._measure_rest()
        if selection is not None:
            self.selection = selection

    @property
    def selection(self) -> str:
        """Id of the picked pair; setting it picks another one.

        Raises:
            ValueError: If no pair has this id; the message names close ones.
        """
        return self._state.pair.id

    @selection.setter
    def selection(self, id: str) -> None:
        m, place = self._measurement, self._place_of(id)
        if place >= m.done:
            self._wait()
        if place >= m.done:
            raise ValueError(f"selection={id!r} is not measured yet: measure() continues")
        self._view.pick(place)

    @property
    def pair(self) -> PreferencePair:
        """The picked pair."""
        return self._state.pair

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs that cannot be scored: ``row, id, reason``."""
        return skipped_frame(skipped_pairs(self._measurement.skipped))

    @property
    def beta(self) -> float | None:
        """β of the loss, ``None`` for a loss without one; settable."""
        return self._state.beta if self._state.has_beta else None

    @beta.setter
    def beta(self, value: float) -> None:
        if not self._state.has_beta:
            raise ValueError(f"beta: the loss {self._state.loss_name} has no β")
        self._view.set("beta", positive("beta", value))

    @property
    def lr(self) -> float:
        """Learning rate of the predicted step; settable."""
        return self._state.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._view.set("lr", positive("lr", value))

    @property
    def color(self) -> str:
        """Column the strips show: predicted_delta, with_chosen, with_rejected or logp; settable."""
        return self._state.color

    @color.setter
    def color(self, value: str) -> None:
        self._view.set("color", choice("color", value, COLORS))

    def measure(self) -> PairExplorer:
        """Measure the pairs that are still missing; an interrupt keeps those that are done."""
        self._end_task()
        m, self._stopped = self._measurement, False
        quick = m.finished or m.seconds_left <= AT_ONCE
        try:
            with tqdm(total=len(m), initial=m.done, unit="pair", disable=quick) as bar:
                while not m.finished:
                    before = m.done
                    m.step(self._turn())
                    bar.update(m.done - before)
        except KeyboardInterrupt:
            self._stopped = True
        self._take_in()
        return self

    def to_frame(self) -> pd.DataFrame:
        """Return one row a pair: the ``entanglement`` frame with the similarity columns.

        Pairs still being measured are waited for, unless measuring was stopped;
        ``attrs["measured"]`` and ``attrs["pairs"]`` say how many there are.
        """
        self._wait()
        return self._state.frame.copy()

    def worst_first(self) -> list[str]:
        """Return the ids of the measured pairs, those whose chosen response falls most first."""
        frame = self._state.frame
        return frame.loc[frame["chosen_slack"].sort_values(kind="stable").index, "id"].tolist()

    def tokens(self) -> pd.DataFrame:
        """Return one row a token of the picked pair, with its predicted change at this β and lr."""
        return self._state.tokens()

    def figure(self) -> Figure:
        """Return a still figure: the map, the plane of predicted changes, the token heat-map."""
        self._wait()
        frame, id = self._state.frame, self.selection
        figure = Still(figsize=(14, 9), layout="constrained")
        views = [["map", "tokens"], ["plane", "tokens"]]
        axes = figure.subplot_mosaic(views, width_ratios=[1, 1.6])
        plots.entanglement_map(frame, picked=id, ax=axes["map"])
        plots.delta_plane(frame, picked=id, ax=axes["plane"])
        plots.token_heatmap(self._state.matrix().to_frame(), ax=axes["tokens"])
        return figure

    def to_html(self) -> str:
        """Return the picked pair as self-contained HTML: sentence, strips, numbers, the map."""
        return text.still(self._state, self._skipped_before)

    def snapshot(self) -> HTML:
        """Return ``to_html()`` as an output that stays in the saved notebook."""
        return HTML(self.to_html())

    def close(self) -> None:
        """Stop measuring and take the widgets away."""
        self._end_task()
        self._view.close()

    def __repr__(self) -> str:
        m = self._measurement
        return f"PairExplorer({m.done} of {len(m)} pairs measured, picked {self.selection!r})"

    def _ipython_display_(self) -> None:
        display({**self.widget._repr_mimebundle_(), "text/plain": repr(self)}, raw=True)
        self._twin = display(HTML(text.TWIN % self.to_html()), display_id=True)

    def _place_of(self, id: str) -> int:
        """Return where the pair with this id stands, or say which ids there are."""
        m = self._measurement
        if id not in m.ids:
            reason = next((e.reason for e in m.skipped if e.id == id), None)
            near = difflib.get_close_matches(str(id), m.ids, 3, 0.4) or m.ids[:3]
            why = f"cannot be scored ({reason})" if reason else "is no id of these pairs"
            raise ValueError(f"selection={id!r} {why}; ids close to it: {', '.join(near)}")
        return m.ids.index(id)

    # ----------------------------------------------------------------- measuring

    def _measure_rest(self) -> None:
        """Measure what is missing: at once or behind tqdm, or in the background of a kernel."""
        m = self._measurement
        if m.finished:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self.measure()
        else:
            self.measure() if m.seconds_left <= AT_ONCE else self._start_task()

    def _turn(self) -> int:
        """Number of pairs to measure before the next look at what the user did."""
        m = self._measurement
        return max(1, min(BATCH, int(TURN * m.done / m.seconds)))

    def _start_task(self) -> None:
        self._stopped = False
        self._task = asyncio.get_running_loop().create_task(self._measure_live())
        self._view.show_progress(True)

    def _end_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _measure_live(self) -> None:
        """Measure in short turns, so that clicks are answered between them."""
        m, shown = self._measurement, time.monotonic()
        try:
            while not m.finished and not self._stopped:
                await asyncio.sleep(0.02)
                with told_of_waiting(self._view.say_waiting):
                    m.step(self._turn())
                self._view.show_progress(True)
                if time.monotonic() - shown > REFRESH:
                    self._take_in(running=True)
                    shown = time.monotonic()
        except KeyboardInterrupt:
            self._stopped = True
        except Exception as error:
            self._stopped = True
            self._view.fail(error)
            raise
        self._task = None
        self._take_in()

    def _stop_or_go(self) -> None:
        if self._task is None:
            self._start_task()
        else:
            self._stopped = True

    def _wait(self) -> None:
        if not self._stopped and not self._measurement.finished:
            self.measure()

    def _take_in(self, running: bool = False) -> None:
        """Show the pairs measured since."""
        if len(self._state.frame) != self._measurement.done:
            self._state.update()
            self._view.show_all()
        self._view.show_progress(running)
        if self._twin is not None and not running:
            self._twin.update(HTML(text.TWIN % self.to_html()))
