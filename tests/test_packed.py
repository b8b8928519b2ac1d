"""Layouts of a pair: each gives the states of the bare sequences, or is not taken for the model."""

import gc

import pytest
import reference
import shapes
import torch
from transformers import BloomConfig, LlamaConfig, MambaConfig, MistralConfig

import toolkit as tk
from toolkit.similarities import _head_states
from toolkit.similarities._packed import packed_inputs, packed_length, shared_length, unpacked

SMALL = {"vocab_size": shapes.VOCAB, "hidden_size": 24}


def mistral(window, **options):
    long = {**shapes.PLAIN, "max_position_embeddings": 256}
    return shapes.built(MistralConfig(**long, sliding_window=window), **options).eval()


def growing_rope():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    short = {**shapes.PLAIN, "max_position_embeddings": 8}
    return shapes.built(LlamaConfig(**short, rope_parameters=rope)).eval()


def long_pairs():
    """Pairs longer than a window of 8 on both sides, with and without a shared prefix."""
    torch.manual_seed(3)
    rows = [torch.randint(shapes.VOCAB, (n,)).tolist() for n in (9, 12, 14, 3, 20)]
    return [
        shapes.encoded("both", rows[0], rows[1], rows[2]),
        shapes.encoded("prefix", rows[0], rows[4] + rows[3], [*rows[4], 1, 2]),
        shapes.encoded("lopsided", rows[3], rows[3], rows[4]),
        shapes.encoded("nested", rows[3], rows[1], rows[1] + rows[3]),
    ]


def bare_states(model, pair):
    """The states of each response by the model's own trunk, one sequence at a time."""
    with torch.no_grad(), _head_states.evaluation(model):
        return [model.base_model(i[None]).last_hidden_state[0] for i, _ in reference.sides(pair)]


def assert_bare(model, pairs, found, close):
    for pair, sides in zip(pairs, found, strict=True):
        for got, want in zip(sides, bare_states(model, pair), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=close * float(want.abs().max()))


# --- one row ---


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([7, 8], [7, 9], 3),
        ([7, 8], [9, 8], 2),
        ([7], [7, 9], 3),
        ([7, 9], [7], 3),
        ([7, 9], [7, 9], 4),
    ],
)
def test_the_shared_part_is_the_longest_common_prefix(chosen, rejected, expected):
    pair = shapes.encoded("p", [5, 6], chosen, rejected)
    assert shared_length(pair) == expected
    assert packed_length(pair) == 4 + len(chosen) + len(rejected) - expected


def test_every_token_sees_exactly_what_stands_before_it_in_its_response():
    """Read off the mask: ids and positions a row may see are the beginning of its own response."""
    pairs = [*shapes.ragged_pairs(), *long_pairs()]
    inputs = packed_inputs(pairs, torch.float32, torch.device("cpu"))
    mask = inputs["attention_mask"]
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}
    assert (mask == 0).any(-1).all(), "a row that sees nothing becomes NaN"
    width = mask.shape[-1]
    columns = unpacked(torch.arange(width).expand(len(pairs), -1)[..., None], pairs)
    for i, pair in enumerate(pairs):
        for (ids, _), at in zip(reference.sides(pair), columns[i], strict=True):
            for t, row in enumerate(at[:, 0].tolist()):
                seen = (mask[i, 0, row] == 0).nonzero()[:, 0]
                assert inputs["input_ids"][i, seen].tolist() == ids[: t + 1].tolist()
                assert inputs["position_ids"][i, seen].tolist() == list(range(t + 1))


# --- exactness ---


@pytest.mark.parametrize("attention", ["own", "eager"])
@pytest.mark.parametrize("shape", [*shapes.CONFIGS, *shapes.ODD_CONFIGS])
def test_every_layout_gives_the_bare_states(shape, attention):
    """No row of these is longer than a window, so that all three are exact for all of them."""
    model = shapes.model(shape)
    if attention == "eager":
        model.set_attn_implementation(attention)
    pairs = [*shapes.ragged_pairs(), *long_pairs()]
    for layout in (_head_states.packed, _head_states.padded, _head_states.alone):
        assert_bare(model, pairs, layout(model, pairs), 1e-9 if shape == "gpt2" else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*shapes.CONFIGS, "gemma", "qwen3", "mixtral", "opt"])
def test_these_models_are_packed(shape, dtype):
    """A probe that is too strict would be slow in silence."""
    model = shapes.model(shape, dtype)
    assert _head_states.layout_for(model, 20) is _head_states.packed
    pairs = long_pairs()
    close = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert_bare(model, pairs, _head_states.pair_states(model, pairs), close)


