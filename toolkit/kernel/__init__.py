"""What training pairs do to each other: influence, kernels, and the run that a kernel predicts."""

from toolkit.kernel.frozen import frozen_kernel_dynamics
from toolkit.kernel.influence import influence
from toolkit.kernel.margin import kernel_alignment, margin_kernel
from toolkit.kernel.results import Influence

__all__ = [
    "Influence",
    "frozen_kernel_dynamics",
    "influence",
    "kernel_alignment",
    "margin_kernel",
]
