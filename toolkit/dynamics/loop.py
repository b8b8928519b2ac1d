"""Training to the end in one call."""

from __future__ import annotations

from toolkit.checks import flag
from toolkit.dynamics._training import TrainingRun
from toolkit.dynamics._trajectory import Trajectory
from toolkit.dynamics.run_settings import signature
from toolkit.model import Policy
from toolkit.model.inputs import Pairs


def train(
    policy: Policy,
    pairs: Pairs,
    *,
    progress: bool = True,
    **options,
) -> Trajectory:
    """Train for real and keep, at every step, what was predicted and what happened.

    At each step the probes' token log-probabilities are predicted by ``⟨∇log π_t, Δθ⟩`` along the
    optimiser's real move and then measured. A deep copy is trained unless ``in_place=True``.
    Stopping it (the Stop button, Ctrl-C) returns everything done so far, with
    ``trajectory.stopped`` true. So does divergence, with a warning: ``trajectory.divergence``
    names the step and the learning rate. To pause, look and go on, use :class:`TrainingRun`,
    which takes the same arguments and explains all of them.

    Args:
        policy: The model to start from.
        pairs: Training pairs.
        progress: Show a progress bar.
        **options: Those of :class:`TrainingRun`: ``steps``, ``lr`` and others.

    Returns:
        :class:`Trajectory`.

    Raises:
        PairError: If a pair cannot be scored.
        ValueError: If an argument is not allowed, or a loss is not finite before the first step
            (it names the pair).
        ImportError: If an optional package is missing.

    Source:
        arXiv 2410.13828, Section 3, step by step.

    Example:
        >>> import toolkit as tk
        >>> policy, pairs = tk.load_model(), tk.load_pairs("single_token", limit=4)
        >>> trajectory = tk.train(policy, pairs, lr=1e-5, steps=2, progress=False)
        >>> len(trajectory.steps_frame())
        2
    """
    from tqdm.auto import tqdm

    flag("progress", progress)
    run = TrainingRun(policy, pairs, **options)
    try:
        with tqdm(total=run.steps, desc="training", unit="step", disable=not progress) as bar:
            for record in run:
                bar.set_postfix(loss=f"{record.loss:.4f}", refresh=False)
                bar.update()
    except KeyboardInterrupt:
        run.stopped = True
    return run.trajectory


train.__signature__ = signature(Trajectory, progress=True)
