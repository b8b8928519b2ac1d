"""What holds for each of the four explorers: escaping, errors, linking, still pictures, closing."""

import html

import pytest
import traitlets
from explorers import HOSTILE, TEXTS, make_pairs, part, table, texts
from ipywidgets import Image
from ipywidgets.widgets.widget import _instances

import toolkit as tk


def make_run(policy, **options):
    run = {"steps": 2, "batch_size": 2, "lr": 1e-5, **options}
    return tk.TrajectoryExplorer(policy, make_pairs(4), **run).run(progress=False)


MAKE = {
    "PairExplorer": lambda policy, **options: tk.PairExplorer(policy, make_pairs(), **options),
    "LossExplorer": lambda policy, **options: tk.LossExplorer(
        policy, make_pairs(), losses=["dpo", "ipo"], **options
    ),
    "DatasetExplorer": lambda policy, **options: tk.DatasetExplorer(
        policy, make_pairs(), **options
    ),
    "TrajectoryExplorer": make_run,
}


@pytest.fixture(scope="module", params=MAKE)
def explorer(request, policy):
    shown = MAKE[request.param](policy)
    yield shown
    shown.close()


@pytest.fixture(scope="module")
def pair_explorer(policy):
    shown = MAKE["PairExplorer"](policy, live=False)
    yield shown
    shown.close()


def test_text_from_data_is_never_html(explorer):
    explorer.selection = "<i>p2</i>"
    for shown in texts(explorer):
        assert "<script" not in shown and "<img src=x" not in shown and "<i>p2" not in shown
    assert html.escape(HOSTILE) in explorer.to_html()
    if hasattr(explorer, "table"):
        data = table(explorer)._dt_args["data_json"]
        assert "<" not in data and "&lt;script&gt;" in data


def test_the_still_copy_needs_no_kernel_and_no_network(explorer):
    explorer.selection = "p1"
    still = explorer.to_html()
    assert "p1" in still and html.escape(TEXTS["p1"][0]) in still
    assert "data:image/png;base64," in still and 'src="http' not in still
    assert explorer.snapshot().data == still and len(still) < 400_000


def test_a_figure_needs_no_screen(explorer):
    figure = explorer.figure()
    assert len(figure.axes) >= 2 and figure._repr_png_().startswith(b"\x89PNG")


def test_a_callback_that_fails_is_told(explorer, monkeypatch):
    explorer.selection = "p0"
    field = part(explorer, "pe-choose" if hasattr(explorer, "table") else "pe-selection")
    with monkeypatch.context() as patch:
        patch.setattr(explorer.panels["status"], "draw", lambda changed: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            field.value = 2 if hasattr(explorer, "table") else "p1"
    assert "ZeroDivisionError" in part(explorer, "pe-note").value


def test_an_unknown_id_comes_with_close_ones(explorer):
    before = explorer.selection
    with pytest.raises(ValueError, match=r"'p33' is no id of these \w+; ids close to it: p3"):
        explorer.selection = "p33"
    with pytest.raises(ValueError, match="selection=3 is no id of these"):
        explorer.selection = 3
    assert explorer.selection == before


def test_any_two_explorers_are_linked_in_one_line(explorer, pair_explorer):
    traitlets.link((explorer, "selection"), (pair_explorer, "selection"))
    pair_explorer.selection = "p3"
    assert explorer.selection == "p3" and "p3</b> —" in part(explorer, "pe-status").value
    explorer.selection = "p1"
    assert "pair p1</b> —" in part(pair_explorer, "pe-status").value


@pytest.mark.parametrize("name", MAKE)
def test_without_ipympl_the_pictures_are_images(policy, name):
    explorer = MAKE[name](policy, live=False)
    panels = [getattr(panel, "picture", None) for panel in explorer.panels.values()]
    pictures = [part for part in [*vars(explorer).values(), *panels] if hasattr(part, "redraw")]
    before = [bytes(picture.widget.value) for picture in pictures]
    explorer.selection = "p3" if explorer.selection != "p3" else "p1"
    assert pictures and all(isinstance(picture.widget, Image) for picture in pictures)
    assert all(png.startswith(b"\x89PNG") for png in before)
    assert before != [bytes(picture.widget.value) for picture in pictures]
    explorer.close()


# ----------------------------------------------------------------- closing


def use_pairs(explorer):
    """Open every tab, and pick another pair in each: what is replaced must go as well."""
    tabs = explorer.tabs.widget
    for k in range(len(tabs.children)):
        tabs.selected_index = k
        explorer.selection = explorer.to_frame()["pair_id"].iloc[k % 3]


def use_dataset(explorer):
    for place, id in enumerate(explorer.ids[:3]):
        explorer.selection = id
        explorer._tabs.widget.selected_index = place
    explorer.choice.details = lambda: (_ for _ in ()).throw(ValueError("cannot be scored"))
    explorer.selection = explorer.ids[0]  # its text stands where the tabs were


def use_losses(explorer):
    explorer.loss = "ipo"


def use_training(explorer):
    explorer.step = 1


USE = [use_pairs, use_losses, use_dataset, use_training]


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(("name", "use"), zip(MAKE, USE, strict=True))
def test_close_leaves_no_widget(policy, name, use, live):
    before = set(_instances)
    explorer = MAKE[name](policy, live=live)
    use(explorer)
    assert len(_instances) > len(before)
    explorer.close()
    left = [type(_instances[key]).__name__ for key in set(_instances) - before]
    assert left == []
