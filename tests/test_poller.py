"""The poller serves sockets on behalf of their tasks, each as if the task had waited itself."""

from __future__ import annotations

import os
import resource
import socket
from collections import Counter
from contextlib import ExitStack, asynccontextmanager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from omi_rt.net import poller as poller_module
from omi_rt.net.poller import DEVICES_AT_ONCE, DEVICES_BETWEEN, Kind, Poller, open_poller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.realtime

PATIENCE_SECONDS = 10.0
both_kinds = pytest.mark.parametrize("kind", list(Kind))


@pytest.fixture(params=["while Trio waits", "in a task"], autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the poller takes its turns; all that it promises holds in either place."""
    if request.param == "in a task":
        monkeypatch.setattr(poller_module, "find_loop_wait", lambda: None)
    return str(request.param)


@asynccontextmanager
async def polling() -> AsyncIterator[Poller]:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_poller(lambda: 0.0) as poller:
            assert poller is not None
            yield poller


def pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
        stack.enter_context(each)
    return ours, theirs


def reader(
    ours: socket.socket, got: list[bytes], until: Callable[[bytes], bool]
) -> Callable[[float], bool]:
    def read(_: float) -> bool:
        try:
            got.append(ours.recv(100))
        except BlockingIOError:
            return False
        return until(got[-1])

    return read


@both_kinds
async def test_the_function_is_called_for_all_that_arrives_until_it_is_done(kind: Kind) -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        got: list[bytes] = []
        async with polling() as poller, trio.open_nursery() as nursery:
            read = reader(ours, got, lambda data: data == b"c")
            nursery.start_soon(poller.serve, ours.fileno(), read, kind)
            for part in (b"a", b"b", b"c"):
                await trio.testing.wait_all_tasks_blocked(0.01)
                theirs.send(part)
        assert got == [b"a", b"b", b"c"]


@both_kinds
async def test_what_had_arrived_before_is_served_and_so_is_the_end(kind: Kind) -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        theirs.send(b"early")
        theirs.close()
        got: list[bytes] = []
        async with polling() as poller:
            await poller.serve(ours.fileno(), reader(ours, got, lambda data: not data), kind)
        assert got == [b"early", b""]


@pytest.mark.parametrize("greedy_kind", list(Kind))
@pytest.mark.parametrize("modest_kind", list(Kind))
async def test_a_peer_that_is_always_readable_starves_nobody(
    greedy_kind: Kind, modest_kind: Kind
) -> None:
    with ExitStack() as stack:
        greedy = [pair(stack) for _ in range(8)]
        modest, theirs = pair(stack)
        for _, flooding in greedy:
            flooding.send(b"x")
        calls: Counter[int] = Counter()

        def never_read(number: int) -> Callable[[float], bool]:
            def note(_: float) -> bool:
                calls[number] += 1
                return False

            return note

        async with polling() as poller, trio.open_nursery() as nursery:
            for number, (ours, _) in enumerate(greedy):
                nursery.start_soon(poller.serve, ours.fileno(), never_read(number), greedy_kind)
            # Other tasks have their turns too.
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            got: list[bytes] = []
            theirs.send(b"me too")
            await poller.serve(modest.fileno(), reader(modest, got, lambda _: True), modest_kind)
            nursery.cancel_scope.cancel()
        assert got == [b"me too"]
        # Nor does one of the greedy have more than the others.
        assert min(calls.values()) > 0
        assert len(calls) == len(greedy)
        assert max(calls.values()) - min(calls.values()) <= max(2, max(calls.values()) // 10)


async def test_each_device_is_called_once_in_a_turn_of_the_loop() -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        theirs.send(b"x")
        times: list[float] = []

        def note(now: float) -> bool:
            times.append(now)
            return len(times) == 20

        async with polling() as poller:
            await poller.serve(ours.fileno(), note, Kind.DEVICE)
        assert len(set(times)) == 20


@both_kinds
async def test_who_is_cancelled_while_waiting_is_served_no_more(kind: Kind) -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        got: list[bytes] = []
        async with polling() as poller:
            with trio.move_on_after(0.01) as scope:
                await poller.serve(ours.fileno(), reader(ours, got, lambda _: False), kind)
            assert scope.cancelled_caught
            theirs.send(b"late")
            await trio.sleep(0.02)
            assert got == []
            await poller.serve(ours.fileno(), reader(ours, got, lambda _: True), kind)
        assert got == [b"late"]


async def test_who_is_cancelled_before_it_waits_is_never_registered() -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        theirs.send(b"there")
        got: list[bytes] = []
        read = reader(ours, got, lambda _: False)
        async with polling() as poller:
            with trio.CancelScope() as scope:
                scope.cancel()
                await poller.serve(ours.fileno(), read, Kind.DEVICE)
            assert scope.cancelled_caught
            await trio.sleep(0.02)
        assert got == []


@pytest.mark.parametrize("is_done", [True, False])
async def test_a_function_that_cancels_its_own_task_finishes_first(*, is_done: bool) -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        theirs.send(b"x")
        calls = 0

        def cancel(_: float) -> bool:
            nonlocal calls
            scope.cancel()
            calls += 1
            return is_done

        async with polling() as poller:
            with trio.CancelScope() as scope:
                await poller.serve(ours.fileno(), cancel, Kind.DEVICE)
            assert scope.cancelled_caught
            await trio.sleep(0.02)
        assert calls == 1


async def test_the_error_of_a_function_that_cancels_its_own_task_is_not_lost() -> None:
    raised = False
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        theirs.send(b"x")

        def fail(_: float) -> bool:
            scope.cancel()
            raise ValueError("mine")

        async with polling() as poller:
            with trio.CancelScope() as scope:
                with pytest.raises(ValueError, match="mine"):
                    await poller.serve(ours.fileno(), fail, Kind.DEVICE)
                raised = True
        assert raised


@both_kinds
async def test_one_function_may_cancel_another_that_is_ready_in_the_same_turn(kind: Kind) -> None:
    with ExitStack() as stack:
        pairs = [pair(stack) for _ in range(2)]
        scopes = [trio.CancelScope(), trio.CancelScope()]
        called: list[int] = []

        def cancel_the_other(number: int) -> Callable[[float], bool]:
            def cancel(_: float) -> bool:
                called.append(number)
                scopes[1 - number].cancel()
                return True

            return cancel

        async def serve(number: int) -> None:
            with scopes[number]:
                await poller.serve(pairs[number][0].fileno(), cancel_the_other(number), kind)

        async with polling() as poller, trio.open_nursery() as nursery:
            nursery.start_soon(serve, 0)
            nursery.start_soon(serve, 1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for _, theirs in pairs:
                theirs.send(b"x")
        assert len(called) == 1
        assert scopes[1 - called[0]].cancelled_caught


@both_kinds
async def test_an_exception_in_the_function_is_its_owners_and_nobody_elses(kind: Kind) -> None:
    with ExitStack() as stack:
        broken, well = pair(stack), pair(stack)
        got: list[bytes] = []

        def fail(_: float) -> bool:
            raise ValueError("mine")

        async with polling() as poller, trio.open_nursery() as nursery:
            read = reader(well[0], got, lambda data: data == b"after")
            nursery.start_soon(poller.serve, well[0].fileno(), read, kind)
            broken[1].send(b"x")
            with pytest.raises(ValueError, match="mine"):
                await poller.serve(broken[0].fileno(), fail, kind)
            well[1].send(b"after")
        assert got == [b"after"]


@both_kinds
async def test_a_descriptor_that_is_closed_and_given_out_again_is_the_new_owners(
    kind: Kind,
) -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        theirs.send(b"old")
        number = ours.fileno()
        old: list[bytes] = []
        new: list[bytes] = []
        async with polling() as poller:
            with trio.move_on_after(0):
                await poller.serve(number, reader(ours, old, lambda _: False), kind)
            ours.close()
            again, other = pair(stack)
            while again.fileno() != number and other.fileno() != number:
                again, other = pair(stack)
            if other.fileno() == number:
                again, other = other, again
            other.send(b"new")
            await poller.serve(number, reader(again, new, lambda _: True), kind)
        assert (old, new) == ([], [b"new"])


@both_kinds
async def test_closing_wakes_whoever_waits_and_frees_the_number(kind: Kind) -> None:
    with ExitStack() as stack:
        ours, _ = pair(stack)
        number = ours.fileno()
        async with polling() as poller:
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with pytest.raises(trio.ClosedResourceError):
                        await poller.serve(number, lambda _: False, kind)

                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked(0.01)
                poller.release(number)
                ours.close()
            again, other = pair(stack)
            other.send(b"x")
            got: list[bytes] = []
            await poller.serve(again.fileno(), reader(again, got, lambda _: True), kind)
        assert got == [b"x"]


async def test_two_cannot_serve_one_descriptor() -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        got: list[bytes] = []
        async with polling() as poller, trio.open_nursery() as nursery:
            read = reader(ours, got, lambda _: True)
            nursery.start_soon(poller.serve, ours.fileno(), read, Kind.DEVICE)
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(trio.BusyResourceError):
                await poller.serve(ours.fileno(), read, Kind.PROVIDER)
            theirs.send(b"mine")
        assert got == [b"mine"]


async def test_a_descriptor_that_is_none_is_an_error_and_leaves_nothing_behind() -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        # The end: it is readable whoever asks.
        theirs.shutdown(socket.SHUT_RD)
        async with polling() as poller:
            number = ours.fileno()
            ours.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                await poller.serve(number, lambda _: False, Kind.DEVICE)
            os.dup2(theirs.fileno(), number)
            try:
                await poller.serve(number, lambda _: True, Kind.DEVICE)
            finally:
                os.close(number)


async def test_a_thousand_sockets_that_are_ready_at_once_are_all_served() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        pairs = [pair(stack) for _ in range(1000)]
        got: list[bytes] = []
        async with polling() as poller, trio.open_nursery() as nursery:
            for number, (ours, _) in enumerate(pairs):
                read = reader(ours, got, lambda _: True)
                kind = Kind.PROVIDER if number % 2 else Kind.DEVICE
                nursery.start_soon(poller.serve, ours.fileno(), read, kind)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for number, (_, theirs) in enumerate(pairs):
                theirs.send(b"%d" % number)
        assert sorted(map(int, got)) == list(range(1000))


async def test_finals_leave_the_devices_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand finals at once are dealt with in several turns, and devices are read in between."""
    monkeypatch.setattr(poller_module, "finals_seconds", lambda *_: 0.0)
    with ExitStack() as stack:
        providers = [pair(stack) for _ in range(100)]
        device, theirs = pair(stack)
        order: list[str] = []

        def note(ours: socket.socket, name: str, *, is_done: bool) -> Callable[[float], bool]:
            def read(_: float) -> bool:
                ours.recv(1)
                order.append(name)
                return is_done or order.count(name) == 5

            return read

        async with polling() as poller, trio.open_nursery() as nursery:
            for ours, _ in providers:
                read = note(ours, "final", is_done=True)
                nursery.start_soon(poller.serve, ours.fileno(), read, Kind.PROVIDER)
            read = note(device, "frame", is_done=False)
            nursery.start_soon(poller.serve, device.fileno(), read, Kind.DEVICE)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for _, provider in providers:
                provider.send(b"x")
            theirs.send(b"xxxxx")
        assert order.count("final") == 100
        assert order.index("frame") == 0
        last_frame = len(order) - 1 - order[::-1].index("frame")
        assert order[:last_frame].count("final") < 60


async def test_a_final_waits_for_some_of_the_devices_where_all_of_them_are_ready() -> None:
    with ExitStack() as stack:
        devices = [pair(stack) for _ in range(200)]
        finals = [pair(stack) for _ in range(2)]
        order: list[str] = []

        def note(ours: socket.socket, name: str) -> Callable[[float], bool]:
            def read(_: float) -> bool:
                ours.recv(1)
                order.append(name)
                if len(order) == 100:
                    finals[1][1].send(b"x")
                return True

            return read

        async with polling() as poller, trio.open_nursery() as nursery:
            for (ours, _), kind in [
                *((each, Kind.DEVICE) for each in devices),
                *((each, Kind.PROVIDER) for each in finals),
            ]:
                nursery.start_soon(poller.serve, ours.fileno(), note(ours, kind.value), kind)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for _, theirs in [*devices, finals[0]]:
                theirs.send(b"x")
        first, second = (at for at, name in enumerate(order) if name == "provider")
        # The one had come before the turn, and the other came when 100 had been read.
        assert first == DEVICES_AT_ONCE
        assert 100 <= second <= 100 + DEVICES_AT_ONCE
        assert order.count("device") == 200


async def test_what_a_final_puts_off_is_done_when_some_devices_have_been_read_and_no_other_task_has_run() -> (
    None
):
    with ExitStack() as stack:
        provider, sends_final = pair(stack)
        devices = [pair(stack) for _ in range(6)]
        order: list[str] = []

        def frame(ours: socket.socket) -> Callable[[float], bool]:
            def read(_: float) -> bool:
                ours.recv(1)
                order.append("frame")
                return False

            return read

        def final(_: float) -> bool:
            provider.recv(1)
            order.append("final")
            poller.put_off(lambda: order.append("replaced"))
            poller.put_off(lambda: order.append("rest"))
            for device in devices:
                device[1].send(b"x")
            trio.lowlevel.spawn_system_task(another_task)
            return False

        async def another_task() -> None:
            await trio.lowlevel.checkpoint()
            order.append("task")

        async with polling() as poller, trio.open_nursery() as nursery:
            for ours, _ in devices:
                nursery.start_soon(poller.serve, ours.fileno(), frame(ours), Kind.DEVICE)
            nursery.start_soon(poller.serve, provider.fileno(), final, Kind.PROVIDER)
            await trio.testing.wait_all_tasks_blocked(0.01)
            sends_final.send(b"x")
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        between = ["frame"] * DEVICES_BETWEEN
        assert order[: len(between) + 2] == ["final", *between, "rest"]
        assert sorted(order[len(between) + 2 :]) == ["frame", "frame", "task"]


@pytest.mark.parametrize("has_more", [False, True])
async def test_a_final_that_comes_meanwhile_is_told_before_what_the_first_has_put_off(
    *, has_more: bool
) -> None:
    with ExitStack() as stack:
        (first, first_theirs), *others = [pair(stack) for _ in range(4)]
        order: list[str] = []

        def tell_first(_: float) -> bool:
            first.recv(1)
            order.append("first")
            if order.count("first") == 1:
                if has_more:
                    # More of its own does not overtake its rest.
                    first_theirs.send(b"x")
                for _ours, theirs in others:
                    theirs.send(b"x")
                poller.put_off(lambda: order.append("rest of first"))
                return not has_more
            return True

        def tell_another(ours: socket.socket) -> Callable[[float], bool]:
            def tell(_: float) -> bool:
                ours.recv(1)
                order.append("another")
                poller.put_off(lambda: order.append("rest of another"))
                return True

            return tell

        async with polling() as poller, trio.open_nursery() as nursery:
            nursery.start_soon(poller.serve, first.fileno(), tell_first, Kind.PROVIDER)
            for other, _ in others:
                nursery.start_soon(poller.serve, other.fileno(), tell_another(other), Kind.PROVIDER)
            await trio.testing.wait_all_tasks_blocked(0.01)
            first_theirs.send(b"x")
        # One goes before the rest of the first, and not all three, for whose sake devices would wait.
        assert order[:4] == ["first", "another", "rest of first", "rest of another"]
        assert order.count("another") == order.count("rest of another") == len(others)
        assert order.count("first") == 1 + has_more


async def test_what_is_put_off_is_done_at_once_where_no_function_of_a_provider_s_runs() -> None:
    done: list[int] = []
    with ExitStack() as stack:
        ours, theirs = pair(stack)

        def read(_: float) -> bool:
            ours.recv(1)
            poller.put_off(lambda: done.append(2))
            assert done == [2]
            return True

        async with polling() as poller:
            theirs.send(b"x")
            await poller.serve(ours.fileno(), read, Kind.DEVICE)
            poller.put_off(lambda: done.append(3))
            assert done == [2, 3]


async def test_what_a_put_off_rest_raises_is_raised_by_serve() -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)

        def fail() -> None:
            raise ValueError("the rest")

        def read(_: float) -> bool:
            ours.recv(1)
            poller.put_off(fail)
            return False

        async with polling() as poller:
            theirs.send(b"x")
            with pytest.raises(ValueError, match="the rest"):
                await poller.serve(ours.fileno(), read, Kind.PROVIDER)
            # Nothing is left of it: the descriptor can be served again.
            theirs.send(b"y")
            await poller.serve(ours.fileno(), lambda _: ours.recv(1) == b"y", Kind.PROVIDER)


