"""A newcomer's first minutes, in a real browser: open the first notebook, run it, pick a pair.

Then a notebook of their own: a plot after an explorer, clicks while a cell runs, the keyboard
alone, a sorted table, a kernel that is restarted.
"""

import os
import re
from pathlib import Path

import pytest
from browser_lab import NotebookPage, find_chromium, open_chromium, serve_lab, write_notebook

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NO_CHROMIUM = (
    "no Chromium was found: install one (on Debian `apt-get install chromium`) or set "
    "CHROMIUM to the path of a Chromium or Chrome"
)
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"
EXPLORER = ".PairExplorer"
ROWS = f"{EXPLORER} .pe-table tbody tr"
MAP = f"{EXPLORER} .pe-map canvas"
STATUS = f"{EXPLORER} .pe-status"

OWN = {
    "explorer": """
import numpy as np, pandas as pd, toolkit as tk
policy, pairs = tk.load_model(), tk.load_pairs("near_duplicates", limit=12)
explorer = tk.PairExplorer(policy, pairs).measure()
explorer""",
    "plot": "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    "dataset": """
scores = pd.DataFrame({"pair_id": [p.id for p in pairs], "ln_ches": np.arange(12.0) % 5,
                       "chosen_length": np.arange(95, 107), "rejected_length": 7})
scores.loc[:3, ["ln_ches", "chosen_length"]] = np.nan
tk.DatasetExplorer(policy, pairs, scores=scores)""",
    "busy": """
for k in range(25):
    explorer.beta = 0.01 * (k + 1)
    explorer.show()""",
    "draw anew": """
picture = explorer.map
picture.figure.canvas._force_full = True
picture.redraw()""",
}
PAIRS, DATASET = EXPLORER, ".DatasetExplorer"
PICTURE = ".jupyter-matplotlib-canvas-div"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> str:
    path = find_chromium()
    if path is None and os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(NO_CHROMIUM)
    if path is None:
        pytest.skip(NO_CHROMIUM)
    return path


@pytest.fixture(scope="module")
def lab(chromium, tmp_path_factory):
    """One JupyterLab and one page for all tests of this file."""
    scratch = tmp_path_factory.mktemp("lab")
    shots = Path(os.environ.get("BROWSER_SHOTS", scratch / "shots"))
    with serve_lab(NOTEBOOKS, scratch) as url, open_chromium(chromium) as page:
        write_notebook(scratch / "notebooks" / "own.ipynb", *OWN.values())
        write_notebook(
            scratch / "notebooks" / "fails.ipynb",
            "import sys\nprint('a warning', file=sys.stderr)",
            "1 / 0",
            "'never run'",
        )
        yield NotebookPage(page, url, shots)


@pytest.fixture(scope="module")
def first_notebook(lab):
    """The first notebook after Run All, in the light theme."""
    lab.open("00_start_here.ipynb")
    lab.screenshot("saved")
    lab.run_all()
    lab.page.wait_for_selector(ROWS)
    lab.page.wait_for_selector(MAP)
    return lab


@pytest.fixture(scope="module")
def own_notebook(lab):
    """A notebook of one's own after Run All."""
    lab.open("own.ipynb")
    lab.run_all()
    lab.page.wait_for_selector(f"{DATASET} tbody tr")
    lab.page.wait_for_selector(f"{PAIRS} .pe-map canvas")
    return lab


def what_is_shown(notebook: NotebookPage) -> dict[str, str]:
    page = notebook.page
    return {
        "status": page.locator(STATUS).inner_text(),
        "strips": page.locator(f"{EXPLORER} .pe-strips").inner_html(),
        "numbers": page.locator(f"{EXPLORER} .pe-numbers").inner_text(),
        "map": notebook.canvas_pixels(MAP),
    }


def pick(notebook: NotebookPage, action) -> dict[str, str]:
    """Do something that picks another pair; return what is shown once every part has changed."""
    before = what_is_shown(notebook)
    action()
    for _ in range(1200):
        after = what_is_shown(notebook)
        if all(before[part] != after[part] for part in before):
            return after
        notebook.page.wait_for_timeout(100)
    same = [part for part in before if before[part] == after[part]]
    pytest.fail(f"did not change within two minutes of picking another pair: {same}")


def test_explorer_shows_the_first_pair(first_notebook):
    shown = what_is_shown(first_notebook)
    assert "pair " in shown["status"]
    assert first_notebook.page.locator(f"{EXPLORER} .pe-strips td[role=listitem]").count() > 1
    assert any(character.isdigit() for character in shown["numbers"])
    first_notebook.screenshot("light", of=EXPLORER)


def test_the_first_sentence_predicts_what_a_step_can_do(first_notebook):
    """First order holds for small changes only: tens of nats are no prediction."""
    said = first_notebook.page.locator(STATUS).inner_text()
    nats = [float(number.replace("−", "-")) for number in re.findall(r"([−\d.e-]+) nats", said)]
    assert nats and max(map(abs, nats)) < 10


def test_picking_a_row_changes_strips_map_and_numbers(first_notebook):
    row = first_notebook.page.locator(ROWS).nth(3)
    shown = pick(first_notebook, row.click)
    picked = shown["status"].split("pair ")[1].split()[0]
    assert picked in row.inner_text().split()


def test_next_and_previous_come_back_to_the_same_pair(first_notebook):
    page = first_notebook.page
    start = what_is_shown(first_notebook)["status"]
    pick(first_notebook, page.locator(f"{EXPLORER} .pe-next").click)
    assert pick(first_notebook, page.locator(f"{EXPLORER} .pe-previous").click)["status"] == start


def test_arrow_keys_pick_a_pair(first_notebook):
    chooser = first_notebook.page.locator(f"{EXPLORER} .pe-choose input")
    chooser.focus()
    pick(first_notebook, lambda: chooser.press("ArrowUp"))


def test_a_click_in_the_map_picks_the_nearest_pair(first_notebook):
    page = first_notebook.page
    before = what_is_shown(first_notebook)["status"]
    canvas = page.locator(MAP).last
    box = canvas.bounding_box()
    canvas.click(position={"x": 0.55 * box["width"], "y": 0.6 * box["height"]})
    page.wait_for_function(
        "([at, old]) => document.querySelector(at).innerText !== old", arg=[STATUS, before]
    )


def test_dark_theme_keeps_every_part(first_notebook):
    first_notebook.set_theme(DARK)
    first_notebook.screenshot("dark", of=EXPLORER)
    pick(first_notebook, first_notebook.page.locator(f"{EXPLORER} .pe-next").click)
    first_notebook.set_theme(LIGHT)


def test_nothing_failed_and_nothing_left_this_machine(first_notebook):
    assert first_notebook.cell_errors() == []
    assert first_notebook.errors == []
    assert first_notebook.outside == []


# ----------------------------------------------------------------- a notebook of one's own


def test_a_plot_after_an_explorer_is_a_picture(own_notebook):
    cell = own_notebook.page.locator(".jp-CodeCell").nth(list(OWN).index("plot"))
    cell.locator(".jp-RenderedImage img").wait_for()
    own_notebook.screenshot("own", of=PAIRS)


def still_picture(notebook: NotebookPage, selector: str) -> str:
    """Return a canvas once it no longer changes."""
    pixels, same = "", 0
    for _ in range(200):
        before, pixels = pixels, notebook.canvas_pixels(selector)
        same = same + 1 if pixels == before else 0
        if same == 8:
            return pixels
        notebook.page.wait_for_timeout(150)
    pytest.fail("the figure never comes to rest")


def test_a_figure_is_whole_after_clicks_while_a_cell_draws_it(own_notebook):
    """Cell and clicks run in two threads; what is left must be what one drawing gives."""
    names = list(OWN)
    own_notebook.run_cell(names.index("busy"), wait=False)
    button = own_notebook.page.locator(f"{PAIRS} .pe-next")
    for _ in range(12):
        button.click()
        own_notebook.page.wait_for_timeout(60)
    own_notebook.wait_until_run(120)
    left = still_picture(own_notebook, f"{PAIRS} .pe-map canvas")
    own_notebook.run_cell(names.index("draw anew"))
    assert still_picture(own_notebook, f"{PAIRS} .pe-map canvas") == left
    assert own_notebook.cell_errors() == []


@pytest.mark.parametrize("explorer", [PAIRS, DATASET])
def test_the_focus_leaves_a_figure(own_notebook, explorer):
    """Ipympl takes every key that is pressed on its figure, Tab among them."""
    page, figure = own_notebook.page, own_notebook.page.locator(f"{explorer} {PICTURE}").first
    for key, stays in (("Tab", True), ("Shift+Tab", True), ("Escape", False)):
        figure.focus()
        assert own_notebook.focused(PICTURE)
        page.keyboard.press(key)
        assert not own_notebook.focused(PICTURE)
        assert own_notebook.focused(explorer) == stays


def status(notebook: NotebookPage, explorer: str) -> str:
    return notebook.page.locator(f"{explorer} .pe-status").inner_text().split("—")[0].strip()


def says(notebook: NotebookPage, explorer: str, id: str) -> None:
    """Wait until the sentence is about this pair."""
    notebook.page.locator(f"{explorer} .pe-status", has_text=f"pair {id} —").wait_for()


def test_a_row_is_picked_by_key(own_notebook):
    page, rows = own_notebook.page, own_notebook.page.locator(f"{PAIRS} .pe-table tbody tr")
    stops = rows.evaluate_all("rows => rows.filter(row => row.tabIndex === 0).length")
    assert stops == 1  # Tab passes the table in one step
    rows.first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    second = rows.nth(1).locator("td").first.inner_text()
    says(own_notebook, PAIRS, second)
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")  # on to the next page
    assert own_notebook.focused("tbody tr:first-child")
    page.keyboard.press(" ")
    says(own_notebook, PAIRS, rows.first.locator("td").first.inner_text())
    own_notebook.screenshot("row", of=PAIRS)


def test_arrow_keys_work_in_a_dropdown_and_on_a_figure(own_notebook):
    """JupyterLab takes them for the notebook."""
    page = own_notebook.page
    dropdown = page.locator(f"{PAIRS} .pe-color select")
    dropdown.focus()
    before = dropdown.input_value()
    page.keyboard.press("ArrowDown")
    assert dropdown.input_value() != before and own_notebook.focused("select")
    before = status(own_notebook, DATASET)
    page.locator(f"{DATASET} {PICTURE}").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "([at, old]) => !document.querySelector(at).innerText.startsWith(old)",
        arg=[f"{DATASET} .pe-status", before],
    )


