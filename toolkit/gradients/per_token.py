"""Which tokens do it: products of every token's gradient with the pair's and with each other."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from toolkit.checks import flag
from toolkit.gradients import fallback
from toolkit.gradients._scope import Scope
from toolkit.gradients.preconditioner import Preconditioner
from toolkit.gradients.results import TokenContributions, TokenMatrix
from toolkit.model import Params, Policy
from toolkit.model.forward import sequences
from toolkit.model.inputs import encoded_pair
from toolkit.model.tokens import token_texts
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
    given = policy.model, scope.plan, scope.selected, rows, scope.weights
    found, note = fallback.token_products(*given)
    values = [_numpy(torch.cat(list(v))) for v in found]
    axis, labels = _token_axis(policy, rows), scope.labels_with(note)
    return TokenContributions(enc.id, *axis, *values, labels=labels)


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
        given = policy.model, scope.plan, scope.selected, rows, scope.weights
        (_, gram), note = fallback.token_gram(*given, partial(_show, bar))
    axis, labels = _token_axis(policy, rows), scope.labels_with(note)
    return TokenMatrix(enc.id, *axis, gram.numpy(), labels)


def _show(bar, level: int, count: int) -> None:
    bar.total = count
    bar.update(level - bar.n)


def _token_axis(policy: Policy, rows) -> tuple[np.ndarray, np.ndarray, list[str], np.ndarray]:
    """The side, the position, the text and the id of every scored token."""
    texts = [token_texts(policy.tokenizer, *row) for row in rows]
    sides = np.repeat(["chosen", "rejected"], [len(t) for t in texts])
    ids = torch.cat([ids[mask] for ids, mask in rows]).cpu().numpy()
    return sides, np.concatenate([np.arange(len(t)) for t in texts]), texts[0] + texts[1], ids


def _numpy(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
