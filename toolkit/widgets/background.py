"""Long work in short steps: at once behind a bar, or between the clicks of a kernel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import islice

from tqdm.auto import tqdm

from toolkit.model.turns import told_of_waiting

BREATH = 0.02  # seconds between two steps in which clicks are answered
SHARE = 4  # a drawing comes at least this many times its own length after the last one


class Background:
    """Takes the steps of an iterator, and can be paused after each of them.

    Args:
        steps: Returns an iterator over what is left, one step at a time; it is called anew
            whenever the work goes on, and yields how much a step has done.
        progress: Called after every step.
        refresh: Called now and then with what is there so far.
        rest: Called once nothing runs any more, whatever the reason.
        every: Seconds between two refreshes, at least.
        waiting: Told when a step has to wait for its turn on the model, and when no longer.
        bar: Returns tqdm's options for what is done at once.

    Attributes:
        error: What the last step raised, if it did.
        halted: Whether the user, an interrupt or an error ended it before its end.
    """

    def __init__(
        self,
        steps: Callable[[], Iterator[int]],
        *,
        progress: Callable[[], None],
        refresh: Callable[[], None],
        rest: Callable[[], None],
        every: float,
        waiting: Callable[[bool], None],
        bar: Callable[[], dict[str, object]] = dict,
    ):
        self._steps, self._progress, self._refresh, self._rest = steps, progress, refresh, rest
        self._every, self._waiting, self._bar = every, waiting, bar
        self._task: asyncio.Task | None = None
        self.error: Exception | None = None
        self.halted = False

    @property
    def running(self) -> bool:
        """Whether it runs between clicks."""
        return self._task is not None

    def start(self) -> None:
        """Go on between the clicks of a kernel; where nothing can run there, at once."""
        if self.running:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.run()
            return
        self.error, self.halted = None, False
        self._task = loop.create_task(self._live())
        self._progress()

    def run(self, most: int | None = None, **bar: object) -> None:
        """Go on now; an interrupt pauses, an error is kept and raised.

        Args:
            most: Steps to take; all that are left if not given.
            **bar: Options of tqdm beyond those of every run.
        """
        self.cancel()
        self.error, self.halted = None, False
        try:
            with tqdm(**self._bar(), **bar) as shown:
                for done in islice(self._steps(), most):
                    shown.update(done)
        except KeyboardInterrupt:
            self.halted = True
        except Exception as error:
            self.error, self.halted = error, True
            raise
        finally:
            self._rest()

    def pause(self) -> None:
        """Rest after the step being taken."""
        self.halted = True
        self.cancel()
        self._rest()

    def cancel(self) -> None:
        """Take no further step, and say nothing of it."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _live(self) -> None:
        """Take a step, answer clicks, take the next; draw now and then."""
        due, steps = time.monotonic() + self._every, iter(self._steps())
        try:
            while True:
                await asyncio.sleep(BREATH)
                with told_of_waiting(self._waiting):
                    if next(steps, None) is None:
                        break
                self._progress()
                if time.monotonic() >= due:
                    due = self._draw()
        except KeyboardInterrupt:
            self.halted = True
        except asyncio.CancelledError:
            return
        except Exception as error:
            self.error, self.halted = error, True
        self._task = None
        self._rest()

    def _draw(self) -> float:
        """Show what is there; return when the next drawing is due."""
        start = time.monotonic()
        self._refresh()
        end = time.monotonic()
        return end + max(self._every, SHARE * (end - start))
