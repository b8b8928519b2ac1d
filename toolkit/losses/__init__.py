"""Margin losses as functions of scalar log-probabilities, and their weights by autograd."""

from toolkit.losses import margin_losses as margin_losses  # fills the table
from toolkit.losses.quantities import FIELDS, PairLogSums, hyper_parameters
from toolkit.losses.table import LOSSES, Loss, loss_table
from toolkit.losses.weights import LossWeights, check_loss, loss_weights

__all__ = [
    "FIELDS",
    "LOSSES",
    "Loss",
    "LossWeights",
    "PairLogSums",
    "check_loss",
    "hyper_parameters",
    "loss_table",
    "loss_weights",
]