@pytest.mark.parametrize(
    "build",
    [
        lambda: mistral(8),
        lambda: shapes.built(MambaConfig(**SMALL, num_hidden_layers=2, state_size=4)).eval(),
        lambda: shapes.built(BloomConfig(**SMALL, n_layer=2, n_head=4)).eval(),
    ],
    ids=["sliding window", "recurrent state", "alibi"],
)
def test_models_that_cannot_be_packed_are_padded(build, monkeypatch):
    """Found by the description of the model, and by the probe alone as well."""
    model, pairs = build(), long_pairs()
    assert _head_states.layout_for(model, 20) is _head_states.padded
    assert_bare(model, pairs, _head_states.pair_states(model, pairs), 1e-5)
    monkeypatch.setattr(_head_states, "_may_pack", lambda model, length: True)
    _head_states._measured.clear()
    assert _head_states.layout_for(model, 20) is _head_states.padded


def test_a_window_matters_only_for_longer_rows():
    model = mistral(100)
    found = {n: _head_states.layout_for(model, n) for n in (120, 101, 90, 60, 20)}
    assert [n for n, layout in found.items() if layout is _head_states.packed] == [60, 20]
    found = [_head_states.layout_for(mistral(100), n) for n in (100, 50)]
    assert found == [_head_states.packed] * 2


def test_a_description_speaks_where_the_weights_are_silent_still():
    """Attention that is zero for now: the probe sees no window, training will bring it out."""
    model = mistral(8)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
    assert _head_states.layout_for(model, 20) is _head_states.padded


def test_rotary_frequencies_that_grow_with_the_row_are_run_alone():
    """Padding alone changes such a model, and so does every longer row that it saw before."""
    model = growing_rope()
    assert _head_states.layout_for(model, 16) is _head_states.alone
    grown = shapes.encoded("grown", [3], [40, 0], list(range(10, 25)))
    later = shapes.encoded("later", [4, 4, 0, 6], [20, 21, 22, 0, 9], [20, 21, 23, 7])
    for pair in (grown, later, grown, *shapes.ragged_pairs()):
        (found,) = _head_states.pair_states(model, [pair])
        for got, (ids, _) in zip(found, reference.sides(pair), strict=True):
            with torch.no_grad():
                fresh = growing_rope().base_model(ids[None]).last_hidden_state[0]
            torch.testing.assert_close(got, fresh)


def test_a_model_that_refuses_a_mask_of_four_dimensions_is_padded():
    model, pairs = shapes.model("llama"), long_pairs()
    forward = model.model.forward

    def refusing(*args, **options):
        if options["attention_mask"].dim() != 2:
            raise NotImplementedError("2-D masks only")
        return forward(*args, **options)

    model.model.forward = refusing
    assert _head_states.layout_for(model, 20) is _head_states.padded
    states = _head_states.pair_states(model, pairs)
    model.model.forward = forward
    assert_bare(model, pairs, states, 1e-6)


def test_a_model_that_ignores_a_mask_of_four_dimensions_is_padded():
    """It raises nothing, and its states are wrong: only the comparison can tell."""
    model, pairs = shapes.model("qwen2"), long_pairs()
    forward = model.model.forward

    def ignoring(*args, attention_mask=None, **options):
        return forward(*args, attention_mask=None, **options)

    model.model.forward = ignoring
    assert _head_states.layout_for(model, 20) is _head_states.padded
    assert_bare(model, pairs, _head_states.pair_states(model, pairs), 1e-6)


# --- the answer is remembered ---


def calls_of(model):
    """Count the calls of the model's trunk from now on."""
    calls = []
    model.base_model.register_forward_pre_hook(lambda module, args: calls.append(1))
    return calls


def test_the_probe_is_run_once_for_a_model():
    model = shapes.model("gpt2")
    _head_states.layout_for(model, 40)
    calls = calls_of(model)
    for length in (2, 40, 64):
        assert _head_states.layout_for(model, length) is _head_states.packed
    assert not calls
    _head_states.layout_for(model.float(), 40)
    model.set_attn_implementation("eager")
    seen = len(calls)
    _head_states.layout_for(model, 40)
    assert 0 < seen < len(calls)


def test_a_forgotten_model_is_not_kept_alive():
    model = shapes.model("gpt2")
    _head_states.layout_for(model, 10)
    assert model in _head_states._measured
    kept = len(_head_states._measured)
    del model
    gc.collect()
    assert len(_head_states._measured) < kept


@pytest.mark.parametrize("length", [2, 3, 5, 64])
def test_the_probe_fits_the_context(length):
    """Two tokens are the shortest pair; the longest row may fill all positions."""
    for pair in (pair for batch in _head_states._probes(length, shapes.VOCAB) for pair in batch):
        assert max(len(pair.chosen_ids), len(pair.rejected_ids)) <= length
        assert pair.chosen_mask.any() and pair.rejected_mask.any()
    policy = shapes.policy("gpt2")
    rows = [1] * (length - 1), [2] * (length - 1)
    assert _head_states.layout_for(policy.model, length) is _head_states.packed
    assert tk.similarity(policy, shapes.encoded("p", [3], *rows), progress=False).shape[0] == 1
