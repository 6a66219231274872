"""Serves the sockets of all sessions in one place: what arrives is dealt with where it is noticed.

A task that waits for its socket costs two registrations with the system and a switch of tasks for each
read, half of what a frame of 20 ms costs in all. Here a socket stays registered as long as its task
waits in `Poller.serve`, and a function of that task's is called whenever there is something to read.
The task remains the owner: it is what is cancelled, and what the function raises is raised there.

A turn reads each device once, and after every `DEVICES_AT_ONCE` of them takes finals for a share of the
time that these took. Then it is Trio's turn: each of its tasks that can run does so (`loop_wait`). So who
is always readable has one read in a turn, like everybody else.

Finals are in a set of their own, because a thousand devices that are always readable would otherwise keep
them waiting for good. Their share is small as long as they get done soon all the same: a burst of them,
which costs ten times the work of as many frames, then delays no frame for long.

For the same reason what a final leaves behind once its words have been told can be put off (`put_off`):
some more of the devices are read before that, within the same turn.
"""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import Enum
from time import perf_counter
from typing import TYPE_CHECKING

import trio
from attrs import define

from omi_rt.core.load import finals_seconds
from omi_rt.log import get_logger
from omi_rt.net.loop_wait import find_loop_wait

if TYPE_CHECKING:
    from typing import Any

Serve = Callable[[float], bool]
"""Called when there is something to read, with the time (`trio.current_time`); returns whether it is
done. It must not wait, and there may be no current task: what asks for one raises. It may be called where
nothing is there after all."""

FINALS_PER_POLL = 2
"""Finals are taken in so small groups because each group is finished before the time is looked at."""
DEVICES_AT_ONCE = 32
"""When so many devices have been read, finals have their share. Near a server's limit all devices are ready
in every turn: where the finals waited for all of them, they were 108 ms late at 900 streams (p99), and
are 7.5 ms late now."""
DEVICES_BETWEEN = 4
"""So many devices are read at most before what a final has put off: more would starve the finals."""


class Kind(Enum):
    """Whose socket it is, and so when in a turn it is read."""

    DEVICE = "device"
    PROVIDER = "provider"


@define(eq=False)
class _Served:
    """A socket whose task waits in `Poller.serve`."""

    poller: Poller
    fd: int
    task: trio.lowlevel.Task
    serve: Serve
    kind: Kind
    error: Exception | None = None
    is_called: bool = False
    """Whether its function runs at this moment."""
    is_cancelled: bool = False
    """Whether its task was cancelled by its own function, which was let finish."""
    rest: Callable[[], None] | None = None
    """What its function has put off."""
    is_done: bool = False
    """Whether its task is to be woken once that has been done."""

    def abort(self, _: Any) -> trio.lowlevel.Abort:
        """Stop waiting because the task is cancelled (`trio.lowlevel.wait_task_rescheduled`)."""
        if self.is_called or self.rest is not None:
            # Its error would be lost: it is waited for, and the task woken then.
            self.is_cancelled = True
            return trio.lowlevel.Abort.FAILED
        self.poller.forget(self)
        return trio.lowlevel.Abort.SUCCEEDED


