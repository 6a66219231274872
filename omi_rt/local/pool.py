"""Worker processes, kept ready: a connection does not wait for half a second of loading."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

from omi_rt.local import pipe, worker
from omi_rt.local.decoding import RecogniserInfo
from omi_rt.local.errors import RecogniserError
from omi_rt.local.headway import process_cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.local.choice import Choice

START_SECONDS = 30.0
"""Without any use of the processor, until a worker that loads its model is given up."""
START_CPU_SECONDS = 60.0
"""Of the processor that a start may take; tiny.en and the embedder take 1.5 s."""
BUSY_SECONDS = 30.0
"""Without getting on, until a worker that takes nothing of what it is sent is given up."""
RETRY_SECONDS = 1.0
"""Before the next try when a worker could not be started."""
EXIT_SECONDS = 5.0

_log = logging.getLogger("omi_rt.local")


class Worker:
    """One worker process. `aclose` must be called in the end."""

    info: RecogniserInfo
    """What it said of itself, once it was ready."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._received = bytearray()
        self._sending = trio.CancelScope()

    @property
    def cpu_seconds(self) -> float:
        """Processor time that the process has used, with the loading of its model."""
        return process_cpu_seconds(self._process.pid)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    async def send(self, frames: bytes) -> None:
        """Send frames of `omi_rt.local.pipe`; waits while the worker is busy.

        Cancelling this leaves the worker of no use.

        Raises:
            RecogniserError: the worker is gone, or took nothing for `BUSY_SECONDS` in which
                `wait_longer` was not called.
        """
        self._sending = trio.CancelScope(deadline=trio.current_time() + BUSY_SECONDS)
        try:
            with self._sending:
                await self._stdin.send_all(frames)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise RecogniserError("a recogniser process is gone") from error
        if self._sending.cancelled_caught:
            raise RecogniserError(f"a recogniser process hung for {BUSY_SECONDS:g} s")

    def wait_longer(self) -> None:
        """Give a `send` that waits its full time again: the worker gets on."""
        self._sending.deadline = trio.current_time() + BUSY_SECONDS

    async def receive_line(self) -> str | None:
        """Wait for the next line; None at the end. Cancelling this is safe: no line is lost."""
        while (end := self._received.find(b"\n")) < 0:
            data = await self._stdout.receive_some()
            if not data:
                return None
            self._received += data
        line = self._received[:end].decode()
        del self._received[: end + 1]
        return line

    async def wait(self) -> int:
        """Wait for the process to end; return its exit status. Cancelling this is safe."""
        return await self._process.wait()

    async def aclose(self) -> None:
        """End the process at once, and wait for its end. Bounded, also under cancellation."""
        self._process.kill()
        with trio.move_on_after(EXIT_SECONDS, shield=True):
            await self._stdin.aclose()
            await self._stdout.aclose()
            await self._process.wait()


async def start_worker(
    choice: Choice, on_start: Callable[[Worker], None] = lambda _started: None
) -> Worker:
    """Start a worker and wait until it has loaded what was chosen.

    Cancelling this ends it.

    Args:
        choice: of what it is to load.
        on_start: is given the worker before that has loaded anything.

    Raises:
        RecogniserError: it ended, which it has explained on stderr, or used no processor for
            `START_SECONDS`, or more than `START_CPU_SECONDS` of it.
    """
    started = Worker(
        await trio.lowlevel.open_process(
            [sys.executable, "-m", "omi_rt.local.worker", *worker.arguments(choice)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    on_start(started)
    info: RecogniserInfo | None = None
    try:
        gets_on = True
        while gets_on:
            before = started.cpu_seconds
            with trio.move_on_after(START_SECONDS):
                info = pipe.parse_ready(await started.receive_line() or "")
                break
            gets_on = before < started.cpu_seconds <= START_CPU_SECONDS
    finally:
        if info is None:
            await started.aclose()
    if info is None:
        raise RecogniserError("a recogniser process did not get ready")
    started.info = info
    return started


class WorkerPool:
    """Hands out workers that are ready, and starts the next one while the last one works."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._send, self._receive = trio.open_memory_channel[Worker](0)
        self._ready = trio.Event()
        self._starting: Worker | None = None
        self._starts_cpu_seconds = 0.0
        """Of the starts that are over."""
        self.info = RecogniserInfo("", "", ())
        """What the workers say of themselves, once the first one is ready."""

    @property
    def cpu_seconds(self) -> float:
        """Processor time that went into starting workers; it grows while one is being started."""
        starting = self._starting.cpu_seconds if self._starting else 0.0
        return self._starts_cpu_seconds + starting

    def _note_start(self, started: Worker) -> None:
        self._starting = started

    async def run(self) -> None:
        """Keep one worker ready, until cancelled.

        Raises:
            RecogniserError: the first worker cannot be started. One that fails later is tried
                again, for the sake of the connections that have theirs.
        """
        while True:
            try:
                started = await start_worker(self._choice, self._note_start)
            except RecogniserError as error:
                self._starting = None
                if not self._ready.is_set():
                    raise
                _log.warning("%s; trying again", error)
                await trio.sleep(RETRY_SECONDS)
                continue
            self._starts_cpu_seconds += started.cpu_seconds
            self._starting = None
            self.info = started.info
            self._ready.set()
            try:
                await self._send.send(started)
            except trio.Cancelled:
                await started.aclose()
                raise

    async def wait_ready(self) -> None:
        """Wait until `run` has started the first worker; `run` ends with an error if it cannot."""
        await self._ready.wait()

    async def take(self) -> Worker:
        """Wait for a worker that is ready; the caller closes it.

        Cancelling this is safe: the worker stays in the pool.

        Raises:
            RecogniserError: for `START_SECONDS` none was ready and none being started used any
                processor, or the starts have taken `START_CPU_SECONDS` of it for nothing.
        """
        at_begin = self.cpu_seconds
        gets_on = True
        while gets_on:
            before = self.cpu_seconds
            with trio.move_on_after(START_SECONDS):
                return await self._take_alive()
            gets_on = before < self.cpu_seconds <= at_begin + START_CPU_SECONDS
        raise RecogniserError("no recogniser process was ready in time")

    async def _take_alive(self) -> Worker:
        while True:
            waiting = await self._receive.receive()
            if waiting.is_alive:
                return waiting
            _log.warning("a recogniser process that waited for work has died")
            await waiting.aclose()
