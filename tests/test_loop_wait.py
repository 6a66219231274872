"""Sockets that are served while Trio waits take nothing from Trio: all that it has to do is on time."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from attrs import frozen

from omi_rt.net import poller as poller_module
from omi_rt.net.loop_wait import LoopWait, find_loop_wait
from omi_rt.net.poller import Kind, Poller, open_poller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import outcome

pytestmark = pytest.mark.realtime

PATIENCE_SECONDS = 10.0
SOON_SECONDS = 1.0
"""Far more than anything here takes, and far less than `PATIENCE_SECONDS`, Trio's only other deadline."""


def no_pause() -> float:
    return 0.0


class Served:
    """A socket pair of which the poller serves one end."""

    def __init__(self, serve: Callable[[bytes], bool] = lambda _: False) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.got: list[bytes] = []
        self._serve = serve

    def read(self, _: float) -> bool:
        self.got.append(self.ours.recv(100))
        return self._serve(self.got[-1])

    def pass_on(self, data: bytes) -> bool:
        """Send this one what another has got."""
        self.theirs.send(data)
        return False

    async def run(self, poller: Poller, kind: Kind = Kind.DEVICE) -> None:
        await poller.serve(self.ours.fileno(), self.read, kind)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@contextmanager
def served(serve: Callable[[bytes], bool] = lambda _: False) -> Iterator[Served]:
    pair = Served(serve)
    try:
        yield pair
    finally:
        pair.close()


@asynccontextmanager
async def serving(*pairs: Served, pause: Callable[[], float] = no_pause) -> AsyncIterator[None]:
    """Serve while Trio waits, until the body is over."""
    async with open_poller(pause) as poller, trio.open_nursery() as nursery:
        assert poller is not None
        for pair in pairs:
            nursery.start_soon(pair.run, poller)
        await trio.testing.wait_all_tasks_blocked()
        yield
        nursery.cancel_scope.cancel()


@frozen
class Warnings:
    """A logger that keeps what it is told."""

    told: list[str]

    def warning(self, event: str, *, trio: str) -> None:
        self.told.append(f"{event} {trio}")


class Turns(trio.abc.Instrument):
    """Counts how often Trio has waited, and which tasks have run."""

    def __init__(self) -> None:
        self.waits = 0
        self.steps: Counter[str] = Counter()

    def after_io_wait(self, timeout: float) -> None:
        self.waits += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps[task.name] += 1


async def test_what_arrives_costs_no_turn_of_trios_loop() -> None:
    messages = 200
    with trio.fail_after(PATIENCE_SECONDS), served() as pair:

        def converse() -> None:
            for _ in range(messages):
                pair.theirs.send(b"x")
                # The next one goes when this one has been dealt with, so each is noticed by itself.
                assert pair.theirs.recv(1) == b"y"

        def answer(_: bytes) -> bool:
            pair.ours.send(b"y")
            return False

        pair._serve = answer
        async with serving(pair):
            turns = Turns()
            trio.lowlevel.add_instrument(turns)
            await trio.to_thread.run_sync(converse)
            trio.lowlevel.remove_instrument(turns)
    assert len(pair.got) == messages
    assert turns.waits < 10, turns.steps


async def test_a_task_that_a_served_function_wakes_runs_at_once() -> None:
    woken = trio.Event()

    def wake(_: bytes) -> bool:
        woken.set()
        return False

    with trio.fail_after(PATIENCE_SECONDS), served(wake) as pair:
        async with serving(pair):
            threading.Timer(0.05, pair.theirs.send, [b"x"]).start()
            with trio.fail_after(SOON_SECONDS * 5):
                begun = trio.current_time()
                await woken.wait()
                assert trio.current_time() - begun < SOON_SECONDS


