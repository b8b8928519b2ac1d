"""A newcomer's first minutes, in a real browser: open the first notebook, run it, pick a pair."""

import os
from pathlib import Path

import pytest
from browser_lab import NotebookPage, find_chromium, open_chromium, serve_lab

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
NO_CHROMIUM = (
    "no Chromium was found: install one (on Debian `apt-get install chromium`) or set "
    "CHROMIUM to the path of a Chromium or Chrome"
)
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"
EXPLORER = ".pe-explorer"
ROWS = f"{EXPLORER} .pe-table tbody tr"
MAP = f"{EXPLORER} .pe-map canvas"
STATUS = f"{EXPLORER} .pe-status"

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
def first_notebook(chromium, tmp_path_factory):
    """The first notebook after Run All, in the light theme."""
    scratch = tmp_path_factory.mktemp("lab")
    shots = Path(os.environ.get("BROWSER_SHOTS", scratch / "shots"))
    with serve_lab(NOTEBOOKS, scratch) as url, open_chromium(chromium) as page:
        notebook = NotebookPage(page, url, shots)
        notebook.open("00_start_here.ipynb")
        notebook.screenshot("saved")
        notebook.run_all()
        page.wait_for_selector(ROWS)
        page.wait_for_selector(MAP)
        yield notebook


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


def test_picking_a_row_changes_strips_map_and_numbers(first_notebook):
    row = first_notebook.page.locator(ROWS).nth(3)
    shown = pick(first_notebook, row.click)
    picked = shown["status"].split("pair ")[1].split()[0]
    assert picked in row.inner_text().split()


def test_next_and_previous_come_back_to_the_same_pair(first_notebook):
    page = first_notebook.page
    start = what_is_shown(first_notebook)["status"]
    pick(first_notebook, page.locator(f"{EXPLORER} .pe-next").click)
    assert pick(first_notebook, page.locator(f"{EXPLORER} .pe-prev").click)["status"] == start


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
