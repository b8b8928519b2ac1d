"""The anatomy of a fall draws and says the sums of its frame, and nothing that it does not hold."""

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from toolkit import plots

PARTS = [f"{source}_{term}" for source in ("own", "others", "earlier")
         for term in ("chosen", "rejected")]  # fmt: skip


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def forces_frame(steps=30, ids=("a", "b"), seed=0):
    """Two forces of hundreds of nats that nearly cancel: a short rise, then a fall."""
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(1, steps + 1):
        for id in ids:
            for side in ("chosen", "rejected"):
                push = rng.uniform(1, 6, 3)
                net = (0.05 if step < 8 else -0.2) * rng.uniform(0.5, 1.5, 3)
                row = dict(zip(PARTS, np.stack([push, net - push], 1).ravel(), strict=True))
                row |= {"decay": -0.001, "projection": 0.0, "residual": -0.01}
                row["actual_delta"] = sum(row.values())
                rows.append({"step": step, "pair_id": id, "side": side, **row})
    return pd.DataFrame(rows)


def panels(ax):
    return {panel.get_gid(): panel for panel in ax.child_axes}


def artist(ax, gid):
    return next(found for found in ax.get_children() if found.get_gid() == gid)


@pytest.mark.parametrize(
    ("pair_id", "side"), [(None, "chosen"), ("b", "chosen"), ("a", "rejected")]
)
def test_anatomy_draws_the_sums_of_the_frame(pair_id, side):
    """Catches a force left out, a probe or side mixed in, and a sum instead of a mean."""
    frame = forces_frame().sample(frac=1, random_state=1)  # the order of the rows means nothing
    drawn = panels(plots.anatomy_of_a_fall(frame, pair_id=pair_id, side=side))
    rows = frame[(frame.side == side) & (frame.pair_id.eq(pair_id) | (pair_id is None))]
    means = rows.groupby("step")[[*PARTS, "decay", "projection", "actual_delta"]].mean()
    for term in ("chosen", "rejected"):
        want = means[[name for name in PARTS if name.endswith(f"_{term}")]].sum(axis=1).cumsum()
        wedge = artist(drawn["tug"], term).get_paths()[0].vertices[:, 1]
        edge = wedge.max() if term == "chosen" else wedge.min()
        np.testing.assert_allclose(edge, want.abs().max() * np.sign(want.iloc[-1]))
    lines = {line.get_gid(): line.get_ydata() for line in drawn["net"].lines}
    net = means.drop(columns="actual_delta").sum(axis=1).cumsum()
    np.testing.assert_allclose(lines["predicted"], [0, *net])
    actual = np.concatenate([[0], means["actual_delta"].cumsum()])
    np.testing.assert_allclose(lines["actual"], actual)
    falls = np.maximum.accumulate(actual) - actual
    high, low = lines["drawdown"]
    np.testing.assert_allclose(high - low, falls.max())


def test_the_net_keeps_a_scale_of_its_own_and_says_how_much_larger_it_is():
    drawn = panels(plots.anatomy_of_a_fall(forces_frame(), step=7))
    tall, small = (np.ptp(drawn[name].get_ylim()) for name in ("tug", "net"))
    assert tall > 20 * small
    assert "magnified" in drawn["net"].get_title(loc="left")
    assert [line.get_xdata()[0] for panel in drawn.values() for line in panel.lines
            if line.get_gid() == "step"] == [7, 7]  # fmt: skip
    assert drawn["tug"].get_xlim() == drawn["net"].get_xlim()


def test_the_sentence_holds_the_sums_and_the_drawdown():
    frame = forces_frame()
    rows = frame[frame.side == "chosen"].groupby("step").mean(numeric_only=True)
    push = rows[PARTS[::2]].to_numpy().sum()
    actual = np.concatenate([[0], rows["actual_delta"].cumsum()])
    words = plots.fall_sentence(frame)
    assert f"pushed it up by {push:.1f} nats" in words and "pulled it down by" in words
    assert f"{actual[-1]:.1f} happened".replace("-", "−") in words
    high = int(np.argmax(actual))
    assert f"high at step {high} it fell by {actual[high] - actual.min():.1f}" in words
    rest = plots.fall_sentence(frame.drop(columns=["decay", "projection"]))
    assert "decay and the like added 0.0;" in words
    assert "decay" in words and "decay" not in rest


def test_the_largest_fall_begins_at_an_earlier_high_not_at_the_highest_point_of_all():
    """Down 2, up 6, down 3: the fall is the last one, though the lowest point is the first."""
    frame = forces_frame(steps=3, ids=("a",)).sort_values(["side", "step"])
    for moves, places in (([-2.0, 6.0, -3.0], [2, 3]), ([-4.0, 6.0, -3.0], [0, 1])):
        frame["actual_delta"] = moves * 2
        drawn = artist(panels(plots.anatomy_of_a_fall(frame))["net"], "drawdown")
        assert drawn.get_xdata().tolist() == places