async def test_a_deadline_that_a_served_function_brings_nearer_is_kept() -> None:
    scope = trio.CancelScope()

    def hurry(_: bytes) -> bool:
        scope.deadline = trio.current_time() + 0.05
        return False

    with trio.fail_after(PATIENCE_SECONDS), served(hurry) as pair:
        async with serving(pair):
            threading.Timer(0.05, pair.theirs.send, [b"x"]).start()
            begun = trio.current_time()
            with scope:
                await trio.sleep_forever()
            assert 0.05 <= trio.current_time() - begun < SOON_SECONDS


async def test_what_is_served_meanwhile_makes_no_sleep_longer() -> None:
    with trio.fail_after(PATIENCE_SECONDS), served() as pair:
        async with serving(pair):
            threading.Timer(0.5, pair.theirs.send, [b"x"]).start()
            begun = trio.current_time()
            await trio.sleep(0.6)
            assert 0.6 <= trio.current_time() - begun < 1.0
    assert pair.got == [b"x"]


@pytest.mark.parametrize("kind", list(Kind))
async def test_whoever_is_always_readable_holds_up_nothing_of_trios(kind: Kind) -> None:
    with trio.fail_after(PATIENCE_SECONDS), served() as pair, served() as other:
        pair.theirs.send(b"never read")
        async with open_poller(no_pause) as poller, trio.open_nursery() as nursery:
            assert poller is not None
            serve = partial(poller.serve, pair.ours.fileno(), lambda _: False, kind)
            nursery.start_soon(serve)
            begun = trio.current_time()
            await trio.sleep(0.05)
            assert 0.05 <= trio.current_time() - begun < SOON_SECONDS
            # A socket of somebody else's, and a thread.
            threading.Timer(0.02, other.theirs.send, [b"x"]).start()
            await trio.lowlevel.wait_readable(other.ours)
            assert await trio.to_thread.run_sync(lambda: "done") == "done"
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


async def test_sockets_threads_and_signals_wake_trio_while_it_waits_for_nothing_else() -> None:
    with trio.fail_after(PATIENCE_SECONDS), served() as other:
        async with open_poller(no_pause) as poller:
            assert poller is not None
            begun = trio.current_time()
            threading.Timer(0.03, other.theirs.send, [b"x"]).start()
            await trio.lowlevel.wait_readable(other.ours)
            token, called = trio.lowlevel.current_trio_token(), trio.Event()
            threading.Timer(0.03, token.run_sync_soon, [called.set]).start()
            await called.wait()
            with trio.open_signal_receiver(signal.SIGUSR1) as signals:
                threading.Timer(0.03, os.kill, [os.getpid(), signal.SIGUSR1]).start()
                assert await anext(aiter(signals)) == signal.SIGUSR1
            assert trio.current_time() - begun < SOON_SECONDS


async def test_trios_tasks_are_on_time_while_nobody_is_to_be_read() -> None:
    long_pause = PATIENCE_SECONDS * 2
    with trio.fail_after(PATIENCE_SECONDS), served() as pair, served() as other:
        async with serving(pair, pause=lambda: long_pause):
            pair.theirs.send(b"the turn that brings the pause")
            await trio.sleep(0.05)
            pair.theirs.send(b"in the pause")
            begun = trio.current_time()
            threading.Timer(0.02, other.theirs.send, [b"x"]).start()
            await trio.lowlevel.wait_readable(other.ours)
            await trio.sleep(0.05)
            assert trio.current_time() - begun < SOON_SECONDS
    assert b"in the pause" not in pair.got


async def test_an_interrupt_in_a_served_function_ends_the_poller_and_not_the_run() -> None:
    def interrupt(_: bytes) -> bool:
        raise KeyboardInterrupt

    with trio.fail_after(PATIENCE_SECONDS), served(interrupt) as pair, served() as other:
        closed = trio.ClosedResourceError
        with pytest.RaisesGroup(KeyboardInterrupt, closed, closed, flatten_subgroups=True):
            async with serving(other, pair):
                pair.theirs.send(b"x")
                await trio.sleep_forever()
        # Trio goes on as before.
        await trio.sleep(0.01)
        assert find_loop_wait() is not None


