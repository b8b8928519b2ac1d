"""Clicks in a real kernel while a cell computes, each in a thread of its own.

JupyterLab sends the messages of widgets to a subshell, a second thread of the kernel. ipykernel 7.4
hands them back to the thread that spoke to the widget last: here, as in a subshell's console, the
explorer is made in the subshell, while cells run in the main thread.
"""

import json
import sys
from pathlib import Path

import pytest
from jupyter_client import KernelManager

ROOT = Path(__file__).parents[1]
PATIENCE = 600  # seconds for an answer of the kernel
PICKS = 5

PREPARE = """
import sys, threading, time
import ipywidgets
import numpy as np
import toolkit as tk
from itables.widget import ITable

policy, pairs = tk.load_model(), tk.load_pairs("long_suffix", limit=8)
work = {
    "similarity": lambda: tk.similarity(policy, pairs, progress=False)["ches"].to_numpy(),
    "pair_stats": lambda: tk.pair_stats(policy, pairs, progress=False).inner,
    "train": lambda: tk.train(policy, pairs[:2], steps=1, lr=1e-4, progress=False).logps,
}
expected = {name: call() for name, call in work.items()}
tokens = {p.id: tk.token_contributions(policy, p).with_chosen for p in pairs}
explorer = tk.PairExplorer(policy, pairs, live=False).measure()

def parts(widget):
    return [widget, *(p for child in getattr(widget, "children", ()) for p in parts(child))]

table = next(part for part in parts(explorer.widget) if isinstance(part, ITable))
threads, picked = set(), []

def watch(change):
    # Registered after the explorer's own callback: what the pick computed is there.
    threads.add(threading.get_ident())
    found = explorer.one.contributions()
    picked.append((explorer.selection, np.array_equal(found.with_chosen, tokens[found.pair_id])))

table.observe(watch, "selected_rows")
flags = [p.requires_grad for p in policy.model.parameters()]
print("COMM", table.comm.comm_id, len(pairs))
"""

LOOP = f"""
print("LOOP", flush=True)
rounds, wrong, until = 0, [], time.monotonic() + {PATIENCE / 2}
while (len(picked) < {PICKS} or rounds < 2) and time.monotonic() < until:
    for name, call in work.items():
        if not np.array_equal(call(), expected[name]):
            wrong.append(name)
    rounds += 1
assert not wrong, wrong
"""

REPORT = """
import json
print("REPORT", json.dumps({
    "picked": picked,
    "elsewhere": threads.isdisjoint({threading.get_ident()}),
    "flags": flags == [p.requires_grad for p in policy.model.parameters()],
    "notes": [part.value for part in parts(explorer.widget) if isinstance(part, ipywidgets.HTML)],
}))
"""


class Kernel:
    """A kernel of this interpreter, and everything that it has said."""

    def __init__(self):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.kernel_spec.argv[0] = sys.executable
        self.manager.start_kernel(cwd=str(ROOT))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE)
        self.said, self.errors = [], []

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def line(self, word):
        """Listen until a line begins with this word, and return it."""
        while True:
            for text in self.said:
                if text.startswith(word):
                    return text
            self.listen()

    def listen(self):
        message = self.client.get_iopub_msg(timeout=PATIENCE)
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            if content["name"] == "stdout":
                self.said += content["text"].splitlines()
            elif "Traceback" in content["text"]:
                self.errors.append(content["text"])
        elif kind == "error":
            self.errors.append("\n".join(content["traceback"]))
        return message

    def finish(self, asked):
        """Listen until a request is answered in full."""
        while True:
            message = self.listen()
            idle = message["content"].get("execution_state") == "idle"
            if idle and message["parent_header"].get("msg_id") == asked:
                return

    def send(self, kind, content, subshell=None):
        message = self.client.session.msg(kind, content)
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def start(self, cell, subshell=None):
        options = {"silent": False, "store_history": False, "allow_stdin": False}
        content = {"code": cell, "user_expressions": {}, "stop_on_error": True, **options}
        return self.send("execute_request", content, subshell)

    def run(self, cell, subshell=None):
        self.finish(self.start(cell, subshell))

    def subshell(self):
        """Start a second thread for messages, as JupyterLab does."""
        self.client.kernel_info()
        info = self.client.get_shell_msg(timeout=PATIENCE)["content"]
        if "kernel subshells" not in info.get("supported_features", ()):
            pytest.skip("this kernel answers everything in one thread")
        request = self.client.session.msg("create_subshell_request")
        self.client.control_channel.send(request)
        while True:
            reply = self.client.get_control_msg(timeout=PATIENCE)
            if reply["msg_type"] == "create_subshell_reply":
                return reply["content"]["subshell_id"]

    def click(self, comm, subshell, **state):
        data = {"method": "update", "state": state, "buffer_paths": []}
        return self.send("comm_msg", {"comm_id": comm, "data": data}, subshell)


@pytest.fixture
def kernel():
    found = Kernel()
    yield found
    found.close()


def test_picks_while_a_cell_computes_are_right_and_so_is_the_cell(kernel):
    """Without turns: 'matches no parameter', nested forward mode, frozen weights, other numbers."""
    subshell = kernel.subshell()
    kernel.run(PREPARE, subshell)
    assert not kernel.errors, kernel.errors[0]
    comm, count = kernel.line("COMM").split()[1:]
    cell = kernel.start(LOOP)
    kernel.line("LOOP")
    for i in range(PICKS):
        # Each pick is answered before the next: one that fails is seen, none is merged.
        kernel.finish(kernel.click(comm, subshell, selected_rows=[1 + i % (int(count) - 1)]))
    kernel.finish(cell)
    kernel.run(REPORT)
    assert not kernel.errors, kernel.errors[0]
    report = json.loads(kernel.line("REPORT").removeprefix("REPORT"))
    assert report["elsewhere"], "the picks ran in the thread of the cells"
    assert len(report["picked"]) == PICKS and all(right for _, right in report["picked"])
    assert report["flags"]
    assert not any("waiting" in note or "Error" in note for note in report["notes"])
