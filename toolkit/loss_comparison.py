"""All losses on one pair: a row per loss, under one set of settings, measured or assumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from toolkit.checks import finite, is_finite_number, positive
from toolkit.entanglements import FIRST_ORDER_NATS, entanglement, suggest_lr
from toolkit.gradients import PairStats
from toolkit.losses import LOSSES, check_loss, hyper_parameters
from toolkit.measurement import Cache, Measurement, close_to
from toolkit.pairs import PreferencePair

SIGNS = {
    "beta": "β",
    "gamma": "γ",
    "lam": "λ",
    "alpha": "α",
    "epsilon": "ε",
    "tau": "τ",
    "delta": "δ",
    "z": "z",
    "desirable_weight": "λ_c",
    "undesirable_weight": "λ_r",
}
SHIFTS = ("chosen_shift", "rejected_shift")
# A hypothetical log-probability stays below this share of the measured one: above 0 there is none.
CEILING = 0.01
ROUNDING = 1e-15  # a weight this small beside the other one is none
COLUMNS = (
    "ratio",
    "band_low",
    "band_center",
    "band_high",
    "band_position",
    "predicted_chosen_delta",
    "predicted_rejected_delta",
    "regime",
    "first_order_lr",
)


@dataclass(frozen=True)
class Settings:
    """What a user can change.

    Attributes:
        hparams: Hyper-parameters that were set; all others stay at the table's defaults.
        lr: Learning rate.
        chosen_shift: Hypothetical change of the chosen log-probability, nats.
        rejected_shift: The same of the rejected one.
    """

    hparams: Mapping[str, float]
    lr: float
    chosen_shift: float = 0.0
    rejected_shift: float = 0.0


class LossComparison:
    """The losses side by side on the picked pair; a change that is refused changes nothing.

    Args:
        measurement: The pairs; each is measured when it is picked.
        losses: Keys of ``LOSSES`` and functions; ``None`` for the whole table.
    """

    def __init__(self, measurement: Measurement, losses: Sequence[str | Callable] | None):
        self.measurement = measurement
        self.policy, self.params = measurement.policy, measurement.params
        self.losses = _named(losses)
        self.defaults = {name: _defaults(loss) for name, loss in self.losses.items()}
        self.index, self.settings = 0, Settings({}, 1.0)
        self._stats, self._rows = Cache(), Cache(4096)
        for name in (n for n, loss in self.losses.items() if isinstance(loss, str)):
            if name not in LOSSES:
                check_loss(name, {})  # says why it is none
        self.loss = ""

    def begin(
        self, hparams: Mapping[str, float], lr: float | None = None, index: int | None = None
    ) -> None:
        """Set what the explorer starts with.

        Args:
            hparams: The hyper-parameters that are not to stay at the table's defaults.
            lr: Learning rate; ``None``: one at which first order holds for the first loss.
            index: Place of the picked pair; ``None``: the worst under the first loss, where the
                pairs are measured, else the first.
        """
        self.index = index or 0
        self.set(hparams)
        given = self.measurement.given_stats
        known = self.measured() if given is None else given
        result = entanglement(known, self.losses[self.loss], **self._own(self.loss))
        if lr is None:
            lr = suggest_lr(result.chosen_slack, result.rejected_slack)
        if index is None and given is not None:
            self.index = result.worst
        self._change(settings=replace(self.settings, lr=float(lr)))
        self.start = self.settings

    @property
    def pair(self) -> PreferencePair:
        """The picked pair."""
        return self.measurement.pairs[self.index]

    @property
    def row(self) -> pd.Series:
        """The picked loss's row of the frame."""
        return self.frame.set_index("loss_name", drop=False).loc[self.loss]

    @property
    def hypothetical(self) -> str:
        """What is assumed instead of measured, in words; empty where nothing is."""
        s, shown = self.settings, self.shown_shifts()
        if not (s.chosen_shift or s.rejected_shift):
            return ""
        moved = [f"{shift:+.3g}".replace("-", "−") if shift else "0" for shift in shown]
        return f"chosen moved {moved[0]}, rejected {moved[1]} nats"

    def measured(self) -> PairStats:
        """Return the statistics of the picked pair; it is measured when it was not."""
        return self._stats.get(self.index, lambda: self.measurement.one(self.index))

    def is_measured(self, index: int) -> bool:
        """Whether showing this pair needs no run of the model."""
        return index in self._stats or self.measurement.given_stats is not None

    def assumed(self) -> PairStats:
        """Return the statistics with the hypothetical log-probabilities in their place."""
        stats = self.measured()
        chosen, rejected = self.shown_shifts()
        return replace(
            stats,
            chosen_logps=stats.chosen_logps + chosen,
            rejected_logps=stats.rejected_logps + rejected,
        )

    def shown_shifts(self) -> tuple[float, float]:
        """The two shifts in nats, cut where a log-probability would come too close to 0."""
        stats, s = self.measured(), self.settings
        pairs = (s.chosen_shift, stats.chosen_logps), (s.rejected_shift, stats.rejected_logps)
        return tuple(min(shift, float((CEILING - 1) * logps[0])) for shift, logps in pairs)

    def logratios(self) -> tuple[float, float]:
        """The two measured log-ratios, nats: how far the policy is from its reference."""
        s = self.measured()
        chosen = s.chosen_logps - s.ref_chosen_logps
        return float(chosen[0]), float((s.rejected_logps - s.ref_rejected_logps)[0])

    def hparams(self) -> list[str]:
        """The names of all hyper-parameters, those of most losses first."""
        names = list(dict.fromkeys(n for own in self.defaults.values() for n in own))
        return sorted(names, key=lambda n: -len(self.reach(n)))

    def reach(self, hparam: str) -> list[str]:
        """The losses that have this hyper-parameter."""
        return [name for name, own in self.defaults.items() if hparam in own]

    def pick(self, index: int) -> None:
        """Pick a pair by its place."""
        self._change(index=index)

    def pick_loss(self, name: str) -> None:
        """Pick a loss by its name.

        Raises:
            ValueError: If it is none of those that are shown; the message names close ones.
        """
        names = self.frame["loss_name"].tolist()
        if name not in names:
            reason = self.left_out.get(name)
            why = f"is left out ({reason})" if reason else "is none of these losses"
            raise ValueError(f"loss={name!r} {why}; close to it: {close_to(name, names)}")
        self.loss = name

    def set(self, values: Mapping[str, float | None]) -> None:
        """Change hyper-parameters (``None``: back to the defaults), ``lr`` or the shifts.

        Raises:
            ValueError: If a name is unknown, a value is no finite number, or no loss takes it;
                nothing is changed then.
        """
        hparams, others = dict(self.settings.hparams), {}
        for name, value in values.items():
            if name == "lr":
                others[name] = positive(name, value)
            elif name in SHIFTS:
                others[name] = finite(name, 0.0 if value is None else value)
            elif not self.reach(name):
                allowed = ", ".join([*self.hparams(), "lr", *SHIFTS])
                raise ValueError(f"{name} is no setting of these losses; allowed: {allowed}")
            elif value is None:
                hparams.pop(name, None)
            else:
                hparams[name] = finite(name, value)
        self._change(
            settings=replace(self.settings, hparams=hparams, **others),
            needed=[self.reach(name) for name in values if self.reach(name)],
        )

    def reset(self) -> None:
        """Go back to the settings at the start."""
        self._change(settings=self.start)

    def _change(self, needed: Sequence[list[str]] = (), **attributes) -> None:
        """Set attributes and rebuild the frame, or leave everything as it was and say why.

        Args:
            needed: Groups of losses of which at least one must remain.
            **attributes: New values.
        """
        before, groups = dict(self.__dict__), [list(self.losses), *needed]
        try:
            self.__dict__.update(attributes)
            _require(groups, self._refused())  # before anything is measured
            self._update()
            _require(groups, self.left_out)
        except BaseException:
            self.__dict__.update(before)
            raise

    def _own(self, name: str) -> dict[str, float]:
        """The hyper-parameters that were set, as far as this loss has them."""
        return {n: v for n, v in self.settings.hparams.items() if n in self.defaults[name]}

    def _refused(self) -> dict[str, str]:
        """The losses that refuse these settings whatever is measured, and why."""
        refused = {}
        for name, loss in self.losses.items():
            try:
                check_loss(loss, self._own(name))
            except ValueError as error:
                refused[name] = str(error)
        return refused

    def _update(self) -> None:
        """Rebuild ``frame``, one row a loss, and ``left_out``, the reasons of all others."""
        stats, rows, left_out = self.assumed(), [], {}
        for name, loss in self.losses.items():
            own = self._own(name)
            key = self.index, name, self.settings.lr, self.shown_shifts(), tuple(own.items())
            row = self._rows.get(key, partial(self._row, name, loss, own, stats))
            if isinstance(row, str):
                left_out[name] = row
            else:
                rows.append(row)
        self.frame, self.left_out = pd.DataFrame(rows), left_out
        self.frame.attrs.update(stats.labels.to_attrs(), lr=self.settings.lr)
        self.frame.attrs["first_order_nats"] = FIRST_ORDER_NATS
        if self.hypothetical:
            self.frame.attrs["hypothetical"] = self.hypothetical
        if rows and self.loss not in {row["loss_name"] for row in rows}:
            self.loss = rows[0]["loss_name"]

    def _row(self, name: str, loss, own: dict[str, float], stats: PairStats) -> dict | str:
        """Return the row of a loss, or why there is none."""
        try:
            result = entanglement(stats, loss, lr=self.settings.lr, **own)
        except ValueError as error:
            return str(error)
        row: dict[str, Any] = {"pair_id": stats.pair_ids[0], "loss_name": name}
        row["cosine"] = float(stats.cosine[0])
        for weight in ("d_chosen", "d_rejected"):
            row[weight] = float(getattr(result.weights, weight)[0]) + 0.0  # no −0
        for column in COLUMNS:
            value = getattr(result, column)[0]
            row[column] = value if isinstance(value, str) else float(value) + 0.0
        row["first_order"] = bool(result.first_order[0])
        ratio = row["ratio"]
        row["log_ratio"] = math.log(ratio) if ratio > 0 else math.nan
        row["predicted_margin_delta"] = (
            row["predicted_chosen_delta"] - row["predicted_rejected_delta"]
        )
        given = result.weights.hparams
        row["settings"] = ", ".join(f"{SIGNS.get(n, n)} {v:g}" for n, v in given.items())
        row["note"] = _note(row["d_chosen"], row["d_rejected"])
        table = LOSSES.get(loss) if isinstance(loss, str) else None
        for column in ("formula", "ratio", "source", "needs_ref", "trl_loss_type"):
            to = {"ratio": "ratio_rule"}.get(column, column)
            row[to] = getattr(table, column) if table else ("" if column != "needs_ref" else None)
        return row


