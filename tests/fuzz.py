"""Malformed input of every kind: each ends in a result or in one clear error, never in another.

``python tests/fuzz.py --minutes 10`` tries new seeds until the time is over and prints what it
finds with the line that repeats it; tests/test_fuzz.py tries a few fixed ones of each kind.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "toolkit"
SECONDS = 60  # a case that takes longer hangs; most take milliseconds
LONGEST = 1500  # characters of an error: a sentence, and the line to type


class Unclear(AssertionError):
    """An input that ended in a stranger's error, in no sentence, or in a wrong result."""


def ends_clearly(call: Callable[[], object]) -> object | None:
    """Return the result of a call; None where it ended in a clear error.

    Clear is a ``ValueError`` that the toolkit itself raised, in one line, or an ``ImportError``
    with an install command.

    Raises:
        Unclear: For every other end.
    """
    try:
        with quiet(), limit(SECONDS):
            return call()
    except Exception as error:
        raiser = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        said, kind = str(error), type(error)
        own = kind is ValueError or (isinstance(error, ValueError) and "toolkit" in kind.__module__)
        clear = own and PACKAGE in raiser.parents
        clear |= isinstance(error, ImportError) and "pip install" in said
        if clear and said.strip() and "\n" not in said and len(said) <= LONGEST:
            return None
        raise Unclear(f"{kind.__name__} from {raiser.name}: {said[:300]!r}") from error


@contextlib.contextmanager
def quiet():
    """Keep warnings and printed lines from the screen."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            yield


@contextlib.contextmanager
def limit(seconds: float):
    """Interrupt what takes longer, where the platform can."""
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def stop(*_):
        raise TimeoutError(f"no end after {seconds} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def run(kind: str, seed: int) -> str:
    """Try one case and return how it ended.

    Raises:
        Unclear: If it ended otherwise than the contract says; the message repeats it.
    """
    cases = kinds()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            return cases[kind](Random(f"{kind} {seed}"), Path(folder))
        except Unclear as error:
            repeat = f"python tests/fuzz.py --only {kind} --seed {seed} --cases 1"
            raise Unclear(f"{error}\n  again: {repeat}") from error.__cause__


def kinds() -> dict[str, Callable[[Random, Path], str]]:
    """Return every kind of case by name."""
    import fuzz_calls
    import fuzz_pairs

    return {
        "rows": fuzz_pairs.rows,
        "files": fuzz_pairs.files,
        "parameters": fuzz_calls.parameters,
        "folders": fuzz_calls.folders,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first seed")
    parser.add_argument("--cases", type=int, help="stop after this many of each kind")
    parser.add_argument("--only", choices=sorted(kinds()))
    options = parser.parse_args()
    end, seed, ends, bad = time.monotonic() + 60 * options.minutes, options.seed, Counter(), {}
    names = [options.only] if options.only else list(kinds())
    while time.monotonic() < end and seed - options.seed != options.cases:
        for name in names:
            try:
                ends[name, run(name, seed)] += 1
            except Unclear as error:
                ends[name, "unclear"] += 1
                first = str(error).splitlines()[0][:80]
                if bad.setdefault((name, first), str(error)) == str(error):
                    print(f"{name}: {error}", flush=True)
                if options.cases == 1:
                    traceback.print_exception(error.__cause__ or error)
        seed += 1
    for (name, how), count in sorted(ends.items()):
        print(f"{name:>11} {how:<12} {count:>8,}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401  one thread, no network, no screen
    import fuzz  # this file under the name by which the others import it

    sys.exit(fuzz.main())
