"""All losses side by side for one pair: which of them raises the chosen response, and why."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import pandas as pd
from IPython.display import HTML, display
from matplotlib.figure import Figure

from toolkit.checks import positive
from toolkit.gradients import PairStats
from toolkit.measurement import Measurement
from toolkit.model import Params, Policy
from toolkit.model.inputs import skipped_frame, skipped_pairs
from toolkit.pairs import PreferencePair
from toolkit.widgets import _loss_text as text
from toolkit.widgets._loss_state import LossState
from toolkit.widgets._loss_view import LossView
from toolkit.widgets.panels.figure import Still
from toolkit.widgets.words import TWIN


class LossExplorer:
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
        >>> explorer.to_frame()["loss"].tolist()
        ['dpo', 'cpo']
    """

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
        measurement = Measurement(policy, pairs, params, stats)
        self._skipped_before = len(getattr(pairs, "skipped", ()))
        self._state = LossState(measurement, losses)
        if beta is not None and (beta != 0.1 or self._state.reach("beta")):
            hparams["beta"] = beta
        place = None if selection is None else self._place_of(selection)
        self._state.begin(hparams, lr, place)
        self._view = LossView(self._state, self._skipped_before, live)
        self.widget = self._view.widget
        self._view.show_all()

    @property
    def selection(self) -> str:
        """Id of the picked pair; setting it picks another one.

        Raises:
            ValueError: If no pair has this id; the message names close ones.
        """
        return self._state.pair.id

    @selection.setter
    def selection(self, id: str) -> None:
        self._view.pick(self._place_of(id))

    def _place_of(self, id: str) -> int:
        m = self._state.measurement
        if id not in m.ids:
            reason = next((e.reason for e in m.skipped if e.id == id), None)
            why = f"cannot be scored ({reason})" if reason else "is no id of these pairs"
            raise ValueError(f"selection={id!r} {why}; ids close to it: {_near(id, m.ids)}")
        return m.ids.index(id)

    @property
    def pair(self) -> PreferencePair:
        """The picked pair."""
        return self._state.pair

    @property
    def loss(self) -> str:
        """Name of the picked loss; settable."""
        return self._state.loss

    @loss.setter
    def loss(self, name: str | Callable) -> None:
        name = getattr(name, "__name__", name)
        names = self._state.frame["loss"].tolist()
        if name not in names:
            reason = self._state.left_out.get(name)
            why = f"is left out ({reason})" if reason else "is none of these losses"
            raise ValueError(f"loss={name!r} {why}; close to it: {_near(name, names)}")
        self._view.pick_loss(name)

    @property
    def beta(self) -> float | None:
        """β of every loss that has one, ``None`` where each has its own default; settable."""
        return self._state.settings.hparams.get("beta")

    @beta.setter
    def beta(self, value: float | None) -> None:
        self.set(beta=value)

    @property
    def lr(self) -> float:
        """Learning rate of the predicted step; settable."""
        return self._state.settings.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.set(lr=value)

    @property
    def hparams(self) -> dict[str, float]:
        """The hyper-parameters that were set; all others are at the table's defaults."""
        return dict(self._state.settings.hparams)

    @property
    def shift(self) -> tuple[float, float]:
        """Hypothetical changes of the chosen and the rejected log-probability, nats; settable."""
        return self._state.settings.chosen_shift, self._state.settings.rejected_shift

    @shift.setter
    def shift(self, value: tuple[float, float]) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise ValueError(f"shift must be two numbers (chosen, rejected), received {value!r}")
        self.set(chosen_shift=value[0], rejected_shift=value[1])

    @property
    def left_out(self) -> pd.DataFrame:
        """The losses that are not shown: ``loss, reason``."""
        return pd.DataFrame(list(self._state.left_out.items()), columns=["loss", "reason"])

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs that cannot be scored: ``row, id, reason``."""
        return skipped_frame(skipped_pairs(self._state.measurement.skipped))

    def set(self, **settings: float | None) -> None:
        """Change hyper-parameters, ``lr``, ``chosen_shift`` or ``rejected_shift``, in one go.

        ``None`` puts a hyper-parameter back to the table's defaults.

        Raises:
            ValueError: If a name is no setting of these losses, a value is no finite number, or no
                loss takes it; nothing is changed then.
        """
        self._view.set(settings)

    def reset(self) -> None:
        """Go back to the settings at the start."""
        self._view.reset()

    def to_frame(self) -> pd.DataFrame:
        """Return one row a loss for the picked pair: weights, ratio, band, predicted changes.

        ``attrs`` holds the labels and, if log-probabilities are assumed, ``"hypothetical"``.
        """
        return self._state.frame.copy()

    def figure(self) -> Figure:
        """Return a still figure: the map with all losses, and what a step of each changes."""
        return text.draw(Still(figsize=(13, 5.6), layout="constrained"), self._state)

    def to_html(self) -> str:
        """Return the picked pair as self-contained HTML: sentence, pictures, table of losses."""
        return text.still(self._state, self._skipped_before)

    def snapshot(self) -> HTML:
        """Return ``to_html()`` as an output that stays in the saved notebook."""
        return HTML(self.to_html())

    def close(self) -> None:
        """Take the widgets away."""
        self._view.close()

    def __repr__(self) -> str:
        count = len(self._state.frame)
        return f"LossExplorer({count} losses, picked {self.loss!r} on pair {self.selection!r})"

    def _ipython_display_(self) -> None:
        display({**self.widget._repr_mimebundle_(), "text/plain": repr(self)}, raw=True)
        display(HTML(TWIN % self.to_html()))


def _near(name, names: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(str(name), names, 3, 0.4) or names[:3])
