"""The explorer of losses: numbers, reach of the sliders, hypothetical states, the still copy."""

import dataclasses
import html

import numpy as np
import pytest
import torch
import traitlets
from explorers import (
    HOSTILE,
    TEXTS,
    click,
    drawings,
    every,
    make_pairs as all_pairs,
    part,
    points,
    table,
    texts,
)

import toolkit as tk
from toolkit import measurement
from toolkit.widgets.panels import ladder

IDS = ["p0", "p1", "<i>p2</i>", "p4"]


def make_pairs():
    return [pair for pair in all_pairs() if pair.id in IDS]


@pytest.fixture(scope="module")
def stats(policy):
    return tk.pair_stats(policy, make_pairs(), progress=False)


@pytest.fixture
def explorer(policy, stats):
    shown = tk.LossExplorer(policy, make_pairs(), stats=stats, lr=1e-3, selection="p0")
    yield shown
    shown.close()


def axes(picture):
    return picture.figure.axes[0]


def own_loss(chosen_logps, rejected_logps, *, weight=1.5, beta=0.1):
    return beta * (rejected_logps - weight * chosen_logps)


def rows(explorer):
    return explorer.to_frame().set_index("loss_name")


def test_every_loss_of_the_table_has_its_row_with_the_numbers_of_entanglement(explorer, stats):
    explorer.selection = "p4"
    frame = rows(explorer)
    assert frame.index.tolist() == list(tk.LOSSES) and explorer.left_out.empty
    for name in tk.LOSSES:
        expected = tk.entanglement(stats.take([3]), name, lr=1e-3).to_frame().iloc[0]
        for column in ("d_chosen", "d_rejected", "ratio", "band_low", "band_high", "cosine",
                       "predicted_chosen_delta", "predicted_rejected_delta"):  # fmt: skip
            np.testing.assert_array_equal(frame.loc[name, column], expected[column], name)
        assert frame.loc[name, "regime"] == expected["regime"]


def test_table_map_and_picture_together_name_every_loss(explorer):
    """A loss with a weight ≤ 0 has no place on the map, but must not vanish."""
    explorer.set(tau=0.02, chosen_shift=-1.0)
    drawn = axes(explorer.map)
    labels = " ".join(t.get_text() for t in drawn.texts if t.get_gid() == "losses")
    labels = labels.replace("\n", " ").replace("▸ ", "").replace(",", " ").split()
    title = drawn.get_title(loc="left").replace("\n", " ")
    above = title.split(": ")[-1].split(", ")
    assert sorted(labels + above) == sorted(tk.LOSSES)
    frame = rows(explorer)
    assert set(above) == set(frame.index[(frame["d_chosen"] <= 0) | (frame["d_rejected"] <= 0)])
    names = [t.get_text() for t in axes(explorer.bars).texts if t.get_gid() == "name"]
    assert sorted(n.replace("▸ ", "") for n in names) == sorted(tk.LOSSES)
    table = part(explorer, "pe-losses").value.replace("▸ ", "")
    assert all(f">{name}</th>" in table for name in tk.LOSSES)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", 0.7), ("gamma", 1.2), ("lam", 5), ("alpha", 0.05), ("epsilon", 0.3), ("delta", 2),
     ("tau", 0.5), ("z", 1), ("desirable_weight", 2), ("undesirable_weight", 0.5)],
)  # fmt: skip
def test_a_slider_reaches_the_losses_it_names_and_no_other(explorer, name, value):
    explorer.shift = (-1.0, -2.0)  # where every hyper-parameter matters
    reach, before = explorer.losses.reach(name), rows(explorer)
    slider = part(explorer, f"pe-hparam-{name}")
    part(explorer, f"pe-hparam-{name}").value = value
    after = rows(explorer)
    changed = {
        key
        for key in tk.LOSSES
        if not np.array_equal(
            before.loc[key, ["d_chosen", "d_rejected", "settings"]].to_numpy(),
            after.loc[key, ["d_chosen", "d_rejected", "settings"]].to_numpy(),
        )
    }
    assert changed == set(reach) == {k for k, row in tk.LOSSES.items() if name in row.defaults}
    assert explorer.hparams[name] == value
    slider.value = "default"
    assert name not in explorer.hparams
    if name != "beta":  # which is given at the start
        assert rows(explorer)["settings"].tolist() == before["settings"].tolist()


