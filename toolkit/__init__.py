"""See why preference tuning lowers the log-probability of the chosen response.

The nouns: a :class:`Policy` (model, tokenizer, reference) scores :class:`PreferencePair` rows;
:class:`PairStats` holds the gradient products of each pair, :class:`Entanglement` what a training
step does to them, :class:`TokenContributions` and :class:`TokenMatrix` which tokens do it.
``similarity`` adds the CHES family, ``prompt_attributions`` the prompt's share, and
:class:`PairExplorer` puts all of it under the pointer in a notebook.

Example:
    >>> import toolkit as tk
    >>> policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=4)
    >>> stats = tk.pair_stats(policy, pairs, progress=False)
    >>> len(tk.entanglement(stats, "dpo", beta=0.1).to_frame())
    4
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

_HOME = {
    "pairs": (
        "EncodedPair PairError PairList PreferencePair audit_pairs encode load_pairs shipped_pairs"
    ),
    "model": "PairLogps Policy Provenance load_model per_token_logps perplexity sample_responses",
    "losses": "LOSSES Loss LossWeights loss_table loss_weights",
    "displacement": (
        "SingleTokenTheory displacement_verdict mass_by_word mass_flow single_token_theory"
    ),
    "dynamics": ("StepRecord TrainingRun Trajectory predict_step train"),
    "gradients": (
        "Gram PairStats Preconditioner TokenContributions TokenMatrix gram pair_stats "
        "token_contributions token_matrix"
    ),
    "kernel": "Influence frozen_kernel_dynamics influence kernel_alignment margin_kernel",
    "remedies": "UPDATE_RULES UpdateRule rule_table",
    "entanglement": "Entanglement entanglement suggest_lr",
    "similarity": "ches_tokens similarity",
    "scoring": (
        "FilteredPairs PairStream export_pairs filter_pairs length_confound quantile_subsets "
        "read_scores score_pairs"
    ),
    "attribution": "PromptAttributions prompt_attributions",
    "widgets": "DatasetExplorer LossExplorer PairExplorer TrajectoryExplorer",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted([*_MODULE_OF, "plots"])


def __getattr__(name: str):
    """Import a public name when it is first used: ``import toolkit`` itself stays fast."""
    if name == "plots":
        return import_module("toolkit.plots")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    return getattr(import_module(f"toolkit.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Facade(ModuleType):
    """Keeps ``tk.similarity`` the function, even after its module of that name was imported."""

    def __setattr__(self, name: str, value) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Facade
