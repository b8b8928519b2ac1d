"""Loading, the reference, parameter sets, and the one scored forward pass."""

import contextlib
import json
import logging
import shutil

import numpy as np
import pytest
import reference
import shapes
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import toolkit as tk
from toolkit.model import SHIPPED_MODEL

SHAPES = list(shapes.CONFIGS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every shape saved with a tokenizer, by name."""
    made = {}
    for shape in SHAPES:
        folder = made[shape] = tmp_path_factory.mktemp(shape)
        shapes.model(shape, torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(SHIPPED_MODEL).save_pretrained(folder)
    return made


def lora(shape="gpt2", seed=0, fill=True):
    """A PEFT model in float64; ``fill`` moves B off zero, where the adapter does nothing."""
    peft = pytest.importorskip("peft")
    target = ["c_attn"] if shape == "gpt2" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(
        r=2, target_modules=target, task_type="CAUSAL_LM", fan_in_fan_out=shape == "gpt2"
    )
    model = peft.get_peft_model(shapes.model(shape, seed=seed), config).double()
    if fill:
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_()
    return model


def sums(results, prefix=""):
    sides = ("chosen", "rejected")
    return np.array([[float(getattr(r, prefix + s).sum()) for s in sides] for r in results])


# --- loading ---


def test_the_shipped_model_loads_offline_in_float32(monkeypatch):
    """No network is asked for anything: any connection fails here."""
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("network used"))
    policy = tk.load_model()
    assert (policy.name, policy.dtype, policy.ref_name) == (
        "tiny (shipped)",
        torch.float32,
        "same weights",
    )
    pair = tk.PreferencePair("a", "Is it fine?", " Yes", " No")
    logps = tk.per_token_logps(policy, pair)[0]
    assert torch.isfinite(logps.chosen).all() and "".join(logps.chosen_tokens).startswith(" Yes")
    assert policy.context_length == policy.model.config.max_position_embeddings


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_model_loads_with_its_own_weights(shape, folders):
    """By folder as text or path; tied heads stay tied, untied ones stay untied."""
    policy = tk.load_model(str(folders[shape]))
    own = shapes.policy(shape, torch.float32)
    pairs = shapes.ragged_pairs()
    np.testing.assert_array_equal(
        sums(tk.per_token_logps(policy, pairs)), sums(tk.per_token_logps(own, pairs))
    )
    head, inner = (
        m.weight
        for m in (policy.model.get_output_embeddings(), policy.model.get_input_embeddings())
    )
    assert (head is inner) == (shape != "llama")
    assert policy.name == str(folders[shape])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("auto", torch.float32),
        ("float64", torch.float64),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_the_dtype_is_honoured_also_for_the_reference(dtype, expected, folders):
    policy = tk.load_model(folders["llama"], ref=folders["llama"], dtype=dtype)
    assert policy.dtype == expected == policy.ref_model.dtype
    assert policy.labels("all").dtype == str(expected).removeprefix("torch.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name_or_path": "/no/such/folder"}, "no model folder at '/no/such/folder'"),
        ({"name_or_path": "./nothing_here"}, "no model folder at './nothing_here'"),
        ({"name_or_path": "no/such-model"}, "'no/such-model'.*the Hugging Face hub"),
        ({"name_or_path": 3}, "given by name or folder, received int"),
        ({"dtype": "float31"}, "dtype='float31' is unknown; allowed: 'auto', 'float32'"),
        ({"dtype": "int8"}, "dtype='int8' is unknown"),
        ({"dtype": torch.int64}, "dtype=torch.int64 is unknown"),
        ({"dtype": None}, "dtype=None is unknown"),
        ({"device": "gpu"}, "device='gpu' cannot be used"),
        ({"device": 1.5}, "device=1.5 cannot be used"),
        ({"device": "meta"}, "device='meta' cannot be used"),
        ({"ref": "/no/reference"}, "no model folder at '/no/reference'"),
        ({"ref": 7}, "given by name or folder, received int"),
    ],
)
def test_a_bad_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tk.load_model(options.pop("name_or_path", None), **options)


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="torch_dtype"):
        tk.load_model(torch_dtype="float32")


def test_a_folder_without_weights_is_refused(folders, tmp_path):
    """Also one with pickled weights only: reading those can run code."""
    shutil.copy(folders["llama"] / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"holds no weights: expected \*\.safetensors"):
        tk.load_model(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no weights: expected \*\.safetensors"):
        tk.load_model(tmp_path)


def test_half_a_weight_file_is_refused(folders, tmp_path):
    shutil.copytree(folders["llama"], tmp_path, dirs_exist_ok=True)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(3000)
    with pytest.raises(ValueError, match="cannot load"):
        tk.load_model(tmp_path)


def test_a_checkpoint_without_a_head_is_refused(tmp_path):
    """A base or reward model would get a random head, and all its numbers would be noise."""
    shapes.model("llama", torch.float32).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"hold no lm_head\.weight, which would be random"):
        tk.load_model(tmp_path)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_a_folder_without_a_tokenizer_is_refused(shape, tmp_path):
    """GPT-2's tokenizer class is otherwise built with an empty vocabulary."""
    shapes.model(shape, torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer found for"):
        tk.load_model(tmp_path)


def encoder_decoder():
    config = transformers.T5Config(
        vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    return transformers.T5ForConditionalGeneration(config)


def encoder():
    config = transformers.BertConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    return transformers.BertLMHeadModel(config)


def headless():
    return shapes.model("gpt2").transformer


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (encoder_decoder, "T5ForConditionalGeneration is an encoder-decoder"),
        (encoder, "BertLMHeadModel lets a token see those after it"),
        (headless, "GPT2Model has no output embedding; load it with AutoModelForCausalLM"),
    ],
)
def test_a_model_that_is_no_decoder_is_refused(build, message):
    """A bidirectional model gives log-probabilities that have seen the answer."""
    with pytest.raises(ValueError, match=f"^model: {message}"):
        tk.Policy(build(), shapes.Letters())
    with pytest.raises(ValueError, match=f"^ref_model: {message}"):
        tk.Policy(shapes.model("gpt2"), shapes.Letters(), build())


@pytest.mark.parametrize("build", [encoder_decoder, encoder])
def test_a_folder_with_such_a_model_is_refused(build, tmp_path):
    build().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(SHIPPED_MODEL).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"AutoModelForCausalLM|lets a token see"):
        tk.load_model(tmp_path)


