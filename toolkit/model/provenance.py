"""What a number was measured with: model, parameters, dtype and every option that changes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Provenance:
    """What a number was measured with; a value without it means nothing.

    Attributes:
        model: Name or folder of the model.
        params: The parameter set whose gradients were used (``"all"``, ``"head"``, …).
        dtype: Weight dtype, for example ``"float32"``.
        append_eos: Whether EOS was appended to plain-text completions and scored.
        token_mask: Which completion tokens count (``"all scored tokens"`` unless masked).
        optimizer_metric: The metric of the inner products (``"euclidean"`` is plain SGD).
        ref: The reference model (``"same weights"`` when the policy is its own reference).
        truncation: How pairs that are too long were cut (``"keep_start, 512 tokens"``).
        by_autograd: The parameters whose gradients no layer rule took, but plain autograd, and
            why another way was not taken; empty where the rules took all. Both are exact: two
            that differ in this alone are equal.
    """

    model: str
    params: str
    dtype: str
    append_eos: bool
    token_mask: str = "all scored tokens"
    optimizer_metric: str = "euclidean"
    ref: str = "same weights"
    truncation: str = "none"
    by_autograd: str = field(default="", compare=False)

    def to_attrs(self) -> dict[str, object]:
        """Return what says something as a plain dictionary for ``DataFrame.attrs``."""
        return {name: value for name, value in asdict(self).items() if value != ""}
