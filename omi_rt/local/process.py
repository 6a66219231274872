"""The embedded recogniser's process, as seen by whoever wants one."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from enum import Enum

import trio
from attrs import define, field

from omi_rt.core.errors import SettingsError
from omi_rt.core.json import loads
from omi_rt.local.choice import check_installed, is_by_name
from omi_rt.local.decoding import RecogniserInfo
from omi_rt.local.errors import RecogniserError

START_SECONDS = 30.0
"""Until the process must be ready; it takes about a second on an idle core."""
FETCH_SECONDS = 900.0
"""The same where a model has to be fetched: the largest is 3 GB."""
EXIT_UNUSABLE = 2
"""Its status where the model that was asked for cannot be used."""
MODEL_VARIABLE = "OMI_RT_WHISPER_MODEL"
EXIT_SECONDS = 5.0
"""From SIGTERM to SIGKILL."""
MAX_RESTARTS = 5
"""In a row; the count starts afresh once the process has run for `STEADY_SECONDS`."""
STEADY_SECONDS = 60.0
FIRST_PAUSE = 0.2
"""In seconds, before the first restart; doubled for each that follows."""

_LONGEST_LINE = 4096
_CARRIED = "carries"
_log = logging.getLogger("omi_rt.local")


@define
class Room:
    """How many connections the recogniser can carry, as it last said."""

    carried: int | None = None
    """With those that it has; None while it has not said."""
    info: RecogniserInfo | None = None
    """What it says of itself, once it is ready."""
    notes: list[str] = field(factory=list)
    """What it misses, a line each."""
    measured: trio.Event = field(factory=trio.Event)
    """Set when ``carried`` has been measured."""


class Said(Enum):
    """What the lines before the port say, each with its text behind it."""

    FETCHING = "fetching"
    """A model, by its name: the start takes longer."""
    NOTE = "note"
    USES = "uses"
    """What it is, as `RecogniserInfo` in JSON."""
    UNUSABLE = "unusable"
    """The model that was asked for, and why: the process ends with `EXIT_UNUSABLE`."""


def said_line(what: Said, text: str) -> str:
    """Return the line that says so. Its text may be shown to people."""
    return f"{what.value} {' '.join(text.split())}"[:_LONGEST_LINE]


def carried_line(connections: int, is_measured: bool) -> str:
    """Return the line with which the recogniser says how many connections it can carry."""
    return f"{_CARRIED} {connections}{' measured' if is_measured else ''}"


async def run_local_recogniser(
    *,
    max_connections: int | None = None,
    model: str = "",
    room: Room | None = None,
    announce: Callable[[str], None] = _log.info,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the embedded recogniser; its base URL ``ws://127.0.0.1:PORT`` is the started value.

    A process that ends by itself is started anew at the same port, after a pause; who was connected
    has to connect again. Cancelling this ends the process, within `EXIT_SECONDS`.

    Args:
        max_connections: that it is to carry, whatever it measures.
        model: of Whisper: a directory, a name, ``off`` for pocketsphinx, or empty for the best there is.
        room: keeps what the process says of itself and of how much it can carry.
        announce: gets a line where the start takes longer because a model is fetched.
        task_status: told the address.

    Raises:
        RecogniserNotInstalled: there is none.
        SettingsError: ``model`` cannot be used.
        RecogniserError: it did not get ready at first, or ended too often in a row.
    """
    check_installed()
    options = ["--model", model]
    if max_connections is not None:
        options += ["--max-connections", str(max_connections)]
    port = 0
    restarts = 0
    room = room or Room()
    start = _Start(room, announce, FETCH_SECONDS if is_by_name(model) else START_SECONDS)

    def on_ready(bound_port: int) -> None:
        nonlocal port
        if port == 0:
            port = bound_port
            task_status.started(f"ws://127.0.0.1:{port}")

    while True:
        status, seconds_ready = await _run_once(["--port", str(port), *options], on_ready, start)
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


@define
class _Start:
    """How a process is waited for until it is ready, and who is told what it says before."""

    room: Room
    announce: Callable[[str], None]
    seconds: float

    async def read_port(self, lines: _Lines) -> str:
        """Take what comes before the port, and return that; empty where none comes."""
        self.room.notes.clear()
        while line := await lines.read():
            kind, _, text = line.partition(" ")
            if kind == Said.FETCHING.value:
                self.announce(f"fetching the model {text}")
            elif kind == Said.NOTE.value:
                self.room.notes.append(text)
            elif kind == Said.USES.value:
                said = loads(text)
                self.room.info = RecogniserInfo(**{**said, "languages": tuple(said["languages"])})
            elif kind == Said.UNUSABLE.value:
                raise SettingsError([f"{MODEL_VARIABLE}: {text}"])
            else:
                return line
        return ""


async def _run_once(
    options: list[str], on_ready: Callable[[int], None], start: _Start
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
    room = start.room
    try:
        with trio.move_on_after(start.seconds) as limit:
            lines = _Lines(process.stdout)
            port = await start.read_port(lines)
        if limit.cancelled_caught:
            return f"not ready within {start.seconds:g} s", 0.0
        ready_at = trio.current_time()
        if port.isdecimal():
            on_ready(int(port))
            while line := await lines.read():
                _note_carried(line, room)
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


def _note_carried(line: str, room: Room) -> None:
    """Keep what `carried_line` was given; a line that says something else changes nothing."""
    kind, *rest = line.split(" ")
    if kind == _CARRIED and rest and rest[0].isdecimal():
        room.carried = int(rest[0])
        if rest[1:] == ["measured"]:
            room.measured.set()


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
        line = self._received[:end].decode("utf-8", "replace").strip()
        del self._received[: end + 1]
        return line