def test_a_rise_is_no_fall():
    frame = forces_frame()
    frame["actual_delta"] = 0.1
    assert "fell" not in plots.fall_sentence(frame)
    net = panels(plots.anatomy_of_a_fall(frame))["net"]
    assert all(line.get_gid() != "drawdown" for line in net.lines)


def test_forces_that_are_not_known_are_said_to_be():
    """An optimiser that cannot be split leaves NaN: the change is shown, and no force."""
    frame = forces_frame().assign(**dict.fromkeys([*PARTS, "residual"], np.nan))
    drawn = panels(plots.anatomy_of_a_fall(frame))
    assert "cannot be split" in artist(drawn["tug"], "unknown").get_text()
    assert "predicted" not in {line.get_gid() for line in drawn["net"].lines}
    assert np.isfinite(artist(drawn["net"], "actual").get_ydata()).all()
    words = plots.fall_sentence(frame)
    assert "cannot be split" in words and "It changed by −" in words and "nan" not in words
    plt.gcf().canvas.draw()


def test_drawing_again_replaces_the_panels():
    ax = plots.anatomy_of_a_fall(forces_frame())
    assert plots.anatomy_of_a_fall(forces_frame(seed=1), pair_id="a", ax=ax) is ax
    assert list(panels(ax)) == ["tug", "net"] and len(ax.child_axes) == 2
    assert panels(ax)["tug"].get_title(loc="left").startswith("a, chosen")


def tokens_frame():
    """Three tokens over four steps; the start has no changes."""
    rows = [
        {"step": step, "side": side, "position": 5 + k, "token": token, "pair_id": "a",
         "actual_delta": np.nan if step == 0 else (k - 1) * 0.1 * step}
        for step in range(5) for side in ("chosen", "rejected")
        for k, token in enumerate([" $x_{$", "<b>", ""])
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_tokens_are_strips_with_their_sums_beside_them():
    ax = plots.fall_by_token(tokens_frame())
    image = ax.images[0].get_array()
    np.testing.assert_allclose(image[0], [-0.1, -0.2, -0.3, -0.4])
    sums = [text.get_text() for text in ax.texts if text.get_gid() != "caption"]
    assert sums == ["−1.0", "0.0", "+1.0"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["␣$x_{$", "<b>", "⋯"]
    assert plots.fall_by_token(tokens_frame(), top=2).images[0].get_array().shape == (2, 4)
    ax.figure.canvas.draw()


def test_pairs_are_ranked_from_the_strongest_pull():
    ax = plots.fall_by_pair(pulls_frame(), pair_id="p", top=2, picked="b")
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [-0.5, 0.3])
    assert ax.get_title(loc="left") == "p, chosen response: 2 of 3 training pairs"
    assert [bar.get_linewidth() for bar in ax.patches] == [2.0, 0.5]
    ax.figure.canvas.draw()
    mean = plots.fall_by_pair(pulls_frame())
    np.testing.assert_allclose([bar.get_width() for bar in mean.patches], [-0.25, 0.02, 0.2])
    assert "mean of 2 probes" in mean.get_title(loc="left")


def pulls_frame():
    """Two steps, two probes, three training pairs; the rejected side is another tale."""
    rows = [
        ("p", "chosen", "$x_{$", 0.1), ("p", "chosen", "b", -0.6), ("p", "chosen", "c", 0.01),
        ("p", "chosen", "$x_{$", 0.2), ("p", "chosen", "b", 0.1), ("p", "chosen", "c", 0.0),
        ("q", "chosen", "$x_{$", 0.1), ("q", "chosen", "b", 0.0), ("q", "chosen", "c", 0.03),
        ("p", "rejected", "b", 9.0),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["pair_id", "side", "train_pair_id", "delta"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: plots.anatomy_of_a_fall(f.drop(columns="own_chosen")), "lacks"),
        (lambda f: plots.anatomy_of_a_fall(f, pair_id="z"), "its pairs are"),
        (lambda f: plots.fall_sentence(f, side="both"), "allowed: chosen, rejected"),
        (lambda f: plots.fall_by_token(tokens_frame(), pair_id="z"), "its pairs are"),
        (lambda f: plots.fall_by_token(tokens_frame().query("step == 0")), "no 'chosen' row"),
        (lambda f: plots.fall_by_pair(pulls_frame(), picked="z"), "not in the frame"),
        (lambda f: plots.fall_by_pair(pulls_frame(), pair_id="z"), "its pairs are"),
        (lambda f: plots.fall_by_pair(f), "lacks"),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(forces_frame())
