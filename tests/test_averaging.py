"""Averages of weights and the ways between two models, beside sums over tensors by hand."""

import copy
import itertools

import numpy as np
import pandas as pd
import pytest
import reference
import shapes
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import toolkit as tk
from toolkit.averaging import parts as part_search
from toolkit.averaging.average import part_of
from toolkit.model import SHIPPED_MODEL

QUIET = {"progress": False}
TEXTS = ["ab", "cde", "fa"]


class Spelled(shapes.Letters):
    """A tokenizer of single letters, for texts and prompts."""

    eos_token_id = 1

    def __call__(self, text, **_):
        ids = [2 + ord(c) % 50 for c in text]
        return {"input_ids": ids, "offset_mapping": [(k, k + 1) for k in range(len(ids))]}


def ends(shape, dtype=torch.float64):
    """A model, and one that training could have made of it."""
    found = [tk.Policy(shapes.model(shape, dtype), Spelled(), name=shape) for _ in range(2)]
    torch.manual_seed(5)
    with torch.no_grad():
        for p in found[1].model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return found


def state(policy):
    return dict(policy.model.named_parameters()) | dict(policy.model.named_buffers())


def same(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_endpoints_equal_the_models_bit_for_bit(shape, dtype):
    before, after = ends(shape, dtype)
    assert same(tk.average(before, after, 0.0), before)
    assert same(tk.average(before, after, 1), after)
    assert same(tk.average(before, after, (1, 1), parts=2), after)
    assert not same(before, after)
    middle = tk.average(before, after, 0.5)
    assert not same(middle, before) and not same(middle, after)
    assert same(tk.average(before, copy.deepcopy(before), 0.3), before)


def test_an_average_is_the_weighted_sum_part_by_part():
    """By names written out: the tied embedding goes with the input, the last norm with the end."""
    before, after = ends("gpt2")
    found = state(tk.average(before, after, (0.25, 0.75), parts=2))
    first = ("transformer.wte", "transformer.wpe", "transformer.h.0.")
    for name, p in state(before).items():
        weight = 0.25 if name.startswith(first) else 0.75
        expected = (1 - weight) * p + weight * state(after)[name]
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)
    whole = state(tk.average(before, after, (0.4, 0.4), parts=2))
    plain = state(tk.average(before, after, 0.4))
    assert all(torch.equal(whole[name], plain[name]) for name in plain)


def test_parts_are_runs_of_layers_from_the_input_on():
    model = shapes.model("llama")
    found = part_of(model, 2)
    assert (
        found["model.embed_tokens.weight"] == 0 and found["model.layers.0.mlp.up_proj.weight"] == 0
    )
    assert found["model.layers.1.input_layernorm.weight"] == found["model.norm.weight"] == 1
    assert found["lm_head.weight"] == 1


def test_tied_weights_stay_tied_and_nothing_is_shared():
    before, after = ends("gpt2")
    found = tk.average(before, after, 0.5)
    head, embedding = found.model.get_output_embeddings(), found.model.get_input_embeddings()
    assert head.weight is embedding.weight
    own = {p.untyped_storage().data_ptr() for p in found.model.parameters()}
    for policy in (before, after):
        assert own.isdisjoint(p.untyped_storage().data_ptr() for p in policy.model.parameters())
    assert found.ref_model is before.model and found.name == "gpt2, 0.5 after"


def other(**options):
    config = {**shapes.BASE, "hidden_size": 16, **options}
    return tk.Policy(AutoModelForCausalLM.from_config(shapes.LlamaConfig(**config)), Spelled())


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (lambda: ends("llama")[1], r"one architecture; .* is absent in .*LlamaForCausalLM\)"),
        (lambda: tk.Policy(shapes.model("gpt2", torch.float32), Spelled()), "is .* of float64 in"),
        (lambda: "gpt2", r"after must be a toolkit Policy.*tk\.load_model\('gpt2'\)"),
    ],
)
def test_two_architectures_are_refused_before_any_work(after, words, monkeypatch):
    before, pairs, found = ends("gpt2")[0], shapes.ragged_pairs(), after()
    monkeypatch.setattr(copy, "deepcopy", lambda *_: pytest.fail("work was done"))
    for call in (
        lambda: tk.average(before, found, 0.5),
        lambda: tk.interpolate(before, found, [0, 1], pairs, **QUIET),
        lambda: tk.search_parts(before, found, ["a"], weight_on_after=0.5, **QUIET),
        lambda: tk.bezier_bend(before, found, TEXTS, **QUIET),
    ):
        with pytest.raises(ValueError, match=words) as error:
            call()
        assert "\n" not in str(error.value)


