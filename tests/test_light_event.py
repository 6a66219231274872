"""The event that takes little memory: it behaves as ``trio.Event`` does."""

from __future__ import annotations

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from omi_rt.light_event import LightEvent


async def test_it_wakes_all_who_wait_and_those_who_come_later_go_on_at_once() -> None:
    event, woken = LightEvent(), []

    async def wait(name: str) -> None:
        await event.wait()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second"):
            nursery.start_soon(wait, name)
        await wait_all_tasks_blocked()
        assert not event.is_set()
        assert woken == []
        event.set()
        event.set()
    assert event.is_set()
    assert sorted(woken) == ["first", "second"]
    with assert_checkpoints():
        await event.wait()


async def test_who_was_cancelled_is_not_woken_and_the_others_are() -> None:
    event, woken = LightEvent(), []

    async def wait(scope: trio.CancelScope, name: str) -> None:
        with scope:
            await event.wait()
            woken.append(name)
        await trio.sleep(1)

    leaving, staying = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, leaving, "leaving")
        nursery.start_soon(wait, staying, "staying")
        await wait_all_tasks_blocked()
        leaving.cancel()
        await wait_all_tasks_blocked()
        event.set()
    assert leaving.cancelled_caught
    assert woken == ["staying"]


@pytest.mark.parametrize("sets_first", [False, True])
async def test_of_a_cancel_and_a_set_at_the_same_time_the_first_counts(sets_first: bool) -> None:
    event, scope, outcome = LightEvent(), trio.CancelScope(), []

    async def wait() -> None:
        with scope:
            await event.wait()
            outcome.append("happened")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        for act in (event.set, scope.cancel) if sets_first else (scope.cancel, event.set):
            act()
    assert outcome == (["happened"] if sets_first else [])
