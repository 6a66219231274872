"""Lines for somebody who may have stopped reading are written at once, or kept for a while, or counted.

A pipe whose reader rests, a disk that is full, a stream that was closed before we began: none of
them may raise, and none may hold up the loop. A line is offered to the system at once. What a pipe
does not take waits in a bounded queue for the writer's task; what cannot be written is counted.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import threading
from time import monotonic
from typing import IO, TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_QUEUED_BYTES = 262_144
MAX_LINE_BYTES = 65_536
FLUSH_SECONDS = 1.0
"""At the end of the process a slow reader gets this long."""
_RETRY_SECONDS = 1.0
"""Where nothing tells when a descriptor takes more, it is tried again after this long."""


class LineWriter:
    """Writes whole lines, in order, from any thread. No method raises; none waits but `flush`.

    A descriptor that others share is never put into non-blocking mode, because that would change theirs.
    """

    def __init__(self, file: IO[str] | None) -> None:
        self.lost_lines = 0
        """Lines that were not written, and never will be."""
        self._on_lost: Callable[[int], object] | None = None
        self._lock = threading.Lock()
        self._queue = bytearray()
        self._is_half = False
        """Whether the line at the head of the queue has been written in part."""
        self._is_torn = False
        """Whether the last line that came out has no end, so that the next one must begin a new line."""
        self._file: IO[str] | None = None
        self._fd = -1
        self._own_fd = -1
        """The descriptor that was opened here and must be closed here; -1 where there is none."""
        self._socket: socket.socket | None = None
        self._polls = False
        self._work: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self.write_to(file)

    def write_to(self, file: IO[str] | None) -> None:
        """Write to ``file`` from now on, below its own buffer; None means nowhere."""
        with self._lock:
            self._let_go()
            self._file, self._fd = file, -1
            try:
                if file is None:
                    return
                file.flush()
                self._open(file.fileno())
            except (OSError, ValueError):
                # There is no descriptor, as where a test captures the output, or it cannot be used.
                self._fd = -1

    def count_lost_with(self, on_lost: Callable[[int], object]) -> None:
        """Tell ``on_lost`` how many lines have been lost so far, and of each that follows."""
        self._on_lost = on_lost
        if self.lost_lines:
            on_lost(self.lost_lines)

    def write(self, line: str) -> None:
        """Write a line, or keep it until it can be written, or count it as lost."""
        data = line.encode("utf-8", "backslashreplace")
        if len(data) > MAX_LINE_BYTES:
            data = data[:MAX_LINE_BYTES] + b" ..."
        with self._lock:
            if self._fd < 0:
                self._write_to_file(line)
                return
            if len(self._queue) + len(data) >= MAX_QUEUED_BYTES:
                self._offer()
            if len(self._queue) + len(data) >= MAX_QUEUED_BYTES:
                self.lose()
                return
            self._queue += data + b"\n"
            self._offer()
            if self._queue:
                self._wake()

    def lose(self, lines: int = 1) -> None:
        """Count lines that are not written."""
        self.lost_lines += lines
        if self._on_lost is not None:
            self._on_lost(lines)

    async def run(self) -> None:
        """Write what had to wait, as soon as it can be written. This runs until it is cancelled.

        Where it does not run, what waits is written together with the next line, or by `flush`.
        """
        self._work, self._token = trio.Event(), trio.lowlevel.current_trio_token()
        try:
            while True:
                if not self._queue:
                    await self._work.wait()
                self._work = trio.Event()
                try:
                    await trio.lowlevel.wait_writable(self._socket or self._fd)
                except (OSError, ValueError, trio.ClosedResourceError, trio.BusyResourceError):
                    await trio.sleep(_RETRY_SECONDS)
                with self._lock:
                    self._offer()
        finally:
            self._work = self._token = None

    def flush(self, within: float = FLUSH_SECONDS) -> None:
        """Wait ``within`` seconds for what is queued to be written; the rest is lost."""
        end = monotonic() + within
        while self._queue and self._fd >= 0:
            left = end - monotonic()
            if left <= 0 or not _is_writable(self._fd, left):
                break
            with self._lock:
                self._offer()
        with self._lock:
            self._give_up()

    def _open(self, fd: int) -> None:
        kind = os.fstat(fd).st_mode
        self._polls = not stat.S_ISREG(kind)
        if stat.S_ISSOCK(kind):
            self._own_fd = os.dup(fd)
            self._socket = socket.socket(fileno=self._own_fd)
        elif self._polls:
            # We open a description of our own, so that other processes keep theirs as it was. Where that
            # is not allowed, small writes to what is ready do nearly as well.
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own_fd = os.open(f"/proc/self/fd/{fd}", flags)
        self._fd = self._own_fd if self._own_fd >= 0 else fd

    def _let_go(self) -> None:
        self._offer()
        self._give_up()
        self._is_torn = self._is_half = False
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        if self._own_fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._own_fd)
            self._own_fd = -1

    def _offer(self) -> None:
        """Write what the system takes without waiting; what it refuses for good is lost."""
        while self._queue:
            try:
                if self._polls and not _is_writable(self._fd, 0):
                    return
                if self._is_torn:
                    self._send(b"\n")
                    self._is_torn = False
                sent = self._send(self._queue[: select.PIPE_BUF] if self._polls else self._queue)
            except BlockingIOError:
                return
            except (OSError, ValueError):
                self._give_up()
                return
            self._is_half = self._queue[sent - 1 : sent] != b"\n"
            del self._queue[:sent]

    def _send(self, data: bytes | bytearray) -> int:
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        return os.write(self._fd, data)

    def _give_up(self) -> None:
        if self._queue:
            self.lose(self._queue.count(b"\n"))
            self._queue.clear()
            self._is_torn, self._is_half = self._is_torn or self._is_half, False

    def _write_to_file(self, line: str) -> None:
        try:
            if self._file is None:
                raise ValueError
            self._file.write(line + "\n")
            self._file.flush()
        except (OSError, ValueError):
            self.lose()

    def _wake(self) -> None:
        work, token = self._work, self._token
        if work is not None and token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(work.set, idempotent=True)


def _is_writable(fd: int, within: float) -> bool:
    """Wait ``within`` seconds until a write would not wait, or would fail at once; tell whether it is so."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(within * 1000))