@pytest.mark.parametrize("how", ["is-done", "raises"])
async def test_a_function_that_ends_does_first_what_it_has_put_off(how: str) -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        done: list[str] = []

        def read(_: float) -> bool:
            ours.recv(1)
            poller.put_off(lambda: done.append("rest"))
            if how == "raises":
                raise ValueError("the function")
            return True

        async with polling() as poller:
            theirs.send(b"x")
            with (
                pytest.raises(ValueError, match="the function")
                if how == "raises"
                else nullcontext()
            ):
                await poller.serve(ours.fileno(), read, Kind.PROVIDER)
            assert done == ["rest"]
            poller.put_off(lambda: done.append("at once"))
            assert done == ["rest", "at once"]


async def test_whoever_is_cancelled_before_the_rest_is_woken_behind_it_with_its_error() -> None:
    with ExitStack() as stack:
        provider, sends_final = pair(stack)
        device, sends_frame = pair(stack)
        order: list[str] = []
        scope = trio.CancelScope()

        def rest() -> None:
            order.append("rest")
            raise ValueError("the rest")

        def final(_: float) -> bool:
            provider.recv(1)
            poller.put_off(rest)
            sends_frame.send(b"x")
            return False

        def frame(_: float) -> bool:
            device.recv(1)
            order.append("cancel")
            scope.cancel()
            return False

        async def own(poller: Poller) -> None:
            with scope, pytest.raises(ValueError, match="the rest"):
                await poller.serve(provider.fileno(), final, Kind.PROVIDER)
            order.append("woken")

        async with polling() as poller, trio.open_nursery() as nursery:
            nursery.start_soon(poller.serve, device.fileno(), frame, Kind.DEVICE)
            nursery.start_soon(own, poller)
            await trio.testing.wait_all_tasks_blocked(0.01)
            sends_final.send(b"x")
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        assert order == ["cancel", "rest", "woken"]


