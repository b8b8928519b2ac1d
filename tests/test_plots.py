"""The pictures say what the numbers say, escape what they show, and leave no trace behind."""

import doctest
import math
from html.parser import HTMLParser
from importlib import import_module
from pkgutil import iter_modules

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backend_bases import MouseEvent
from seaborn.utils import relative_luminance

from toolkit import plots
from toolkit.plots import _palette, _token_cells

NASTY = [
    "<script>alert(1)</script>",
    " \"quoted\" & 'single'",
    "</td></table>",
    "\x1b[31mred",
    "\u202eevil",
    "\u200b",
    "שלום",
    "😀",
    "$x_{$",
    "",
]


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def pairs_frame(n=40, seed=0):
    """Entanglement rows from random norms, cosines and weights, by the formulas of the paper."""
    rng = np.random.default_rng(seed)
    cosine = rng.uniform(-0.9, 0.99, n)
    norm_c, norm_r = np.exp(rng.normal(0, 0.5, (2, n)))
    d_c, d_r = np.exp(rng.normal(-2, 0.5, (2, n)))
    inner = cosine * norm_c * norm_r
    chosen = d_c * norm_c**2 - d_r * inner
    rejected = d_c * inner - d_r * norm_r**2
    regime = np.select(
        [(chosen > 0) & (rejected < 0), (chosen <= 0) & (rejected < 0), chosen > 0],
        ["ideal", "both_down", "both_up"],
        "reversed",
    )
    return pd.DataFrame(
        {
            "pair_id": [f"pair {k}" for k in range(n)],
            "cosine": cosine,
            "d_chosen": d_c,
            "d_rejected": d_r,
            "band_center": norm_r / norm_c,
            "predicted_chosen_delta": chosen,
            "predicted_rejected_delta": rejected,
            "regime": regime,
            "topic": [("film", "story")[k % 2] for k in range(n)],
            "ches": rng.normal(size=n),
            "ln_ches": rng.normal(size=n),
            "chosen_length": rng.integers(1, 30, n),
            "rejected_length": rng.integers(1, 30, n),
        }
    )


def strip_frame(chosen, rejected, **columns):
    sides = ["chosen"] * len(chosen) + ["rejected"] * len(rejected)
    frame = pd.DataFrame({"pair_id": "p", "side": sides, "token": [*chosen, *rejected]})
    frame["position"] = [*range(len(chosen)), *range(len(rejected))]
    frame["predicted_delta"] = np.linspace(-1, 1, len(frame))
    return frame.assign(**columns)


def matrix_frame(chosen, rejected, seed=0):
    tokens = [("chosen", k, t) for k, t in enumerate(chosen)]
    tokens += [("rejected", k, t) for k, t in enumerate(rejected)]
    vectors = np.random.default_rng(seed).normal(size=(len(tokens), 6))
    inner = vectors @ vectors.T
    norms = np.sqrt(np.diag(inner))
    names = [f"{name}_{k}" for k in "ij" for name in ("side", "position", "token")]
    rows = [
        (*a, *b, inner[i, j], inner[i, j] / norms[i] / norms[j])
        for i, a in enumerate(tokens)
        for j, b in enumerate(tokens)
    ]
    return pd.DataFrame(rows, columns=[*names, "inner", "cosine"])


def influence_frame(n, seed=0):
    """Two kinds of pairs, shuffled: each raises its own kind and lowers the other."""
    kinds = np.random.default_rng(seed).permutation(np.arange(n) % 2)
    rows = [
        (f"p{i}", side, f"p{j}", i == j, (-1.0) ** (kinds[i] + kinds[j]) * (1 + 0.1 * i + 0.01 * j),
         "ab"[kinds[i]], "ab"[kinds[j]])
        for i in range(n) for side in ("chosen", "rejected") for j in range(n)
    ]  # fmt: skip
    names = ["pair_id", "side", "train_pair_id", "own", "influence", "pair_block", "train_block"]
    return pd.DataFrame(rows, columns=names)


def way_frame():
    """Two ways over two pairs; one point has a lower margin than another at a higher price."""
    points = [
        ("a", 0, 0.0, 2.0, 0),
        ("a", 1, 0.5, 2.2, 3),
        ("a", 2, 1, 3, 2),
        ("b", 0, 0.5, 2.1, 2),
    ]
    rows = [
        (w, k, at, nll, up + d, -d - up, -2 * up) for w, k, at, nll, up in points for d in (-1, 1)
    ]
    names = ["way", "point", "weight_on_after", "text_nll", "margin", "chosen_delta"]
    return pd.DataFrame(rows, columns=[*names, "rejected_delta"])


FIGURES = [
    (plots.entanglement_map, pairs_frame, {}),
    (plots.entanglement_map, pairs_frame, {"hue": "topic", "picked": "pair 3"}),
    (plots.entanglement_map, pairs_frame, {"hue": "chosen_length", "ylim": 0.6}),
    (plots.delta_plane, pairs_frame, {"picked": "pair 3"}),
    (plots.delta_bars, pairs_frame, {"picked": "pair 0"}),
    (plots.score_scatter, pairs_frame, {"picked": "pair 0"}),
    (plots.score_scatter, pairs_frame, {"hue": "topic"}),
    (plots.length_confound, pairs_frame, {}),
    (lambda f, **k: plots.score_histogram(f, "cosine", **k), pairs_frame, {}),
    (lambda f, **k: plots.score_histogram(f, "cosine", **k), pairs_frame, {"by": "topic"}),
    (plots.token_heatmap, lambda: matrix_frame("abc", "abd"), {"values": "inner"}),
    (plots.influence_map, lambda: influence_frame(6), {"by": "block", "picked": "p2"}),
    (plots.averaging_front, lambda: way_frame(), {"by": "way"}),
    (plots.averaging_line, lambda: way_frame(), {}),
]


def by_gid(ax):
    return {artist.get_gid(): artist for artist in ax.get_children() if artist.get_gid()}