async def test_an_interrupt_of_a_function_that_has_cancelled_the_poller_is_not_lost() -> None:
    scope = trio.CancelScope()

    def interrupt(_: bytes) -> bool:
        scope.cancel()
        raise KeyboardInterrupt

    with trio.fail_after(PATIENCE_SECONDS), served(interrupt) as pair:
        closed = trio.ClosedResourceError
        with pytest.RaisesGroup(KeyboardInterrupt, closed, flatten_subgroups=True), scope:
            async with serving(pair):
                pair.theirs.send(b"x")
                await trio.sleep_forever()
        await trio.sleep(0.01)


async def test_it_ends_with_the_poller_and_leaves_trio_as_it_was() -> None:
    runner: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner
    before = runner.io_manager
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_poller(no_pause):
            await trio.testing.wait_all_tasks_blocked()
            assert isinstance(runner.io_manager, LoopWait)
            # Whoever asks Trio about itself is answered.
            assert trio.lowlevel.current_statistics().io_statistics.backend == "epoll"
        assert runner.io_manager is before


async def test_where_another_poller_serves_while_trio_waits_the_second_uses_a_task() -> None:
    with trio.fail_after(PATIENCE_SECONDS), served() as pair, served() as other:
        async with open_poller(no_pause) as first, trio.open_nursery() as nursery:
            assert first is not None
            nursery.start_soon(pair.run, first)
            await trio.testing.wait_all_tasks_blocked()
            assert find_loop_wait() is None
            async with open_poller(no_pause) as second, trio.open_nursery() as others:
                assert second is not None
                others.start_soon(other.run, second)
                await trio.testing.wait_all_tasks_blocked()
                pair.theirs.send(b"first")
                other.theirs.send(b"second")
                await trio.testing.wait_all_tasks_blocked(0.05)
                nursery.cancel_scope.cancel()
    assert (pair.got, other.got) == ([b"first"], [b"second"])


@pytest.mark.parametrize(
    ("version", "is_known"),
    [
        ("0.29.0", False),
        ("0.30.0", True),
        ("0.35.1", True),
        ("0.36.0", False),
        ("0.36rc1", False),
        ("?", False),
    ],
)
async def test_with_a_version_of_trio_that_is_not_known_the_poller_uses_a_task(
    version: str, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trio, "__version__", version)
    assert (find_loop_wait() is not None) is is_known
    told: list[str] = []
    monkeypatch.setattr(poller_module, "get_logger", lambda: Warnings(told))
    with trio.fail_after(PATIENCE_SECONDS), served(lambda _: True) as pair:
        async with open_poller(no_pause) as poller:
            assert poller is not None
            pair.theirs.send(b"x")
            await pair.run(poller)
    assert pair.got == [b"x"]
    # Whoever runs the server learns that it works harder than it need.
    assert told == ([] if is_known else [f"poller_in_task {version}"])


def test_a_guest_of_another_loop_uses_a_task_because_there_a_thread_waits() -> None:
    found: list[object] = []

    async def look() -> None:
        await trio.lowlevel.checkpoint()
        found.append(find_loop_wait())

    todo: list[Callable[[], object]] = []
    ended: list[outcome.Outcome[None]] = []
    trio.lowlevel.start_guest_run(
        look, run_sync_soon_threadsafe=todo.append, done_callback=ended.append
    )
    while not ended:
        if todo:
            todo.pop(0)()
    ended[0].unwrap()
    assert found == [None]


def test_time_jumps_as_it_does_without_the_poller() -> None:
    async def sleep_long() -> float:
        async with open_poller(no_pause):
            begun = trio.current_time()
            await trio.sleep(1000.0)
            return trio.current_time() - begun

    clock = trio.testing.MockClock(autojump_threshold=0.0)
    assert trio.run(sleep_long, clock=clock) == pytest.approx(1000.0)