@pytest.mark.parametrize("column", ["ln ches", "chosen tokens"])
def test_a_sorted_table_has_gaps_last_and_next_follows_it(own_notebook, column):
    page = own_notebook.page
    table = page.locator(f"{DATASET} .pe-table")
    head = table.locator("thead th", has_text=column).first
    place = table.locator("thead th").all_inner_texts().index(column)
    for falling in (False, True):
        head.click()
        page.wait_for_timeout(300)
        rows = [row.split("\t") for row in table.locator("tbody tr").all_inner_texts()]
        numbers = [float(row[place]) for row in rows[:8]]
        assert numbers == sorted(numbers, reverse=falling)
        assert {row[place] for row in rows[8:]} == {"NaN"}
    table.locator("tbody tr").first.click()
    says(own_notebook, DATASET, rows[0][0])
    page.locator(f"{DATASET} .pe-next").click()
    says(own_notebook, DATASET, rows[1][0])


def test_the_copy_takes_the_place_of_widgets_without_a_kernel(own_notebook):
    page = own_notebook.page
    twins = page.locator(".pe-twin")
    assert twins.count() == 2 and not any(twin.is_visible() for twin in twins.all())
    own_notebook.restart_kernel()
    for twin in twins.all():
        twin.wait_for(state="visible")
    assert not any(dead.is_visible() for dead in page.locator(".pe-explorer").all())
    assert own_notebook.errors == []


def test_a_failing_cell_is_found_by_its_error(lab):
    """A page shows a warning and an error alike, and waiting for the next cell takes minutes."""
    lab.open("fails.ipynb")
    with pytest.raises(AssertionError, match="ZeroDivisionError: division by zero"):
        lab.run_all(seconds=60)
    assert len(lab.cell_errors()) == 1