async def test_a_socket_that_is_released_before_the_rest_ends_once_and_the_poller_goes_on() -> None:
    with ExitStack() as stack:
        provider, sends_final = pair(stack)
        device, sends_frame = pair(stack)
        order: list[str] = []

        def final(_: float) -> bool:
            provider.recv(1)
            poller.put_off(lambda: order.append("rest"))
            sends_frame.send(b"x")
            return True

        async def own(poller: Poller) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await poller.serve(provider.fileno(), final, Kind.PROVIDER)
            order.append("closed")

        async with polling() as poller, trio.open_nursery() as nursery:

            def frame(_: float) -> bool:
                device.recv(1)
                poller.release(provider.fileno())
                return False

            nursery.start_soon(poller.serve, device.fileno(), frame, Kind.DEVICE)
            nursery.start_soon(own, poller)
            await trio.testing.wait_all_tasks_blocked(0.01)
            sends_final.send(b"x")
            await trio.testing.wait_all_tasks_blocked(0.01)
            sends_final.send(b"y")
            await poller.serve(provider.fileno(), lambda _: provider.recv(1) == b"y", Kind.PROVIDER)
            nursery.cancel_scope.cancel()
        assert order == ["rest", "closed"]


async def test_finals_are_left_over_until_a_turn_has_taken_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time that finals have depends on it: those of a burst wait, those that starve do not."""
    waits: list[float] = []

    def note(_: float, left_over_seconds: float) -> float:
        waits.append(left_over_seconds)
        return 0.0

    monkeypatch.setattr(poller_module, "finals_seconds", note)
    with ExitStack() as stack:
        pairs = [pair(stack) for _ in range(9)]
        device, theirs = pair(stack)
        async with polling() as poller, trio.open_nursery() as nursery:
            frames: list[bytes] = []
            nursery.start_soon(
                poller.serve, device.fileno(), reader(device, frames, lambda _: False), Kind.DEVICE
            )
            # A turn that took two of the last two cannot know that; the next one does.
            for finals, needs_another_turn in ((9, False), (8, True), (9, False)):
                got: list[bytes] = []
                for ours, _ in pairs[:finals]:
                    read = reader(ours, got, lambda _: True)
                    nursery.start_soon(poller.serve, ours.fileno(), read, Kind.PROVIDER)
                await trio.testing.wait_all_tasks_blocked(0.01)
                for _, provider in pairs[:finals]:
                    provider.send(b"x")
                await trio.testing.wait_all_tasks_blocked(0.01)
                if needs_another_turn:
                    theirs.send(b"x")
                    await trio.testing.wait_all_tasks_blocked(0.01)
                assert len(got) == finals
                # Each turn takes two. None is left over at first, then always since the burst began.
                assert waits[0] == 0.0
                assert 0.0 < waits[1] < waits[-1]
                waits.clear()
            nursery.cancel_scope.cancel()


async def test_between_two_turns_it_pauses_as_long_as_it_is_told() -> None:
    with ExitStack() as stack:
        ours, theirs = pair(stack)
        theirs.send(b"x")
        times: list[float] = []

        def note(now: float) -> bool:
            times.append(now)
            return len(times) == 3

        with trio.fail_after(PATIENCE_SECONDS):
            async with open_poller(lambda: 0.05) as poller:
                assert poller is not None
                await poller.serve(ours.fileno(), note, Kind.DEVICE)
        assert all(later - former >= 0.05 for former, later in pairwise(times))


async def test_its_end_wakes_whoever_still_waits() -> None:
    with ExitStack() as stack:
        ours, _ = pair(stack)
        poller = Poller()
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:

                async def wait() -> None:
                    with trio.CancelScope(shield=True), pytest.raises(trio.ClosedResourceError):
                        await poller.serve(ours.fileno(), lambda _: False, Kind.DEVICE)

                nursery.start_soon(wait)
                nursery.start_soon(poller.run, lambda: 0.0)
                await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