# --- the reference ---


@pytest.mark.parametrize("kind", ["live", "policy", "folder"])
def test_a_second_model_is_the_reference(kind, folders):
    """Swapping model and reference, or scoring one twice, gives the wrong log-ratios."""
    tokenizer = shapes.Letters()
    if kind == "live":
        policy = tk.Policy(
            shapes.model("llama", torch.float32), tokenizer, shapes.model("gpt2", torch.float32)
        )
    else:
        ref = folders["gpt2"] if kind == "folder" else tk.load_model(folders["gpt2"])
        policy = tk.load_model(folders["llama"], ref=ref)
    pairs = shapes.ragged_pairs()
    results = tk.per_token_logps(policy, pairs)
    for prefix, shape in (("", "llama"), ("ref_", "gpt2")):
        own = tk.per_token_logps(shapes.policy(shape, torch.float32), pairs)
        np.testing.assert_array_equal(sums(results, prefix), sums(own))
    assert policy.ref_name == policy.labels("all").ref != "same weights"


@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_reference_the_model_is_its_own(shape):
    policy = shapes.policy(shape)
    results = tk.per_token_logps(policy, shapes.ragged_pairs())
    np.testing.assert_array_equal(sums(results), sums(results, "ref_"))
    assert policy.labels("all").ref == "same weights"


def test_a_reference_with_another_vocabulary_is_refused():
    """Its log-probabilities would be of other tokens."""
    config = shapes.CONFIGS["gpt2"]()
    config.vocab_size = 50
    other = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="ref_model scores 50 tokens but the model scores 61"):
        tk.Policy(shapes.model("gpt2"), shapes.Letters(), other)