def test_models_of_one_class_and_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"61×16 of float32 in before .*61×24"):
        tk.average(other(), other(hidden_size=24), 0.5)


def test_an_adapter_is_to_be_merged_first():
    peft = pytest.importorskip("peft")
    before = ends("llama")[0]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = tk.Policy(peft.get_peft_model(shapes.model("llama"), config), Spelled())
    with pytest.raises(ValueError, match=r"after has an adapter.*merge_and_unload\(\)"):
        tk.average(before, adapted, 0.5)


@pytest.mark.parametrize(
    ("weights", "parts", "words"),
    [
        (1.5, 1, "weight_on_after must be from 0 to 1, received 1.5"),
        ("half", 1, "must be from 0 to 1, received 'half'"),
        ((0.5, None), 2, "must be from 0 to 1, received None"),
        ((0.5, 0.5), 1, r"has 2 numbers for parts=1: give one number"),
        (0.5, 3, "parts must be at most 2, the model's layers, received 3"),
        (0.5, 0, "parts must be a positive integer"),
    ],
)
def test_bad_weights_and_parts_are_refused(weights, parts, words):
    before, after = ends("gpt2")
    with pytest.raises(ValueError, match=words):
        tk.average(before, after, weights, parts=parts)


# --- the way between ---


def test_interpolation_equals_a_model_built_by_hand_at_each_point():
    before, after = ends("gpt2")
    pairs, weights = shapes.ragged_pairs(), [0, 0.3, 1]
    frame = tk.interpolate(before, after, weights, pairs, texts=TEXTS, batch_size=2, **QUIET)
    twin = reference.double(before.model)
    for weight in weights:
        here = copy.deepcopy(twin)
        with torch.no_grad():
            for (_, p), (name, _) in zip(
                here.named_parameters(), before.model.named_parameters(), strict=True
            ):
                p.copy_((1 - weight) * state(before)[name] + weight * state(after)[name])
        rows = frame[frame["weight_on_after"] == weight].set_index("pair_id")
        for pair in pairs:
            with torch.no_grad():
                now, then = (
                    [float(reference.token_logps(m, *s).sum()) for s in reference.sides(pair)]
                    for m in (here, twin)
                )
                kl = torch.cat([gaps(here, twin, *side) for side in reference.sides(pair)]).mean()
            row = rows.loc[pair.id]
            assert [row["chosen_logps"], row["rejected_logps"]] == pytest.approx(now, rel=1e-6)
            assert row["chosen_delta"] == pytest.approx(now[0] - then[0], abs=1e-5)
            margin = now[0] - then[0] - now[1] + then[1]
            assert row["margin"] == pytest.approx(margin, abs=1e-5)
            assert row["kl"] == pytest.approx(float(kl), rel=1e-4, abs=1e-9)
        averaged = tk.average(before, after, weight)
        assert rows["perplexity"].nunique() == 1
        assert rows["perplexity"].iloc[0] == pytest.approx(tk.perplexity(averaged, TEXTS), rel=1e-9)
    assert np.log(frame["perplexity"]).to_numpy() == pytest.approx(frame["text_nll"].to_numpy())
    start = frame[frame["weight_on_after"] == 0]
    assert (start[["chosen_delta", "rejected_delta", "margin", "kl"]] == 0).all(axis=None)


def gaps(model, base, ids, mask):
    """KL of the next token at every scored position."""
    own, ref = (m(ids[None]).logits[0].log_softmax(-1) for m in (model, base))
    return torch.stack([(own[t - 1].exp() * (own[t - 1] - ref[t - 1])).sum()
                        for t in range(len(ids)) if mask[t]])  # fmt: skip


def test_the_slope_along_the_line_is_the_gradient_along_the_move():
    """D log π/dw = ⟨∇log π(w), θ_after − θ_before⟩ integrates to the whole change (trapezoids)."""
    before, after = ends("gpt2")
    pair, weights = shapes.ragged_pairs()[2], np.linspace(0, 1, 21)
    move = {n: state(after)[n] - p for n, p in before.model.named_parameters()}
    slopes = []
    for weight in weights:
        twin = reference.double(tk.average(before, after, weight).model)
        gradient = reference.response_gradients(twin, [pair])[0]
        slopes.append(float(gradient @ torch.cat([move[n].flatten() for n in move]).detach()))
    found = tk.interpolate(before, after, [0, 1], pair, **QUIET)["chosen_delta"].iloc[-1]
    assert np.trapezoid(slopes, weights) == pytest.approx(found, rel=1e-2)


