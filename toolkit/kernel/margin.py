"""The kernel of margins, and how much a kernel turns while a model is trained."""

from __future__ import annotations

import numpy as np
import pandas as pd

from toolkit.checks import shown
from toolkit.gradients import Gram


def margin_kernel(gram: Gram) -> pd.DataFrame:
    """Return ``M_ij = ⟨g_chosen^i − g_rejected^i, g_chosen^j − g_rejected^j⟩`` of every two pairs.

    How much a step that widens the margin of pair j widens that of pair i: for DPO with frozen
    gradients ``dΔ_i/dt = (β/N)·Σ_j M_ij·σ(−βΔ_j)``.

    Args:
        gram: What :func:`toolkit.gram` returns for N pairs.

    Returns:
        N² rows: ``pair_id_i, pair_id_j, inner`` (nats² per squared parameter unit), ``cosine`` (NaN
        where a pair's two gradients are equal). The matrix is symmetric and positive semi-definite.

    Raises:
        ValueError: If ``gram`` is no Gram.

    Source:
        The kernel of arXiv 2210.05643 for the output ``chosen_logps − rejected_logps``.

    Example:
        >>> import toolkit as tk
        >>> kernel = tk.gram(tk.load_model(), tk.load_pairs("stance", limit=2), progress=False)
        >>> tk.margin_kernel(kernel).shape
        (4, 4)
    """
    matrix, ids = margins(check_gram(gram)), np.array(gram.pair_ids[::2], dtype=object)
    norms = np.sqrt(np.clip(np.diag(matrix), 0, None))
    i, j = np.divmod(np.arange(matrix.size), len(ids))
    scale = np.outer(norms, norms)
    cosine = np.divide(matrix, scale, out=np.full(matrix.shape, np.nan), where=scale > 0)
    columns = {"pair_id_i": ids[i], "pair_id_j": ids[j], "inner": matrix.ravel()}
    frame = pd.DataFrame({**columns, "cosine": np.clip(cosine, -1, 1).ravel()})
    frame.attrs.update(gram.labels.to_attrs(), relative_error=gram.relative_error)
    return frame


def kernel_alignment(before: Gram, after: Gram) -> pd.DataFrame:
    """Return how alike two kernels of the same pairs are: is the run that lies between lazy?

    ``alignment = ⟨K, K'⟩ / (‖K‖·‖K'‖)`` is 1 where the kernel only grew or shrank;
    ``relative_change = ‖K' − K‖ / ‖K‖`` is 0 where it stayed. Norms are Frobenius norms. Training
    is lazy (its features fixed) where the one is near 1 and the other near 0.

    Args:
        before: The kernel at the start, of :func:`toolkit.gram`.
        after: The kernel of the same pairs, parameters and metric after training.

    Returns:
        Two rows, by ``kernel``: ``"responses"`` (all 2N responses) and ``"margins"`` (of N pairs):
        ``alignment``, ``relative_change``.

    Raises:
        ValueError: If one of them is no Gram, or they are of different pairs or parameters.

    Source:
        arXiv 2210.05643, the fixed-features condition.

    Example:
        >>> import toolkit as tk
        >>> kernel = tk.gram(tk.load_model(), tk.load_pairs("stance", limit=2), progress=False)
        >>> tk.kernel_alignment(kernel, kernel)["relative_change"].tolist()
        [0.0, 0.0]
    """
    for name, gram in (("before", before), ("after", after)):
        check_gram(gram, name)
    for what, a, b in (
        ("pairs", before.pair_ids, after.pair_ids),
        ("params", before.labels.params, after.labels.params),
        ("metric", before.labels.optimizer_metric, after.labels.optimizer_metric),
    ):
        if a != b:
            raise ValueError(
                f"before and after must have the same {what}, received {shown(a)} and {shown(b)}"
            )
    rows = {
        "responses": (before.matrix, after.matrix),
        "margins": (margins(before), margins(after)),
    }
    found = [(name, *_alike(*both)) for name, both in rows.items()]
    frame = pd.DataFrame(found, columns=["kernel", "alignment", "relative_change"])
    frame.attrs.update(before.labels.to_attrs())
    return frame


def margins(gram: Gram) -> np.ndarray:
    """Return M, ``[N, N]``."""
    by_pair = gram.matrix.reshape(len(gram.pair_ids) // 2, 2, -1, 2)
    signs = np.array([1.0, -1.0])
    return np.einsum("iajb,a,b->ij", by_pair, signs, signs)


def check_gram(gram: Gram, name: str = "gram") -> Gram:
    """Return a Gram.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(gram, Gram):
        raise ValueError(
            f"{name} must be a Gram, received {shown(gram)}: use tk.gram(policy, pairs)"
        )
    return gram


def _alike(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    norms = np.linalg.norm(a), np.linalg.norm(b)
    both = float(norms[0] * norms[1])
    alignment = float((a * b).sum() / both) if both else float("nan")
    return alignment, float(np.linalg.norm(b - a) / norms[0]) if norms[0] else float("nan")
