"""``python -m omi_rt.local``: the embedded recogniser's server.

It prints what is missing, and which recogniser it uses; when it is ready, its port on 127.0.0.1. Then it
prints how many connections it can carry, a line each time that this changes. Its status is 2 where the
model that was asked for by name cannot be used: the last line says why. It ends when its standard input does, so that it cannot
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
from attrs import asdict

from omi_rt.core.errors import OmiRtError
from omi_rt.core.groups import first_error
from omi_rt.core.json import dumps
from omi_rt.local.calibration import measure_speech_share
from omi_rt.local.capacity import Capacity
from omi_rt.local.choice import NO_WHISPER, Choice, choose, is_by_name
from omi_rt.local.cores import usable_cores
from omi_rt.local.errors import ModelUnusable, RecogniserError
from omi_rt.local.pool import WorkerPool
from omi_rt.local.process import EXIT_UNUSABLE, Said, carried_line, said_line
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
    parser.add_argument("--max-connections", type=int, help="so many, whatever is measured")
    parser.add_argument("--model", default="", help="of Whisper: a directory, a name, or off")
    parser.add_argument("--no-speakers", action="store_true", help="do not tell voices apart")
    arguments = parser.parse_args()
    # Ctrl-C in a terminal reaches every process of the group; whoever started this one may still
    # have sessions to finish. The workers inherit it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = 0
    try:
        trio.run(
            partial(
                serve,
                arguments.port,
                arguments.max_connections,
                asked=arguments.model,
                wants_speakers=not arguments.no_speakers,
            )
        )
    except* ModelUnusable as errors:
        _say(said_line(Said.UNUSABLE, str(first_error(errors))))
        status = EXIT_UNUSABLE
    except* (OmiRtError, OSError) as errors:
        sys.stderr.write(f"omi-rt: the embedded recogniser failed: {first_error(errors)}\n")
        status = 1
    return status


async def serve(
    port: int, max_connections: int | None = None, *, asked: str = "", wants_speakers: bool = True
) -> None:
    """Serve on ``port`` of 127.0.0.1 until SIGTERM or the end of standard input.

    Args:
        port: 0 picks one.
        max_connections: that are carried, whatever is measured.
        asked: the Whisper model to use: a directory, a name, ``off``, or empty for the best there is.
        wants_speakers: whether voices are to be told apart, where that is installed.

    Raises:
        ModelUnusable: ``asked`` cannot be used.
        OSError: the port is taken.
        RecogniserError: no worker can be started.
    """
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at_end_of_input, nursery.cancel_scope)
            nursery.start_soon(_cancel_at_signal, signals, nursery.cancel_scope)
            choice = await _choose(asked, wants_speakers=wants_speakers)
            pool = WorkerPool(choice)
            nursery.start_soon(_run_pool, pool, asked)
            await pool.wait_ready()
            _say(said_line(Said.USES, dumps(asdict(pool.info))))
            capacity = Capacity(
                usable_cores(),
                max_connections or DEFAULT_MAX_CONNECTIONS,
                is_fixed=max_connections is not None,
            )
            server = Server(pool, capacity)

            async def handle(stream: trio.SocketStream) -> None:
                await server.handle(TCPStream(stream.socket))

            await nursery.start(partial(trio.serve_listeners, handle, listeners))
            _say(f"{listeners[0].socket.getsockname()[1]}")
            nursery.start_soon(_tell_carried, capacity)
            # Not before: nobody who starts a server should wait for it.
            await _calibrate(capacity, choice)


async def _choose(asked: str, *, wants_speakers: bool) -> Choice:
    """Choose a recogniser, fetch it if need be, and say what is missing."""
    if is_by_name(asked):
        _say(said_line(Said.FETCHING, asked))
        # Blocks on the network. It is left behind if we are to end: the process ends with us.
        asked = await trio.to_thread.run_sync(_fetch, asked, abandon_on_cancel=True)
    choice = choose(asked, wants_speakers=wants_speakers)
    for note in choice.notes:
        _say(said_line(Said.NOTE, note))
    return choice


def _fetch(name: str) -> str:
    from omi_rt.local.whisper import fetch_model

    return fetch_model(name)


async def _run_pool(pool: WorkerPool, asked: str) -> None:
    try:
        await pool.run()
    except RecogniserError as error:
        if asked in {"", NO_WHISPER}:
            raise
        # The worker has said on standard error what is wrong with it.
        raise ModelUnusable(f"{asked} cannot be loaded") from error


async def _calibrate(capacity: Capacity, choice: Choice) -> None:
    """Measure what speech costs; without it `Capacity` goes by the number of cores."""
    try:
        capacity.speech_share = await measure_speech_share(choice)
    except* RecogniserError as errors:
        _log.warning("what recognising speech costs was not measured: %s", first_error(errors))


async def _tell_carried(capacity: Capacity) -> None:
    """Print how many connections can be carried, each time that it changes, until cancelled."""
    told: tuple[int, bool] | None = None
    while True:
        known = (capacity.carried, capacity.is_measured)
        if known != told:
            told = known
            _say(carried_line(*known))
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
