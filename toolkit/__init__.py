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

import ast
from importlib import import_module
from pathlib import Path

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_MODULE_OF = {
    alias.name: node.module or alias.name
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    """Import a public name when it is first used: ``import toolkit`` itself stays fast."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'toolkit' has no attribute {name!r}")
    module = import_module(f"toolkit.{_MODULE_OF[name]}")
    return module if name == _MODULE_OF[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