def test_time_does_not_jump_while_sockets_are_served() -> None:
    async def listen() -> int:
        with served() as pair:
            async with open_poller(no_pause) as poller, trio.open_nursery() as nursery:
                assert poller is not None
                nursery.start_soon(pair.run, poller)

                def talk() -> None:
                    for _ in range(40):
                        pair.theirs.send(b"x")
                        threading.Event().wait(0.02)

                thread = threading.Thread(target=talk)
                thread.start()
                await trio.sleep(1000.0)
                got = len(b"".join(pair.got))
                nursery.cancel_scope.cancel()
            thread.join()
            return got

    assert trio.run(listen, clock=trio.testing.MockClock(autojump_threshold=0.5)) == 40


async def test_whoever_waits_until_all_is_quiet_waits_while_sockets_are_served() -> None:
    hops = 30
    pairs = [Served() for _ in range(hops)]
    for each, following in pairwise(pairs):
        each._serve = following.pass_on
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_poller(no_pause) as poller, trio.open_nursery() as nursery:
            assert poller is not None
            for each in pairs:
                nursery.start_soon(each.run, poller)
            await trio.testing.wait_all_tasks_blocked(0.01)
            pairs[0].theirs.send(b"x")
            # Each hop is served in a turn of its own, and no task runs.
            await trio.testing.wait_all_tasks_blocked()
            assert pairs[-1].got == [b"x"]
            nursery.cancel_scope.cancel()
    for each in pairs:
        each.close()


async def test_nobody_pauses_where_nobody_was_read() -> None:
    pauses: list[float] = []

    def pause() -> float:
        pauses.append(trio.current_time())
        return 0.0

    with trio.fail_after(PATIENCE_SECONDS), served() as pair:
        async with serving(pair, pause=pause):
            for _ in range(5):
                await trio.sleep(0.01)
            assert pauses == []
            pair.theirs.send(b"x")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(pauses) == 1


async def test_how_long_to_pause_is_asked_now_and_then_and_holds_until_it_is_asked_again() -> None:
    asked: list[float] = []

    def pause() -> float:
        asked.append(trio.current_time())
        return 0.002

    def note(_: bytes) -> bool:
        is_read.set()
        return False

    with trio.fail_after(PATIENCE_SECONDS), served(note) as pair:
        async with serving(pair, pause=pause):
            begun = trio.current_time()
            reads = 0
            while trio.current_time() - begun < 0.2:
                is_read = trio.Event()
                pair.theirs.send(b"x")
                await is_read.wait()
                reads += 1
            # At most 100 pauses of 2 ms fit in, and none is left out.
            assert reads <= 101
            assert 2 <= len(asked) <= 21
            assert all(later - former >= 0.009 for former, later in pairwise(asked))


@pytest.mark.parametrize("is_ordinary", [True, False])
def test_what_is_served_is_told_trio_s_time(*, is_ordinary: bool) -> None:
    told: list[tuple[float, float]] = []

    async def main() -> None:
        with trio.fail_after(PATIENCE_SECONDS), served() as pair:
            async with open_poller(no_pause) as poller:
                assert poller is not None
                pair.theirs.send(b"x")

                def note(now: float) -> bool:
                    told.append((now, trio.current_time()))
                    return True

                await poller.serve(pair.ours.fileno(), note, Kind.DEVICE)

    trio.run(main, clock=None if is_ordinary else trio.testing.MockClock(rate=7.0))
    ((now, right),) = told
    assert now <= right < now + 10.0


def test_the_descriptor_that_a_turn_waits_for_is_trios_own_set() -> None:
    async def look() -> bool:
        found = find_loop_wait()
        assert found is not None
        await trio.lowlevel.checkpoint()
        with select.epoll() as watching:
            watching.register(found.fd, select.EPOLLIN)
            before = watching.poll(0)
            trio.lowlevel.current_trio_token().run_sync_soon(lambda: None)
            return not before and bool(watching.poll(0))

    assert trio.run(look)
