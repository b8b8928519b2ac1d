"""One computation at a time on a model: a running cell and a click in a widget take turns.

Measuring hooks, freezes and swaps parts of the live model for a while, and widget callbacks run in
another thread than cells. So every computation takes a turn on the modules and parameters of its
models, and who asks for one that is in use waits. Turns are given in the order in which they were
asked for: a long loop that takes one per batch lets a waiting click in after the batch. Two
policies that share some (a PEFT model and its base, one reference, one matrix) share turns too.

A thread that has its turn may compute on the same models again, and goes before those who wait.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress

PATIENCE = 0.25  # seconds of waiting that nobody has to be told of
LOOK = 0.5  # seconds after which a waiting thread looks again, even if nobody woke it
_PROCESS = frozenset({"what torch keeps once for the process"})


def alone(function: Callable) -> Callable:
    """Give a function its turn on the models of its arguments: policies, or what has a ``policy``.

    The turn lasts for the whole call, so it is nothing for a generator.
    """

    @functools.wraps(function)
    def in_turn(*args, **kwargs):
        wanted = _in_use([*args, *kwargs.values()])
        return _take_turn(wanted, functools.partial(function, *args, **kwargs))

    return in_turn


def alone_in_process(function: Callable) -> Callable:
    """Let a function run once at a time, whatever its model.

    Torch has one level of forward-mode derivatives and one random state for all threads. Inside,
    no turn on a model is taken that the thread does not have yet.
    """

    @functools.wraps(function)
    def in_turn(*args, **kwargs):
        return _take_turn(_PROCESS, functools.partial(function, *args, **kwargs))

    return in_turn


@contextmanager
def told_of_waiting(tell: Callable[[bool], None]) -> Iterator[None]:
    """Call ``tell(True)`` when this thread has to wait in the block, ``tell(False)`` after it."""
    before, _listening.tell = _tell(), tell
    try:
        yield
    finally:
        _listening.tell = before


class _Request:
    """One thread's turn, from the moment it is asked for."""

    def __init__(self, wanted: frozenset[Hashable], nested: bool):
        self.thread, self.wanted, self.nested = threading.get_ident(), wanted, nested
        self.running, self.bell = False, queue.SimpleQueue()

    def before_me(self, other: _Request, earlier: bool) -> bool:
        """Whether to wait for another request, made ``earlier`` than this one or later."""
        first = other.running or (earlier and not self.nested)
        return first and other.thread != self.thread and not self.wanted.isdisjoint(other.wanted)


_requests: dict[_Request, None] = {}  # in the order in which they were made, until they are over
_deciding = threading.Lock()
_listening = threading.local()


def _take_turn(wanted: frozenset[Hashable], call: Callable):
    thread = threading.get_ident()
    mine = [request for request in list(_requests) if request.thread == thread]
    if wanted <= frozenset().union(*(request.wanted for request in mine)):
        return call()
    request = _Request(wanted, bool(mine))
    try:
        _wait(request)
        return call()
    finally:
        # An interrupt can come between any two lines, but not into a method of a dictionary: the
        # turn ends in any case, and at worst the next thread looks for itself.
        _requests.pop(request, None)
        for other in list(_requests):
            other.bell.put(None)


def _wait(request: _Request) -> None:
    _requests[request] = None
    start, tell, told = time.monotonic(), _tell(), False
    while not _may_run(request):
        with suppress(queue.Empty):
            request.bell.get(timeout=LOOK if told else PATIENCE)
        if tell is not None and not told and time.monotonic() - start >= PATIENCE:
            told = True
            tell(True)
    if told:
        tell(False)


def _may_run(request: _Request) -> bool:
    with _deciding:
        earlier = True
        for other in list(_requests):
            if other is request:
                earlier = False
            elif request.before_me(other, earlier):
                return False
        request.running = True
        return True


def _tell() -> Callable[[bool], None] | None:
    return getattr(_listening, "tell", None)


def _in_use(arguments: list) -> frozenset[Hashable]:
    """What may not be in use twice: modules and parameters, by their identity, of the policies."""
    from toolkit.model.policy import Policy

    found = [getattr(a, "policy", None) if not isinstance(a, Policy) else a for a in arguments]
    policies = [policy for policy in found if isinstance(policy, Policy)]
    models = [m for policy in policies for m in (policy.model, policy.ref_model) if m is not None]
    parts = (part for model in models for part in (*model.modules(), *model.parameters()))
    return frozenset(map(id, parts))
