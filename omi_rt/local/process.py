"""The embedded recogniser's process, as seen by whoever wants one."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import trio
from attrs import define

from omi_rt.local.errors import RecogniserError, RecogniserNotInstalled

if TYPE_CHECKING:
    from collections.abc import Callable

START_SECONDS = 30.0
"""Until the process must be ready; it takes about a second on an idle core."""
EXIT_SECONDS = 5.0
"""From SIGTERM to SIGKILL."""
MAX_RESTARTS = 5
"""In a row; the count starts afresh once the process has run for `STEADY_SECONDS`."""
STEADY_SECONDS = 60.0
FIRST_PAUSE = 0.2
"""In seconds, before the first restart; doubled for each that follows."""

_LONGEST_LINE = 64
_CARRIED = "carries"
_log = logging.getLogger("omi_rt.local")


@define
class Room:
    """How many connections the recogniser can carry, as it last said."""

    carried: int | None = None
    """With those that it has; None while it has not said."""


def carried_line(connections: int) -> str:
    """Return the line with which the recogniser says how many connections it can carry."""
    return f"{_CARRIED} {connections}"


async def run_local_recogniser(
    *,
    max_connections: int | None = None,
    room: Room | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the embedded recogniser; its base URL ``ws://127.0.0.1:PORT`` is the started value.

    A process that ends by itself is started anew at the same port, after a pause; who was connected
    has to connect again. Cancelling this ends the process, within `EXIT_SECONDS`. What it says of
    how much it can carry is kept in ``room``.

    Raises:
        RecogniserNotInstalled: there is no pocketsphinx.
        RecogniserError: it did not get ready at first, or ended too often in a row.
    """
    if importlib.util.find_spec("pocketsphinx") is None:
        raise RecogniserNotInstalled
    options = [] if max_connections is None else ["--max-connections", str(max_connections)]
    port = 0
    restarts = 0
    room = room or Room()

    def on_ready(bound_port: int) -> None:
        nonlocal port
        if port == 0:
            port = bound_port
            task_status.started(f"ws://127.0.0.1:{port}")

    while True:
        status, seconds_ready = await _run_once(["--port", str(port), *options], on_ready, room)
        if port == 0:
            raise RecogniserError(f"the embedded recogniser did not start ({status})")
        if seconds_ready >= STEADY_SECONDS:
            restarts = 0
        if restarts == MAX_RESTARTS:
            raise RecogniserError(f"the embedded recogniser does not stay up ({status})")
        pause = FIRST_PAUSE * 2**restarts
        restarts += 1
        _log.warning("the embedded recogniser ended (%s); again in %.1f s", status, pause)
        await trio.sleep(pause)


async def _run_once(
    options: list[str], on_ready: Callable[[int], None], room: Room
) -> tuple[str, float]:
    """Run the process to its end; return what to say of that, and for how long it was ready."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "omi_rt.local", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Ctrl-C in a terminal must not reach it: there may be sessions that are still finishing.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with trio.move_on_after(START_SECONDS) as start:
            lines = _Lines(process.stdout)
            port = await lines.read()
        if start.cancelled_caught:
            return f"not ready within {START_SECONDS:g} s", 0.0
        ready_at = trio.current_time()
        if port.isdecimal():
            on_ready(int(port))
            while line := await lines.read():
                room.carried = _parse_carried(line, room.carried)
        status = await process.wait()
        return f"exit status {status}", trio.current_time() - ready_at
    finally:
        room.carried = None
        process.terminate()
        with trio.move_on_after(EXIT_SECONDS, shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()
        process.kill()
        with trio.move_on_after(EXIT_SECONDS, shield=True):
            await process.wait()


def _parse_carried(line: str, before: int | None) -> int | None:
    """Return what `carried_line` was given; ``before`` for a line that says something else."""
    kind, _, connections = line.partition(" ")
    return int(connections) if kind == _CARRIED and connections.isdecimal() else before


class _Lines:
    """Reads a process's output line by line."""

    def __init__(self, output: trio.abc.ReceiveStream) -> None:
        self._output = output
        self._received = bytearray()

    async def read(self) -> str:
        """Wait for a line; empty at the end of the output, and from a line that is too long on."""
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > _LONGEST_LINE or not (
                data := await self._output.receive_some()
            ):
                return ""
            self._received += data
        line = self._received[:end].decode("ascii", "replace").strip()
        del self._received[: end + 1]
        return line
