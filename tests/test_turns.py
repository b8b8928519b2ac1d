"""Computations on one model at the same time: each is right, and as if it had been alone."""

import _thread
import contextlib
import copy
import signal
import sys
import threading
import time

import numpy as np
import pytest
import shapes
import torch

import toolkit as tk
from toolkit.gradients import iter_pair_stats
from toolkit.model import turns
from toolkit.model.turns import alone, told_of_waiting

PATIENCE = 600  # seconds after which a thread that should go on is given up


def numbers(frame):
    return frame.select_dtypes("number").to_numpy(float)


def trained(policy, pairs, **options):
    run = tk.train(policy, pairs, steps=2, lr=1e-3, batch_size=2, progress=False, **options)
    return np.concatenate([run.logps.ravel(), run.predicted.ravel(), run.kl.ravel()])


def stats(policy, pairs):
    return numbers(tk.pair_stats(policy, pairs, batch_size=2, progress=False).to_frame())


def token_products(policy, pairs):
    return numbers(tk.token_contributions(policy, pairs[2]).to_frame(d_chosen=1.0, d_rejected=1.0))


def logps(policy, pairs):
    found = tk.per_token_logps(policy, pairs, batch_size=2)
    return torch.cat([x for one in found for x in (one.chosen, one.ref_rejected)]).numpy()


def attributed(policy, pairs):
    return numbers(tk.prompt_attributions(policy, pairs[0], steps=8).to_frame())


JOBS = {
    "similarity": lambda p, pairs: numbers(tk.similarity(p, pairs, batch_size=2, progress=False)),
    "pair_stats": stats,
    "train": trained,
    "token_contributions": token_products,
    "token_matrix": lambda p, pairs: tk.token_matrix(p, pairs[0]).matrix,
    "predict_step": lambda p, pairs: numbers(tk.predict_step(p, pairs, lr=1e-3)),
    "per_token_logps": logps,
    "prompt_attributions": attributed,
    "mass_flow": lambda p, pairs: numbers(tk.mass_flow(p, p, pairs[0], position="all")),
    "gram": lambda p, pairs: tk.gram(p, pairs[:3], progress=False).matrix,
    "influence": lambda p, pairs: tk.influence(p, pairs[:3], progress=False).values,
    "ches_tokens": lambda p, pairs: numbers(tk.ches_tokens(p, pairs[0])),
    "parameters_in": lambda p, pairs: np.array([len(p.parameters_in("all"))]),
}