def artist(ax, gid):
    return by_gid(ax)[gid]


@pytest.mark.parametrize(("draw", "make", "options"), FIGURES)
def test_figures_return_axes_and_leave_no_trace(draw, make, options):
    """Catches a figure left open, a global style, a changed frame, or an ignored ``ax``."""
    plt.close("all")  # what other tests of this process left open
    frame = make()
    frame.attrs = {"model": "$x_{$", "params": "all", "append_eos": True}
    before, style = frame.copy(), dict(plt.rcParams)
    ax = draw(frame, **options)
    assert isinstance(ax, plt.Axes) and len(plt.get_fignums()) == 1
    given = plt.subplots()[1]
    assert draw(frame, **options, ax=given) is given and len(plt.get_fignums()) == 2
    ax.figure.canvas.draw()
    assert dict(plt.rcParams) == style
    pd.testing.assert_frame_equal(frame, before)
    text = artist(ax, "caption")
    assert "EOS\xa0appended:\xa0yes" in text.get_text()
    box, page = text.get_window_extent(), ax.figure.bbox
    assert box.y0 >= page.y0 and box.x0 >= page.x0 and box.x1 <= page.x1
    assert not box.overlaps(ax.xaxis.label.get_window_extent())


@pytest.mark.parametrize(("draw", "make", "options"), FIGURES)
def test_figures_name_what_is_missing(draw, make, options):
    frame = make()
    with pytest.raises(ValueError, match="no rows"):
        draw(frame.iloc[:0], **options)
    with pytest.raises(ValueError, match=r"lacks the column\(s\).*it has \['unrelated'\]"):
        draw(pd.DataFrame({"unrelated": [1]}), **options)
    with pytest.raises(ValueError, match="DataFrame, got list"):
        draw([1, 2], **options)
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("draw", "column", "options"),
    [
        (plots.entanglement_map, "cosine", {}),
        (plots.delta_plane, "predicted_rejected_delta", {}),
        (plots.delta_bars, "predicted_chosen_delta", {}),
        (plots.score_scatter, "ln_ches", {}),
        (plots.score_histogram, "cosine", {"column": "cosine"}),
        (plots.score_histogram, "cosine", {"column": "cosine", "by": "topic"}),
    ],
)
def test_one_row_is_enough(draw, column, options):
    """Catches a scale of no width, or one that leaves the only pair out."""
    row = pairs_frame().iloc[[0]]
    ax = draw(row, **options)
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    assert low < row[column].item() < high


# --- the entanglement map --------------------------------------------------------------------


def test_regions_agree_with_the_band_inequality():
    """Catches a region drawn with the wrong sign: each point lies in the region of its regime."""
    frame = pairs_frame(400, seed=1)
    ax = plots.entanglement_map(frame)
    points = artist(ax, "pairs").get_offsets()
    inside = {
        name: artist(ax, f"region-{name}").get_paths()[0].contains_points(points)
        for name in ("ideal", "both_down", "both_up")
    }
    ratio = frame.d_chosen / frame.d_rejected
    low, high = frame.cosine * frame.band_center, frame.band_center / frame.cosine
    ideal = (frame.cosine <= 0) | ((low < ratio) & (ratio < high))
    assert (inside["ideal"] == ideal).all()
    assert set(frame.regime) == {"ideal", "both_down", "both_up"}
    for name, within in inside.items():
        assert (within == (frame.regime == name)).all(), name
        assert f"   {int(within.sum())}" in artist(ax, f"label-{name}").get_text()


def test_map_height_is_log_of_weight_and_norm_ratio():
    frame = pairs_frame(3)
    frame.loc[0, ["d_chosen", "d_rejected", "band_center"]] = [0.2, 0.1, 0.5]
    ax = plots.entanglement_map(frame)
    assert artist(ax, "pairs").get_offsets()[0][1] == pytest.approx(math.log(4))
    low, high = ax.get_ylim()
    assert low == -high


@pytest.mark.parametrize("cosine", [0.9, 0.5, -0.4])
def test_map_shows_the_band_at_the_points(cosine):
    """Catches a scale so wide or so narrow that no edge of the band is in sight."""
    frame = pairs_frame(5).assign(cosine=cosine, d_chosen=0.1, d_rejected=0.1, band_center=1.001)
    limit = plots.entanglement_map(frame).get_ylim()[1]
    edge = -math.log(cosine) if cosine > 0 else 0.7
    assert 1.2 * edge < limit < 4 * edge


def test_pick_event_index_is_the_row_of_the_frame():
    """Catches points regrouped by regime, which would pick the wrong pair."""
    frame = pairs_frame(30, seed=2)
    frame.loc[4, "d_chosen"] = -0.1
    frame.index = frame.index[::-1]
    ax = plots.entanglement_map(frame)
    ax.figure.canvas.draw()
    points = artist(ax, "pairs")
    assert points.pickable()
    for row in (0, 5, 17, 29):
        place = ax.transData.transform([frame.cosine.iloc[row], points.get_offsets()[row][1]])
        event = MouseEvent("button_press_event", ax.figure.canvas, *place, button=1)
        hit, details = points.contains(event)
        assert hit and row in details["ind"] and 4 not in details["ind"]


def test_negative_weights_and_zero_gradients_are_left_out_and_counted():
    frame = pairs_frame(6)
    frame.loc[[0, 1], ["d_chosen", "regime"]] = [-0.1, "reversed"]
    frame.loc[2, ["cosine", "band_center"]] = np.nan
    ax = plots.entanglement_map(frame, picked="pair 1")
    note = artist(ax, "note").get_text()
    assert "2 pairs with a loss weight ≤ 0 not shown" in note
    assert "1 pair with no cosine" in note and "picked pair is one of them" in note
    assert np.isnan(np.ma.filled(artist(ax, "ring").get_offsets(), np.nan)).all()
    assert np.isnan(np.ma.filled(artist(ax, "pairs").get_offsets(), np.nan)[:3]).any(axis=1).all()