def test_a_slider_says_which_losses_it_moves(explorer):
    values = [getattr(widget, "value", "") for widget in every(explorer.widget)]
    html_values = [value for value in values if isinstance(value, str)]
    assert any("moves rrhf, slic, dpop, orpo" in value for value in html_values)
    assert any("moves simpo<" in value for value in html_values)


def test_hypothetical_shifts_equal_replacing_the_statistics(explorer, stats):
    explorer.selection = "p1"
    explorer.shift = (-2.5, -0.5)
    one = stats.take([1])
    moved = dataclasses.replace(
        one, chosen_logps=one.chosen_logps - 2.5, rejected_logps=one.rejected_logps - 0.5
    )
    frame = rows(explorer)
    for name in tk.LOSSES:
        expected = tk.entanglement(moved, name, lr=1e-3)
        assert frame.loc[name, "d_chosen"] == expected.weights.d_chosen[0]
        assert frame.loc[name, "predicted_rejected_delta"] == expected.predicted_rejected_delta[0]
    np.testing.assert_array_equal(explorer.losses.measured().chosen_logps, one.chosen_logps)


def test_hypothetical_numbers_are_labelled_everywhere(explorer):
    parts = lambda: [  # noqa: E731
        part(explorer, "pe-rewards").value,
        part(explorer, "pe-losses").value,
        axes(explorer.map).get_title(loc="left"),
        axes(explorer.bars).get_title(loc="left"),
        explorer.to_html(),
    ]
    assert not any("hypothetical:" in shown.lower() for shown in parts())
    assert "hypothetical" not in explorer.to_frame().attrs
    part(explorer, "pe-chosen_shift").value = -2.0
    assert explorer.shift == (-2.0, 0.0)
    for shown in parts():
        assert "hypothetical" in shown.lower() and "moved −2, rejected" in shown.replace("\n", " ")
    assert explorer.to_frame().attrs["hypothetical"] == "chosen moved −2, rejected 0 nats"
    explorer.reset()
    assert explorer.shift == (0.0, 0.0) and not any("HYPOTH" in shown for shown in parts())


def test_a_log_probability_never_rises_to_zero(explorer, stats):
    explorer.shift = (500.0, 0.0)
    assert explorer.losses.assumed().chosen_logps[0] == pytest.approx(0.01 * stats.chosen_logps[0])
    assert np.isfinite(rows(explorer)["d_chosen"]).all()
    assert "the shift was cut" in part(explorer, "pe-rewards").value


PICKS = {
    "table": lambda e: setattr(table(e), "selected_rows", [3]),
    "number": lambda e: setattr(part(e, "pe-choose"), "value", 4),
    "python": lambda e: setattr(e, "selection", "p4"),
    "next": lambda e: [part(e, "pe-next").click() for _ in range(3)],
    "previous": lambda e: part(e, "pe-previous").click(),
}


@pytest.mark.parametrize("how", PICKS)
def test_a_pair_picked_anywhere_is_shown_everywhere(explorer, how):
    PICKS[how](explorer)
    assert explorer.selection == "p4" and part(explorer, "pe-choose").value == 4
    assert table(explorer).selected_rows == [3]
    assert (
        "pair p4" in part(explorer, "pe-status").value
        and html.escape(TEXTS["p4"][1].strip()) in part(explorer, "pe-texts").value
    )
    places = points(axes(explorer.map))[0]
    cosine = rows(explorer)["cosine"].iloc[0]
    assert np.nanmax(np.abs(places[:, 0] - cosine)) < 1e-12


