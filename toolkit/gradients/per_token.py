"""Which tokens do it: products of every token's gradient with the pair's and with each other."""

from __future__ import annotations

import torch

from toolkit.checks import flag
from toolkit.gradients import fallback
from toolkit.gradients._scope import Scope
from toolkit.gradients.preconditioner import Preconditioner
from toolkit.gradients.results import TokenContributions, TokenMatrix
from toolkit.model import Params, Policy
from toolkit.model.forward import sequences
from toolkit.model.inputs import encoded_pair
from toolkit.model.tokens import token_columns
from toolkit.model.turns import alone
from toolkit.pairs import EncodedPair, PreferencePair


@alone
def token_contributions(
    policy: Policy,
    pair: PreferencePair | EncodedPair,
    *,
    params: Params = "all",
    preconditioner: Preconditioner | None = None,
) -> TokenContributions:
    """Return ⟨∇log π_t, g_chosen⟩ and ⟨∇log π_t, g_rejected⟩ of every token of both responses.

    Forward-mode derivatives of the token log-probabilities along g_chosen and g_rejected give all
    of them at once, whatever the number of tokens.

    Args:
        policy: The model.
        pair: One pair.
        params: Parameter set (see ``Policy.parameters_in``).
        preconditioner: A diagonal P for ⟨·,·⟩_P (plain autograd, slower); ``None``: Euclidean.

    Raises:
        PairError: If the pair cannot be scored.
        ValueError: If ``params`` matches nothing.

    Source:
        arXiv 2410.13828, token-wise decomposition of the gradient inner product.

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> tokens = tk.token_contributions(policy, tk.load_pairs("single_token", limit=1)[0])
        >>> tokens.to_frame().columns[0]
        'pair_id'
    """
    enc, scope = encoded_pair(policy, pair), Scope(policy, params, preconditioner)
    rows = sequences([enc])
    found, note = fallback.token_products(scope, rows)
    values = [torch.cat(list(v)).double().cpu().numpy() for v in found]
    axis = token_columns(policy.tokenizer, rows)
    return TokenContributions(enc.id, *axis.values(), *values, labels=scope.labels(note))


@alone
def token_matrix(
    policy: Policy,
    pair: PreferencePair | EncodedPair,
    *,
    params: Params = "all",
    preconditioner: Preconditioner | None = None,
    progress: bool = False,
) -> TokenMatrix:
    """Return the matrix ⟨∇log π_i, ∇log π_j⟩ over all tokens of both responses.

    Args:
        policy: The model.
        pair: One pair.
        params: Parameter set (see ``Policy.parameters_in``).
        preconditioner: A diagonal P for ⟨·,·⟩_P (plain autograd, slower); ``None``: Euclidean.
        progress: Show a progress bar over the layers (not with plain autograd).

    Raises:
        PairError: If the pair cannot be scored.
        ValueError: If ``params`` matches nothing.

    Source:
        arXiv 2410.13828, Section 4.3 (token-level heat-map).

    Example:
        >>> import toolkit as tk
        >>> policy = tk.load_model()
        >>> tk.token_matrix(policy, tk.load_pairs("single_token", limit=1)[0]).matrix.shape
        (4, 4)
    """
    from tqdm.auto import tqdm

    flag("progress", progress)
    enc, scope = encoded_pair(policy, pair), Scope(policy, params, preconditioner)
    rows = sequences([enc])
    with tqdm(desc="token gradients", unit="block", disable=not progress) as bar:

        def show(level: int, count: int) -> None:
            bar.total = count
            bar.update(level - bar.n)

        (_, gram), note = fallback.token_gram(scope, rows, show)
    axis = token_columns(policy.tokenizer, rows).values()
    return TokenMatrix(enc.id, *axis, gram.numpy(), scope.labels(note))
