"""The hash of a function: another result of a function means another hash, a new copy does not."""

import dataclasses
import functools
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional

from toolkit.scoring._function_key import Unhashable, function_key


def made(source: str, name: str = "f", **known):
    """A function of a fresh namespace, as a notebook cell makes it."""
    namespace = {"np": np, "torch": torch, "functional": functional, **known}
    exec(source, namespace)
    return namespace[name]


def factory(value):
    return lambda chosen_logps: chosen_logps * value


def with_default(value):
    def f(chosen_logps, *, scale=value):
        return chosen_logps * scale

    return f


def with_global(value):
    return made("def f(x): return x * SCALE", SCALE=value)


def with_helper(value):
    return made("def g(x): return x * SCALE\ndef f(x): return [g(y) for y in x]", SCALE=value)


def with_inner(value):
    return made("def f(x):\n    def g(y): return y * SCALE\n    return g(x)", SCALE=value)


def with_module(value):
    module = types.ModuleType("mine")
    module.scale, module.other = value, object()
    return made("def f(x): return x * mine.scale", mine=module)


def with_constant(value):
    return made(f"def f(x): return x ** {value!r}")


def with_method(value):
    class Loss:
        def __init__(self):
            self.scale = value

        def __call__(self, x):
            return x * self.scale

        def method(self, x):
            return x * self.scale

    return Loss().method


def with_object(value):
    return with_method(value).__self__


def with_class(value):
    class Loss:
        scale = value

        def __call__(self, x):
            return x * self.scale

    return Loss()


def with_slots(value):
    @dataclasses.dataclass(slots=True)
    class Loss:
        scale: object

        def __call__(self, x):
            return x * self.scale

    return Loss(value)


def with_partial(value):
    return functools.partial(torch.mul, other=value)


def with_cache(value):
    return functools.lru_cache(factory(value))


def with_attribute(value):
    f = made("def f(x): return x * f.scale")
    f.scale = value
    return f


def with_wrapper(value):
    def double(f):
        @functools.wraps(f)
        def wrapped(x):
            return f(x) * value

        return wrapped

    return double(with_global(1.0))


def with_network(value):
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, float(np.sum(value)))
    torch.nn.init.zeros_(layer.bias)
    return layer


MAKERS = [factory, with_default, with_global, with_helper, with_inner, with_module, with_constant]
MAKERS += [with_method, with_object, with_class, with_slots, with_partial, with_cache]
MAKERS += [with_attribute, with_wrapper, with_network]


@pytest.mark.parametrize("make", MAKERS)
def test_two_functions_of_one_factory_are_two(make):
    """The losses of one factory share their code: only what they hold tells them apart."""
    assert function_key(make(0.5)) != function_key(make(0.25))
    assert function_key(make(0.5)) == function_key(make(0.5))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        ("1", 1),
        ([1, 2], [2, 1]),
        ((1,), [1]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (np.zeros(2), np.zeros((2, 1))),
        (np.zeros(2), np.zeros(2, np.float32)),
        (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])),
        (torch.zeros(1), torch.zeros(1, dtype=torch.float64)),
        (np.float64(0.1), np.float64(0.2)),
        (torch.float32, torch.float64),
        (torch.exp, torch.log),
        (np.exp, np.log),
        (functional.relu, functional.gelu),
        (factory(1), factory(2)),
    ],
)
def test_what_a_function_holds_is_compared_by_content(one, other):
    assert function_key(factory(one)) != function_key(factory(other))
    assert function_key(factory(one)) == function_key(factory(one))


def test_the_code_of_inner_functions_counts():
    one, other = (made(f"def f(x): return [(lambda y: y {op} 2)(z) for z in x]") for op in "+*")
    assert function_key(one) != function_key(other)


def test_a_function_that_calls_itself_or_holds_a_ring_has_a_key():
    source = "def f(x): return x if x < 1 else f(x - step)"
    assert function_key(made(source, step=1)) != function_key(made(source, step=2))
    ring = []
    ring.append(ring)
    assert function_key(factory(ring)) == function_key(factory(ring))


def test_globals_that_are_not_used_do_not_count():
    assert function_key(made("def f(x): return x", unused=1)) == function_key(
        made("def f(x): return x", unused=object())
    )


@pytest.mark.parametrize(
    "value",
    [iter([1]), np.random.default_rng(0), np.array([object()]), torch.eye(2).to_sparse()],
    ids=["iterator", "generator", "objects", "sparse"],
)
def test_what_has_no_content_is_refused_and_a_version_names_it(value):
    with pytest.raises(Unhashable, match="reaches"):
        function_key(factory(value))
    keys = set()
    for version in ("1", "2", 2):
        f = factory(value)
        f.version = version
        keys.add(function_key(f))
    assert keys == {"<lambda> version 1", "<lambda> version 2"}


def test_values_without_end_are_refused():
    with pytest.raises(Unhashable, match="20,000 values"):
        function_key(factory(list(range(30_000))))
    deep = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(Unhashable, match="nested too deep"):
        function_key(factory(deep))


def test_another_process_finds_the_same_key(tmp_path):
    """Nothing in a key may depend on where an object lies or on the seed of Python's hashes."""
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch.nn import functional\nNAMES = {'b', 'a', 'c'}\n"
        "def helper(x): return functional.softplus(x) if 'a' in NAMES else x\n"
        "def make(scale, shift=(1, 2)):\n"
        "    def f(chosen_logps): return helper(chosen_logps) * scale + shift[0]\n"
        "    return f\n"
    )
    code = "import mine, torch\nfrom toolkit.scoring._function_key import function_key\n"
    code += "print(function_key(mine.make(torch.ones(2))))"
    said = set()
    for seed in "12":
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
            },
        )
        assert run.returncode == 0, run.stderr
        said.add(run.stdout)
    assert len(said) == 1