def test_a_reference_with_a_shorter_context_sets_the_limit():
    """Its position table ends earlier: without the limit the forward pass ends in an IndexError."""
    config = shapes.CONFIGS["gpt2"]()
    config.n_positions = 8
    policy = tk.Policy(
        shapes.model("gpt2"), shapes.Letters(), AutoModelForCausalLM.from_config(config)
    )
    assert policy.context_length == 8
    with pytest.raises(tk.PairError, match="9 tokens, but the limit is 8"):
        tk.per_token_logps(policy, shapes.encoded("long", [5] * 5, [6] * 4, [7]))


def test_text_with_a_token_beyond_the_embedding_is_refused_and_audited():
    """As after tokenizer.add_tokens without resize_token_embeddings."""
    policy = tk.load_model()
    count = policy.vocabulary
    policy.tokenizer.add_tokens([f"<new{i}>" for i in range(count - len(policy.tokenizer) + 1)])
    last = policy.tokenizer.decode(count)
    good = tk.PreferencePair("good", "Is it?", " Yes", " No", row=0)
    bad = tk.PreferencePair("bad", "Is it?", " Yes", f" No{last}", row=1)
    with pytest.raises(tk.PairError, match=rf"row 1 .*rejected: .*vocabulary of {count}"):
        tk.per_token_logps(policy, [good, bad])
    audit = tk.audit_pairs([good, bad], policy)
    assert audit["usable"].tolist() == [True, False]
    assert audit["reason"][1] == f"token id {count} is outside the model's vocabulary of {count}"


# --- adapters ---


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_the_reference_of_an_adapter_is_the_model_without_it(shape):
    """And the adapter is on again afterwards, for the policy's own numbers."""
    policy, base = tk.Policy(lora(shape), shapes.Letters()), shapes.policy(shape)
    pairs = shapes.ragged_pairs()
    results = tk.per_token_logps(policy, pairs)
    np.testing.assert_allclose(
        sums(results, "ref_"), sums(tk.per_token_logps(base, pairs)), rtol=1e-9
    )
    assert np.abs(sums(results) - sums(results, "ref_")).min() > 1e-3
    np.testing.assert_array_equal(sums(tk.per_token_logps(policy, pairs)), sums(results))
    assert policy.labels("lora").ref == "base model, adapter off"


def test_lora_selects_a_and_b_alone():
    policy = tk.Policy(lora(), shapes.Letters())
    names = list(policy.parameters_in("lora"))
    assert len(names) == 4 and all("lora_A" in n or "lora_B" in n for n in names)
    assert set(policy.parameters_in("all")) == set(names)
    with pytest.raises(ValueError, match="params='lora' matches no parameter"):
        shapes.policy("gpt2").parameters_in("lora")


def test_at_initialisation_only_b_has_a_gradient():
    """With B = 0 the gradient of A vanishes (A.5), and the whole norm is B's."""
    policy, pair = tk.Policy(lora(fill=False), shapes.Letters()), shapes.ragged_pairs()[0]
    a, b, both = (
        tk.pair_stats(policy, pair, params=p, progress=False) for p in ("lora_A", "lora_B", "lora")
    )
    assert a.chosen_sq_norm[0] == a.rejected_sq_norm[0] == a.inner[0] == 0
    assert both.chosen_sq_norm[0] == b.chosen_sq_norm[0] > 0 and both.inner[0] == b.inner[0]
    assert np.isnan(a.cosine[0])


def test_an_adapter_folder_makes_the_round_trip(folders, tmp_path):
    own = lora()
    own.save_pretrained(tmp_path)
    policy = tk.load_model(folders["gpt2"], adapter=tmp_path, dtype="float64")
    pairs = shapes.ragged_pairs()
    expected = tk.per_token_logps(tk.Policy(own, shapes.Letters()), pairs)
    assert all(p.requires_grad for p in policy.parameters_in("lora").values())
    results = tk.per_token_logps(policy, pairs)
    for prefix in ("", "ref_"):
        np.testing.assert_allclose(sums(results, prefix), sums(expected, prefix), rtol=1e-5)