def test_update_moves_points_and_ring_but_no_limits():
    frame = pairs_frame(20)
    ax = plots.entanglement_map(frame, picked="pair 2", ylim=2)
    children, limits = len(ax.get_children()), ax.get_ylim()
    moved = frame.assign(d_chosen=frame.d_chosen * 100)
    assert plots.entanglement_map(moved, picked="pair 5", ax=ax) is ax
    assert len(ax.get_children()) == children and ax.get_ylim() == limits
    fresh = plots.entanglement_map(moved, picked="pair 5", ylim=2)
    for gid in ("pairs", "ring"):
        ours, theirs = artist(ax, gid), artist(fresh, gid)
        np.testing.assert_allclose(ours.get_offsets(), theirs.get_offsets())
    assert "20 pairs beyond the map" in artist(ax, "note").get_text()
    assert artist(ax, "name").get_text() == "pair 5"
    plots.entanglement_map(moved.iloc[:3], ax=ax)
    assert len(artist(ax, "pairs").get_offsets()) == 3 and "ring" not in by_gid(ax)


def test_map_refuses_what_it_cannot_draw():
    frame = pairs_frame(3)
    with pytest.raises(ValueError, match="picked='nobody'"):
        plots.entanglement_map(frame, picked="nobody")
    with pytest.raises(ValueError, match="ylim must be a positive"):
        plots.entanglement_map(frame, ylim=-1)
    many = pairs_frame(12)
    with pytest.raises(ValueError, match="at most 8 groups"):
        plots.entanglement_map(many.assign(topic=many.pair_id), hue="topic")


def test_ten_thousand_pairs_take_as_few_artists_as_ten():
    """One artist per pair would make a large dataset slow on every machine."""
    frames = [pairs_frame(count) for count in (10, 10_000)]
    for draw in (plots.entanglement_map, plots.score_scatter, plots.delta_bars):
        few, many = (len(draw(frame).findobj()) for frame in frames)
        assert many < 2 * few + 100, draw.__name__
    ax = plots.entanglement_map(frames[1])
    plots.entanglement_map(frames[1], picked="pair 77", ax=ax)
    assert len(artist(ax, "pairs").get_offsets()) > 9_000


# --- the heatmap -----------------------------------------------------------------------------


def test_heatmap_keys_are_positions_so_repeated_tokens_stay_apart():
    frame = matrix_frame([" the", " the", " the"], [" the", " the"])
    ax = plots.token_heatmap(frame.sample(frac=1, random_state=0))
    wanted = frame[(frame.side_i == "chosen") & (frame.side_j == "rejected")].cosine
    np.testing.assert_allclose(ax.images[0].get_array(), wanted.to_numpy().reshape(3, 2))
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["␣the₀", "␣the₁", "␣the₂"]
    whole = plots.token_heatmap(frame, block="all")
    np.testing.assert_allclose(whole.images[0].get_array(), frame.cosine.to_numpy().reshape(5, 5))
    assert sorted(line.get_xdata()[0] for line in whole.lines if line.get_xdata()[0] > 1) == [2.5]


def test_heatmap_limits_are_symmetric_and_robust():
    """Catches one huge product washing the map out, or a centre that is not zero."""
    frame = matrix_frame("abcdefgh", "abcdefgh")
    assert plots.token_heatmap(frame).images[0].get_clim() == (-1, 1)
    frame.loc[frame.position_i.eq(0) & frame.position_j.eq(1), "inner"] = -1e9
    image = plots.token_heatmap(frame, values="inner").images[0]
    low, high = image.get_clim()
    assert low == -high and high < 1e3
    assert image.colorbar.extend in ("both", "min")
    neutral = image.cmap(image.norm(0.0))[:3]
    np.testing.assert_allclose(neutral, [0xF7 / 255] * 3, atol=0.01)


def test_heatmap_numbers_only_where_they_fit_and_nan_is_said():
    small = matrix_frame("ab", "cd")
    small["cosine"] = small["cosine"].where(small.index != 2)
    assert "n/a" in [text.get_text() for text in plots.token_heatmap(small).texts]
    long = matrix_frame("a" * 60, "b" * 50)
    ax = plots.token_heatmap(long)
    assert len(ax.texts) == 1 and len(ax.get_yticks()) <= 40
    with pytest.raises(ValueError, match="block must be one of"):
        plots.token_heatmap(small, block="everything")
    with pytest.raises(ValueError, match="one pair's frame"):
        plots.token_heatmap(pd.concat([small, matrix_frame("xy", "zw")]))


@pytest.mark.filterwarnings("error")
def test_figures_draw_any_token_id_and_group():
    """Catches mathtext in ``$``, missing glyphs, and control characters in labels."""
    frame = pairs_frame(len(NASTY)).assign(pair_id=NASTY)
    grouped = frame.iloc[:8].assign(group=NASTY[:8])
    heatmap = plots.token_heatmap(matrix_frame(NASTY, NASTY))
    entangled = plots.entanglement_map(frame, picked="$x_{$")
    bars, scatter = plots.delta_bars(frame), plots.score_scatter(grouped, hue="group")
    for ax in (heatmap, entangled, bars, scatter):
        ax.figure.canvas.draw()
    assert len({label.get_text() for label in heatmap.get_yticklabels()}) == len(NASTY)
    assert artist(entangled, "name").get_text() == "$x_{$"
    assert len(set(words_of(bars, "name"))) == len(NASTY)
    assert len(scatter.get_legend().get_texts()) == 8


# --- other figures ---------------------------------------------------------------------------


def test_spearman_is_the_rank_correlation_and_says_what_was_left_out():
    frame = pd.DataFrame(
        {"ln_ches": [1, 2, 3, 4, np.nan], "predicted_chosen_delta": [9, 7, 8, 1, 0]}
    )
    ax = plots.score_scatter(frame, y="predicted_chosen_delta")
    assert ax.get_title(loc="left") == "Spearman ρ = −0.80   (n = 4)"
    assert "1 pair without both values" in artist(ax, "note").get_text()
    plots.score_scatter(frame.assign(ln_ches=1.0), y="predicted_chosen_delta", ax=ax)
    assert "undefined" in ax.get_title(loc="left")


