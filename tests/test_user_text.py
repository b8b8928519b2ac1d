"""What users bring is shown as it is: no hidden character acts, no price becomes mathematics."""

import doctest
import html
import re

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import toolkit as tk
from toolkit import plots
from toolkit.plots import _user_text
from toolkit.widgets import _dataset_words, _loss_words, words

PRICE = r"$\frac{1}{$ and $10"
OVERRIDE = "5\u202e01\u2066x\u200b\u00ad\x1b[31m"
ACTING = "\u202e\u2066\u200b\u00ad\x1b"
ID = f"{PRICE} {OVERRIDE}"


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\n\tb  c", "a\n\tb  c"),
        ("5\u202e01", "5\\u202e01"),
        ("a\u200bb\u2028c\r\nd\x00", "a\\u200bb\\u2028c\\r\nd\\x00"),
        ("\ud800 \ue000 \U000e0041", "\\ud800 \\ue000 \\U000e0041"),
        ("👨\u200d👩\u200d👧 می\u200cخواهم", "👨\u200d👩\u200d👧 می\u200cخواهم"),
        ("pass\u200dword", "pass\\u200dword"),
        ("5\xa0€ שלום I’m", "5\xa0€ שלום I’m"),
        ("", ""),
    ],
)
def test_hidden_characters_are_written_out_and_all_others_stay(text, shown):
    assert plots.visible_text(text) == shown
    assert plots.html_text(text) == html.escape(shown)
    assert plots.html_text("<i>\"'&") == "&lt;i&gt;&quot;&#x27;&amp;"


def pairs_of(prompt, chosen, rejected, count=3):
    return [tk.PreferencePair(f"{ID} {k}", prompt, chosen, rejected) for k in range(count)]


@pytest.fixture(scope="module")
def views():
    """What every explorer of pairs says of the same hostile texts, and what its table holds."""
    pairs = pairs_of(f"It costs {PRICE} {OVERRIDE}?", f" Yes {OVERRIDE}", f" No {PRICE}")
    policy = tk.load_model()
    pair = tk.PairExplorer(policy, pairs, live=False)
    loss = tk.LossExplorer(policy, pairs, losses=["dpo", "ipo"], live=False)
    data = tk.DatasetExplorer(policy, pairs, live=False)
    run = tk.TrajectoryExplorer(policy, pairs, steps=1, batch_size=2, live=False).run()
    tables = [
        words.pair_table(pair.results),
        _loss_words.table_frame(loss.losses),
        _dataset_words.table_frame(data.choice, range(len(pairs))),
    ]
    explorers = [pair, loss, data, run]
    yield {type(e).__name__: e.to_html() for e in explorers}, tables
    for explorer in explorers:
        explorer.close()


@pytest.mark.parametrize(
    "name", ["PairExplorer", "LossExplorer", "DatasetExplorer", "TrajectoryExplorer"]
)
def test_no_view_lets_a_hidden_character_act_or_mathjax_touch_it(views, name):
    shown = views[0][name]
    assert not set(shown) & set(ACTING)
    assert "\\u202e01" in shown and "$10" in shown  # all of it is there
    root = re.match(r'<div class="([^"]*)"', shown)[1].split()
    assert {"mathjax_ignore", "tex2jax_ignore"} <= set(root)


def test_no_table_lets_a_hidden_character_act(views):
    for table in views[1]:
        words = " ".join(str(cell) for cell in [*table.columns, *table.to_numpy().ravel()])
        assert "\\u202e" in words and not set(words) & set(ACTING)


def hostile_frame(n=12):
    rng = np.random.default_rng(0)
    names = ["cosine", "d_chosen", "d_rejected", "band_center", "ches", "ln_ches", PRICE]
    frame = pd.DataFrame(rng.uniform(0.1, 0.9, (n, len(names))), columns=names)
    frame["pair_id"] = [f"{ID} {k}" for k in range(n)]
    frame["regime"], frame["group $^$"] = "ideal", [f"{PRICE} {k % 2}" for k in range(n)]
    frame["predicted_chosen_delta"], frame["predicted_rejected_delta"] = 0.1, -0.1
    frame.attrs = {"model": PRICE, "ref": OVERRIDE}
    return frame


LOSSES = {"settings": PRICE, "note": OVERRIDE, "ratio": 1.0}
FIGURES = {
    "map": lambda f: plots.entanglement_map(f, picked=f["pair_id"][0]),
    "map by number": lambda f: plots.entanglement_map(f, hue=PRICE),
    "map by group": lambda f: plots.entanglement_map(f, hue="group $^$"),
    "plane": lambda f: plots.delta_plane(f, picked=f["pair_id"][0]),
    "bars": plots.delta_bars,
    "scatter": lambda f: plots.score_scatter(f, x=PRICE, hue="group $^$"),
    "histogram": lambda f: plots.score_histogram(f, PRICE),
    "boxes": lambda f: plots.score_histogram(f, PRICE, by="group $^$"),
    "scores": lambda f: plots.score_scatter(f, x=PRICE, y="cosine", picked=f["pair_id"][0]),
    "losses": lambda f: plots.loss_map(f.assign(loss_name=f["pair_id"], cosine=0.4)),
    "loss bars": lambda f: plots.delta_bars(
        f.assign(loss_name=f["pair_id"]), name="loss_name", log=True
    ),
    "run": lambda f: plots.trajectory(
        f.assign(step=0, side="chosen", loss=1.0), value="loss", picked=f["pair_id"][0]
    ),
    "flow": lambda f: plots.mass_flow(
        f.assign(
            position=0, token=f["pair_id"], prob_before=0.1, prob_after=0.2, delta=0.1, role=""
        )
    ),
    "heatmap": lambda f: plots.token_heatmap(
        f.assign(side_i="chosen", side_j="rejected", position_i=range(12), position_j=range(12),
                 token_i=f["pair_id"], token_j=f["pair_id"]), values=PRICE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_no_name_in_a_figure_is_read_as_mathematics(name):
    """A column named with an open formula stopped two figures; two prices lost their signs."""
    ax = FIGURES[name](hostile_frame())
    ax.figure.canvas.draw()
    words = [text for text in ax.figure.findobj(matplotlib.text.Text) if "$" in text.get_text()]
    ours = [text for text in words if "Vert" in text.get_text()]  # the map's own formula
    assert len(words) > len(ours)
    assert not any(text.get_parse_math() for text in words if text not in ours)
    assert not {c for text in words for c in text.get_text()} & set(ACTING)


@pytest.mark.parametrize(
    "draw",
    [
        lambda f: plots.numbers_table(f, picked=f["pair_id"][0]),
        lambda f: plots.loss_table_html(f.assign(loss_name=f["pair_id"], **LOSSES)),
        lambda f: plots.prompt_strip_html(
            f.assign(position=range(12), token=f["pair_id"], pair_id="p"), value=PRICE
        ),
    ],
)
def test_no_html_is_read_as_mathematics_or_hides_text(draw):
    made = draw(hostile_frame())
    assert re.match(r'<div class="[^"]*mathjax_ignore tex2jax_ignore"', made)
    assert "$10" in made and not set(made) & set(ACTING)


def test_examples_run():
    assert doctest.testmod(_user_text).failed == 0
