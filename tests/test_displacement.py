"""Mass flow against a bare float64 forward, single-token theory against autograd with free W, h."""

import copy

import numpy as np
import pandas as pd
import pytest
import reference
import shapes
import torch

import toolkit as tk
from toolkit.displacement import (
    displacement_verdict,
    mass_by_word,
    mass_flow,
    single_token_theory,
)
from toolkit.losses import quantities
from toolkit.model.tokens import legible_texts

SHAPES = ["gpt2", "llama", "qwen2"]
# Their norms compute in float32 whatever the weights are.
ROUNDING = {"gpt2": 1e-11, "llama": 1e-6, "qwen2": 1e-6}
COLUMNS = ["pair_id", "position", "context_token", "token", "token_id", "prob_before"]
COLUMNS += ["prob_after", "delta", "logp_delta", "direction", "role", "group"]
COLUMNS += ["given_group", "group_delta"]
COLUMNS += ["theory_score", "theory_rank"]
TEXTS = [" Yes", "yes", "YES", "Sure", " no", "No", "Never", "\n", " ", "perhaps"]


class Words(shapes.Letters):
    """Token ids as words, so that spellings can be grouped."""

    def decode(self, ids, **_):
        i = int(ids[0])
        return TEXTS[i] if i < len(TEXTS) else f"<{i}>"


def two(shape, seeds=(0, 1), tokenizer=None):
    """Two policies of one shape with different weights."""
    made = [shapes.policy(shape, seed=s) for s in seeds]
    for p in made:
        p.tokenizer = tokenizer or p.tokenizer
    return made


def pair_of(prompt, chosen, rejected):
    return shapes.encoded("p", prompt, chosen, rejected)


SUFFIX = shapes.ragged_pairs()[1]  # shared completion 20, 21, then 22 against 23


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_are_those_of_a_bare_forward(shape):
    """A shift by one position, or padding that leaks in, changes every number."""
    before, after = two(shape)
    frame = mass_flow(before, after, SUFFIX, top_k=None, position="all")
    for at in range(4):
        rows = frame[frame["position"] == at].sort_values("token_id")
        logps = []
        for policy in (before, after):
            with torch.no_grad():
                ids = SUFFIX.chosen_ids[None, : 5 + at]
                logps.append(reference.double(policy.model)(ids).logits[0, -1].log_softmax(-1))
        np.testing.assert_allclose(rows["prob_before"], logps[0].exp(), rtol=ROUNDING[shape])
        np.testing.assert_allclose(rows["prob_after"], logps[1].exp(), rtol=ROUNDING[shape])
        np.testing.assert_allclose(rows["logp_delta"], logps[1] - logps[0], atol=ROUNDING[shape])
        delta = rows["prob_after"] - rows["prob_before"]
        np.testing.assert_allclose(rows["delta"], delta, atol=1e-15)
        assert abs(rows["delta"].sum()) < 1e-14 and len(rows) == shapes.VOCAB


def test_default_position_is_the_first_difference_and_roles_are_its_tokens():
    frame = mass_flow(*two("llama"), SUFFIX, top_k=3)
    assert frame.columns.tolist() == COLUMNS and set(frame["position"]) == {2}
    assert set(frame["context_token"]) == {"<21>"} and set(frame["pair_id"]) == {"prefix"}
    roles = frame[frame["role"] != ""].set_index("role")["token_id"].to_dict()
    assert roles == {"chosen": 22, "rejected": 23}
    assert frame.attrs["model"] == "llama" and frame.attrs["after"] == "llama"


def test_only_the_contrast_has_a_rejected_token_and_a_theory():
    """After the sides part, the rejected token belongs to another context."""
    frame = mass_flow(*two("gpt2"), SUFFIX, top_k=2, position="all")
    assert frame.loc[frame["role"] == "chosen", "position"].tolist() == [0, 1, 2, 3]
    assert frame.loc[frame["role"] == "rejected", "position"].tolist() == [2]
    known = frame.groupby("position")["theory_score"].count()
    assert (known[[0, 1, 3]] == 0).all() and known[2] > 0
    alone = mass_flow(*two("gpt2"), SUFFIX, top_k=2, position=3)
    assert alone["token_id"].tolist() == frame.loc[frame["position"] == 3, "token_id"].tolist()


