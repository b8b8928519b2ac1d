"""Asks for the packages of the explorers before any of them is imported."""

from toolkit.extras import require

require("lab", "an explorer", "IPython", "ipywidgets", "anywidget", "itables")
