"""What is due is called by one task, and what goes wrong in it is its owner's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from omi_rt.timers import Timer, open_timers, running_timers, start_timer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from trio.testing import MockClock


class NoTimers:
    """Where a server runs no timers, as in a test of a part."""

    async def __aenter__(self) -> None:
        """Open nothing."""

    async def __aexit__(self, *_: object) -> None:
        """Close nothing."""


@pytest.fixture(params=["one task for all", "a task for each"])
async def timers(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    context: AbstractAsyncContextManager[None] = (
        open_timers() if request.param == "one task for all" else NoTimers()
    )
    async with context:
        yield


async def test_each_is_called_when_it_is_due_and_then_when_it_says(
    timers: None, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    calls: list[tuple[str, float]] = []

    def every(name: str, seconds: float, times: int) -> float | None:
        now = trio.current_time()
        calls.append((name, now - began))
        return now + seconds if sum(n == name for n, _ in calls) < times else None

    async with trio.open_nursery() as nursery:
        start_timer(lambda _: every("slow", 5.0, 2), began + 4.5, nursery)
        start_timer(lambda _: every("fast", 2.0, 3), began + 1.0, nursery)
        await trio.sleep(60.0)
    assert calls == [("fast", 1.0), ("fast", 3.0), ("slow", 4.5), ("fast", 5.0), ("slow", 9.5)]


async def test_one_that_is_due_sooner_than_all_others_is_not_late(
    timers: None, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    calls: list[float] = []

    def note(now: float) -> None:
        calls.append(now - began)

    async with trio.open_nursery() as nursery:
        start_timer(note, began + 60.0, nursery)
        await trio.sleep(1.0)
        start_timer(note, began + 2.0, nursery)
        await trio.sleep(100.0)
    assert calls == [2.0, 60.0]


async def test_what_is_due_at_about_the_same_time_is_called_in_one_round(
    autojump_clock: MockClock,
) -> None:
    began = trio.current_time()
    calls: list[float] = []

    def note(now: float) -> None:
        calls.append(round(now - began, 6))

    async with open_timers(), trio.open_nursery() as nursery:
        for due in (1.0, 1.01, 1.049, 1.06, 1.09, 1.2):
            start_timer(note, began + due, nursery)
        # What begins between two rounds, and is due at once, comes with the next.
        for begins in (1.02, 1.12):
            await trio.sleep_until(began + begins)
            start_timer(note, trio.current_time(), nursery)
        await trio.sleep(1.0)
    assert calls == [1.0, 1.05, 1.05, 1.05, 1.1, 1.1, 1.15, 1.2]


async def test_a_round_of_many_calls_lets_others_have_turns(autojump_clock: MockClock) -> None:
    due, calls = trio.current_time() + 1.0, 0
    seen: list[int] = []

    def note(_: float) -> None:
        nonlocal calls
        calls += 1

    async def look() -> None:
        await trio.sleep_until(due)
        for _ in range(100):
            seen.append(calls)
            await trio.lowlevel.checkpoint()

    async with open_timers(), trio.open_nursery() as nursery:
        for _ in range(24):
            start_timer(note, due, nursery)
        nursery.start_soon(look)
        await trio.sleep(2.0)
    assert calls == 24
    # Trio runs those who can run in any order, so the timers may have two turns in a row.
    turns = sorted(set(seen) - {0})
    assert set(turns) <= {4, 12, 24}
    assert turns[-1] == 24
    assert len(turns) > 1


async def test_a_thousand_keep_their_pace_beside_tasks_whose_turns_are_long(
    mock_clock: MockClock,
) -> None:
    late: list[float] = []

    def start(nursery: trio.Nursery, due: float) -> Timer:
        def note(now: float) -> float:
            nonlocal due
            late.append(now - due)
            due = now + 0.5
            return due

        return start_timer(note, due, nursery)

    async def work() -> None:
        while True:
            mock_clock.jump(0.01)
            await trio.lowlevel.checkpoint()

    async with open_timers(), trio.open_nursery() as nursery:
        began = trio.current_time()
        timers = [start(nursery, began + number / 2000) for number in range(1000)]
        nursery.start_soon(work)
        await trio.sleep_until(began + 10.0)
        for timer in timers:
            timer.cancel()
        nursery.cancel_scope.cancel()
    assert len(late) > 15_000
    assert max(late) < 0.3


async def test_it_is_told_the_time_of_its_call_and_not_that_of_the_round(
    autojump_clock: MockClock,
) -> None:
    begun, told = trio.current_time() + 1.0, list[float]()

    def note(now: float) -> None:
        told.append(now)
        autojump_clock.jump(0.01)

    async with open_timers(), trio.open_nursery() as nursery:
        for _ in range(6):
            start_timer(note, begun, nursery)
        await trio.sleep(2.0)
    assert told == [begun] * 4 + [begun + 0.04] * 2


async def test_it_is_told_the_time(timers: None, autojump_clock: MockClock) -> None:
    told: list[float] = []
    due = trio.current_time() + 3.0
    async with trio.open_nursery() as nursery:
        start_timer(told.append, due, nursery)
        await trio.sleep(4.0)
    assert told == [due]


async def test_a_cancelled_one_is_not_called(timers: None, autojump_clock: MockClock) -> None:
    calls: list[float] = []
    async with trio.open_nursery() as nursery:
        timer = start_timer(calls.append, trio.current_time() + 1.0, nursery)
        timer.cancel()
        timer.cancel()
        await trio.sleep(5.0)
    assert calls == []


async def test_one_that_cancels_itself_is_not_called_again(
    timers: None, autojump_clock: MockClock
) -> None:
    calls: list[float] = []

    def note(now: float) -> float:
        calls.append(now)
        timer.cancel()
        return now + 1.0

    async with trio.open_nursery() as nursery:
        timer = start_timer(note, trio.current_time() + 1.0, nursery)
        await trio.sleep(5.0)
    assert len(calls) == 1


async def test_what_one_raises_is_raised_in_its_nursery_and_the_others_go_on(
    timers: None, autojump_clock: MockClock
) -> None:
    others: list[float] = []

    def fail(_: float) -> None:
        raise LookupError("a fault")

    async with trio.open_nursery() as outer:
        start_timer(others.append, trio.current_time() + 2.0, outer)
        with pytest.RaisesGroup(LookupError):
            async with trio.open_nursery() as nursery:
                start_timer(fail, trio.current_time() + 1.0, nursery)
                await trio.sleep_forever()
        await trio.sleep(2.0)
    assert len(others) == 1


async def test_what_one_raises_is_raised_though_its_nursery_is_being_cancelled(
    autojump_clock: MockClock,
) -> None:
    def fail(_: float) -> None:
        raise LookupError("a fault")

    async def clean_up() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(2.0)

    async with open_timers():
        with pytest.RaisesGroup(LookupError):
            async with trio.open_nursery() as nursery:
                start_timer(fail, trio.current_time() + 1.0, nursery)
                nursery.start_soon(clean_up)
                nursery.cancel_scope.cancel()


async def test_one_that_is_done_is_over_and_not_counted_as_running(
    timers: None, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        timer = start_timer(lambda _: None, trio.current_time() + 1.0, nursery)
        over = [timer.is_over]
        await trio.sleep(2.0)
        over.append(timer.is_over)
    assert over == [False, True]
    running = running_timers()
    assert running is None or running.running == 0


async def test_those_that_are_cancelled_do_not_pile_up() -> None:
    async with open_timers(), trio.open_nursery() as owner:
        timers = running_timers()
        assert timers is not None
        kept = start_timer(lambda _: None, trio.current_time() + 3600.0, owner)
        for _ in range(10_000):
            start_timer(lambda _: None, trio.current_time() + 3600.0, owner).cancel()
        assert timers.running == 1
        assert timers.entries < 100
        kept.cancel()


async def test_timers_that_are_closed_take_no_more(autojump_clock: MockClock) -> None:
    async with open_timers():
        assert running_timers() is not None
    assert running_timers() is None
    calls: list[float] = []
    async with trio.open_nursery() as nursery:
        start_timer(calls.append, trio.current_time() + 1.0, nursery)
    assert len(calls) == 1


async def test_one_task_waits_for_all_of_them(autojump_clock: MockClock) -> None:
    async with open_timers(), trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        started = [
            start_timer(lambda now: now + 1.0, trio.current_time() + 1.0, nursery)
            for _ in range(100)
        ]
        await trio.sleep(10.0)
        assert trio.lowlevel.current_statistics().tasks_living == before
        for timer in started:
            timer.cancel()