@pytest.mark.parametrize("top_k", [1, 4, 1000])
def test_top_k_keeps_the_extremes_and_both_tokens_of_the_pair(top_k):
    policies = two("qwen2")
    whole = mass_flow(*policies, SUFFIX, top_k=None)
    kept = mass_flow(*policies, SUFFIX, top_k=top_k)
    gains, losses = whole[whole["delta"] > 0], whole[whole["delta"] < 0]
    wanted = {*gains["token_id"][:top_k], *losses["token_id"][-top_k:], 22, 23}
    assert set(kept["token_id"]) == wanted
    assert kept["delta"].is_monotonic_decreasing
    assert (
        np.sign(kept["delta"]) == kept["direction"].map({"gain": 1, "loss": -1, "none": 0})
    ).all()
    again = whole.set_index("token_id").loc[kept["token_id"]].reset_index()
    np.testing.assert_array_equal(kept["group_delta"], again["group_delta"])


def test_theory_score_and_rank():
    before, after = two("llama")
    frame = mass_flow(before, after, SUFFIX, top_k=None)
    weight = before.model.get_output_embeddings().weight.detach()
    scores = weight @ (weight[22] - weight[23])
    by_token = frame.set_index("token_id").sort_index()
    np.testing.assert_allclose(by_token["theory_score"], scores, atol=1e-12)
    order = by_token.sort_values("theory_rank").index
    assert order[0] == int(scores.argmax()) and order[-1] == int(scores.argmin())
    assert sorted(by_token["theory_rank"]) == list(range(1, shapes.VOCAB + 1))


def test_identical_policies_move_nothing():
    policy = shapes.policy("gpt2")
    whole = mass_flow(policy, policy, SUFFIX, top_k=None)
    assert (whole[["delta", "logp_delta", "group_delta"]] == 0).all().all()
    assert set(whole["direction"]) == {"none"}
    assert mass_flow(policy, policy, SUFFIX)["role"].tolist() == ["chosen", "rejected"]


def test_exchanging_the_policies_turns_every_sign():
    one, other = two("qwen2")
    there = mass_flow(one, other, SUFFIX, top_k=None).set_index("token_id").sort_index()
    back = mass_flow(other, one, SUFFIX, top_k=None).set_index("token_id").sort_index()
    for name in ("delta", "logp_delta", "group_delta"):
        np.testing.assert_allclose(there[name], -back[name], atol=1e-15)


def test_spellings_are_one_group_and_their_changes_add_up():
    """B.6: ' Yes' that becomes 'yes' is no displacement."""
    pair = pair_of([30, 31], [0], [5])
    frame = mass_flow(*two("llama", tokenizer=Words()), pair, top_k=None).set_index("token_id")
    assert frame.loc[[0, 1, 2], "group"].tolist() == ["yes"] * 3
    assert frame.loc[[4, 5], "group"].tolist() == ["no"] * 2
    assert frame.loc[[7, 8], "group"].tolist() == ["\n", " "]
    total = frame.loc[[0, 1, 2], "delta"].sum()
    np.testing.assert_allclose(frame.loc[[0, 1, 2], "group_delta"], total, atol=1e-16)


