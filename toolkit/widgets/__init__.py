"""Explorers for notebooks: state and callbacks only, with a Python side that needs no screen."""

from toolkit.widgets import _lab  # noqa: F401
from toolkit.widgets.dataset_explorer import DatasetExplorer
from toolkit.widgets.loss_explorer import LossExplorer
from toolkit.widgets.pair_explorer import PairExplorer
from toolkit.widgets.trajectory_explorer import TrajectoryExplorer

__all__ = ["DatasetExplorer", "LossExplorer", "PairExplorer", "TrajectoryExplorer"]
