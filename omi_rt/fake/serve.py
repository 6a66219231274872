"""``omi-rt fake-deepgram``: the fake over TCP, for anyone's client."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import trio

from omi_rt.fake.deepgram import FakeDeepgram
from omi_rt.fake.faults import FaultScript
from omi_rt.fake.records import Options
from omi_rt.fake.schedules import random_schedule
from omi_rt.fake.scripts import read_script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAULT_SECONDS = 40.0
"""What seeded faults cost a client at most: a backlog of 60 s survives them whole."""


async def serve_fake(
    host: str,
    port: int,
    script: Path | None,
    seed: int | None,
    keys: frozenset[str],
    announce: Callable[[str], None],
) -> None:
    """Serve until cancelled; one announced line tells the address.

    Raises:
        ScriptError: the script can not be read.
        OSError: the address can not be bound.
    """
    faults = FaultScript()
    if script is not None:
        faults = read_script(script)
    elif seed is not None:
        faults = random_schedule(Random(seed), FAULT_SECONDS)
    fake = FakeDeepgram(Options(keys=keys or None, seed=seed or 0), faults)
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(fake.serve_tcp, host, port)
        announce(f"fake Deepgram is ready: DEEPGRAM_URL=ws://{host}:{bound}")
