"""The saved notebooks, as someone without a kernel reads them: every plot is there as a picture."""

import ast
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
DRAWING = {"plt", "plots", "plot"}  # plt.show(), tk.plots.trajectory(…), frame.plot.bar(…)


def draws(source: str) -> bool:
    """Whether a cell makes a figure itself: by pyplot, by pandas, or by a plot of the toolkit."""
    nodes = list(ast.parse(source.replace("%", "#")).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            *path, name = ast.unparse(node.func).split(".")
            no_figure = name.endswith(("_html", "_sentence", "get_cmap"))
            if name == "figure" or (DRAWING & set(path) and not no_figure):
                return True
        nodes.extend(ast.iter_child_nodes(node))
    return False


def has_picture(cell) -> bool:
    data = [output["data"] for output in cell.outputs if "data" in output]
    return any("image/png" in d or "data:image/png" in d.get("text/html", "") for d in data)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_that_plots_holds_a_picture(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    bare = [cell.source for cell in cells if draws(cell.source) and not has_picture(cell)]
    assert bare == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_explorer_that_is_shown_has_its_still_copy(path):
    for cell in (c for c in nbformat.read(path, 4).cells if c.cell_type == "code"):
        shown = [o for o in cell.outputs if "Explorer(" in str(o.get("data"))]
        assert has_picture(cell) or not shown, cell.source


@pytest.mark.parametrize(
    ("source", "plots"),
    [
        ("fig, ax = plt.subplots()", True),
        ("tk.plots.trajectory(frame)", True),
        ("ax = frame.plot.bar(x='token')", True),
        ("explorer.figure()", True),
        ("import matplotlib.pyplot as plt", False),
        ("HTML(tk.plots.token_strip_html(frame))", False),
        ("def draw(frame, ax):\n    frame.plot(ax=ax)", False),
    ],
)
def test_what_counts_as_plotting(source, plots):
    assert draws(source) == plots