def test_a_bad_adapter_is_refused(folders, tmp_path):
    """A pickled adapter too, and an adapter folder in the place of the model."""
    lora().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds an adapter, not a model.*adapter="):
        tk.load_model(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors, the only format"):
        tk.load_model(folders["gpt2"], adapter=tmp_path)
    with pytest.raises(ValueError, match=r"cannot load adapter '/no/adapter'.*no such folder"):
        tk.load_model(folders["gpt2"], adapter="/no/adapter")


def test_a_missing_peft_says_how_to_install_it(folders, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "preference-entanglement-toolkit\[peft\]"'):
        tk.load_model(folders["gpt2"], adapter="somewhere")


# --- parameter sets ---


def test_parameter_sets():
    """A tied head is the shared matrix, once; an untied one is lm_head alone."""
    gpt2, llama = shapes.policy("gpt2"), shapes.policy("llama")
    assert list(gpt2.parameters_in("head")) == ["transformer.wte.weight"]
    assert list(llama.parameters_in("head")) == ["lm_head.weight"]
    everything = dict(llama.model.named_parameters())
    assert set(llama.parameters_in("all")) == set(everything)
    assert set(gpt2.parameters_in("ln_f")) == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    biases = gpt2.parameters_in(lambda name, p: p.dim() == 1 and name.endswith("bias"))
    assert biases and all(n.endswith("bias") for n in biases)

    llama.model.lm_head.requires_grad_(False)
    assert set(llama.parameters_in("all")) == set(everything) - {"lm_head.weight"}
    assert "lm_head.weight" in llama.parameters_in("head")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("layer_99", "params='layer_99' matches no parameter; allowed: 'all', 'head', 'lora'"),
        ("[", r"params='\[' is not a valid regular expression"),
        (None, "params must be a string or a predicate, received None"),
        (lambda name, p: False, "matches no parameter"),
    ],
)
def test_a_bad_parameter_set_is_refused(params, message):
    with pytest.raises(ValueError, match=message):
        shapes.policy("gpt2").parameters_in(params)


def test_a_quantised_parameter_is_refused():
    policy = shapes.policy("llama")
    whole = torch.ones(3, dtype=torch.int8)
    policy.model.model.scale = torch.nn.Parameter(whole, requires_grad=False)
    with pytest.raises(ValueError, match=r"model\.scale is torch\.int8"):
        policy.parameters_in("scale")


def test_labels_name_a_predicate():
    def only_norms(name, p):
        return "norm" in name

    labels = shapes.policy("llama").labels(only_norms)
    assert labels.to_attrs() == {
        "model": "llama",
        "params": "only_norms",
        "dtype": "float64",
        "append_eos": True,
        "token_mask": "all scored tokens",
        "optimizer_metric": "euclidean",
        "ref": "same weights",
        "truncation": "none",
    }


# --- options ---


def test_with_options_is_another_view_on_the_same_weights():
    policy = shapes.policy("gpt2")
    view = policy.with_options(append_eos=False, max_length=20, name="short")
    assert view.model is policy.model
    assert (view.append_eos, view.context_length, view.name) == (False, 20, "short")
    assert (policy.append_eos, policy.context_length, policy.name) == (True, 64, "gpt2")
    assert view.labels("all").append_eos is False
    assert policy.with_options(max_length=500).context_length == 64


def test_append_eos_reaches_the_encoding():
    policy = tk.load_model()
    pair = tk.PreferencePair("a", "Is it fine?", " Yes", " No")
    on, off = policy.encode(pair), policy.with_options(append_eos=False).encode(pair)
    assert on.chosen_length == off.chosen_length + 1
    assert on.chosen_ids[-1] == policy.tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length must be None or a positive integer, received 0"),
        ({"max_length": -1}, "max_length must be None or a positive integer, received -1"),
        ({"max_length": 2.5}, "max_length must be None or a positive integer, received 2.5"),
        ({"append_eos": "no"}, "append_eos must be True or False, received 'no'"),
    ],
)
def test_a_bad_policy_option_is_refused(options, message):
    """An option of 0 was read as no limit, and a text as true."""
    with pytest.raises(ValueError, match=message):
        shapes.policy("gpt2").with_options(**options)
    with pytest.raises(ValueError, match=message):
        shapes.policy("gpt2", **options)