def test_a_word_gains_what_its_spellings_gain_together():
    pair = pair_of([30, 31], [0], [5])
    flow = mass_flow(*two("llama", tokenizer=Words()), pair, top_k=None)
    words = mass_by_word(flow)
    assert words["delta"].is_monotonic_decreasing and words["word"].is_unique
    np.testing.assert_allclose(words["delta"].sum(), 0, atol=1e-12)
    yes = words.set_index("word").loc["yes"]
    own = flow[flow["group"] == "yes"]
    np.testing.assert_allclose(yes["delta"], own["delta"].sum(), atol=1e-16)
    assert set(yes["spellings"]) == set(own["token"]) and len(own) == 3
    assert abs(own.set_index("token")["delta"][yes["spellings"][0]]) == own["delta"].abs().max()
    assert yes["role"] == "chosen" and words.set_index("word").loc["no", "role"] == "rejected"
    two_best = mass_by_word(flow, top_k=2)
    assert two_best["word"].tolist() == words["word"].tolist()[:2]
    # A frame of the largest changes alone knows the whole change of the words in it.
    largest = mass_by_word(mass_flow(*two("llama", tokenizer=Words()), pair, top_k=1))
    known = words.set_index("word").loc[largest["word"], "delta"]
    np.testing.assert_allclose(largest["delta"], known, atol=1e-16)
    with pytest.raises(ValueError, match=r"give a frame from tk\.mass_flow"):
        mass_by_word(flow.drop(columns="group"))


def test_users_groups_take_every_spelling_of_a_word():
    pair = pair_of([30, 31], [5], [6])
    groups = {"agree": ["YES", " sure"], "refuse": ["no", "never"]}
    frame = mass_flow(*two("llama", tokenizer=Words()), pair, top_k=None, groups=groups)
    found = frame.set_index("token_id")["group"]
    assert found[[0, 1, 2, 3]].tolist() == ["agree"] * 4
    assert found[[4, 5, 6]].tolist() == ["refuse"] * 3
    assert found[9] == "perhaps" and frame.attrs["groups"] == groups


GROUPS = {"agree": ["yes", "sure"], "refuse": ["no", "never"]}


def moved_to(target, chosen=5, rejected=0, groups=GROUPS, **options):
    """The verdict where one token gains most of what the others lose, and the sum of all gains."""
    before, after = two("llama", seeds=(0, 0), tokenizer=Words())
    with torch.no_grad():
        row = after.model.get_output_embeddings().weight
        ids = torch.tensor([[30, 31]])
        state = reference.hidden_states(after.model.eval(), ids[0])[-1]
        row[chosen] -= 3 * state / (state @ state)
        row[target] += 3 * state / (state @ state)
    pair = pair_of([30, 31], [chosen], [rejected])
    frame = mass_flow(before, after, pair, top_k=None, groups=groups)
    return displacement_verdict(frame, **options).iloc[0], frame["delta"].clip(lower=0).sum()


@pytest.mark.parametrize(
    ("target", "rejected", "options", "verdict"),
    [
        (4, 0, {}, "benign"),  # No → ' no', another spelling
        (6, 0, {}, "benign"),  # No → Never, the user's own group
        (1, 0, {}, "catastrophic"),  # No → yes, a spelling of the rejected token
        (3, 0, {}, "catastrophic"),  # No → Sure, the rejected token's group
        (3, 6, {}, "catastrophic"),  # No against Never: the other group is the opposite
        (9, 0, {}, "other"),
        (9, 0, {"opposite": ["perhaps"]}, "catastrophic"),
        (6, 0, {"groups": None}, "other"),  # no group says that No and Never are alike
        (4, 0, {"groups": None}, "benign"),
    ],
)
def test_verdict(target, rejected, options, verdict):
    row, gained = moved_to(target, rejected=rejected, **options)
    assert row["verdict"] == verdict and row["chosen_delta"] < 0
    gains = row[["own_gain", "opposite_gain", "other_gain"]]
    assert gains.sum() == pytest.approx(gained) and gains.max() > 0.9 * gained > 0.01


def test_no_verdict_where_the_chosen_token_did_not_fall():
    policy = shapes.policy("gpt2")
    frame = displacement_verdict(mass_flow(policy, policy, SUFFIX, position="all"))
    assert frame["verdict"].tolist() == ["no drop"] * 4


def test_pieces_of_a_character_are_readable():
    tokenizer = tk.load_model().tokenizer
    ids = tokenizer("é – 漢", add_special_tokens=False)["input_ids"]
    assert not any("\ufffd" in text for text in legible_texts(tokenizer, range(len(tokenizer))))
    joined = "".join(legible_texts(tokenizer, ids))
    raw = joined.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1")
    assert raw.decode() == "é – 漢"


