"""The heatmap of influence and the pictures of the way between two models."""

import itertools

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from test_plots import artist, influence_frame, way_frame

from toolkit import plots


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def names(axis):
    return [label.get_gid() for label in axis.get_ticklabels()]


def test_every_cell_holds_the_value_of_its_two_pairs():
    """Catches an axis sorted without its values, and rows taken for columns."""
    frame = influence_frame(8)
    ax = plots.influence_map(frame, side="rejected")
    shown = artist(ax, "influence").get_array()
    cells = frame[frame["side"] == "rejected"].set_index(["pair_id", "train_pair_id"])["influence"]
    for i, row in enumerate(names(ax.yaxis)):
        for j, column in enumerate(names(ax.xaxis)):
            assert shown[i, j] == cells[row, column]
    assert artist(ax, "influence").norm.vmin == -artist(ax, "influence").norm.vmax
    own = {(p.get_y() + 0.5, p.get_x() + 0.5) for p in ax.patches if p.get_gid() == "own"}
    assert own == {(names(ax.yaxis).index(n), names(ax.xaxis).index(n)) for n in names(ax.xaxis)}


def test_clusters_bring_pairs_that_act_alike_together():
    frame = influence_frame(8)
    kinds = dict(zip(frame["pair_id"], frame["pair_block"], strict=True))

    def changes(order):
        found = [kinds[name] for name in order]
        return sum(a != b for a, b in itertools.pairwise(found))

    assert changes(names(plots.influence_map(frame, cluster=False).yaxis)) > 1
    clustered = plots.influence_map(frame)
    assert changes(names(clustered.yaxis)) == changes(names(clustered.xaxis)) == 1
    blocked = plots.influence_map(frame, cluster=False, by="block")
    assert changes(names(blocked.yaxis)) == 1
    lines = [line for line in blocked.lines if line.get_linewidth() == 1.4]
    assert len(lines) == 2


def test_small_maps_say_their_numbers_and_large_ones_do_not():
    assert "+1.00" in [text.get_text() for text in plots.influence_map(influence_frame(4)).texts]
    large = plots.influence_map(influence_frame(20))
    assert not [t for t in large.texts if t.get_text().startswith(("+", "−"))]


def test_the_picked_pair_is_framed_and_bad_wishes_are_refused():
    frame = influence_frame(6)
    ax = plots.influence_map(frame, picked="p3")
    box = artist(ax, "picked")
    assert names(ax.yaxis)[round(box.get_y() + 0.5)] == "p3"
    for options, words in (
        ({"side": "left"}, "side='left' is not in the frame"),
        ({"by": "topic"}, "by must be None or 'block'"),
        ({"picked": "odd"}, "picked='odd' is not in the frame"),
        ({"vmax": -1}, "vmax must be a positive"),
    ):
        with pytest.raises(ValueError, match=words):
            plots.influence_map(frame, **options)
    with pytest.raises(ValueError, match=r"lacks the column\(s\) \['train_block'\]|pair_block"):
        plots.influence_map(frame.drop(columns=["pair_block", "train_block"]), by="block")


def test_points_that_another_one_beats_are_hollow():
    ax = plots.averaging_front(way_frame(), by="way")
    faces = artist(ax, "points-a").get_facecolors()
    hollow = [bool(np.allclose(face[:3], 1)) for face in faces]
    assert hollow == [False, False, True]
    assert not np.allclose(artist(ax, "points-b").get_facecolors()[0][:3], 1)
    np.testing.assert_allclose(artist(ax, "points-a").get_offsets(), [[2, 0], [2.2, 3], [3, 2]])


def test_the_line_shows_means_over_pairs():
    ax = plots.averaging_line(way_frame().query("way == 'a'"))
    chosen = next(line for line in ax.lines if line.get_label() == "chosen")
    np.testing.assert_allclose(chosen.get_xdata(), [0, 0.5, 1])
    np.testing.assert_allclose(chosen.get_ydata(), [0, -3, -2])
