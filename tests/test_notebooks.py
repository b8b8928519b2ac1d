"""What the notebooks check must hold on any processor: words, counts, orders and truths."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
CHECKED = "# NBVAL_CHECK_OUTPUT"
DECIMAL = re.compile(r"\d+[.,]?\d*e[+-]?\d+|\d*\.\d+")
# Rounding hides digits until two processors fall on two sides of a border.
ROUNDING = re.compile(r"\bround\(|:[^{}'\"]*\.\d+[efg%]")


def checked_cells() -> list:
    found = []
    for path in NOTEBOOKS:
        for i, cell in enumerate(json.loads(path.read_text())["cells"]):
            if CHECKED in "".join(cell["source"]):
                found.append(pytest.param(cell, id=f"{path.stem}-{i}"))
    return found


def shown(cell: dict) -> str:
    """Return all that is compared, without what HTML says about its looks."""
    texts = []
    for output in cell["outputs"]:
        kinds = {"text/plain": output["text"]} if "text" in output else output["data"]
        assert kinds.keys() <= {"text/plain", "text/html"}, "a picture cannot be compared"
        texts += ["".join(text) for text in kinds.values()]
    return re.sub(r"<style.*?</style>|<[^>]*>", " ", "\n".join(texts), flags=re.DOTALL)


def measured(cell: dict) -> set[str]:
    """Return the decimals of a cell's output that its own source does not write down."""
    written = set(DECIMAL.findall("".join(cell["source"])))
    return set(DECIMAL.findall(shown(cell))) - written


@pytest.mark.parametrize("cell", checked_cells())
def test_checked_output_holds_no_measured_decimals(cell):
    assert not measured(cell), "print a truth with its tolerance, and leave the number unchecked"


@pytest.mark.parametrize("cell", checked_cells())
def test_checked_output_is_not_rounded(cell):
    found = ROUNDING.findall("".join(cell["source"]))
    assert not found, "a rounded number differs where its last digit is near a border"


@pytest.mark.parametrize(
    ("source", "text", "decimals"),
    [
        ("print(len(pairs))", "62 of 64, near-011", set()),
        ("print('above 0.3:', rho > 0.3)", "above 0.3: True", set()),
        ("print(rho)", "rho <b>9.512</b>", {"9.512"}),
        ("print(rho)", "loss -.25 at 3e-05", {".25", "3e-05"}),
        ("print(rho)", "<style>.a {width: 1.5em}</style>7", set()),
    ],
)
def test_measured_decimals_are_found(source, text, decimals):
    html = {"output_type": "execute_result", "data": {"text/html": [text]}}
    stream = {"output_type": "stream", "name": "stdout", "text": [text]}
    for output in (html, stream):
        assert measured({"source": [source], "outputs": [output]}) == decimals


@pytest.mark.parametrize(
    ("source", "rounds"),
    [
        ("frame.round(3)", True),
        ("print(f'{share:.1%}')", True),
        ("print(f'{low:+.2f}')", True),
        ("print(int(low < 0.25))", False),
        ("print(f'{low:>8}', frame.loc[:, 'a'] > 0.5)", False),
    ],
)
def test_rounding_is_found(source, rounds):
    assert bool(ROUNDING.search(source)) == rounds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_plot_is_saved_as_a_picture(path):
    """A notebook is read without a kernel too; `<Figure size …>` in place of a figure is lost."""
    for cell in json.loads(path.read_text())["cells"]:
        if "plt.show()" in "".join(cell["source"]):
            kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
            assert "image/png" in kinds, "".join(cell["source"])