def test_shipped_model_end_to_end():
    before, pair = tk.load_model(), tk.load_pairs("stance", limit=1)[0]
    after = tk.Policy(copy.deepcopy(before.model), before.tokenizer)
    with torch.no_grad():
        after.model.get_output_embeddings().weight.mul_(1.1)
    frame = mass_flow(before, after, pair, top_k=5)
    assert frame.loc[frame["role"] == "chosen", "token"].tolist() == [pair.chosen]
    scored = tk.per_token_logps(before, pair)[0].chosen[0].exp()
    assert frame.set_index("role").loc["chosen", "prob_before"] == pytest.approx(
        float(scored), 1e-5
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be None or a positive integer, received 0"),
        ({"top_k": True}, "top_k must be"),
        ({"position": 4}, "position must be None, 'all' or a whole number from 0 to 3, received 4"),
        ({"position": "some"}, "position must be"),
        ({"position": -1}, "position must be"),
        ({"groups": ["yes"]}, r"groups must map names to lists of words, received \['yes'\]"),
        ({"groups": {"a": "yes"}}, r"groups\['a'\] must be a list of words, received 'yes'"),
        ({"groups": {"a": [1]}}, r"groups\['a'\] must be a list of words"),
        ({"groups": {"a": ["No"], "b": [" no"]}}, "groups has ' no' both in 'a' and in 'b'"),
        ({"pair": "text"}, "pair must be one PreferencePair or EncodedPair, received str"),
        ({"pair": pair_of([1], [2, 3], [2, 3])}, "pair 'p' has no position with one context"),
    ],
)
def test_bad_input_is_refused_by_name(options, message):
    policy = shapes.policy("gpt2")
    pair = options.pop("pair", SUFFIX)
    with pytest.raises(ValueError, match=message):
        mass_flow(policy, policy, pair, **options)


def test_policies_must_agree_on_the_vocabulary():
    before, after = two("gpt2")
    after.model.resize_token_embeddings(shapes.VOCAB + 3)
    with pytest.raises(ValueError, match="after scores 64 tokens but before scores 61"):
        mass_flow(before, after, SUFFIX)


def test_the_verdict_is_in_the_rows_and_survives_what_drops_attrs():
    before, after = two("llama", tokenizer=Words())
    pair = shapes.encoded("p", [4], [5], [6])  # No against Never: the opposite is what was given
    frame = mass_flow(before, after, pair, top_k=None, groups=GROUPS)
    joined = pd.concat([frame, frame.assign(pair_id="q")])
    joined.attrs = {}
    expected = displacement_verdict(frame).drop(columns="pair_id")
    assert (expected["opposite_gain"] > 0).all()
    for _, found in displacement_verdict(joined).groupby("pair_id"):
        found = found.drop(columns="pair_id").reset_index(drop=True)
        pd.testing.assert_frame_equal(found, expected)


def test_the_verdict_shows_the_runs_drawdown_beside_before_and_after():
    policy, pair = shapes.policy("gpt2"), shapes.ragged_pairs()[3]
    run = tk.train(policy, pair, steps=6, lr=3e-2, loss="ipo", progress=False)
    falls = run.drawdown()
    frame = mass_flow(run.policy_at(0), run.policy_at(6), pair, top_k=None)
    bare, found = displacement_verdict(frame), displacement_verdict(frame, drawdown=falls)
    assert list(found.columns) == [*bare.columns, "drawdown", "prob_drawdown"]
    assert found["drawdown"][0] == falls["drawdown"][0] > 0
    assert found["prob_drawdown"][0] == falls["prob_drawdown"][0] > 0
    other = displacement_verdict(frame.assign(pair_id="other"), drawdown=falls)
    assert other[["drawdown", "prob_drawdown"]].isna().all(axis=None)
    with pytest.raises(ValueError, match=r"drawdown must be what Trajectory.drawdown\(\) returns"):
        displacement_verdict(frame, drawdown=run.to_frame()[["pair_id"]])