def _require(groups: Sequence[list[str]], left_out: Mapping[str, str]) -> None:
    """Refuse settings that leave no loss of a group; the reason is that of its first one."""
    for names in groups:
        if set(names) <= left_out.keys():
            raise ValueError(left_out[names[0]])


def _named(losses: Sequence[str | Callable] | None) -> dict[str, str | Callable]:
    """The losses by name; a function goes by its own."""
    if losses is None:
        return {key: key for key in LOSSES}
    if isinstance(losses, str) or callable(losses):
        losses = [losses]
    if not isinstance(losses, Sequence) or not losses:
        raise ValueError(f"losses must be a list of keys of LOSSES or functions, got {losses!r}")
    named: dict[str, str | Callable] = {}
    for loss in losses:
        if not isinstance(loss, str) and not callable(loss):
            raise ValueError(f"losses: {loss!r} is neither a key of LOSSES nor a function")
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", "custom")
        if name in named:
            raise ValueError(f"losses: {name!r} occurs twice; names must be unique")
        named[name] = loss
    return named


def _defaults(loss: str | Callable) -> dict[str, float | None]:
    """The hyper-parameters of a loss and their defaults, ``None`` where one must be given."""
    if not callable(loss):
        return dict(LOSSES[loss].defaults) if loss in LOSSES else {}
    own = hyper_parameters(loss)
    return {name: p.default if is_finite_number(p.default) else None for name, p in own.items()}


def _note(chosen: float, rejected: float) -> str:
    """What is odd about two loss weights, in words."""
    nothing = ROUNDING * max(abs(chosen), abs(rejected))
    chosen, rejected = (0.0 if abs(d) <= nothing else d for d in (chosen, rejected))
    if chosen == 0 and rejected == 0:
        return "no pull at all: past its margin"
    if chosen < 0 and rejected < 0:
        return "both weights negative: it takes the margin back"
    if chosen < 0:
        return "weight of chosen negative: pushes chosen down"
    if rejected < 0:
        return "weight of rejected negative: pulls rejected up"
    if chosen == 0:
        return "chosen is not pulled"
    return "" if rejected > 0 else "rejected is not pushed: no ratio"
