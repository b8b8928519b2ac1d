"""A closed explorer leaves nothing behind: no widget stays registered in the kernel."""

import pytest
from ipywidgets.widgets.widget import _instances

import toolkit as tk


@pytest.fixture(scope="module")
def policy():
    return tk.load_model()


@pytest.fixture(scope="module")
def pairs():
    return tk.load_pairs("single_token", limit=3)


def use_pairs(explorer):
    """Open every tab, and pick another pair in each: what is replaced must go as well."""
    tabs = explorer.tabs.widget
    for k in range(len(tabs.children)):
        tabs.selected_index = k
        explorer.selection = explorer.to_frame()["pair_id"].iloc[k % 3]


def use_dataset(explorer):
    for place, pair in enumerate(explorer.choice.pairs):
        explorer.selection = pair.id
        explorer._tabs.widget.selected_index = place
    explorer.choice.details = lambda: (_ for _ in ()).throw(ValueError("cannot be scored"))
    explorer.selection = explorer.choice.pairs[0].id  # its text stands where the tabs were


def use_losses(explorer):
    explorer.loss = "ipo"


def use_training(explorer):
    explorer.run(2, progress=False)
    explorer.step = 1


MAKE = {
    tk.PairExplorer: use_pairs,
    tk.DatasetExplorer: use_dataset,
    tk.LossExplorer: use_losses,
    tk.TrajectoryExplorer: use_training,
}


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("make", MAKE)
def test_close_leaves_no_widget(policy, pairs, make, live):
    before = set(_instances)
    explorer = make(policy, pairs, live=live)
    MAKE[make](explorer)
    assert len(_instances) > len(before)
    explorer.close()
    left = [type(_instances[key]).__name__ for key in set(_instances) - before]
    assert left == []