def test_groups_of_another_column_take_the_place_of_those_before():
    """A second call on the same axes with other groups must leave no point of the first."""
    frame = pairs_frame(12)
    ax = plots.score_scatter(frame)
    plots.score_scatter(frame, hue="topic", ax=ax)
    drawn = {line.get_gid(): len(line.get_xdata()) for line in ax.lines if len(line.get_xdata())}
    assert {gid: n for gid, n in drawn.items() if not gid.startswith("cut")} == {
        "group film": 6,
        "group story": 6,
    }


def test_delta_plane_is_symmetric_and_counts_what_lies_beyond():
    ax = plots.delta_plane(pairs_frame(100), half_width=1e-3)
    assert ax.get_xlim() == (-1e-3, 1e-3) == ax.get_ylim()
    assert "beyond the plane" in ax.get_title(loc="left")


def test_every_regime_is_drawn():
    """Catches a regime without a marker: such pairs would vanish or fail."""
    frame = pairs_frame(5).assign(regime=["ideal", "both_down", "both_up", "reversed", "unchanged"])
    drawn = [
        len(c.get_offsets()) for c in plots.delta_plane(frame).collections if c.get_zorder() == 4
    ]
    assert sum(drawn) == 5
    assert {"ideal 1", "both down 1", "both up 1", "reversed 1", "unchanged 1"} == {
        text.get_text() for text in plots.score_scatter(frame).get_legend().get_texts()
    }
    assert len(artist(plots.entanglement_map(frame), "pairs").get_paths()) == 5
    assert set(frame.regime) == set(plots.REGIMES)


def test_caption_holds_the_labels_and_the_loss():
    frame = pairs_frame(1)
    frame.attrs = {"model": "tiny", "params": "all", "append_eos": False, "loss_name": "dpo"}
    frame.attrs |= {"lr": 0.1, "margin_gap": 0.00123, "other": 3}
    wanted = "tiny · parameters: all · EOS appended: no · loss: dpo · lr: 0.1 · margin gap: 0.0012"
    assert plots.caption(frame) == wanted and plots.caption(pairs_frame(1)) == ""


def test_groups_keep_their_names_apart_when_shortened():
    """Catches two long names that shorten to the same text becoming one group."""
    long = "a very long name that is cut somewhere "
    frame = pairs_frame(10).assign(topic=[long + str(k % 2) for k in range(10)])
    labels = plots.score_histogram(frame, "cosine", by="topic").get_yticklabels()
    assert len(labels) == 2 and all("n = 5" in label.get_text() for label in labels)


# --- HTML ------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Reads strips back: rows of (text, title, style), and every tag that was used."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.open, self.attributes = set(), [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "br":  # a line break has no end
            self.open.append(tag)
        self.attributes += [name for name, _ in attrs]
        attrs = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append({"text": "", "number": "", **attrs})

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "tags must nest"

    def handle_data(self, data):
        inside = self.open[-1:] if "td" in self.open else []
        if inside and inside[0] in ("td", "span", "small"):
            self.rows[-1][-1]["number" if inside[0] == "small" else "text"] += data


ALLOWED = {"div", "style", "span", "table", "thead", "tbody", "tr", "th", "td", "small", "br"}
ATTRIBUTES = {"class", "style", "role", "tabindex", "dir", "title", "scope", "colspan"}
ATTRIBUTES |= {"aria-label", "aria-hidden"}


@pytest.mark.parametrize("token", NASTY)
def test_any_text_is_inert_and_survives(token):
    """Catches an unescaped token, id, label or column anywhere in the HTML."""
    frame = strip_frame([token, "b"], [token, "c"], pair_id=token)
    frame.attrs = {"model": token, "ref": token}
    prompt = pd.DataFrame({"position": [0], "token": [token], token: [1.0], "margin": [0.1]})
    prompt.attrs = frame.attrs
    numbers = pd.DataFrame({"pair_id": [token], "cosine": [0.5], "regime": [token]})
    numbers.attrs = frame.attrs
    for html in (
        plots.token_strip_html(frame),
        plots.prompt_strip_html(prompt, value=token),
        plots.numbers_table(numbers),
    ):
        page = Page(html)
        assert page.tags <= ALLOWED and not page.open
        assert set(page.attributes) <= ATTRIBUTES
        assert not set(html) & set("\x1b\u202e\u200b")
    first = Page(plots.token_strip_html(frame)).rows[0][0]
    assert first["text"] == plots.visible_token(token)
    assert plots.visible_token(token) in first["title"]


def test_visible_token_shows_what_cannot_be_seen():
    shown = plots.visible_token
    assert [shown(t) for t in (" a", "a ", "a b", "a  b", "\n", "\t", "\u200d", "\xa0")] == [
        "␣a", "a␣", "a b", "a␣␣b", "↵", "⇥", "\\u200d", "\\xa0",
    ]  # fmt: skip
    assert shown("\u0301e") == "◌\u0301e" and shown("") == "∅" and shown("\ud800") == "\\ud800"
    assert shown("你好😀") == "你好😀"


def test_shared_prefix_and_suffix_stand_in_the_same_columns():
    chosen, rejected = list("xyxABzz"), list("xyxCzz")
    columns = _token_cells.align_tokens(chosen, rejected)
    assert columns[:3] == [(0, 0), (1, 1), (2, 2)] and columns[-2:] == [(5, 4), (6, 5)]
    assert [i for i, _ in columns if i is not None] == list(range(7))
    assert [j for _, j in columns if j is not None] == list(range(6))
    top, bottom = Page(plots.token_strip_html(strip_frame(chosen, rejected))).rows
    assert len(top) == len(bottom) == len(columns)
    for column, (i, j) in enumerate(columns):
        assert top[column]["text"] == ("" if i is None else chosen[i])
        assert bottom[column]["text"] == ("" if j is None else rejected[j])
        same = None not in (i, j) and chosen[i] == rejected[j]
        outlined = "border" in top[column].get("style", "")
        assert outlined == (not same and i is not None)


