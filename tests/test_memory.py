"""Out of memory: real failures of the allocator, batches in halves, nothing of a failure kept."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import shapes
import torch

import toolkit as tk
from toolkit.model.batching import in_halves, is_out_of_memory
from toolkit.similarities import _head_states

# Run in a process of its own, whose address space soon ends after what one pair needs.
CHILD = """
import json, resource
from importlib import import_module
import torch
from transformers import LlamaConfig, LlamaForCausalLM
import shapes, toolkit as tk

torch.set_num_threads(1)
torch.manual_seed(0)
config = {**shapes.BASE, "vocab_size": 6000, "intermediate_size": 20000}
policy = tk.Policy(LlamaForCausalLM(LlamaConfig(**config)), shapes.Letters())
pairs = [shapes.encoded(str(i), [1, 2, i], [3] * 40, [i + 4] * 40) for i in range(16)]
tries = []

def count(module, name):
    plain = getattr(module, name)

    def counted(first, batch):
        tries[-1].append(len(batch))
        return plain(first, batch)

    setattr(module, name, counted)

def limit(room):
    pages = int(open("/proc/self/statm").read().split()[0])
    size = pages * resource.getpagesize() + room * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))
    tries.append([])

def measured(rooms):
    limit(rooms[0])
    stats = tk.pair_stats(policy, pairs, batch_size=16, progress=False)
    limit(rooms[1])
    return stats.inner.tolist(), tk.similarity(policy, pairs, progress=False)["ches"].tolist()

count(import_module("toolkit.gradients.per_pair"), "_measure")
count(import_module("toolkit.similarities.ches"), "pair_states")
whole, halved = measured([9000, 9000]), measured([250, 80])
print(json.dumps([whole, halved, tries]))
"""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        # What torch's CPU allocator says on Linux and macOS, and on Windows.
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate)"
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough "
            "memory: you tried to allocate 8 bytes."
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_every_way_of_saying_out_of_memory_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory")])
def test_other_errors_are_not_about_memory(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        in_halves(lambda items: (_ for _ in ()).throw(error), [1, 2])


def test_halves_keep_the_order_and_a_single_item_raises():
    def tight(items):
        if len(items) > 2:
            raise MemoryError
        return list(items)

    assert in_halves(tight, list(range(5))) == [[0, 1], [2], [3, 4]]
    with pytest.raises(MemoryError):
        in_halves(lambda items: tight([*items, 0, 0]), [1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc and RLIMIT_AS")
def test_a_batch_that_does_not_fit_is_halved():
    """The allocator itself fails here; out of memory costs no pair and changes no number."""
    paths = [str(Path(__file__).parent), str(Path(tk.__file__).parents[1])]
    # Memory that was given up goes back at once, and does not help the second run.
    env = {"PYTHONPATH": os.pathsep.join(paths), "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", CHILD], env={**os.environ, **env}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    whole, halved, tries = json.loads(run.stdout)
    assert tries[0] == [16] and tries[2][:2] == [16, 8], tries
    assert len(tries[3]) > len(tries[1]), tries
    for some, every in zip(halved, whole, strict=True):
        np.testing.assert_allclose(some, every, atol=1e-5 * np.abs(every).max())


def test_nothing_of_a_failed_try_is_held():
    """A graph kept alive by the error's frames would leave the halves even less room."""
    policy, graphs = shapes.policy("gpt2"), []

    def tight(items):
        assert all(graph() is None for graph in graphs)
        if len(items) == 1:
            return 1
        held = [policy.model(torch.ones(1, 4, dtype=torch.long)).logits]
        held.append(held)  # what only the collector of circles frees
        graphs.append(weakref.ref(held[0]))
        raise torch.OutOfMemoryError("full")

    assert in_halves(tight, [1, 2, 3]) == [1, 1, 1] and len(graphs) == 2


def test_memory_says_nothing_about_a_layout(monkeypatch):
    """A slower layout would be remembered for the model because memory was short once."""
    policy, full = shapes.policy("llama"), [True]
    packed = _head_states.packed

    def short(*args):
        if full.pop() if full else False:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return packed(*args)

    monkeypatch.setattr(_head_states, "packed", short)
    found = tk.similarity(policy, shapes.ragged_pairs(), progress=False)
    assert np.isfinite(found["ches"]).all()
    assert _head_states.layout_for(policy.model, 4) is short
