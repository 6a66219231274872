"""The programs as a person runs them: processes with a clean environment, on sockets of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

import trio
from attrs import define, field, frozen

from omi_rt.fake import FakeDeepgram, FaultScript, Options
from omi_rt.net.handshake import open_websocket
from omi_rt.net.stream import open_tcp_stream
from tests.harness import Device, read_all, split_response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from omi_rt.fake.streams import BoundedStream

KEY = "5ec2e7-4ey-0f-4n-e2e-7e57"
"""The key of every server; no program may say it."""
NOWHERE = "ws://127.0.0.1:9"
"""A Deepgram that is not there: nothing serves the discard port."""
UPGRADE = (
    "GET /listen?uid=u1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
"""A whole request of a device."""
START_SECONDS = 20.0
"""Until a program is ready: it takes about one on an idle core."""
EXIT_SECONDS = 10.0

_COMMAND = [sys.executable, "-m", "omi_rt"]
_SERVER_READY = re.compile(r"omi-rt is ready on https?://[^ ]+:(\d+) \(devices: (wss?://[^\s)]+)\)")
_FAKE_READY = re.compile(
    r"^fake Deepgram is ready on (ws://127\.0\.0\.1:\d+); to use it, paste:$", re.MULTILINE
)


def environment(settings: dict[str, str]) -> dict[str, str]:
    """Return what a program gets to see: nothing of the tests' own settings."""
    names = ("PATH", "HOME", "PYTHONPATH")
    inherited = {name: os.environ[name] for name in names if name in os.environ}
    return inherited | settings


@frozen
class Finished:
    """A program that ran to its end."""

    status: int
    output: str
    errors: str


async def run(
    *arguments: str, within: float = 30.0, stdout: int | None = None, **settings: str
) -> Finished:
    """Run ``omi-rt`` with ``arguments`` to its end, in an empty directory.

    ``stdout`` may be a file descriptor; what went there is not in the result.

    Raises:
        trio.TooSlowError: it takes longer than ``within`` seconds; it is then killed.
    """
    with TemporaryDirectory() as directory, trio.fail_after(within):
        done = await trio.run_process(
            [*_COMMAND, *arguments],
            env=environment(settings),
            cwd=directory,
            capture_stderr=True,
            check=False,
            **({"capture_stdout": True} if stdout is None else {"stdout": stdout}),
        )
    output = done.stdout.decode() if done.stdout is not None else ""
    finished = Finished(done.returncode, output, done.stderr.decode())
    assert KEY not in finished.output + finished.errors
    return finished


@define
class Program:
    """A program that runs, and all that it has said."""

    process: trio.Process
    output: str = field(default="", repr=False)
    errors: str = field(default="", repr=False)
    _has_ended: bool = False
    _news: trio.Event = field(factory=trio.Event)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    async def says(self, line: re.Pattern[str] | str, within: float = START_SECONDS) -> list[str]:
        """Wait until ``line`` is found in its standard error; return the pattern's groups.

        Raises:
            AssertionError: it ended without saying it.
            trio.TooSlowError: it does not say it within ``within`` seconds.
        """
        pattern = re.compile(line) if isinstance(line, str) else line
        with trio.fail_after(within):
            while (found := pattern.search(self.errors)) is None:
                assert not self._has_ended, f"ended without {pattern.pattern!r}: {self.errors}"
                await self._news.wait()
        return list(found.groups())

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def status(self, within: float = EXIT_SECONDS) -> int:
        """Wait for its exit status.

        Raises:
            trio.TooSlowError: it runs on for over ``within`` seconds.
        """
        with trio.fail_after(within):
            return await self.process.wait()

    async def read_output(self) -> None:
        """Collect its standard output until that ends."""
        assert self.process.stdout is not None
        async for data in self.process.stdout:
            self.output += data.decode(errors="replace")

    async def read_errors(self) -> None:
        """Collect its standard error until that ends."""
        assert self.process.stderr is not None
        async for data in self.process.stderr:
            self.errors += data.decode(errors="replace")
            self._tell()
        self._has_ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def running(*arguments: str, **settings: str) -> AsyncIterator[Program]:
    """Run ``omi-rt`` with ``arguments`` beside the body; what is left of it then is killed."""
    with TemporaryDirectory() as directory:
        async with trio.open_nursery() as nursery:
            process = await trio.lowlevel.open_process(
                [*_COMMAND, *arguments],
                env=environment(settings),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            program = Program(process)
            nursery.start_soon(program.read_output)
            nursery.start_soon(program.read_errors)
            try:
                yield program
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + EXIT_SECONDS):
                    process.kill()
                    await process.wait()
                # Whatever holds its pipes open would hold this up: it is not to be there.
                nursery.cancel_scope.deadline = trio.current_time() + EXIT_SECONDS
    assert not nursery.cancel_scope.cancelled_caught, "something still holds the program's pipes"
    # The fake is told its key in its arguments, and shows how to use it.
    assert KEY not in program.output + program.errors or arguments[0] == "fake-deepgram"