class Poller:
    """The sockets of one event loop, and who serves them. Made by `open_poller`."""

    __slots__ = (
        "_called",
        "_clock",
        "_clock_ahead",
        "_devices",
        "_left_since",
        "_providers",
        "_providers_fd",
        "_served",
        "_trio_fd",
    )

    def __init__(self) -> None:
        self._devices, self._providers = select.epoll(), select.epoll()
        self._providers_fd = self._providers.fileno()
        self._devices.register(self._providers_fd, select.EPOLLIN)
        self._served: dict[int, _Served] = {}
        self._trio_fd = -1
        """Trio's own epoll, which is readable when Trio has events; -1 where a task takes the turns."""
        self._clock = trio.lowlevel.current_clock().current_time
        self._clock_ahead: float | None = None
        """What `LoopWait.clock_ahead` is; to add it is less than to ask Trio's clock."""
        self._left_since: float | None = None
        """Since when there have been finals left over; None where the last turn took all."""
        self._called: _Served | None = None
        """The provider's socket whose function is called at this moment."""

    async def serve(self, fd: int, serve: Serve, kind: Kind) -> None:
        """Call ``serve`` whenever ``fd`` is readable or has ended, until it returns True.

        Always a checkpoint. Cancelling is safe: the function is not called again. Whatever the
        function raises is raised here (`KeyboardInterrupt` and its like end the poller).

        Raises:
            trio.BusyResourceError: somebody else serves the descriptor.
            trio.ClosedResourceError: `release` was called, or the poller has ended.
        """
        if fd in self._served:
            raise trio.BusyResourceError("another task serves this socket")
        await trio.lowlevel.checkpoint_if_cancelled()
        served = _Served(self, fd, trio.lowlevel.current_task(), serve, kind)
        self._served[fd] = served
        try:
            self._set_of(kind).register(fd, select.EPOLLIN)
        except BaseException:
            del self._served[fd]
            raise
        try:
            await trio.lowlevel.wait_task_rescheduled(served.abort)
            if served.error is not None:
                raise served.error
        finally:
            # The error's frames hold this one: held by it, it would be a cycle.
            served.error = None
        if served.is_cancelled:
            await trio.lowlevel.checkpoint_if_cancelled()

    def release(self, fd: int) -> None:
        """Serve a descriptor no more, because it is about to be closed. Nothing if nobody does."""
        served = self._served.get(fd)
        if served is not None:
            self._finish(served, trio.ClosedResourceError("this socket was closed"))

    def put_off(self, rest: Callable[[], None]) -> None:
        """Call ``rest`` for the provider's socket whose function runs, when some devices have been read.

        It is called before anything else of that socket, and before any other task runs; what it
        raises is raised in the socket's task. Where no function of a provider's socket runs it is called
        at once. A second one takes the place of the first.
        """
        if self._called is None:
            rest()
        else:
            self._called.rest = rest

    async def run(self, pause: Callable[[], float]) -> None:
        """Serve until cancelled.

        Args:
            pause: says for how many seconds nobody is to be read after a turn that has read anybody; it
                need not be asked after each. What comes meanwhile is read in one go then, so a turn costs
                less for the same audio.
        """
        loop_wait = find_loop_wait()
        try:
            if loop_wait is None:
                # All works as well, for more of the CPU: whoever runs the server should know why.
                get_logger().warning("poller_in_task", trio=trio.__version__)
                await self._run_in_task(pause)
            else:
                self._trio_fd, self._clock_ahead = loop_wait.fd, loop_wait.clock_ahead
                self._devices.register(self._trio_fd, select.EPOLLIN)
                await loop_wait.serve(self._take_turn, pause)
        finally:
            for served in list(self._served.values()):
                self._finish(served, trio.ClosedResourceError("the poller has ended"))
            self._devices.close()
            self._providers.close()

    async def _run_in_task(self, pause: Callable[[], float]) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._devices.fileno())
            self._take_turn(0.0)
            seconds = pause()
            if seconds > 0.0:
                await trio.sleep(seconds)

    def _take_turn(self, timeout: float) -> tuple[bool, bool]:
        """Wait for at most ``timeout`` seconds and serve; return what `loop_wait.Turn` does."""
        # As many as there are: each device is read once before anybody is read twice.
        events = self._devices.poll(timeout, len(self._served) + 2)
        begun, ahead = perf_counter(), self._clock_ahead
        now = self._clock() if ahead is None else begun + ahead
        trio_is_ready, has_finals, left = False, False, DEVICES_AT_ONCE
        for fd, _ in events:
            if fd == self._providers_fd:
                has_finals = True
            elif fd == self._trio_fd:
                trio_is_ready = True
            else:
                self._call(fd, now)
                left -= 1
                if not left:
                    self._take_finals(now, begun)
                    now, begun, left = self._clock(), perf_counter(), DEVICES_AT_ONCE
        if has_finals:
            self._take_finals(now, begun)
        else:
            self._left_since = None
        return trio_is_ready, len(events) > trio_is_ready

    def _take_finals(self, now: float, begun: float) -> None:
        """Take finals in a turn at ``now`` that had the devices from ``begun`` on, by `perf_counter`."""
        has_had, until = perf_counter(), 0.0
        while True:
            called = self._call_providers([], now)
            if len(called) == 1:
                # What has come meanwhile is told before anything that this one has put off.
                called = self._call_providers(called, now)
            for fd in called:
                served = self._served.get(fd)
                if served is not None and served.rest is not None:
                    self._read_some_devices(now)
                    self._call_rest(served, served.rest)
            if len(called) < FINALS_PER_POLL:
                self._left_since = None
                return
            if not until:
                waited = 0.0 if self._left_since is None else has_had - self._left_since
                until = has_had + finals_seconds(has_had - begun, waited)
            if perf_counter() >= until:
                self._left_since = has_had if self._left_since is None else self._left_since
                return

    def _call_providers(self, called: list[int], now: float) -> list[int]:
        """Call providers until `FINALS_PER_POLL` have been, with those ``called``; return all of them."""
        # The system hands them out in the order in which they came, each in turn.
        for fd, _ in self._providers.poll(0, FINALS_PER_POLL):
            if fd not in called and len(called) < FINALS_PER_POLL:
                called.append(fd)
                self._called = self._served.get(fd)
                self._call(fd, now)
                self._called = None
        return called

    def _call(self, fd: int, now: float) -> None:
        served = self._served.get(fd)
        if served is None:
            # It is a set of others, or another's function has ended it in this turn.
            return
        # A function that is kept in a slot is found faster where it has a name of its own (Python 3.11).
        serve, served.is_called = served.serve, True
        error: Exception | None = None
        try:
            is_done = serve(now)
        except Exception as raised:  # noqa: BLE001 - raised again in the owner's task
            is_done, error = True, raised
        served.is_called = False
        if is_done or served.is_cancelled:
            if served.rest is not None:
                served.is_done, served.error = True, error
            elif self._served.get(fd) is served:
                self._finish(served, error)
        # It holds this frame, so the frame must not hold it.
        error = None

    def _read_some_devices(self, now: float) -> None:
        for fd, _ in self._devices.poll(0, DEVICES_BETWEEN):
            self._call(fd, now)

    def _call_rest(self, served: _Served, rest: Callable[[], None]) -> None:
        """Do what a socket's function has put off, and end what was to end then."""
        error = served.error
        try:
            rest()
        except Exception as raised:  # noqa: BLE001 - raised again in the owner's task
            error = error or raised
        served.rest = None
        is_over = error is not None or served.is_done or served.is_cancelled
        if is_over and self._served.get(served.fd) is served:
            self._finish(served, error)
        error = None

    def _finish(self, served: _Served, error: Exception | None) -> None:
        served.error = error
        self.forget(served)
        trio.lowlevel.reschedule(served.task)

    def forget(self, served: _Served) -> None:
        """Serve a socket no more. Its task is the caller's to wake."""
        del self._served[served.fd]
        # Closed already, the system has forgotten it.
        with suppress(OSError):
            self._set_of(served.kind).unregister(served.fd)

    def _set_of(self, kind: Kind) -> select.epoll:
        return self._devices if kind is Kind.DEVICE else self._providers


_running: trio.lowlevel.RunVar[Poller | None] = trio.lowlevel.RunVar("omi_rt.net.poller", None)


def running_poller() -> Poller | None:
    """The poller of this event loop; None where none runs, as on systems without epoll."""
    return _running.get()


@asynccontextmanager
async def open_poller(pause: Callable[[], float]) -> AsyncIterator[Poller | None]:
    """Run a poller for the body: what is served by then must have ended with it.

    Nothing where the system has no epoll (it is Linux's): each socket is then waited for by its task.
    """
    if not hasattr(select, "epoll"):
        yield None
        return
    poller = Poller()
    async with trio.open_nursery() as nursery:
        _running.set(poller)
        nursery.start_soon(poller.run, pause)
        try:
            yield poller
        finally:
            _running.set(None)
        nursery.cancel_scope.cancel()