def test_an_unknown_policy_option_is_refused():
    with pytest.raises(ValueError, match="unknown option 'beta': allowed are append_eos"):
        shapes.policy("gpt2").with_options(beta=1)


# --- encoded pairs ---


def with_chosen(ids, mask):
    good = shapes.ragged_pairs()[0]
    return tk.EncodedPair(
        "bad",
        torch.tensor(ids),
        torch.tensor(mask, dtype=torch.bool),
        good.rejected_ids,
        good.rejected_mask,
        append_eos=False,
        boundary_merge=False,
    )


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([1, 2, 3], [1, 1, 1], "chosen: the first token is scored"),
        ([1, 2, 3], [0, 0, 0], "chosen: the mask must"),
        ([1, 2, 3], [0, 1], "chosen: the mask must"),
        ([1, 2, 61], [0, 1, 1], "chosen: a token id is outside the model's vocabulary of 61"),
        ([1, -2, 3], [0, 1, 1], "chosen: a token id is outside the model's vocabulary of 61"),
        ([1] * 65, [0] * 64 + [1], "chosen: 65 tokens, but the limit is 64"),
    ],
)
def test_an_encoded_pair_that_cannot_be_scored_is_refused(ids, mask, message):
    """Scoring the first token silently reads the logits one position too late."""
    with pytest.raises(tk.PairError, match=f"pair 'bad': {message}"):
        tk.per_token_logps(shapes.policy("gpt2"), with_chosen(ids, mask))


@pytest.mark.parametrize("pairs", [[], [None], ["text"], [shapes.ragged_pairs()[0], 3]])
def test_what_is_no_pair_is_refused(pairs):
    with pytest.raises(ValueError, match=r"pairs is empty|pairs\[\d\] is"):
        tk.per_token_logps(shapes.policy("gpt2"), pairs)


# --- the forward pass ---


def every_model():
    yield from ((shape, shapes.policy(shape)) for shape in SHAPES)
    yield "lora", tk.Policy(lora(), shapes.Letters())


