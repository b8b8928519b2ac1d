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

import lazy_loader

# The list of names is in __init__.pyi, where editors read it; each is imported when first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