def test_parts_along_the_way_are_in_the_frame():
    before, after = ends("llama")
    frame = tk.interpolate(
        before, after, [(0.2, 0.6), 1], shapes.ragged_pairs()[:1], parts=2, **QUIET
    )
    assert frame["weight_on_after"].tolist() == [0.4, 1.0]
    assert frame[["weight_1", "weight_2"]].to_numpy().tolist() == [[0.2, 0.6], [1.0, 1.0]]
    alone = tk.per_token_logps(tk.average(before, after, (0.2, 0.6), parts=2),
                               shapes.ragged_pairs()[0])[0]  # fmt: skip
    assert frame["chosen_logps"][0] == pytest.approx(float(alone.chosen.sum()), rel=1e-9)


def test_the_two_models_stay_as_they_are():
    before, after = ends("llama")
    kept = copy.deepcopy((before.model.state_dict(), after.model.state_dict()))
    tk.interpolate(before, after, [0.5], shapes.ragged_pairs(), texts=TEXTS, **QUIET)
    bend = tk.bezier_bend(before, after, TEXTS, steps=2, **QUIET)
    tk.interpolate(before, after, [0.5], shapes.ragged_pairs(), bend=bend, **QUIET)
    for policy, values in zip((before, after), kept, strict=True):
        now = policy.model.state_dict()
        assert all(torch.equal(now[name], values[name]) for name in values)
        assert all(p.grad is None and p.requires_grad for p in policy.model.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": []}, "weights is empty"),
        ({"weights": 0.5}, "weights must be a list of points"),
        ({"weights": [2]}, "weights must be from 0 to 1, received 2"),
        ({"texts": "one"}, "texts must be a list of texts"),
        ({"texts": ["x"], "parts": 5}, "parts must be at most 2"),
        ({"bend": ends("llama")[0]}, "one architecture"),
        ({"bend": 3}, "after must be a toolkit Policy"),
    ],
)
def test_a_bad_way_is_refused(options, words):
    before, after = ends("gpt2")
    with pytest.raises(ValueError, match=words):
        tk.interpolate(before, after, **{"weights": [0, 1], "pairs": shapes.ragged_pairs(), **QUIET,
                                         **options})  # fmt: skip


# --- barriers and curves ---


def test_barriers_by_hand():
    loss = [1.0, 4.0, 3.0, 2.0]
    frame = pd.DataFrame({"weight_on_after": [0, 0.5, 0.75, 1], "loss": loss})
    doubled = pd.concat([frame, frame.assign(loss=frame["loss"] + 1)])
    row = tk.barriers(frame, "loss").iloc[0]
    assert row["barrier_max"] == 2.0 and row["barrier_linear"] == 4 - 1.5
    area = 0.5 * (1 + 4) / 2 + 0.25 * (4 + 3) / 2 + 0.25 * (3 + 2) / 2
    assert row["barrier_mean"] == pytest.approx(area - 1.5) and row["highest_at"] == 0.5
    same = tk.barriers(doubled, "loss").iloc[0]
    assert same[["barrier_max", "barrier_linear", "barrier_mean"]].tolist() == pytest.approx(
        row[["barrier_max", "barrier_linear", "barrier_mean"]].tolist()
    )
    with pytest.raises(ValueError, match="must reach from 0 to 1"):
        tk.barriers(frame.iloc[:3], "loss")
    with pytest.raises(ValueError, match=r"column 'text_nll': use tk\.interpolate"):
        tk.barriers(frame)


def test_a_curve_with_its_bend_in_the_middle_is_the_line():
    before, after = ends("gpt2")
    pairs, weights = shapes.ragged_pairs()[:2], [0, 0.2, 0.7, 1]
    middle = tk.average(before, after, 0.5)
    line = tk.interpolate(before, after, weights, pairs, **QUIET)
    curve = tk.interpolate(before, after, weights, pairs, bend=middle, **QUIET)
    np.testing.assert_allclose(
        line.select_dtypes("number"), curve.select_dtypes("number"), rtol=1e-7, atol=1e-9
    )
    away = tk.interpolate(before, after, weights, pairs, bend=before, **QUIET)
    ends_of = [k for k in (0, 3)]
    assert away.set_index("point").loc[ends_of].equals(line.set_index("point").loc[ends_of])
    # φ(t) with the bend at the start is the line's point t².
    slow = tk.interpolate(before, after, [0.04, 0.49], pairs, **QUIET)
    inner = away[away["point"].isin([1, 2])].reset_index(drop=True)
    np.testing.assert_allclose(inner["chosen_logps"], slow["chosen_logps"], rtol=1e-7)


