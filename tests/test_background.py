"""Long work in short steps: at once, between clicks, paused, interrupted, failing."""

import asyncio

import pytest

from toolkit.widgets.background import Background


class Work:
    """Ten steps, and what was told of them."""

    def __init__(self, every=0.0):
        self.done, self.told, self.fail_at = 0, [], {}
        self.background = Background(
            self.steps,
            progress=lambda: self.told.append("progress"),
            refresh=lambda: self.told.append("refresh"),
            rest=lambda: self.told.append("rest"),
            every=every,
            waiting=lambda waiting: None,
        )

    def steps(self):
        while self.done < 10:
            if self.done in self.fail_at:
                raise self.fail_at.pop(self.done)
            self.done += 1
            yield 1

    async def until_rest(self):
        while self.background.running:
            await asyncio.sleep(0.005)


def test_at_once_it_takes_all_steps_or_some():
    work = Work()
    work.background.run(3, disable=True)
    assert work.done == 3 and work.told == ["rest"] and not work.background.running
    work.background.run(disable=True)
    assert work.done == 10 and not work.background.halted


def test_where_no_kernel_runs_start_takes_all_steps():
    work = Work()
    work.background.start()
    assert work.done == 10 and not work.background.running


def test_between_clicks_it_tells_of_every_step_and_rests_at_the_end():
    work = Work()

    async def session():
        work.background.start()
        assert work.background.running and work.done == 0
        work.background.start()  # a second click changes nothing
        await work.until_rest()

    asyncio.run(session())
    assert work.done == 10 and work.told.count("progress") == 11  # one of them at the start
    assert work.told.count("rest") == 1 and "refresh" in work.told
    assert not work.background.halted


def test_it_is_drawn_now_and_then_only():
    work = Work(every=1e9)

    async def session():
        work.background.start()
        await work.until_rest()

    asyncio.run(session())
    assert "refresh" not in work.told


def test_a_pause_ends_after_the_step_being_taken_and_start_goes_on():
    work = Work()

    async def session():
        work.background.start()
        while work.done < 2:
            await asyncio.sleep(0.005)
        work.background.pause()
        paused = work.done
        assert not work.background.running and work.background.halted and 2 <= paused < 10
        await asyncio.sleep(0.1)
        assert work.done == paused
        work.background.start()
        await work.until_rest()

    asyncio.run(session())
    assert work.done == 10 and not work.background.halted


def test_an_interrupt_pauses():
    work = Work()
    work.fail_at[4] = KeyboardInterrupt()
    work.background.run(disable=True)
    assert work.done == 4 and work.background.halted and work.background.error is None
    work.background.run(disable=True)
    assert work.done == 10


@pytest.mark.parametrize("live", [False, True])
def test_an_error_is_kept_and_what_was_done_stays(live):
    work = Work()
    work.fail_at[4] = ValueError("no")

    async def session():
        work.background.start()
        await work.until_rest()

    if live:
        asyncio.run(session())
    else:
        with pytest.raises(ValueError, match="no"):
            work.background.run(disable=True)
    assert work.done == 4 and work.told[-1] == "rest" and str(work.background.error) == "no"
    work.background.run(disable=True)
    assert work.done == 10 and work.background.error is None