@pytest.mark.parametrize("seed", range(5))
def test_alignment_keeps_order_and_never_pairs_across_a_shared_end(seed):
    rng = np.random.default_rng(seed)
    a, b = (list(rng.choice(list("ab"), rng.integers(0, 12))) for _ in range(2))
    columns = _token_cells.align_tokens(a, b)
    assert [i for i, _ in columns if i is not None] == list(range(len(a)))
    assert [j for _, j in columns if j is not None] == list(range(len(b)))
    for k, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            break
        assert columns[k] == (k, k)


def test_long_responses_wrap_both_strips_together():
    tokens = [f" word{k}" for k in range(60)]
    rows = Page(plots.token_strip_html(strip_frame(tokens, tokens), width=80)).rows
    assert len(rows) > 4 and len(rows) % 2 == 0
    for top, bottom in zip(rows[::2], rows[1::2], strict=True):
        assert [cell["text"] for cell in top] == [cell["text"] for cell in bottom]
        assert sum(len(cell["text"]) for cell in top) <= 80


def test_pieces_of_a_character_share_a_box_and_repeated_tokens_do_not():
    frame = strip_frame(["’", "", " the", " the"], [" the"])
    frame["predicted_delta"] = [0.25, 0.5, 0.1, 0.1, 0.2]
    top = Page(plots.token_strip_html(frame)).rows[0]
    assert [cell["text"] for cell in top] == ["’⋯", "␣the", "␣the"]
    assert top[0]["number"] == "+0.25+0.50"  # each piece keeps its own position and value
    assert "chosen 0 · ’ · predicted delta 0.25; chosen 1 · ⋯" in top[0]["title"]
    assert top[0]["dir"] == "ltr"  # pieces stand in their order, whatever the script


def test_tokens_are_compared_by_their_ids():
    """Pieces of a Hebrew and of an Arabic word were all one sign: the words counted as equal."""
    frame = strip_frame(["ש", "", "."], ["س", "", "."], token_id=[215, 169, 46, 216, 179, 46])
    top, bottom = Page(plots.token_strip_html(frame)).rows
    assert "border" in top[0]["style"] and "border" in bottom[0]["style"]
    assert "border" not in top[1]["style"]
    alike = frame.assign(token=["\ufffd"] * 6)
    top, bottom = Page(plots.token_strip_html(alike)).rows
    outlined = [("border" in cell.get("style", "")) for cell in top]
    assert outlined == [True, True, False]


def test_boxes_can_be_reached_and_read_without_colour():
    html = plots.token_strip_html(strip_frame(["a", "b"], ["a", "c"]))
    boxes = [cell for row in Page(html).rows for cell in row]
    assert all(box["tabindex"] == "0" and box["role"] == "listitem" for box in boxes)
    assert [box["number"] for box in boxes] == ["−1.00", "−0.33", "+0.33", "+1.00"]
    assert 'aria-label="chosen tokens"' in html and "falls" in html and "rises" in html


def test_given_scale_is_kept_and_clipping_is_said():
    frame = strip_frame(["a"], ["b"])
    half = Page(plots.token_strip_html(frame.assign(predicted_delta=[0.5, 0.0]), vmax=1.0))
    assert _palette.color_of(0.5, 1.0) in half.rows[0][0]["style"]
    assert "≥ +0.50" in plots.token_strip_html(frame, vmax=0.5)
    assert "≥" not in plots.token_strip_html(frame)
    with pytest.raises(ValueError, match="vmax must be a positive"):
        plots.token_strip_html(frame, vmax=0)


def test_nan_and_all_zero_values():
    frame = strip_frame(["a"], ["b"]).assign(predicted_delta=[np.nan, 0.0])
    top, bottom = Page(plots.token_strip_html(frame)).rows
    assert top[0]["number"] == "n/a" and _palette.MISSING in top[0]["style"]
    assert bottom[0]["number"] == "0.00"


@pytest.mark.parametrize("diverging", [True, False])
def test_text_on_every_strip_colour_has_contrast_of_4_5(diverging):
    for value in [*np.linspace(-1, 1, 401), math.nan]:
        color = _palette.color_of(value, 1.0, diverging=diverging)
        pair = sorted(relative_luminance(c) for c in (color, _palette.contrast_text(color)))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, color


def test_colours_are_symmetric_around_zero_and_logp_is_not():
    assert _palette.color_of(0, 3) == "#F7F7F7" == _palette.color_of(0, 3, diverging=False)
    assert _palette.color_of(9, 3) == _palette.color_of(3, 3) == _palette.OKABE_ITO["blue"]
    frame = strip_frame(["a"], ["b"], logp=[-2.0, -0.1])
    first = Page(plots.token_strip_html(frame, value="logp")).rows[0][0]
    assert _palette.color_of(-1, 1, diverging=False) == "#5B2148"
    assert _palette.color_of(-1, 1, diverging=False) in first["style"]


def test_html_names_missing_columns_and_asks_which_pair():
    frame = strip_frame(["a"], ["b"])
    with pytest.raises(ValueError, match=r"lacks the column\(s\) \['nothing'\]"):
        plots.token_strip_html(frame, value="nothing")
    with pytest.raises(ValueError, match="no rows"):
        plots.token_strip_html(frame.iloc[:0])
    two = pd.concat([frame, frame.assign(pair_id="q")])
    with pytest.raises(ValueError, match=r"holds 2 pairs; say picked=, one of \['p', 'q'\]"):
        plots.token_strip_html(two)
    assert plots.token_strip_html(two, picked="q") == plots.token_strip_html(frame)
    with pytest.raises(ValueError, match=r"lacks the column\(s\) \['pair_id'\]"):
        plots.numbers_table(frame.drop(columns="pair_id"))
    with pytest.raises(ValueError, match="2 rows of one pair"):
        plots.numbers_table(frame)
    with pytest.raises(ValueError, match=r"holds 2 pairs; say picked=, one of"):
        plots.numbers_table(pairs_frame(2))
    with pytest.raises(ValueError, match="picked='z' is not in"):
        plots.numbers_table(pairs_frame(2), picked="z")


