"""Explorers for notebooks: state and callbacks only, with a Python side that needs no screen."""

from toolkit.widgets.pair_explorer import PairExplorer

__all__ = ["PairExplorer"]
