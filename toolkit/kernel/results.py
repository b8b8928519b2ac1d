"""What an influence measurement holds: a table of pushes that turns into frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from toolkit.checks import choice, shown
from toolkit.model import Provenance
from toolkit.model.inputs import Skipped, skipped_attrs, skipped_frame
from toolkit.model.scores import SIDES


@dataclass(frozen=True)
class Influence:
    """What N training pairs do to both responses of P probes in one step.

    Attributes:
        train_ids: Ids of the training pairs.
        pair_ids: Ids of the probes.
        values: What each training pair does to each response, ``[P, 2, N]``, chosen before
            rejected: nats, but for ``update="sign"``.
        from_chosen: The share of its chosen term, ``[P, 2, N]``; NaN for sign updates, which do
            not split.
        from_rejected: The share of its rejected term, likewise.
        own: Whether a training pair is the probe itself, ``[P, N]``.
        labels: What it was measured with.
        settings: Loss, hyper-parameters, learning rate and update.
        blocks_of: Block of each training pair and of each probe, if asked for.
        left_out: Row, id and reason of each pair that could not be scored (see :attr:`skipped`).
    """

    train_ids: list[str]
    pair_ids: list[str]
    values: np.ndarray
    from_chosen: np.ndarray
    from_rejected: np.ndarray
    own: np.ndarray
    labels: Provenance
    settings: dict[str, object]
    blocks_of: tuple[list, list] | None = None
    left_out: Skipped = field(default_factory=list, repr=False)

    @property
    def skipped(self) -> pd.DataFrame:
        """The pairs that ``on_error="skip"`` left out: ``row, pair_id, reason``."""
        return skipped_frame(self.left_out)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per response and training pair.

        Returns:
            Columns ``pair_id, side`` (the response), ``train_pair_id``, ``own`` (whether it is the
            response's own pair), ``from_chosen``, ``from_rejected``, ``influence`` (their sum,
            nats; :attr:`values`), and with blocks ``pair_block, train_block``.
        """
        probes, _, trained = self.values.shape
        columns = {
            "pair_id": np.repeat(np.array(self.pair_ids, dtype=object), 2 * trained),
            "side": np.tile(np.repeat(SIDES, trained), probes),
            "train_pair_id": np.tile(np.array(self.train_ids, dtype=object), 2 * probes),
            "own": np.repeat(self.own, 2, axis=0).ravel(),
            "from_chosen": self.from_chosen.ravel(),
            "from_rejected": self.from_rejected.ravel(),
            "influence": self.values.ravel(),
        }
        if self.blocks_of:
            train, watched = self.blocks_of
            columns["pair_block"] = np.repeat(np.array(watched, dtype=object), 2 * trained)
            columns["train_block"] = np.tile(np.array(train, dtype=object), 2 * probes)
        return self._labelled(pd.DataFrame(columns))

    def totals(self) -> pd.DataFrame:
        """Return what a response's own pair does to it, and what all others do together.

        Returns:
            One row per response: ``pair_id, side, own, others, total``. For ``update="sgd"`` the
            total is the first-order change of one step on all training pairs.
        """
        own = np.where(self.own[:, None], self.values, 0.0).sum(-1).ravel()
        total = self.values.sum(-1).ravel()
        ids, sides = np.repeat(self.pair_ids, 2), np.tile(SIDES, len(self.pair_ids))
        columns = {"pair_id": ids, "side": sides, "own": own, "others": total - own}
        return self._labelled(pd.DataFrame({**columns, "total": total}))

    def blocks(self) -> pd.DataFrame:
        """Return what each block of training pairs does to a response of each block, on average.

        Returns:
            One row per side and two blocks: ``side, pair_block, train_block``, ``own`` (by the
            response's own pair), ``others`` (by the block's other pairs together), both means over
            the responses; ``pairs`` (training pairs of the block).

        Raises:
            ValueError: If the influence was measured without ``by``.
        """
        if not self.blocks_of:
            raise ValueError(
                'this influence has no blocks: measure it with tk.influence(…, by="…")'
            )
        frame = self.to_frame()
        frame["own_part"] = frame["influence"].where(frame["own"], 0.0)
        keys = ["side", "pair_block", "train_block"]
        sums = frame.groupby(keys, sort=False)[["own_part", "influence"]].sum()
        sizes = pd.Series(self.blocks_of[1]).value_counts()
        responses = sums.index.get_level_values("pair_block").map(sizes).to_numpy()
        found = pd.DataFrame({"own": sums["own_part"] / responses})
        found["others"] = sums["influence"] / responses - found["own"]
        members = pd.Series(self.blocks_of[0]).value_counts()
        found["pairs"] = found.index.get_level_values("train_block").map(members).to_numpy()
        return self._labelled(found.reset_index())

    def pushes(self, pair_id: str, side: str = "chosen") -> pd.DataFrame:
        """Return which training pairs push one response down, the strongest first.

        Args:
            pair_id: A probe.
            side: ``"chosen"`` or ``"rejected"``.

        Returns:
            One row per training pair by rising influence: ``rank`` (from 1), ``train_pair_id, own,
            from_chosen, from_rejected, influence`` and, with blocks, ``train_block``.

        Raises:
            ValueError: For an unknown probe or side.
        """
        choice("side", side, SIDES)
        if pair_id not in self.pair_ids:
            raise ValueError(
                f"pair_id={shown(pair_id)} is no probe; allowed: {', '.join(self.pair_ids[:10])}"
            )
        frame = self.to_frame()
        rows = frame[(frame["pair_id"] == pair_id) & (frame["side"] == side)]
        rows = rows.sort_values("influence", kind="stable", ignore_index=True)
        rows.insert(0, "rank", np.arange(1, len(rows) + 1))
        rows = rows.drop(columns=["pair_id", "side", "pair_block"], errors="ignore")
        return self._labelled(rows, pair_id=pair_id, side=side)

    def _labelled(self, frame: pd.DataFrame, **more) -> pd.DataFrame:
        frame.attrs.update(self.labels.to_attrs(), **self.settings, **more)
        frame.attrs.update(skipped_attrs(self.left_out))
        return frame
