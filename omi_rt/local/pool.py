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

if TYPE_CHECKING:
    from omi_rt.local.choice import Choice

START_SECONDS = 30.0
"""Until a worker must have loaded the model; it takes 0.6 s on an idle core."""
BUSY_SECONDS = 30.0
"""For a worker to take what it is sent; it works through ten seconds of audio in three."""
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
            RecogniserError: the worker is gone, or took nothing for `BUSY_SECONDS`.
        """
        try:
            with trio.fail_after(BUSY_SECONDS):
                await self._stdin.send_all(frames)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise RecogniserError("a recogniser process is gone") from error
        except trio.TooSlowError as error:
            raise RecogniserError(f"a recogniser process hung for {BUSY_SECONDS:g} s") from error

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


async def start_worker(choice: Choice) -> Worker:
    """Start a worker and wait until it has loaded what was chosen.

    Cancelling this ends it.

    Raises:
        RecogniserError: it did not get ready within `START_SECONDS`; it has said why on stderr.
    """
    started = Worker(
        await trio.lowlevel.open_process(
            [sys.executable, "-m", "omi_rt.local.worker", *worker.arguments(choice)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    info: RecogniserInfo | None = None
    try:
        with trio.move_on_after(START_SECONDS):
            info = pipe.parse_ready(await started.receive_line() or "")
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
        self.info = RecogniserInfo("", "", ())
        """What the workers say of themselves, once the first one is ready."""

    async def run(self) -> None:
        """Keep one worker ready, until cancelled.

        Raises:
            RecogniserError: the first worker cannot be started. One that fails later is tried
                again, for the sake of the connections that have theirs.
        """
        while True:
            try:
                started = await start_worker(self._choice)
            except RecogniserError as error:
                if not self._ready.is_set():
                    raise
                _log.warning("%s; trying again", error)
                await trio.sleep(RETRY_SECONDS)
                continue
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
            RecogniserError: none was to be had within `START_SECONDS`.
        """
        with trio.move_on_after(START_SECONDS):
            while True:
                waiting = await self._receive.receive()
                if waiting.is_alive:
                    return waiting
                _log.warning("a recogniser process that waited for work has died")
                await waiting.aclose()
        raise RecogniserError("no recogniser process was ready in time")
