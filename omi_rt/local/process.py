"""The embedded recogniser's process, as seen by whoever wants one."""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from typing import TYPE_CHECKING

import trio

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

_LONGEST_PORT_LINE = 16
_log = logging.getLogger("omi_rt.local")


async def run_local_recogniser(
    *,
    max_connections: int | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the embedded recogniser; its base URL ``ws://127.0.0.1:PORT`` is the started value.

    A process that ends by itself is started anew at the same port, after a pause; who was connected
    has to connect again. Cancelling this ends the process, within `EXIT_SECONDS`.

    Raises:
        RecogniserNotInstalled: there is no pocketsphinx.
        RecogniserError: it did not get ready at first, or ended too often in a row.
    """
    if importlib.util.find_spec("pocketsphinx") is None:
        raise RecogniserNotInstalled
    options = [] if max_connections is None else ["--max-connections", str(max_connections)]
    port = 0
    restarts = 0

    def on_ready(bound_port: int) -> None:
        nonlocal port
        if port == 0:
            port = bound_port
            task_status.started(f"ws://127.0.0.1:{port}")

    while True:
        status, seconds_ready = await _run_once(["--port", str(port), *options], on_ready)
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


async def _run_once(options: list[str], on_ready: Callable[[int], None]) -> tuple[str, float]:
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
            port = await _read_port(process.stdout)
        if start.cancelled_caught:
            return f"not ready within {START_SECONDS:g} s", 0.0
        ready_at = trio.current_time()
        if port is not None:
            on_ready(port)
        status = await process.wait()
        return f"exit status {status}", trio.current_time() - ready_at
    finally:
        process.terminate()
        with trio.move_on_after(EXIT_SECONDS, shield=True):
            await process.stdin.aclose()
            await process.stdout.aclose()
            await process.wait()
        process.kill()
        with trio.move_on_after(EXIT_SECONDS, shield=True):
            await process.wait()


async def _read_port(output: trio.abc.ReceiveStream) -> int | None:
    """Wait for the line with the port; None when the output ends, or begins, otherwise."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_PORT_LINE:
        data = await output.receive_some(_LONGEST_PORT_LINE - len(line))
        if not data:
            break
        line += data
    return int(line) if line.strip().isdigit() else None
