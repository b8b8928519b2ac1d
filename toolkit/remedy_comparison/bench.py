"""The bench: remedies side by side on the same pairs, steps and seeds, with what each one costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from toolkit.checks import check_seed, flag, shown, whole
from toolkit.dynamics import TrainingRun
from toolkit.model import Policy, perplexity
from toolkit.model.inputs import Pairs, check_pairs, encoded_pairs
from toolkit.model.perplexity import text_rows
from toolkit.model.scores import response_sums
from toolkit.remedies import Constrained, check_start
from toolkit.remedy_comparison.plans import REMEDIES, named, plan_of

COLUMNS = (
    *("remedy", "seed", "chosen_change", "chosen_drawdown", "rejected_change", "margin_change"),
    *("accuracy", "kl", "perplexity", "perplexity_before", "seconds_per_step", "steps", "diverged"),
)


def compare_remedies(
    policy: Policy,
    pairs: Pairs,
    remedies: Sequence | Mapping[str, object] = REMEDIES,
    *,
    lr: float,
    steps: int,
    seeds: int | Sequence[int] = 5,
    held_out: Pairs | None = None,
    texts: Sequence[str] | None = None,
    progress: bool = True,
    **options,
) -> pd.DataFrame:
    """Train with each remedy from the same start, on the same pairs, and say what it did and cost.

    Seeds are the outer loop, so that a run that is stopped (the Stop button, Ctrl-C) returns
    complete rows, for whole seeds as far as it came; ``attrs["stopped"]`` says so.

    Args:
        policy: The model to start from; a copy is trained.
        pairs: Training pairs. What becomes of all of them is measured, also where a remedy trains
            on some of them or on some of their tokens.
        remedies: Names, or a dictionary of names and what they mean. A remedy is a key of
            ``UPDATE_RULES`` (``"plain"``: the loss as it is) or of ``LOSSES``, ``"lowest_ches"``
            (train on the half least alike), ``"contrast_only"`` (score only tokens that the two
            responses do not share), an ``UpdateRule``, or a dictionary of options of
            ``TrainingRun`` in place of the shared ones, in which ``"pairs"`` may be a function of
            policy and pairs that returns those to train on.
        lr: Learning rate.
        steps: Steps of each run; long enough for the changes to flatten.
        seeds: How many (0, 1, …), or which: of the order of the minibatches.
        held_out: Pairs to measure the accuracy on; without them it is NaN.
        texts: Ordinary text to measure the perplexity on; without it that is NaN.
        progress: Show a bar with the time left.
        **options: Options of ``TrainingRun`` for all remedies, such as ``loss``, ``optimizer``,
            ``batch_size`` and the loss's hyper-parameters (which a remedy with another loss does
            not take over).

    Returns:
        One row per remedy and seed: ``remedy, seed``; means over the pairs, nats:
        ``chosen_change`` (log π after − before), ``chosen_drawdown`` (largest fall from an
        earlier high), ``rejected_change``, ``margin_change`` (chosen − rejected change);
        ``accuracy`` (share of held-out pairs whose log-ratio is larger for the chosen response),
        ``kl`` (KL(π‖π_ref) at a scored position, over the vocabulary), ``perplexity`` of the texts
        and ``perplexity_before``, ``seconds_per_step`` (of the fastest step, with the measuring of
        the pairs), ``steps`` done, ``diverged``. ``attrs`` holds the settings.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If a remedy or an option is not allowed, before any training.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=2)
        >>> frame = tk.compare_remedies(
        ...     policy, pairs, ["plain", "normalised"], lr=1e-5, steps=1, seeds=1, progress=False
        ... )
        >>> frame["remedy"].tolist()
        ['plain', 'normalised']
    """
    from tqdm.auto import tqdm

    flag("progress", progress)
    whole("steps", steps)
    seeds = _seeds(seeds)
    shared = {"lr": lr, "steps": steps, "predict": False, **options}
    plans = {name: plan_of(name, remedy, shared) for name, remedy in named(remedies).items()}
    bench = Bench(policy, check_pairs(pairs), held_out, texts)
    chosen = {name: bench.chosen(plan) for name, plan in plans.items()}
    rows, stopped, attrs = [], False, {}
    with tqdm(total=steps * len(seeds) * len(plans), unit="step", disable=not progress) as bar:
        try:
            for seed in seeds:
                for name, plan in plans.items():
                    bar.set_description(f"{name}, seed {seed}")
                    run = bench.run(chosen[name], {**plan, "seed": seed})
                    row = bench.row(run, bar.update)
                    attrs = attrs or {**run.settings}
                    rows.append({"remedy": name, "seed": seed, **row})
        except KeyboardInterrupt:
            stopped = True
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    own = ("seed", "update_rule", "skipped")
    frame.attrs.update({k: v for k, v in attrs.items() if k not in own}, stopped=stopped)
    return frame


@dataclass
class Bench:
    """What all remedies are measured on.

    Attributes:
        policy: The start.
        pairs: The pairs that are watched.
        held_out: Pairs for the accuracy, or ``None``.
        texts: Ordinary text for the perplexity, or ``None``.
    """

    policy: Policy
    pairs: list
    held_out: Pairs | None
    texts: Sequence[str] | None

    def __post_init__(self):
        encoded_pairs(self.policy, self.pairs)
        if self.texts is not None:
            text_rows(self.policy, self.texts)
        if self.held_out is not None:
            self.held_out = encoded_pairs(self.policy, self.held_out, name="held_out").pairs
        self.before = self._perplexity(self.policy)

    def chosen(self, plan: Mapping[str, object]) -> Sequence:
        """Return the pairs that a remedy trains on; refuse bounds that do not hold on them."""
        pairs = plan.get("pairs", lambda policy, pairs: pairs)(self.policy, self.pairs)
        if isinstance(rule := plan.get("update_rule"), Constrained):
            check_start(rule, self.policy, encoded_pairs(self.policy, pairs).pairs)
        return pairs

    def run(self, pairs: Sequence, plan: Mapping[str, object]) -> TrainingRun:
        """Return the run of a remedy, not started."""
        options = {k: v for k, v in plan.items() if k != "pairs"}
        return TrainingRun(self.policy, pairs, probes=self.pairs, **options)

    def row(self, run: TrainingRun, done: Callable[[], object]) -> dict[str, object]:
        """Train to the end, and return what became of the pairs and of the model."""
        seconds, last = [], time.perf_counter()
        for _ in run:
            seconds.append(time.perf_counter() - last)
            done()
            last = time.perf_counter()
        trajectory = run.trajectory
        after = trajectory.policy_at(len(trajectory))
        moved = trajectory.drawdown().groupby("side")[["change", "drawdown"]].mean()
        chosen, rejected = moved["change"]["chosen"], moved["change"]["rejected"]
        return {
            "chosen_change": chosen,
            "chosen_drawdown": moved["drawdown"]["chosen"],
            "rejected_change": rejected,
            "margin_change": chosen - rejected,
            "accuracy": self._accuracy(after),
            "kl": float(trajectory.kl[-1].mean()),
            "perplexity": self._perplexity(after),
            "perplexity_before": self.before,
            "seconds_per_step": min(seconds, default=float("nan")),
            "steps": len(trajectory),
            "diverged": trajectory.divergence is not None,
        }

    def _accuracy(self, policy: Policy) -> float:
        if self.held_out is None:
            return float("nan")
        own, ref = response_sums(policy, self.held_out)
        ratios = own - ref
        return float((ratios[::2] > ratios[1::2]).mean())

    def _perplexity(self, policy: Policy) -> float:
        return float("nan") if self.texts is None else perplexity(policy, self.texts)


def _seeds(seeds) -> list[int]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        return list(range(whole("seeds", seeds)))
    if isinstance(seeds, str) or not isinstance(seeds, Sequence) or not seeds:
        raise ValueError(f"seeds must be a number or a list of seeds, received {shown(seeds)}")
    return [check_seed(seed) for seed in seeds]