def test_a_loss_is_picked_by_python_dropdown_buttons_and_both_pictures(explorer):
    explorer.loss = "cpo"
    assert (
        "A <b>cpo</b> step" in part(explorer, "pe-status").value
        and part(explorer, "pe-loss").value == "cpo"
    )
    part(explorer, "pe-loss").value = "ipo"
    assert explorer.loss == "ipo"
    part(explorer, "pe-next-loss").click()
    assert explorer.loss == "ipo_avg"
    order = tk.plots.delta_order(explorer.to_frame())
    click(explorer.bars, axes(explorer.bars).transData.transform((0, 5)))
    assert explorer.loss == explorer.to_frame()["loss_name"].iloc[order[5]]
    place = list(tk.LOSSES).index("cpo")
    click(explorer.map, points(axes(explorer.map))[1][place])
    assert explorer.loss == "cpo"
    assert part(explorer, "pe-losses").value.count('aria-selected="true"') == 1
    assert "▸ cpo</th>" in part(explorer, "pe-losses").value


def test_settings_need_no_run_of_the_model_and_one_change_is_shown_once(explorer, monkeypatch):
    explorer.to_frame()
    monkeypatch.setattr(measurement, "iter_pair_stats", lambda *a, **k: pytest.fail("model call"))
    bars, places = drawings(explorer, "bars"), drawings(explorer, "map")
    explorer.set(beta=0.3, lam=2)
    part(explorer, "pe-lr").value = 1e-2
    assert len(bars) == 2 and len(places) == 1  # the rate moves nothing on the map
    assert explorer.lr == 1e-2 and explorer.beta == 0.3


def test_a_pair_is_measured_when_it_is_picked(policy, stats, monkeypatch):
    calls, real = [], measurement.iter_pair_stats
    monkeypatch.setattr(
        measurement, "iter_pair_stats", lambda *a, **k: (calls.append(len(a[1])), real(*a, **k))[1]
    )
    explorer = tk.LossExplorer(policy, make_pairs(), lr=1e-3)
    assert calls == [1]
    for id in ("p4", "p0", "p4"):
        explorer.selection = id
    assert calls == [1, 1]
    expected = tk.entanglement(stats.take([3]), "dpo", lr=1e-3)
    assert rows(explorer).loc["dpo", "predicted_chosen_delta"] == pytest.approx(
        expected.predicted_chosen_delta[0], rel=1e-4
    )


def test_every_setting_is_a_trait(explorer, policy, stats):
    other = tk.LossExplorer(policy, make_pairs(), stats=stats, live=False)
    for name in ("selection", "loss", "hparams", "lr", "shift"):
        traitlets.link((explorer, name), (other, name))
    explorer.set(lam=2.0, chosen_shift=-1.0, lr=1e-4)
    part(other, "pe-loss").value = "cpo"
    other.selection = "p1"
    assert other.to_frame().equals(explorer.to_frame())
    assert explorer.loss == "cpo" and part(other, "pe-hparam-lam").value == 2.0
    explorer.hparams = {"beta": 0.5}
    assert other.beta == 0.5 and part(other, "pe-hparam-lam").value == "default"
    other.close()


def test_beta_is_linked_with_that_of_a_pair_explorer(explorer, policy, stats):
    """It was a property: nothing could observe it, and ``traitlets.link`` refused it."""
    other = tk.PairExplorer(policy, make_pairs(), stats=stats, live=False)
    traitlets.link((other, "beta"), (explorer, "beta"))
    other.beta = 0.3
    assert explorer.hparams["beta"] == part(explorer, "pe-hparam-beta").value == 0.3
    explorer.set(beta=0.2, lam=2.0)
    assert other.beta == part(other, "pe-beta").value == 0.2
    explorer.hparams = {"lam": 2.0, "beta": 0.5}
    assert other.beta == 0.5
    other.close()