def test_a_trained_bend_lowers_the_loss_of_the_way():
    before, after = ends("llama")
    texts = ["".join(p) for p in itertools.islice(itertools.permutations("abcd"), 12)]
    bend = tk.bezier_bend(before, after, texts, steps=25, lr=1e-2, seed=1, **QUIET)
    points, pair = np.linspace(0, 1, 9), shapes.ragged_pairs()[0]
    ways = [tk.interpolate(before, after, points, pair, texts=texts, bend=b, **QUIET)
            for b in (None, bend)]  # fmt: skip
    line, curve = (tk.barriers(way)["barrier_mean"].item() for way in ways)
    assert curve < line - 0.1
    again = tk.bezier_bend(before, after, texts, steps=25, lr=1e-2, seed=1, **QUIET)
    assert same(bend, again)


# --- heterogeneous averaging ---


def spoken():
    """The ends of a way between small models that read text."""
    torch.manual_seed(0)
    config = shapes.GPT2Config(vocab_size=4096, n_positions=64, n_embd=24, n_layer=2, n_head=2)
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_MODEL)
    models = [AutoModelForCausalLM.from_config(config).double() for _ in range(2)]
    with torch.no_grad():
        for a, b in zip(*(model.parameters() for model in models), strict=True):
            b.copy_(a + 0.05 * torch.randn_like(a))
    return [tk.Policy(model, tokenizer, name="small") for model in models]


def simplex(mean, parts, grid):
    """All weights on a grid with this mean."""
    steps = range(grid + 1)
    return [np.array(w) / grid for w in itertools.product(steps, repeat=parts)
            if abs(sum(w) / grid / parts - mean) < 1e-9]  # fmt: skip


def test_the_part_search_finds_what_a_grid_finds():
    before, after = spoken()
    found = tk.search_parts(
        before, after, ["A cat", "Rain", "It is", "The kettle"], weight_on_after=0.5, parts=2,
        steps=25, max_new_tokens=8, **QUIET
    )  # fmt: skip
    assert np.mean(found.weights) == pytest.approx(0.5)
    assert all(0 <= w <= 1 for w in found.weights)
    rows = part_search._rows(before, found.proxies)

    def value(weights):
        twin = reference.double(tk.average(before, after, list(weights), parts=2).model)
        with torch.no_grad():
            return np.mean([float(reference.token_logps(twin, *row).sum()) for row in rows])

    grid = {tuple(w): value(w) for w in simplex(0.5, 2, 10)}
    best = found.history["proxy_logp"].max()
    assert best >= max(grid.values()) - 0.02 * np.ptp(list(grid.values()))
    assert best == pytest.approx(value(found.weights), rel=1e-6)
    assert found.history["proxy_logp"][0] == pytest.approx(value((0.5, 0.5)), rel=1e-6)
    assert best > found.history["proxy_logp"][0]


def test_the_slope_by_part_is_that_of_finite_differences():
    before, after = spoken()
    proxies = pd.DataFrame({"prompt": ["A cat", "It"], "response": [" sat", " rains"]})
    rows, work = part_search._rows(before, proxies), tk.average(before, after, 0.5)
    weights = np.array([0.3, 0.6])
    _, slope = part_search._value(work, before, after, weights, rows, None)
    for k in range(2):
        step = np.eye(2)[k] * 1e-5
        high, low = (part_search._value(work, before, after, weights + s, rows, None)[0]
                     for s in (step, -step))  # fmt: skip
        assert slope[k] == pytest.approx((high - low) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("mean", [0.0, 0.2, 0.5, 1.0])
def test_projection_keeps_mean_and_bounds_and_is_nearest(mean):
    """Beside all points of a grid with that mean."""
    wild = np.array([1.7, -0.4, 0.3]) + mean
    found = part_search._projected(wild, mean)
    assert found.mean() == pytest.approx(mean, abs=1e-9)
    assert (found >= 0).all() and (found <= 1).all()
    nearest = min(((w - wild) ** 2).sum() for w in simplex(mean, 3, 30))
    assert ((found - wild) ** 2).sum() <= nearest + 1e-9


def test_bad_searches_are_refused():
    before, after = ends("gpt2")
    for options, words in (
        ({"weight_on_after": 2}, "weight_on_after must be from 0 to 1"),
        ({"parts": 3}, "parts must be at most 2"),
        ({"prompts": []}, "prompts"),
        ({"steps": 0}, "steps must be"),
    ):
        given = {"prompts": ["ab"], "weight_on_after": 0.5, "parts": 2, **QUIET, **options}
        with pytest.raises(ValueError, match=words):
            tk.search_parts(before, after, **given)