def test_prompt_strip_shows_the_prompt_alone():
    frame = pd.DataFrame({"position": [2, 0, 1], "token": [" yes", "Why", "?"]})
    frame = frame.assign(in_prompt=[False, True, True], margin=[9.0, -0.5, 0.25])
    (row,) = Page(plots.prompt_strip_html(frame)).rows
    assert [(cell["text"], cell["number"]) for cell in row] == [("Why", "−0.50"), ("?", "+0.25")]


def test_numbers_table_takes_a_row_and_says_regime_in_words():
    frame = pairs_frame(3)
    frame.attrs = {"model": "tiny"}
    html = plots.numbers_table(frame, picked="pair 1")
    assert plots.REGIMES[frame.regime[1]].words in html and "tiny" in html
    assert f"{frame.cosine[1]:.5g}".replace("-", "−") in html
    assert plots.numbers_table(frame.iloc[1]) == html


@pytest.mark.parametrize("module", [found.name for found in iter_modules(plots.__path__)])
def test_examples_run(module):
    assert doctest.testmod(import_module(f"toolkit.plots.{module}")).failed == 0


def run_frame(steps=4, ids=("a", "b")):
    """A run's frame: chosen falls by 0.1 and rejected by 0.3 a step, predicted a tenth too low."""
    rows = [
        {
            "step": step,
            "pair_id": id,
            "side": side,
            "logps": start - fall * step - k,
            "predicted_logps": start - 0.9 * fall * step - k,
            "predicted_delta": -0.9 * fall if step else np.nan,
            "actual_delta": -fall if step else np.nan,
            "loss": 0.7 - 0.01 * step + k,
            "margin": 0.02 * step,
            "kl": 0.001 * step**2,
        }
        for step in range(steps + 1)
        for k, id in enumerate(ids)
        for side, start, fall in (("chosen", -2.0, 0.1), ("rejected", -3.0, 0.3))
    ]
    return pd.DataFrame(rows)


def lines_of(ax):
    return {line.get_label(): line.get_ydata() for line in ax.lines}


def test_trajectory_draws_changes_over_their_predictions():
    lines = lines_of(plots.trajectory(run_frame()))
    np.testing.assert_allclose(lines["chosen"], [0, -0.1, -0.2, -0.3, -0.4])
    np.testing.assert_allclose(lines["rejected, predicted"], -0.27 * np.arange(5))
    assert "mean of 2 probes   (start: −2.5 and −3.5 nats)" in plots.trajectory(
        run_frame()
    ).get_title(loc="left")


def test_trajectory_of_one_probe_and_of_one_number():
    frame = run_frame(ids=["a", "$x_{$<b>"])
    ax = plots.trajectory(frame, value="loss")
    plots.trajectory(frame, value="loss", picked="$x_{$<b>", ax=ax)
    np.testing.assert_allclose(lines_of(ax)["mean of 2 probes"], 1.2 - 0.01 * np.arange(5))
    np.testing.assert_allclose(lines_of(ax)["$x_{$<b>"], 1.7 - 0.01 * np.arange(5))
    assert [text.get_text() for text in ax.get_legend().get_texts()][1] == "$x_{$<b>"
    ax.figure.canvas.draw()


def test_trajectory_keeps_its_axis_while_a_step_is_marked():
    ax = plots.trajectory(run_frame(), step=1, steps=20)
    before = ax.get_xlim(), ax.get_ylim()
    plots.mark_step(ax, 3)
    marks = [line for line in ax.lines if line.get_gid() == "step"]
    assert [list(line.get_xdata()) for line in marks] == [[3, 3]]
    assert (ax.get_xlim(), ax.get_ylim()) == before and before[0][1] > 20


def test_trajectory_without_predictions_or_steps():
    start = lines_of(plots.trajectory(run_frame(steps=0)))
    assert len(start["chosen"]) == len(start["rejected, predicted"]) == 1
    frame = run_frame()
    frame.loc[frame["step"] > 0, "predicted_logps"] = np.nan
    lines = lines_of(plots.trajectory(frame))
    assert len(lines["chosen"]) == 5 and "chosen, predicted" not in lines


def test_predicted_vs_actual_says_how_much_is_explained():
    frame = run_frame()
    ax = plots.predicted_vs_actual(frame)
    moved = frame.dropna()
    gap = (moved["actual_delta"] - moved["predicted_delta"]).pow(2).sum()
    total = (moved["actual_delta"] - moved["actual_delta"].mean()).pow(2).sum()
    assert ax.get_title(loc="left") == f"R² = {1 - gap / total:.3f}   (n = 16)"
    low, high = ax.get_xlim()
    line = next(line for line in ax.lines if line.get_label() == "predicted = actual")
    np.testing.assert_array_equal(line.get_xdata(), line.get_ydata())
    assert ax.get_ylim() == (low, high)
    drawn = np.concatenate([part.get_offsets() for part in ax.collections])
    assert len(drawn) == 16 and low < drawn.min() and drawn.max() < high


def test_predicted_vs_actual_of_one_row_has_no_r_squared():
    frame = run_frame().dropna().head(1)
    assert "undefined" in plots.predicted_vs_actual(frame).get_title(loc="left")


def flow_frame():
    delta = [0.3, 0.1, 0.02, 0.0, -0.01, -0.05, -0.36]
    tokens = [" Yes", "<b>", "$x_{$", " the", "\n", " No", " Never"]
    roles = ["", "", "", "", "", "chosen", "rejected"]
    frame = pd.DataFrame({"position": 0, "token": tokens, "delta": delta, "role": roles})
    return frame.assign(prob_before=0.4, prob_after=0.4 + frame["delta"])