@define
class ServerProgram:
    """A running ``omi-rt serve``."""

    program: Program
    port: int
    url: str
    """Of its ``/listen``."""

    async def get(self, target: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
        """Make a plain HTTP request; returns status, headers and body. Raises ``OSError``."""
        return await exchange(
            await self.connect(), f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n"
        )

    async def connect(self) -> trio.abc.HalfCloseableStream:
        """Open a bare connection. Raises ``OSError``."""
        with trio.fail_after(5):
            return await open_tcp_stream("127.0.0.1", self.port)

    @asynccontextmanager
    async def device(self, **parameters: Any) -> AsyncIterator[Device]:
        """Connect a device to /listen, which reads all the time; leaving vanishes."""
        stream = await self.connect()
        try:
            target = urlencode({"uid": "u1"} | parameters)
            websocket = await open_websocket(stream, f"{self.url}?{target}")
            # A device only closes its stream, whatever kind it is.
            device = Device(websocket, cast("BoundedStream", stream))
            closed = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(websocket.run_writer, 30.0)
                nursery.start_soon(_read_to_the_end, device, closed)
                yield device
                if device.closed is not None:
                    await closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(stream)


async def _read_to_the_end(device: Device, closed: trio.Event) -> None:
    await device.read()
    # As every client does: answer the close, and let the server be the first to end TCP.
    await device.websocket.aclose()
    closed.set()


@asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[ServerProgram]:
    """Run ``omi-rt serve`` on a free port. Everything that it logs is on its standard error."""
    defaults = {"OMI_RT_LOG_LEVEL": "debug"}
    async with running("serve", "--port", "0", **(defaults | settings)) as program:
        port, url = await program.says(_SERVER_READY)
        yield ServerProgram(program, int(port), url)


@asynccontextmanager
async def fake_program(*arguments: str) -> AsyncIterator[str]:
    """Run ``omi-rt fake-deepgram`` on a free port; the value is its ``DEEPGRAM_URL``."""
    async with running("fake-deepgram", *arguments) as program:
        (url,) = await program.says(_FAKE_READY)
        yield url


@asynccontextmanager
async def fake_in_process(
    faults: FaultScript | None = None, **options: Any
) -> AsyncIterator[tuple[FakeDeepgram, str]]:
    """Serve a fake on loopback from the test itself, for a look at what arrived; and its URL."""
    fake = FakeDeepgram(Options(**options), faults or FaultScript())
    async with trio.open_nursery() as nursery:
        port = await nursery.start(fake.serve_tcp, "127.0.0.1", 0)
        yield fake, f"ws://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()
    assert fake.violations == []


async def exchange(
    stream: trio.abc.Stream, request: str, within: float = 10.0
) -> tuple[int, dict[str, str], str]:
    """Send a request, read to the end; returns status, headers and body of the answer."""
    with trio.fail_after(within):
        async with stream:
            await stream.send_all(request.encode())
            return split_response(await read_all(stream))


def resources_of(pid: int) -> tuple[int, int]:
    """Return how many file descriptors and threads a process has."""
    process = Path(f"/proc/{pid}")
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has in use."""
    (line,) = re.findall(
        r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
    )
    return int(line) * 1024


async def wait_until(condition: Callable[[], bool], within: float) -> None:
    """Wait for what no event tells of, such as the state of another process.

    Raises:
        trio.TooSlowError: it does not come within ``within`` seconds.
    """
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110 - the kernel sets no trio.Event
            await trio.sleep(0.02)