@pytest.mark.parametrize("size", [1, 2, 3, None])
def test_batches_padding_and_order_change_nothing(size):
    """T15 on every model: each row equals its own unbatched, unpadded run."""
    pairs = shapes.ragged_pairs()[::-1]
    for name, policy in every_model():
        results = tk.per_token_logps(policy, pairs, batch_size=size)
        assert [r.pair_id for r in results] == [p.id for p in pairs]
        for pair, got in zip(pairs, results, strict=True):
            alone = [reference.token_logps(policy.model.eval(), *s) for s in reference.sides(pair)]
            torch.testing.assert_close(got.chosen, alone[0].detach(), rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(got.rejected, alone[1].detach(), rtol=1e-6, atol=1e-7)
            assert len(got.chosen_tokens) == len(got.chosen), name


@pytest.mark.parametrize("shape", SHAPES)
def test_left_padding_gives_the_same(shape):
    """T15: with a mask and shifted positions, padding on the left is the same model."""
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs()
    rows = [s for p in pairs for s in reference.sides(p)]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.stack([torch.cat([torch.full((longest - len(i),), 3), i]) for i, _ in rows])
    on = torch.stack([torch.arange(longest) >= longest - len(i) for i, _ in rows]).long()
    positions = (on.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = policy.model.eval()(ids, attention_mask=on, position_ids=positions).logits
    got = [v for r in tk.per_token_logps(policy, pairs) for v in (r.chosen, r.rejected)]
    for (row, mask), scores, values in zip(rows, logits, got, strict=True):
        scores = scores[longest - len(row) :].log_softmax(-1)
        expected = scores[:-1].gather(-1, row[1:, None])[:, 0][mask[1:]]
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_padding_id_is_never_seen(shape, monkeypatch):
    policy, pairs = shapes.policy(shape), shapes.ragged_pairs()
    before = sums(tk.per_token_logps(policy, pairs))
    shapes.pad_with(monkeypatch, 37)
    np.testing.assert_allclose(sums(tk.per_token_logps(policy, pairs)), before, rtol=1e-9)


def test_padding_is_not_taken_for_text_by_transformers():
    """With pad_token_id 0 the library warns of padding without a mask: nothing to warn of."""
    policy = shapes.policy("gpt2")
    pairs = shapes.ragged_pairs()  # some begin or end with id 0 themselves
    assert policy.model.config.pad_token_id == 0
    transformers.utils.logging.warning_once.cache_clear()
    seen, handler = [], logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    library = logging.getLogger("transformers")
    library.addHandler(handler)
    try:
        tk.per_token_logps(policy, pairs)
        tk.similarity(policy, pairs, progress=False)
    finally:
        library.removeHandler(handler)
    assert not [message for message in seen if "attention_mask" in message]


def test_a_mask_with_a_hole_scores_its_tokens_alone():
    policy, pair = shapes.policy("gpt2"), with_chosen([1, 2, 3, 4, 5], [0, 1, 0, 0, 1])
    got = tk.per_token_logps(policy, pair)[0]
    expected = reference.token_logps(policy.model.eval(), pair.chosen_ids, pair.chosen_mask)
    torch.testing.assert_close(got.chosen, expected.detach())
    assert got.chosen_tokens == ["<2>", "<5>"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_float32_log_probabilities(dtype):
    """The log-softmax of bfloat16 logits has two digits."""
    policy = shapes.policy("llama", dtype)
    pair = shapes.ragged_pairs()[0]
    got = tk.per_token_logps(policy, pair)[0]
    assert got.chosen.dtype == got.ref_rejected.dtype == torch.float32
    with torch.no_grad():
        logits = policy.model(pair.chosen_ids[None]).logits[0].float()
    expected = logits.log_softmax(-1)[:-1].gather(-1, pair.chosen_ids[1:, None])[2:, 0]
    torch.testing.assert_close(got.chosen, expected, rtol=0.02, atol=0.02)
    assert not torch.equal(got.chosen, got.chosen.to(dtype).float())


def test_a_forward_pass_without_logits_to_keep_gives_the_same():
    """Models whose forward has no such argument compute all logits; the slice must agree."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    before = sums(tk.per_token_logps(policy, pairs))
    own = policy.model.forward
    policy.model.forward = lambda input_ids, attention_mask=None, use_cache=None: own(input_ids)
    np.testing.assert_allclose(sums(tk.per_token_logps(policy, pairs)), before, rtol=1e-12)


# --- the model is left alone ---


def with_dropout():
    """A model in training mode, one part of it in evaluation mode."""
    policy = shapes.policy("gpt2")
    policy.model.train()
    policy.model.transformer.h[1].eval()
    return policy, [m.training for m in policy.model.modules()]


def test_dropout_is_off_and_every_modules_mode_restored():
    policy, modes = with_dropout()
    assert policy.model.config.resid_pdrop > 0
    one, two = (sums(tk.per_token_logps(policy, shapes.ragged_pairs())) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert [m.training for m in policy.model.modules()] == modes


@pytest.mark.parametrize("which", ["model", "ref_model"])
def test_modes_are_restored_after_an_error(which):
    policy, modes = with_dropout()
    policy.ref_model = shapes.model("gpt2").train()
    broken = getattr(policy, which)
    broken.transformer.ln_f.forward = lambda states: 1 / 0
    with contextlib.suppress(ZeroDivisionError):
        tk.per_token_logps(policy, shapes.ragged_pairs())
        pytest.fail("nothing was raised")
    assert [m.training for m in policy.model.modules()] == modes
    assert all(m.training for m in policy.ref_model.modules())


def test_an_adapter_is_on_again_after_an_error():
    policy = tk.Policy(lora(), shapes.Letters())
    before = sums(tk.per_token_logps(policy, shapes.ragged_pairs()))
    inner = policy.model.get_base_model().transformer.ln_f
    own, calls = inner.forward, []

    def fails_the_second_time(states):
        calls.append(1)
        return own(states) if len(calls) == 1 else 1 / 0

    inner.forward = fails_the_second_time
    with pytest.raises(ZeroDivisionError):
        tk.per_token_logps(policy, shapes.ragged_pairs())
    inner.forward = own
    np.testing.assert_array_equal(sums(tk.per_token_logps(policy, shapes.ragged_pairs())), before)


def test_scoring_without_the_adapter_thaws_nothing():
    """On its way out, peft's context makes every adapter weight trainable."""
    policy = tk.Policy(lora(), shapes.Letters())
    for name, p in policy.parameters_in("lora_A").items():
        p.requires_grad_("h.0" in name)
    before = {n: p.requires_grad for n, p in policy.model.named_parameters()}
    tk.per_token_logps(policy, shapes.ragged_pairs())
    assert {n: p.requires_grad for n, p in policy.model.named_parameters()} == before


def test_no_graph_and_no_gradient_is_left():
    policy = shapes.policy("llama")
    result = tk.per_token_logps(policy, shapes.ragged_pairs())[0]
    assert not result.chosen.requires_grad and not result.ref_chosen.requires_grad
    assert all(p.grad is None and p.requires_grad for p in policy.model.parameters())


def test_repr_says_what_it_is():
    text = repr(shapes.policy("gpt2"))
    for part in ("'gpt2'", "GPT2LMHeadModel", "float64", "cpu", "reference: same weights"):
        assert part in text


def test_longrope_rows_past_the_switch_are_refused():
    """Past it one long row would change the rotary factors of every other row in the batch."""
    from transformers import AutoModelForCausalLM, Phi3Config

    config = Phi3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=12,
        pad_token_id=0,
        eos_token_id=1,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 12,
        },
    )
    model = AutoModelForCausalLM.from_config(config).double()
    policy = tk.Policy(model, shapes.Letters())
    assert policy.context_length == 12
    short, near = (shapes.encoded(str(n), [5] * n, [6, 7], [8, 9]) for n in (3, 10))
    alone = tk.per_token_logps(policy, short)[0]
    together = tk.per_token_logps(policy, [short, near])[0]
    torch.testing.assert_close(alone.chosen, together.chosen)
    with pytest.raises(tk.PairError, match="13 tokens, but the limit is 12"):
        tk.per_token_logps(policy, shapes.encoded("long", [5] * 11, [6, 7], [8, 9]))


# --- checkpoints that are not what they say ---


def test_a_name_without_a_network_is_one_sentence_and_one_attempt(monkeypatch, tmp_path):
    """A model and a dataset: every connection fails here, and none is tried again and again."""
    import socket

    from huggingface_hub import constants

    tries = []

    def refuse(*args, **kwargs):
        tries.append(args)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits to try again"))
    with pytest.raises(ValueError, match=r"'nope/none' is no local folder.*did not answer") as e:
        tk.load_model("nope/none")
    assert "\n" not in str(e.value) and 1 <= len(tries) <= 2
    pytest.importorskip("datasets")
    tries.clear()
    with pytest.raises(ValueError, match=r"source: 'nope/none' is no local.*did not answer"):
        tk.load_pairs("nope/none")
    assert len(tries) == 1


def edited(folder, tmp_path, **values):
    """A copy of a model folder with other values in its config."""
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | values))
    return copy