def test_mass_flow_names_both_tokens_and_every_change():
    ax = plots.mass_flow(flow_frame(), top=1)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["␣Yes", "␣No (chosen)", "␣Never (rejected)"]
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], [0.3, -0.05, -0.36])
    words = [text.get_text() for text in ax.texts]
    assert "+0.3  (0.4 → 0.7)" in words and "−0.36  (0.4 → 0.04)" in words
    ax.figure.canvas.draw()
    box = ax.get_window_extent()
    for text in ax.texts:
        if text.get_gid() != "caption":
            extent = text.get_window_extent()
            assert box.x1 < extent.x0 and extent.x1 <= ax.figure.bbox.x1, text.get_text()


def test_mass_flow_without_any_change_still_draws():
    ax = plots.mass_flow(flow_frame().assign(delta=0.0))
    ax.figure.canvas.draw()
    assert [bar.get_width() for bar in ax.patches] == [0.0, 0.0]
    low, high = ax.get_xlim()
    assert low < 0 < high


def test_mass_flow_shows_one_position():
    both = pd.concat([flow_frame(), flow_frame().assign(position=2)])
    assert len(plots.mass_flow(both, position=2).patches) == 7 - 1
    with pytest.raises(ValueError, match="say position="):
        plots.mass_flow(both)
    with pytest.raises(ValueError, match="its positions are"):
        plots.mass_flow(both, position=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.trajectory(run_frame(), value="x"), "allowed: logps, loss"),
        (lambda: plots.trajectory(run_frame(), picked="c"), "its pairs are"),
        (lambda: plots.trajectory(run_frame().drop(columns="logps")), "lacks"),
        (lambda: plots.predicted_vs_actual(run_frame(steps=0)), "no row with both"),
        (lambda: plots.mass_flow(flow_frame().drop(columns="role")), "lacks"),
    ],
)
def test_run_figures_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def losses_frame():
    """Losses on one pair: some pull alike, two have no place on a logarithmic axis."""
    d_chosen = np.array([0.05, 0.05, 1.05, 10.0, -0.1, 0.05])
    d_rejected = np.array([0.05, 0.05, 0.05, 10.0, 0.1, 0.0])
    names = ["dpo", "rdpo", "cpo", "ipo", "$x_{$", "<b>sft</b>"]
    chosen, rejected = 4 * d_chosen - 3 * d_rejected, 3 * d_chosen - 9 * d_rejected
    frame = pd.DataFrame({"loss_name": names, "d_chosen": d_chosen, "d_rejected": d_rejected})
    frame["cosine"], frame["band_center"] = 0.5, 1.5
    with np.errstate(divide="ignore"):
        frame["ratio"] = d_chosen / d_rejected
    frame["predicted_chosen_delta"], frame["predicted_rejected_delta"] = chosen, rejected
    frame["regime"] = np.where(chosen > 0, np.where(rejected > 0, "both_up", "ideal"), "both_down")
    return frame.assign(settings="β 0.1", note=["", "", "", "", "pushes <down>", ""])


def loss_bars(frame, **options):
    return plots.delta_bars(frame, name="loss_name", log=True, **options)


def words_of(ax, gid):
    return [text.get_text() for text in ax.texts if text.get_gid() == gid]


def test_loss_map_names_every_loss_once():
    """Losses on one point share a label; those without a place are named above the map."""
    ax = plots.loss_map(losses_frame(), picked="ipo")
    assert sorted(words_of(ax, "losses")) == ["cpo", "▸ ipo, dpo, rdpo"]
    assert ax.get_title(loc="left") == "not on a log axis (a weight ≤ 0): $x_{$, <b>sft</b>"
    ax.figure.canvas.draw()
    plots.loss_map(losses_frame().iloc[:3], picked="dpo", ylim=1.0, ax=ax)
    assert sorted(words_of(ax, "losses")) == ["cpo", "▸ dpo, rdpo"]
    assert ax.get_title(loc="left") == "" and ax.get_ylim() == (-1.0, 1.0)


@pytest.mark.parametrize(("cosine", "factor"), [(0.9, 1), (-0.4, 1), (0.9, 0.05), (0.9, 12)])
def test_labels_of_losses_stay_on_the_map_and_do_not_overlap(cosine, factor):
    frame = pd.concat([losses_frame().iloc[[0]]] * 14, ignore_index=True).assign(cosine=cosine)
    frame["loss_name"] = [f"loss{k}" for k in range(14)]
    frame["d_chosen"] = factor * np.geomspace(0.05, 0.2, 14)
    ax = plots.loss_map(frame, ylim=4)
    ax.figure.canvas.draw()
    plots.loss_map(frame, ax=ax)
    boxes = [t.get_window_extent() for t in ax.texts if t.get_gid() == "losses"]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 14
    edges = np.array([(box.y0, box.y1) for box in boxes])
    assert (edges[:-1, 1] <= edges[1:, 0] + 2).all()
    around = ax.get_window_extent()
    assert all(around.x0 <= box.x0 and box.x1 <= around.x1 for box in boxes)
    assert around.y0 <= edges.min() and edges.max() <= around.y1


def test_loss_bars_are_sorted_and_hold_the_numbers():
    frame = losses_frame()
    ax = loss_bars(frame, picked="dpo")
    rows = frame.iloc[plots.delta_order(frame)]
    assert rows["predicted_chosen_delta"].is_monotonic_decreasing
    names = words_of(ax, "name")
    assert [name.removeprefix("▸ ") for name in names] == rows["loss_name"].tolist()
    assert [name for name in names if name.startswith("▸")] == ["▸ dpo"]
    points = {artist.get_gid(): artist for artist in ax.collections}
    for side in ("chosen", "rejected"):
        places = points[side].get_offsets()[:, 0]
        np.testing.assert_allclose(places, rows[f"predicted_{side}_delta"])