def test_own_functions_have_rows_and_sliders(policy, stats):
    explorer = tk.LossExplorer(policy, make_pairs(), stats=stats, losses=["dpo", own_loss])
    assert rows(explorer).loc["own_loss", "ratio"] == pytest.approx(1.5)
    part(explorer, "pe-hparam-weight").value = 2.0
    assert rows(explorer).loc["own_loss", "ratio"] == pytest.approx(2.0)
    explorer.loss = own_loss
    assert explorer.loss == "own_loss" and "own_loss" in part(explorer, "pe-status").value


def test_a_name_of_a_function_is_never_html(policy, stats):
    def bad(chosen_logps, rejected_logps):
        return rejected_logps - chosen_logps

    bad.__name__ = "<script>x</script>"
    explorer = tk.LossExplorer(policy, make_pairs(), stats=stats, losses=[bad], beta=None)
    explorer.selection = "<i>p2</i>"
    for shown in texts(explorer):
        assert "<script" not in shown and "<img src=x" not in shown and "<i>p2" not in shown
    assert html.escape(HOSTILE) in part(explorer, "pe-texts").value
    data = table(explorer)._dt_args["data_json"]
    assert "<" not in data and "&lt;script&gt;" in data


def test_a_loss_that_refuses_a_value_is_left_out_and_named(explorer):
    explorer.loss = "discopop"
    explorer.set(tau=5.0)
    assert explorer.left_out["loss_name"].tolist() == ["discopop"]
    assert "tau of discopop must lie in" in explorer.left_out["reason"].iloc[0]
    assert "discopop is left out" in part(explorer, "pe-note").value
    assert explorer.loss == "dpo" and "discopop" not in rows(explorer).index
    assert len([t for t in axes(explorer.bars).texts if t.get_gid() == "name"]) == 23
    with pytest.raises(ValueError, match="loss='discopop' is left out"):
        explorer.loss = "discopop"
    explorer.set(tau=None)
    assert explorer.left_out.empty and len(rows(explorer)) == 24


def test_a_loss_that_needs_a_value_waits_for_it(policy, stats):
    def needy(chosen_logps, rejected_logps, *, scale):
        return scale * (rejected_logps - chosen_logps)

    explorer = tk.LossExplorer(policy, make_pairs(), stats=stats, losses=["dpo", needy])
    assert explorer.left_out["loss_name"].tolist() == ["needy"]
    explorer.set(scale=3.0)
    assert explorer.left_out.empty and rows(explorer).loc["needy", "d_chosen"] == 3.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -1}, "beta of dpo must lie in"),
        ({"beta": "0.1"}, "beta must be a finite number, received '0.1'"),
        ({"lam": float("nan")}, "lam must be a finite number"),
        ({"lr": 0}, "lr must be a positive number"),
        ({"chosen_shift": True}, "chosen_shift must be a finite number"),
        ({"theta": 1.0}, "theta is no setting of these losses; allowed: beta, lam"),
    ],
)
def test_a_bad_setting_is_named_and_changes_nothing(explorer, settings, message):
    explorer.set(lam=2.0)
    before = explorer.to_frame()
    with pytest.raises(ValueError, match=message):
        explorer.set(**settings)
    assert explorer.hparams == {"beta": 0.1, "lam": 2.0} and explorer.shift == (0.0, 0.0)
    assert explorer.to_frame().equals(before)


def test_a_value_beside_the_sliders_steps_is_taken_and_shown(explorer):
    explorer.set(lam=3.3, lr=1e-8, chosen_shift=-9.0)
    assert part(explorer, "pe-hparam-lam").value == 3.3 and part(explorer, "pe-lr").value == 1e-8
    assert part(explorer, "pe-chosen_shift").value == -9.0
    explorer.reset()
    assert part(explorer, "pe-hparam-lam").value == "default" and explorer.hparams == {"beta": 0.1}


def test_the_scale_stays_while_a_slider_moves(explorer):
    limits = explorer._limits
    explorer.set(lr=5e-4)
    assert explorer._limits == limits
    explorer.set(lr=1.0)  # more than it holds
    assert explorer._limits[1] >= rows(explorer)["predicted_chosen_delta"].abs().max()
    explorer.set(lr=1e-6)
    part(explorer, "pe-fit").click()
    assert explorer._limits == tk.plots.delta_limits(explorer.to_frame())