def test_an_index_that_names_a_pickle_is_refused(folders, tmp_path):
    """Also beside a good file: what is read must be safetensors alone."""
    copy = edited(folders["llama"], tmp_path)
    weights = transformers.AutoModelForCausalLM.from_pretrained(folders["llama"]).state_dict()
    torch.save(weights, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names 'pytorch_model\.bin'; only \.safetensors files"):
        tk.load_model(copy)
    with pytest.raises(ValueError, match=r"names 'pytorch_model\.bin'"):
        tk.load_model(folders["llama"], ref=copy)
    (copy / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(ValueError, match=r"the index .* cannot be read"):
        tk.load_model(copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 1}, r"hold model\.layers\.1\..*config has no layer"),
        ({"num_attention_heads": 0}, "cannot load"),
        ({"hidden_act": "nonsense"}, "cannot load"),
        ({"model_type": "nonsense"}, "cannot load"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused(values, message, folders, tmp_path):
    with pytest.raises(ValueError, match=message):
        tk.load_model(edited(folders["llama"], tmp_path, **values))


def test_a_reference_with_another_tokenizer_of_the_same_size_is_refused(folders, tmp_path):
    copy = edited(folders["llama"], tmp_path)
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other = list(vocabulary)[500:502]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    file.write_text(json.dumps(content), encoding="utf-8")
    for ref in (copy, tk.load_model(copy)):
        with pytest.raises(ValueError, match=r"ref: its tokenizer differs .* first at token"):
            tk.load_model(folders["llama"], ref=ref)
    assert tk.load_model(folders["llama"], ref=folders["llama"]).ref_model is not None


def test_an_adapter_that_is_not_whole_is_refused(folders, tmp_path):
    """Matrices missing from the file, matrices too many, and a method that does not exist."""
    from safetensors.torch import load_file, save_file

    lora().save_pretrained(tmp_path)
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    weights = load_file(file)
    first, *rest = sorted(weights)
    save_file({name: weights[name] for name in rest}, file)
    with pytest.raises(ValueError, match=r"hold no .*lora_A.* \(1 of \d+ missing\)"):
        tk.load_model(folders["gpt2"], adapter=tmp_path)
    other = first.replace(".0.", ".7.")
    save_file({**weights, other: weights[first].clone()}, file)
    with pytest.raises(ValueError, match=r"hold .*\.7\..*, for which the model has no place"):
        tk.load_model(folders["gpt2"], adapter=tmp_path)
    save_file(weights, file)
    assert tk.load_model(folders["gpt2"], adapter=tmp_path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "NONSENSE"}))
    with pytest.raises(ValueError, match=r"cannot load adapter .*NONSENSE"):
        tk.load_model(folders["gpt2"], adapter=tmp_path)


