"""A scored dataset without a screen: rows find their pairs, the filter, what is refused."""

import pandas as pd
import pytest

import toolkit as tk
from toolkit.dataset.choice import DatasetChoice
from toolkit.dataset.scores import Scores


@pytest.fixture
def choice(policy):
    pairs = [tk.PreferencePair(f"p{k}", f"Say {k}.", " yes", " no") for k in range(6)]
    frame = pd.DataFrame({"pair_id": [p.id for p in pairs][::-1], "error": ""})
    frame["ln_ches"] = [5.0, 4.0, 3.0, 2.0, None, 0.0]
    frame["cosine"] = [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    return DatasetChoice(policy, Scores(policy, pairs, frame), x=None, y=None, by=None, keep=0.5)


def test_rows_find_their_pairs_and_the_usual_columns_are_taken(choice):
    assert choice.frame["pair_id"].tolist() == choice.ids == [f"p{k}" for k in range(6)]
    assert choice.columns == {"x": "ln_ches", "y": "cosine", "by": "ln_ches"}
    assert choice.frame["cosine"].tolist() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_the_lowest_are_kept_and_a_gap_never(choice):
    assert [pair.id for pair in choice.kept()] == ["p0", "p2", "p3"]
    assert choice.counts() == {"kept": 3, "dropped": 2, "unscored": 1} and choice.cut == 3.0
    choice.keep = 1.0
    assert choice.counts()["kept"] == 5 and [id for id, _ in choice.unscored()] == ["p1"]


def test_pairs_are_found_by_place_and_outline_and_selected_by_id(choice):
    assert choice.ids_in_box((0, 2.5), (0, 1)) == ["p0", "p2"]
    corners = [(2.5, -1), (9, -1), (9, 0.45), (2.5, 0.45)]
    assert choice.ids_in_outline(corners) == ["p3", "p4"]
    choice.select_ids("p1")
    assert choice.selected_ids() == ["p1"]


def test_what_is_refused_changes_nothing(choice):
    for call, message in (
        (lambda: choice.set_column("x", "pair_id"), "x='pair_id' is no column of numbers"),
        (lambda: setattr(choice, "keep", 2), "keep must be a share"),
        (lambda: choice.select_ids(["p9"]), "'p9' is no id of these pairs"),
        (lambda: choice.place_of("p9"), "selection='p9' is no id of these pairs; ids close"),
        (lambda: setattr(choice, "keep", True), "keep must be a share"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert choice.columns["x"] == "ln_ches" and choice.keep == 0.5
