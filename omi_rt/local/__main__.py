"""``python -m omi_rt.local``: the embedded recogniser's server.

When it is ready it prints one line, its port on 127.0.0.1. Then it prints how many connections it can
carry, a line each time that this changes. It ends when its standard input does, so that it cannot
outlive whoever started it, and on SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio

from omi_rt.core.errors import OmiRtError
from omi_rt.core.groups import first_error
from omi_rt.local.calibration import measure_speech_share
from omi_rt.local.capacity import Capacity
from omi_rt.local.cores import usable_cores
from omi_rt.local.errors import RecogniserError
from omi_rt.local.pool import WorkerPool
from omi_rt.local.process import carried_line
from omi_rt.local.server import DEFAULT_MAX_CONNECTIONS, Server
from omi_rt.net.stream import TCPStream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TELL_SECONDS = 0.5
"""Between two looks at how many connections can be carried."""
_log = logging.getLogger("omi_rt.local")


def main() -> int:
    """Serve until told to end; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m omi_rt.local")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--max-connections", type=int, default=DEFAULT_MAX_CONNECTIONS)
    arguments = parser.parse_args()
    # Ctrl-C in a terminal reaches every process of the group; whoever started this one may still
    # have sessions to finish. The workers inherit it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = 0
    try:
        trio.run(serve, arguments.port, arguments.max_connections)
    except* (OmiRtError, OSError) as errors:
        sys.stderr.write(f"omi-rt: the embedded recogniser failed: {first_error(errors)}\n")
        status = 1
    return status


async def serve(port: int, max_connections: int) -> None:
    """Serve on ``port`` of 127.0.0.1 until SIGTERM or the end of standard input.

    Raises:
        OSError: the port is taken.
        RecogniserError: no worker can be started.
    """
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    pool = WorkerPool()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_end_of_input, nursery.cancel_scope)
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            nursery.start_soon(pool.run)
            await pool.wait_ready()
            capacity = Capacity(usable_cores(), max_connections)
            server = Server(pool, capacity)

            async def handle(stream: trio.SocketStream) -> None:
                await server.handle(TCPStream(stream.socket))

            await nursery.start(partial(trio.serve_listeners, handle, listeners))
            _say(f"{listeners[0].socket.getsockname()[1]}")
            nursery.start_soon(_tell_carried, capacity)
            # Not before: nobody who starts a server should wait for it.
            await _calibrate(capacity)


async def _calibrate(capacity: Capacity) -> None:
    """Measure what speech costs; without it `Capacity` goes by the number of cores."""
    try:
        capacity.speech_share = await measure_speech_share()
    except* RecogniserError as errors:
        _log.warning("what recognising speech costs was not measured: %s", first_error(errors))


async def _tell_carried(capacity: Capacity) -> None:
    """Print how many connections can be carried, each time that it changes, until cancelled."""
    told: int | None = None
    while True:
        if capacity.carried != told:
            told = capacity.carried
            _say(carried_line(told))
        await trio.sleep(TELL_SECONDS)


def _say(line: str) -> None:
    # Whoever started us may be gone; the end of our input follows.
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


async def _cancel_at_end_of_input(scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as standard_input:
        async for _ in standard_input:
            pass
    scope.cancel()


async def _cancel_at_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


if __name__ == "__main__":
    sys.exit(main())