@pytest.fixture
def hasty():
    """Let threads change places often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


def together(jobs, repeat=2):
    """Run every job in a thread of its own; return what each found, or its error."""
    found, barrier = {name: [] for name in jobs}, threading.Barrier(len(jobs))

    def work(name, job):
        barrier.wait(PATIENCE)
        for _ in range(repeat):
            try:
                found[name].append(job())
            except Exception as error:
                found[name].append(error)

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread waits for ever"
    return found


def assert_same(found, alone_found):
    for name, results in found.items():
        for result in results:
            assert not isinstance(result, Exception), f"{name}: {result!r}"
            np.testing.assert_array_equal(result, alone_found[name], err_msg=name)


def odd_policy(shape="gpt2", **options):
    """A model with dropout in training mode, one weight frozen: both are to be found again."""
    policy = shapes.policy(shape, torch.float32, **options)
    policy.model.train()
    next(policy.model.parameters()).requires_grad_(False)
    return policy


def traces(model):
    """What a computation changes for a while."""
    return (
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        ["forward" in vars(m) for m in model.modules()],
        {name: values.clone() for name, values in model.state_dict().items()},
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
    )


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
def test_threads_on_one_model_find_what_each_finds_alone(hasty, shape):
    """Without turns: zeros, other numbers, 'params matches no parameter', nested forward mode."""
    pairs = shapes.ragged_pairs()
    serial = odd_policy(shape)
    expected = {name: job(serial, pairs) for name, job in JOBS.items()}
    policy = odd_policy(shape)
    before = traces(policy.model)
    found = together({n: lambda job=job: job(policy, pairs) for n, job in JOBS.items()})
    assert_same(found, expected)
    after = traces(policy.model)
    assert after[:4] == before[:4] and after[5:] == before[5:]
    assert all(torch.equal(values, after[4][name]) for name, values in before[4].items())


def test_two_models_can_be_measured_at_the_same_time(hasty):
    """Torch has one level of forward-mode derivatives, one choice of kernels, one random state."""
    pairs, names = shapes.ragged_pairs(), ("train", "token_contributions", "predict_step", "lora")
    work = {**JOBS, "lora": lambda p, pairs: trained(p, pairs, lora={"r": 2}, seed=3)}
    expected, jobs = {}, {}
    for shape in ("llama", "qwen2"):
        serial, policy = (shapes.policy(shape, torch.float32) for _ in range(2))
        for name in names:
            expected[shape, name] = work[name](serial, pairs)
            jobs[shape, name] = lambda job=work[name], policy=policy: job(policy, pairs)
    state = torch.get_rng_state(), torch.backends.cuda.flash_sdp_enabled()
    assert_same(together(jobs), expected)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert torch.backends.cuda.flash_sdp_enabled() == state[1]


def test_a_run_is_stepped_and_looked_at_from_two_threads():
    policy, pairs = shapes.policy("gpt2", torch.float32), shapes.ragged_pairs()
    options = {"steps": 6, "lr": 1e-3, "batch_size": 2, "checkpoint_every": 2}
    expected = tk.train(policy, pairs, progress=False, **options)
    run, seen = tk.TrainingRun(policy, pairs, **options), []

    def look():
        while len(seen) < 2 or len(seen[-1]) < 6:
            seen.append(run.trajectory)
            at = max(seen[-1].checkpoints)
            seen[-1].policy_at(at)

    found = together({"look": look, "step": lambda: [next(run) for _ in range(6)]}, repeat=1)
    assert not any(isinstance(x, Exception) for results in found.values() for x in results), found
    for trajectory in seen:
        done = len(trajectory)
        np.testing.assert_array_equal(trajectory.logps, expected.logps[: done + 1])
        last, whole = trajectory.checkpoints[done], expected.checkpoints
        if done in whole:
            assert all(torch.equal(w, last[name]) for name, w in whole[done].items())


# --------------------------------------------------------------------- who waits for whom


@alone
def compute(policy, call=lambda: None):
    return call()


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


@contextlib.contextmanager
def held(policy):
    """Another thread computes on the policy until the block ends."""
    inside, leave = threading.Event(), threading.Event()
    call = lambda: inside.set() or leave.wait(PATIENCE)  # noqa: E731
    thread = threading.Thread(target=compute, args=(policy, call), daemon=True)
    thread.start()
    assert inside.wait(PATIENCE)
    try:
        yield leave
    finally:
        leave.set()
        thread.join(PATIENCE)


def waits(policy, other):
    """Whether a computation on one waits for one on the other."""
    done = threading.Event()
    with held(other):
        thread = threading.Thread(target=compute, args=(policy, done.set), daemon=True)
        thread.start()
        wait_until(lambda: done.is_set() or len(turns._requests) == 2)
        waited = not done.is_set()
    thread.join(PATIENCE)
    assert done.is_set()
    return waited


def free():
    return not turns._requests and not turns._deciding.locked()


def test_who_shares_modules_waits_and_who_does_not_goes_on():
    first, second = (shapes.policy("gpt2") for _ in range(2))
    with_ref = tk.Policy(second.model, second.tokenizer, ref_model=first.model)
    assert waits(first, first) and waits(first, with_ref) and waits(with_ref, first)
    assert waits(first.with_options(append_eos=False), first)
    assert not waits(first, second)
    twin = tk.Policy(copy.deepcopy(first.model), first.tokenizer)
    assert not waits(first, twin)
    twin.model.transformer.h[0].ln_1.weight = first.model.transformer.h[0].ln_1.weight
    assert waits(first, twin) and waits(twin, first)  # one parameter, two modules
    assert free()


def test_an_adapter_waits_for_its_base_model():
    peft = pytest.importorskip("peft")
    base = shapes.policy("gpt2")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"])
    adapted = tk.Policy(peft.get_peft_model(base.model, config), base.tokenizer)
    assert waits(adapted, base) and waits(base, adapted)


def test_a_thread_computes_inside_its_own_computation():
    policy, other = (shapes.policy("gpt2") for _ in range(2))
    inner = lambda: compute(policy, lambda: compute(other, lambda: "done"))  # noqa: E731
    assert compute(policy, inner) == "done"
    assert free()


def test_turns_are_given_in_the_order_in_which_they_were_asked_for():
    """A loop that asks anew at once would otherwise keep a click waiting for its whole length."""
    policy, order, threads = shapes.policy("gpt2"), [], []

    def clicks():
        for name in ("first click", "second click"):
            call = lambda name=name: order.append(name)  # noqa: E731
            threads.append(threading.Thread(target=compute, args=(policy, call), daemon=True))
            threads[-1].start()
            wait_until(lambda: len(turns._requests) == 1 + len(threads))

    for batch in range(4):
        compute(policy, clicks if batch == 1 else lambda: None)
        compute(policy, lambda batch=batch: order.append(batch))
    for thread in threads:
        thread.join(PATIENCE)
    assert order == [0, "first click", "second click", 1, 2, 3]


def test_long_loops_let_others_in_between_two_batches():
    """Neither a loop nor a generator that rests holds the model."""
    policy, pairs = shapes.policy("gpt2"), shapes.ragged_pairs()
    count = {"batches": 0}
    run = tk.TrainingRun(policy, pairs, steps=2, lr=1e-3, in_place=True)
    for resting in (iter_pair_stats(policy, pairs, batch_size=1), run):
        next(resting)
        assert free()
        found = together({"click": lambda: logps(policy, pairs)}, repeat=1)
        assert isinstance(found["click"][0], np.ndarray)
        next(resting)

    original = turns._take_turn

    def counted(wanted, call):
        count["batches"] += not turns._requests
        return original(wanted, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "_take_turn", counted)
        for loop in (
            lambda: tk.similarity(policy, pairs, batch_size=1, progress=False),
            lambda: tk.pair_stats(policy, pairs, batch_size=1, progress=False),
            lambda: tk.per_token_logps(policy, pairs, batch_size=1),
            lambda: tk.train(policy, pairs, steps=5, lr=1e-3, progress=False),
            lambda: tk.score_pairs(
                policy, pairs, measures=["similarity"], rows_per_part=1, progress=False
            ),
        ):
            count["batches"] = 0
            loop()
            assert count["batches"] >= 5


def test_who_waits_long_is_told_so_and_told_when_it_goes_on():
    policy, told = shapes.policy("gpt2"), []

    def click():
        with told_of_waiting(told.append):
            compute(policy, lambda: told.append("computing"))
        compute(policy)  # nobody listens here

    with held(policy):
        thread = threading.Thread(target=click, daemon=True)
        thread.start()
        wait_until(lambda: told)
        assert told == [True]
    thread.join(PATIENCE)
    assert told == [True, False, "computing"]
    compute(policy)
    assert told == [True, False, "computing"]


# --------------------------------------------------------------------- errors and interrupts


def test_an_error_ends_the_turn():
    policy = shapes.policy("gpt2")
    with pytest.raises(tk.PairError):
        tk.token_contributions(policy, shapes.encoded("odd", [1], [70], [2]))
    with pytest.raises(KeyError):
        compute(policy, {}.popitem)
    assert free() and not waits(policy, shapes.policy("gpt2"))


def test_waiting_can_be_interrupted_and_keeps_nobody_from_going_on(request):
    # A shell that starts its jobs in the background has them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    policy, timers = shapes.policy("gpt2"), []
    with held(policy) as leave:
        timer = threading.Timer(0.1, _thread.interrupt_main)
        timers.append(timer)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            compute(policy)
        assert len(turns._requests) == 1
        leave.set()
    assert compute(policy, lambda: "done") == "done"
    assert free()


def test_an_interrupt_at_any_moment_leaves_the_model_free():
    """Interrupts arrive where a function begins or a built-in one returns: each such place once."""
    policy = shapes.policy("gpt2")
    places, completed = 0, False
    while not completed:
        seen = 0

        def interrupt(frame, event, arg):
            nonlocal seen
            if frame.f_code.co_filename == turns.__file__ and event in ("call", "c_return"):
                seen += 1
                if seen > places:  # noqa: B023
                    raise KeyboardInterrupt

        try:
            sys.setprofile(interrupt)
            compute(policy)
            completed = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert free(), f"held after an interrupt at place {places}"
        places += 1
    assert places > 20