def test_a_weight_that_is_rounding_is_called_none(explorer):
    explorer.set(beta=2.0, chosen_shift=-0.7)
    row = rows(explorer).loc["apo_down"]
    assert abs(row["d_chosen"]) < 1e-15 and row["note"] == "chosen is not pulled"
    assert "−0," not in part(explorer, "pe-status").value
    part(explorer, "pe-lr").value = 0.00044668359
    assert explorer.lr == 0.000447


def test_the_still_copy_has_table_and_pictures(explorer):
    explorer.selection, explorer.loss, explorer.lr = "p4", "cpo", 1e-6
    still = explorer.to_html()
    row = rows(explorer).loc["cpo"]
    assert "data:image/png;base64," in still and 'src="http' not in still
    for value in (row["d_chosen"], row["ratio"]):
        assert f"{value:.3g}".replace("-", "−") in still
    assert f"{row['predicted_chosen_delta']:+.3g}".replace("-", "−") in still
    assert all(f">{name}</th>" in still for name in tk.LOSSES if name != "cpo")
    assert explorer.snapshot().data == still and len(still) < 300_000


def test_moved_artists_are_shown_like_a_full_drawing(explorer):
    """Only what moved is drawn: the picture must be the one that a full drawing makes."""
    for picture in (explorer.map, explorer.bars):
        picture.figure.canvas.draw()
    explorer.set(beta=0.5, lr=5e-4)
    for picture in (explorer.map, explorer.bars):
        quick = np.array(picture.figure.canvas.buffer_rgba())
        picture.figure.canvas.draw()
        assert np.array_equal(quick, np.array(picture.figure.canvas.buffer_rgba()))
        assert len(np.unique(quick.reshape(-1, 4), axis=0)) > 50


def test_bad_input_says_what_is_allowed(policy, stats):
    pairs, losses = make_pairs(), {"losses": ["dpo", "dpo"]}
    cases = [
        (("gpt2", pairs), {}, "policy must be a toolkit Policy, received str"),
        ((policy, []), {}, "pairs must be a list with at least one PreferencePair"),
        ((policy, pairs[:2]), {"stats": stats}, "are not those of the 2 pairs"),
        ((policy, pairs), {"losses": ["dpoo"], "stats": stats}, "loss='dpoo' is unknown"),
        ((policy, pairs), {"losses": [], "stats": stats}, "losses must be a list"),
        ((policy, pairs), {"losses": [3], "stats": stats}, "losses: 3 is neither"),
        ((policy, pairs), {"stats": stats, **losses}, "losses: 'dpo' occurs twice"),
        ((policy, pairs), {"stats": stats, "lr": -1}, "lr must be a positive number"),
        ((policy, pairs), {"stats": stats, "beta": 0}, "beta of dpo must lie in"),
        ((policy, pairs), {"stats": stats, "theta": 0}, "theta is no setting"),
    ]
    for given, options, message in cases:
        with pytest.raises(ValueError, match=message):
            tk.LossExplorer(*given, **options)


@pytest.mark.parametrize(("given", "known"), [("p44", "p4"), (3, "is no id")])
def test_unknown_names_come_with_close_ones(explorer, given, known):
    with pytest.raises(ValueError, match=known):
        explorer.selection = given
    with pytest.raises(ValueError, match=r"loss=.dpoo. is none of these losses; .*dpo"):
        explorer.loss = "dpoo"
    with pytest.raises(ValueError, match="shift must be two numbers"):
        explorer.shift = 3


def test_every_slider_offers_values_that_some_loss_takes():
    for name, values in ladder.LADDERS.items():
        limits = [r.limits[name] for r in tk.LOSSES.values() if name in r.limits]
        for value in values:
            assert not limits or any(value in limit for limit in limits), (name, value)
    assert isinstance(own_loss(torch.ones(1), torch.ones(1)), torch.Tensor)
