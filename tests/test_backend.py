"""Explorers leave pyplot alone, in a real kernel: whatever is set, a plot stays a picture."""

import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

EXPLORER = """
import toolkit as tk
pairs = tk.load_pairs("single_token", limit=2)
tk.PairExplorer(tk.load_model(), pairs, live=True).map.live
"""
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
BACKEND = "import matplotlib\nmatplotlib.get_backend(auto_select=False)"


def outputs(*sources: str) -> list[list]:
    """Run cells in a kernel of their own and return the outputs of each."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
    return [cell["outputs"] for cell in notebook.cells]


def kinds(cell: list) -> set[str]:
    return {kind for output in cell for kind in output.get("data", {})}


def text(cell: list) -> str:
    return cell[-1]["data"]["text/plain"]


@pytest.mark.parametrize("pyplot", ["", "import matplotlib.pyplot as plt"])
def test_a_plot_after_an_explorer_is_a_picture(pyplot):
    """With pyplot not imported yet, and imported."""
    before, explorer, after, plot = outputs(f"{pyplot}\n{BACKEND}", EXPLORER, BACKEND, PLOT)
    assert text(explorer) == "True"
    assert text(after) == text(before)
    assert "image/png" in kinds(plot)


def test_the_backend_that_the_user_sets_is_kept():
    _, _, plot, _, still = outputs("%matplotlib widget", EXPLORER, PLOT, "%matplotlib inline", PLOT)
    assert "application/vnd.jupyter.widget-view+json" in kinds(plot)
    assert kinds(still) == {"image/png", "text/plain"}


def test_the_backend_can_be_set_after_an_explorer():
    _, _, still, _, plot = outputs(EXPLORER, "%matplotlib inline", PLOT, "%matplotlib widget", PLOT)
    assert kinds(still) == {"image/png", "text/plain"}
    assert "application/vnd.jupyter.widget-view+json" in kinds(plot)


def test_an_unchosen_backend_stays_unchosen():
    """In a plain script matplotlib picks a backend by itself when the first figure is made."""
    script = (
        "import matplotlib, toolkit as tk\n"
        "explorer = tk.LossExplorer(tk.load_model(), tk.load_pairs('single_token', limit=1))\n"
        "print(explorer.map.live, matplotlib.get_backend(auto_select=False))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "None"]
