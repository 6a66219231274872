"""Serves sockets while Trio's loop waits, so that what arrives at them costs no turn of the loop.

A turn of Trio's for one socket takes thirty functions and two more system calls: a task that waits is
noticed, woken, switched to, and registered once more. At 60 streams nearly every frame had a turn of its
own. Here the wait itself deals with the sockets: Trio calls `LoopWait.get_events` instead of its own, which
serves what arrives until there is something for Trio to do. A frame then takes the three system calls that
any server needs for it: a wait, a read and a write.

Nothing of Trio's is late for it. Trio's own epoll is among what is waited for, and the wait ends as soon as
that has something, when the time that Trio gave it is over, and when what was served has woken a task or
set a nearer deadline.

Trio has no public hook for this, so this file alone uses some of its private names. They mean the same in
every version from 0.30 to 0.35. With any other `find_loop_wait` finds nothing, and the poller waits in a
task instead.
"""

from __future__ import annotations

import re
import select
from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import Any

import trio

Turn = Callable[[float], tuple[bool, bool]]
"""Waits for at most so many seconds and serves what is there; returns whether Trio's epoll is ready, and
whether anything was served."""
PAUSE_HOLDS_SECONDS = 0.01
"""How long the pauses are to be is asked at most once in this time; otherwise every frame would ask."""
_KNOWN_VERSIONS = (0, 30), (0, 36)
"""The first version of Trio that is known here, and the first that is not."""


class _Unfinished(tuple[()]):
    """No events, although the time is not over: Trio takes what is false to mean that it is."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


_UNFINISHED = _Unfinished()


class LoopWait:
    """Stands in for what Trio waits with, its ``io_manager``, while a task is in `serve`."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._trio_io = runner.io_manager
        self.fd: int = self._trio_io._epoll.fileno()  # noqa: SLF001
        """Trio's epoll, which is readable when Trio has events; a turn must wait for it as well."""
        self._task: trio.lowlevel.Task | None = None
        """The task in `serve`; None when nothing is to be served (any more)."""
        self._error: BaseException | None = None
        clock = runner.clock
        is_ordinary = type(clock) is trio._core._run.SystemClock  # noqa: SLF001
        self.clock_ahead: float | None = clock.offset if is_ordinary else None
        """Trio's time less `perf_counter`, in seconds; None where its clock is another, as in tests."""
        self._paused_until = 0.0
        self._seconds_to_pause = 0.0
        self._asked_at = -inf
        """When ``pause`` of `serve` was asked last, by `perf_counter`."""
        self._pausing = select.poll()
        """Waits for Trio alone, and has no descriptor of its own."""
        self._pausing.register(self.fd, select.POLLIN)

    def __getattr__(self, name: str) -> Any:
        # Whatever else Trio asks, such as to wait for another socket, is answered by its own.
        return getattr(self._trio_io, name)

    async def serve(self, turn: Turn, pause: Callable[[], float]) -> None:
        """Take turns while Trio's loop waits, until cancelled or until one of them raises.

        Args:
            turn: must return at once when it has waited and served. There is no current task in it.
            pause: says for how many seconds no turn is to be taken after one that has served anything.
                What it says holds for `PAUSE_HOLDS_SECONDS`.

        Raises:
            Exception, KeyboardInterrupt, SystemExit: whatever a turn has raised.
        """
        self._turn, self._pause = turn, pause
        self._task = trio.lowlevel.current_task()
        self._runner.io_manager = self
        try:
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        finally:
            self._runner.io_manager = self._trio_io
            if self._error is not None:
                # It goes before a cancellation: it says more.
                raise self._error

    def _abort(self, _: Any) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def get_events(self, timeout: float) -> Any:
        """Serve for ``timeout`` seconds, or until Trio has something to do; return Trio's events.

        What is returned is false if the time is over and nothing has happened, as Trio demands.
        """
        runner, now = self._runner, perf_counter()
        until, deadline = now + timeout, runner.deadlines.next_deadline()
        # Only a task can begin to watch, and none runs meanwhile.
        is_watched, turn = self._is_watched(), self._turn
        while self._task is not None:
            trio_is_ready = has_served = False
            try:
                if now < self._paused_until:
                    seconds = min(timeout, self._paused_until - now)
                    trio_is_ready = bool(self._pausing.poll(seconds * 1000))
                else:
                    trio_is_ready, has_served = turn(timeout)
                now = perf_counter()
                if has_served:
                    if now - self._asked_at >= PAUSE_HOLDS_SECONDS:
                        self._seconds_to_pause, self._asked_at = self._pause(), now
                    self._paused_until = now + self._seconds_to_pause
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001
                self._fail(error)
                break
            if trio_is_ready:
                break
            if has_served and is_watched:
                return _UNFINISHED
            if now >= until:
                return ()
            if runner.runq or runner.deadlines.next_deadline() < deadline:
                return _UNFINISHED
            timeout = until - now
        return self._trio_io.get_events(0.0)

    def _is_watched(self) -> bool:
        """Whether somebody waits until all is quiet, which it is not while anything is served."""
        runner = self._runner
        return bool(runner.waiting_for_idle) or runner.clock_autojump_threshold < inf

    def _fail(self, error: BaseException) -> None:
        """End `serve` with an error, which would end the whole run if Trio itself saw it."""
        task, self._task, self._error = self._task, None, error
        if task is not None:
            trio.lowlevel.reschedule(task)


def find_loop_wait() -> LoopWait | None:
    """What can serve while this run of Trio waits.

    None where this version of Trio is not known here, where the run is a guest of another loop, whose
    thread would then wait, and where somebody serves in the wait of this run already.
    """
    first, unknown = _KNOWN_VERSIONS
    numbers = re.match(r"(\d+)\.(\d+)", trio.__version__)
    if numbers is None or not first <= tuple(map(int, numbers.groups())) < unknown:
        return None
    inside: Any = trio._core._run  # noqa: SLF001
    runner = inside.GLOBAL_RUN_CONTEXT.runner
    if runner.is_guest or type(runner.io_manager) is not inside.TheIOManager:
        return None
    return LoopWait(runner)