def test_loss_bars_keep_their_scale_and_say_what_lies_beyond():
    frame = losses_frame()
    ax = loss_bars(frame, limits=(0.01, 1.0))
    beyond = (frame[["predicted_chosen_delta", "predicted_rejected_delta"]].abs() > 1).any(axis=1)
    assert f"{beyond.sum()} beyond the scale" in ax.get_title(loc="left")
    scale = ax.get_xlim()
    small = frame.assign(predicted_chosen_delta=0.5, predicted_rejected_delta=-0.5)
    loss_bars(small, ax=ax)
    assert ax.get_xlim() == scale and ax.get_title(loc="left") == ""
    loss_bars(frame.iloc[:2], ax=ax)
    assert sorted(words_of(ax, "name")) == sorted(frame["loss_name"][:2])


def test_views_of_losses_say_that_numbers_are_hypothetical():
    frame = losses_frame()
    frame.attrs["hypothetical"] = "chosen moved −2"
    for ax in (plots.loss_map(frame), loss_bars(frame)):
        assert ax.get_title(loc="left").startswith("HYPOTHETICAL: chosen moved −2")
    assert "HYPOTHETICAL: chosen moved −2" in plots.loss_table_html(frame)


def test_table_of_losses_is_escaped_and_marks_the_picked_one():
    table = plots.loss_table_html(losses_frame(), picked="cpo")
    assert "<b>sft" not in table and "&lt;b&gt;sft" in table and "&lt;down&gt;" in table
    assert table.count('aria-selected="true"') == 1 and "▸ cpo</th>" in table
    assert "both rise" in table and "−0.1" in table and table.count("<tr") == 7


@pytest.mark.parametrize("view", [plots.loss_map, loss_bars, plots.loss_table_html])
def test_views_of_losses_name_what_is_wrong(view):
    with pytest.raises(ValueError, match="lacks the column"):
        view(pd.DataFrame({"pair_id": ["a"]}))
    with pytest.raises(ValueError, match="picked='dpoo' is not in"):
        view(losses_frame(), picked="dpoo")


def scores_frame(n=60, seed=0):
    """Scores with a gap, a filter and a selection."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"pair_id": [f"p{k}" for k in range(n)], "ln_ches": rng.normal(0, 1, n)})
    frame["cosine"] = rng.uniform(-1, 1, n)
    frame["regime"] = rng.choice(["ideal", "both_down"], n)
    frame.loc[[0, 1], "ln_ches"] = np.nan, np.inf
    return frame.assign(kept=frame["ln_ches"] <= 0.2, selected=frame["cosine"] > 0.5)


def test_score_scatter_groups_rings_and_cuts():
    frame = scores_frame()
    ax = plots.score_scatter(frame, by="ln_ches", cut=0.2, picked="p5")
    artists, drawn = by_gid(ax), frame.iloc[2:]
    for name in ("ideal", "both_down"):
        here = drawn[drawn.kept & (drawn.regime == name)]
        np.testing.assert_array_equal(artists[name].get_data(), here[["ln_ches", "cosine"]].T)
    assert len(artists["dropped"].get_xdata()) == (~drawn.kept).sum()
    assert len(artists["selected"].get_xdata()) == drawn.selected.sum()
    ring = np.ravel(artists["picked"].get_data())
    np.testing.assert_array_equal(ring, frame.loc[5, ["ln_ches", "cosine"]].astype(float))
    assert artists["cut-x"].get_xdata()[0] == 0.2 and not artists["cut-y"].get_visible()
    assert "2 pairs without both values" in artists["note"].get_text()
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"dropped {(~drawn.kept).sum()}" in words


def test_score_scatter_draws_the_picked_pair_that_has_no_value_nowhere():
    ax = plots.score_scatter(scores_frame(), picked="p0")
    assert not len(by_gid(ax)["picked"].get_xdata())
    assert "the picked pair is one" in by_gid(ax)["note"].get_text()


def test_score_scatter_without_regimes_and_filter_shows_all_as_kept():
    frame = scores_frame()[["pair_id", "ln_ches", "cosine"]]
    artists = by_gid(plots.score_scatter(frame, legend=False))
    assert len(artists["other"].get_xdata()) == 58 and not len(artists["dropped"].get_xdata())


def test_score_histogram_counts_every_finite_value_once():
    frame = scores_frame()
    ax = plots.score_histogram(frame, "ln_ches", cut=0.2)
    artists = by_gid(ax)
    assert artists["all"].get_data().values.sum() == 58
    assert artists["kept"].get_data().values.sum() == frame.kept.sum()
    assert artists["cut-x"].get_visible()
    assert "2 pairs without a value" in artists["note"].get_text()
    artists = by_gid(plots.score_histogram(frame, "cosine", ax=ax))
    assert artists["all"].get_data().values.sum() == 60
    assert not artists["cut-x"].get_visible() and not artists["note"].get_visible()


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 0.0], [np.nan, np.nan], [2.0, np.nan]])
def test_score_plots_take_equal_and_missing_values(values):
    frame = pd.DataFrame({"pair_id": ["a", "b"], "ln_ches": values, "cosine": values})
    for ax in (plots.score_scatter(frame), plots.score_histogram(frame, "cosine")):
        ax.figure.canvas.draw()
        assert np.isfinite(ax.get_xlim()).all() and np.diff(ax.get_xlim()) > 0


def test_score_plots_say_what_they_need():
    frame = scores_frame()
    for draw in (
        lambda column: plots.score_scatter(frame, x=column),
        lambda column: plots.score_histogram(frame, column),
    ):
        with pytest.raises(ValueError, match=r"lacks the column\(s\) \['nothing'\]"):
            draw("nothing")
        with pytest.raises(ValueError, match="'regime' holds no numbers"):
            draw("regime")
    with pytest.raises(ValueError, match="picked='z' is not in"):
        plots.score_scatter(frame, picked="z")
