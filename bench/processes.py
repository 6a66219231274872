"""Child processes: pinned to a core, bounded in every wait, gone when their block ends.

The load generator and the provider are spoken to over pipes (``control``); servers are black boxes
with a port and a log file.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import trio
from attrs import define, frozen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
CONTROL_SECONDS = 30.0
"""How long a helper may take to answer, unless its command says otherwise."""
READY_SECONDS = 20.0
"""How long a process may take to be ready."""
LOG_TAIL_CHARACTERS = 600
OPEN_FILES = 16_384
NICENESS = -10
"""Of servers, where it is allowed: other work on their core yields."""
LOAD_PRIORITY, SINK_PRIORITY = 1, 2
"""Real-time priorities, where they are allowed: an ordinary process that wakes up may wait some
milliseconds for its turn, and that would be measured. The provider's is the higher: it takes the time."""
MAX_LINE_BYTES = 1_048_576

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class BenchError(Exception):
    """A measurement could not be made; the message says why."""


@frozen
class Cores:
    """Which core runs what. With two, the load generator and the provider share one."""

    server: int
    load: int
    sink: int

    @classmethod
    def choose(cls) -> Cores:
        """From the cores that this process may use."""
        allowed = sorted(os.sched_getaffinity(0))
        server = allowed[0]
        load = allowed[1 % len(allowed)]
        return cls(server, load, allowed[2] if len(allowed) > 2 else load)

    @property
    def shared(self) -> bool:
        """Whether the load generator and the provider are on one core."""
        return self.load == self.sink


def _spawn(
    command: Sequence[str], core: int, priority: int | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        # Whatever happens to the runner, nothing stays behind.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, {core})
        with suppress(PermissionError):
            if priority is None:
                os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
            else:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        soft = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    # Not Trio's open_process: it starts children from a thread, and a child's death signal comes
    # when the thread that started it ends.
    return subprocess.Popen(command, cwd=ROOT, preexec_fn=prepare, **options)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)


@define
class Helper:
    """The load generator or the provider."""

    name: str
    process: subprocess.Popen[bytes]
    _requests: trio.lowlevel.FdStream
    _answers: trio.lowlevel.FdStream
    _log: Path
    _rest: bytes = b""

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    async def ask(
        self, command: str, *, seconds: float = CONTROL_SECONDS, **arguments: Any
    ) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Cancelling this leaves the answer unread: give the helper up afterwards.

        Raises:
            BenchError: the helper refused, died or took too long.
        """
        line = orjson.dumps({"command": command, **arguments}) + b"\n"
        try:
            with trio.fail_after(seconds):
                await self._requests.send_all(line)
                answer = await self.read_answer()
        except trio.TooSlowError:
            raise BenchError(f"{self.name}: no answer to {command} in {seconds:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise BenchError(f"{self.name} is gone: {tail(self._log)}") from None
        if "error" in answer:
            raise BenchError(f"{self.name}: {command}: {answer['error']}")
        return answer

    async def read_answer(self) -> dict[str, Any]:
        """The next line from the helper; unbounded in time.

        Raises:
            BenchError: the helper ended.
        """
        while b"\n" not in self._rest:
            more = await self._answers.receive_some(65_536)
            if not more or len(self._rest) > MAX_LINE_BYTES:
                raise BenchError(f"{self.name} ended: {tail(self._log)}")
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = orjson.loads(line)
        return answer


@asynccontextmanager
async def open_helper(
    name: str, arguments: Sequence[str], core: int, priority: int, log: Path
) -> AsyncIterator[tuple[Helper, dict[str, Any]]]:
    """Run ``python -m bench.<name>``; yields it with its first line. It is killed on leaving."""
    with log.open("wb") as stderr:
        process = _spawn(
            [sys.executable, "-m", f"bench.{name}", *arguments],
            core,
            priority,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    requests = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
    answers = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
    process.stdin.close()
    process.stdout.close()
    helper = Helper(name, process, requests, answers, log)
    try:
        try:
            with trio.fail_after(READY_SECONDS):
                hello = await helper.read_answer()
        except trio.TooSlowError:
            raise BenchError(f"{name} did not start: {tail(log)}") from None
        yield helper, hello
    finally:
        _kill(process)
        await trio.aclose_forcefully(requests)
        await trio.aclose_forcefully(answers)


@define
class ServerProcess:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def check(self) -> None:
        """Raise unless it still runs.

        Raises:
            BenchError: it ended; the message has the end of its log.
        """
        if self.process.poll() is not None:
            status = self.process.returncode
            raise BenchError(f"the server ended with status {status}: {tail(self.log)}")


@asynccontextmanager
async def open_server(
    command: Sequence[str], environment: Mapping[str, str], core: int, log: Path
) -> AsyncIterator[ServerProcess]:
    """Run a server on a free port; yields when it accepts connections. It is killed on leaving.

    ``{port}`` in the command becomes the port.

    Raises:
        BenchError: it ended or did not listen in time.
    """
    port = free_port()
    with log.open("wb") as output:
        process = _spawn(
            [part.replace("{port}", str(port)) for part in command],
            core,
            env={**_neutral_environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    server = ServerProcess(process, port, log)
    try:
        try:
            with trio.fail_after(READY_SECONDS):
                while not await _accepts(port):
                    server.check()
                    await trio.sleep(0.02)
        except trio.TooSlowError:
            raise BenchError(f"the server did not listen: {tail(log)}") from None
        yield server
    finally:
        _kill(process)


def _neutral_environment() -> dict[str, str]:
    """The environment without anything that changes a server's defaults."""
    prefixes = ("OMI_RT_", "DEEPGRAM_", "BUCKET_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


async def _accepts(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(log: Path) -> str:
    """The end of a log file."""
    return log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:].strip() or "it said nothing"