def test_verdict_refuses_other_frames():
    with pytest.raises(ValueError, match="frame has no column 'delta'"):
        displacement_verdict(mass_flow(*two("gpt2"), SUFFIX).drop(columns="delta"))
    with pytest.raises(ValueError, match="opposite must be a list of group names"):
        displacement_verdict(mass_flow(*two("gpt2"), SUFFIX), opposite="agree")


SINGLE = shapes.ragged_pairs()[3]
LOSS_OPTIONS = [
    ("dpo", {"beta": 0.3}),
    ("ipo", {"tau": 5.0}),
    ("simpo", {}),
    ("cpo", {}),
    ("sft", {}),
    ("kto", {"z": 0.4}),
]


def last_state(model, ids):
    """What one bare forward hands to the output embedding before the last token."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        model.eval()(ids[None])
    hook.remove()
    return seen[0][0, -2]


def free_features(policy, enc):
    """W and h as leaves, and the log-distribution that they give."""
    weight = policy.model.get_output_embeddings().weight.detach().clone()
    leaves = weight, last_state(policy.model, enc.chosen_ids).clone()
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves, lambda w, h: (w @ h).log_softmax(-1)


def by_autograd(policy, enc, loss, hparams):
    """d/dt ln π(z) of every token along −∇ℓ of W and h; and the same along W alone."""
    (w, h), logps = free_features(policy, enc)
    chosen, rejected = int(enc.chosen_ids[-1]), int(enc.rejected_ids[-1])
    row = tk.LOSSES[loss]
    now = logps(w, h)
    ref = now.detach() if policy.ref_model is None else free_logps(policy, enc)
    fields = {
        "chosen_logps": now[chosen, None],
        "rejected_logps": now[rejected, None],
        "ref_chosen_logps": ref[chosen, None],
        "ref_rejected_logps": ref[rejected, None],
        "chosen_length": 1,
        "rejected_length": 1,
    }
    value = quantities.evaluate(row.function, fields, {**row.defaults, **hparams}).sum()
    step = [-g for g in torch.autograd.grad(value, (w, h))]
    leaves = w.detach(), h.detach()
    both = torch.func.jvp(logps, leaves, tuple(step))[1]
    head = torch.func.jvp(logps, leaves, (step[0], torch.zeros_like(h)))[1]
    return both.numpy(), float(head[chosen])


def free_logps(policy, enc):
    with torch.no_grad():
        return policy.ref_model.eval()(enc.chosen_ids[None]).logits[0, -2].log_softmax(-1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("loss", "hparams"), LOSS_OPTIONS)
def test_theory_is_autograd_with_free_features(shape, loss, hparams):
    """B.3 with the indicator extension, and the extra chosen term of losses with two weights."""
    policy = tk.Policy(
        shapes.model(shape), shapes.Letters(), shapes.model(shape, seed=5), append_eos=False
    )
    theory = single_token_theory(policy, SINGLE, loss, **hparams)
    rates, head = by_autograd(policy, SINGLE, loss, hparams)
    scale = np.abs(rates).max()
    np.testing.assert_allclose(theory.rates, rates, rtol=1e-12, atol=1e-12 * scale)
    assert theory.total == pytest.approx(rates[30], rel=1e-12, abs=1e-12 * scale)
    assert theory.head_part == pytest.approx(head, rel=1e-12, abs=1e-12 * scale)
    parts = theory.head_part + theory.feature_part
    assert parts == pytest.approx(theory.total, rel=1e-12, abs=1e-12 * scale)
    assert abs(theory.probs @ theory.rates) < 1e-13 * scale  # T16


def test_the_terms_are_those_of_the_paper():
    """Each term by its own formula: an error that cancels in the total shows here."""
    policy = shapes.policy("llama", append_eos=False)
    theory = single_token_theory(policy, SINGLE, beta=0.3)
    (w, h), logps = free_features(policy, SINGLE)
    w, h, p = w.detach(), h.detach(), logps(w, h).exp().detach()
    a, b, d = w[30], w[31], 0.3 * 0.5
    m = (1 - p[30]) * a @ a + p[31] * b @ b + (1 - p[30] + p[31]) * h @ h
    others = sum(p[z] * w[z] @ (a - b) for z in range(len(p)) if z not in (30, 31))
    assert theory.norm_term == pytest.approx(float(d * m), rel=1e-12)
    align = float(-d * (1 - p[30] + p[31]) * (a @ b))
    assert theory.alignment_term == pytest.approx(align, rel=1e-12)
    assert theory.other_tokens_term == pytest.approx(float(-d * others), rel=1e-12)
    assert theory.chosen_term == 0 and theory.head_part > 0 and theory.norm_term > 0
    np.testing.assert_allclose(theory.scores, w @ (a - b), atol=1e-12)


def test_apart_from_the_pair_rates_follow_the_score():
    """Thm 5: for every other token the rate is d·score plus one constant."""
    frame = single_token_theory(shapes.policy("gpt2", append_eos=False), SINGLE).tokens()
    assert frame["rate"].is_monotonic_decreasing
    others = frame[frame["role"] == ""]
    assert others["theory_rank"].is_monotonic_increasing
    rest = others["rate"] - 0.05 * others["theory_score"]
    assert np.ptp(rest) < 1e-12 and abs(frame["prob_rate"].sum()) < 1e-13
    assert set(frame.loc[frame["role"] != "", "token"]) == {"<30>", "<31>"}


def test_a_small_step_of_flow_moves_mass_as_the_rates_say():
    """mass_flow and the theory are about the same quantity: one real step on W alone."""
    before = shapes.policy("llama", append_eos=False)
    after = shapes.policy("llama", append_eos=False)
    theory = single_token_theory(before, SINGLE)
    (w, h), logps = free_features(before, SINGLE)
    value = -0.05 * (logps(w, h)[30] - logps(w, h)[31])
    (grad,) = torch.autograd.grad(value, w)
    with torch.no_grad():
        after.model.get_output_embeddings().weight.sub_(1e-6 * grad)
    row = mass_flow(before, after, SINGLE).set_index("role").loc["chosen"]
    assert row["logp_delta"] / 1e-6 == pytest.approx(theory.head_part, rel=1e-4)


def test_frame_of_the_theory():
    theory = single_token_theory(shapes.policy("qwen2", append_eos=False), SINGLE, beta=0.2)
    frame = theory.to_frame()
    assert len(frame) == 1 and frame.attrs["loss_name"] == "dpo" and frame.attrs["beta"] == 0.2
    row = frame.iloc[0]
    terms = ["norm_term", "alignment_term", "other_tokens_term", "chosen_term"]
    assert row[terms].sum() == pytest.approx(row["total"])
    assert row[["chosen_token", "rejected_token"]].tolist() == ["<30>", "<31>"]


def test_more_than_one_token_is_refused_with_the_way_out():
    policy, pair = tk.load_model(), tk.load_pairs("stance", limit=1)[0]
    message = r"2 chosen and 2 rejected \(EOS is one of them: use policy.with_options\(append_eos=F"
    with pytest.raises(ValueError, match=message):
        single_token_theory(policy, pair)
    assert single_token_theory(policy.with_options(append_eos=False), pair).head_part > 0
    with pytest.raises(ValueError, match=r"pair 'p' must have one scored .* 2 chosen and 1 rejec"):
        single_token_theory(shapes.policy("gpt2"), pair_of([1, 2], [3, 4], [5]))
    with pytest.raises(ValueError, match="two different tokens after the same prompt"):
        single_token_theory(shapes.policy("gpt2"), pair_of([1, 2], [3], [3]))


def test_capped_logits_are_refused():
    """Gemma 2 bends its logits after W·h: the closed form would be silently wrong."""
    with pytest.raises(ValueError, match="changes its logits after the output embedding"):
        single_token_theory(shapes.policy("gemma2"), SINGLE)