# --- truncation ---


def test_a_policy_cuts_on_request_and_says_so():
    policy = tk.load_model()
    cut = policy.with_options(max_length=12, truncation="keep_start")
    pair = tk.PreferencePair("a", "Is it fine?", " Yes" * 30, " No")
    with pytest.raises(tk.PairError, match="truncation="):
        policy.with_options(max_length=12).encode(pair)
    enc = cut.encode(pair)
    assert len(enc.chosen_ids) == 12 and enc.truncated
    again = cut.encode(policy.encode(pair))  # encoded before, without a limit
    assert torch.equal(again.chosen_ids, enc.chosen_ids)
    assert torch.equal(again.chosen_mask, enc.chosen_mask)
    whole, part = tk.per_token_logps(policy, pair)[0], tk.per_token_logps(cut, pair)[0]
    torch.testing.assert_close(part.chosen, whole.chosen[: len(part.chosen)])
    frame = tk.similarity(cut, [pair], progress=False)
    assert frame.attrs["truncation"] == "keep_start, 12 tokens"
    assert policy.labels("all").truncation == "none"
    assert "cut: keep_start, 12 tokens" in tk.plots.caption(frame)
    assert "cut" not in tk.plots.caption(tk.similarity(policy, [pair], progress=False))


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_an_encoded_pair_is_cut_as_its_text_is(mode):
    """The first token that is kept is scored only if it is not the first of the row."""
    policy = tk.load_model()
    pair = tk.PreferencePair("a", "Is it fine?", " Yes, all of it is fine with me", " No")
    for length in range(4, 20):
        cut = policy.with_options(max_length=length, truncation=mode)
        try:
            enc = cut.encode(pair)
        except tk.PairError:
            with pytest.raises(tk.PairError, match="scored"):
                cut.encode(policy.encode(pair))
            continue
        again = cut.encode(policy.encode(pair))
        for name in ("chosen_ids", "chosen_mask", "rejected_ids", "rejected_mask"):
            assert torch.equal(getattr(enc, name), getattr(again, name)), (length, name)


def test_a_bad_truncation_is_refused():
    for value in ("left", True, 0):
        with pytest.raises(ValueError, match=r"truncation=.* allowed: None, keep_start, keep_end"):
            tk.load_model().with_options(truncation=value)
