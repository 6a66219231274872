"""``omi-rt fake-deepgram``: the fake over TCP, for anyone's client."""

from __future__ import annotations

import shlex
from random import Random
from typing import TYPE_CHECKING

import trio
from attrs import evolve

from omi_rt.fake.deepgram import FakeDeepgram
from omi_rt.fake.faults import FaultScript
from omi_rt.fake.records import Options
from omi_rt.fake.schedules import random_provider
from omi_rt.fake.scripts import read_script
from omi_rt.net.listeners import connectable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FAULT_SECONDS = 40.0
"""Seeded faults cost a client at most this many seconds, so a backlog of 60 s survives them whole."""
_ANY_KEY = "any-key"
"""Where every key passes, a client must still send one, and this is what it is told to send."""


async def serve_fake(
    host: str,
    port: int,
    script: Path | None,
    seed: int | None,
    keys: frozenset[str],
    announce: Callable[[str], None],
    *,
    serve_command: str = "omi-rt serve",
) -> None:
    """Serve until cancelled. Two lines are announced: the address, and what to paste into a shell.

    The second has a key that passes: one of ``keys``, which whoever started this has just typed.

    Raises:
        ScriptError: the script cannot be read.
        BindFailed: the address cannot be bound.
    """
    options, faults = Options(), FaultScript()
    if script is not None:
        scenario = read_script(script)
        options, faults = scenario.options, scenario
    elif seed is not None:
        options, faults = random_provider(Random(seed), FAULT_SECONDS)
    fake = FakeDeepgram(evolve(options, keys=keys or options.keys), faults)
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(fake.serve_tcp, host, port)
        url = f"ws://{connectable(host)}:{bound}"
        key = shlex.quote(min(fake.options.keys or {_ANY_KEY}))
        announce(f"fake Deepgram is ready on {url}; to use it, paste:")
        announce(f"DEEPGRAM_URL={url} DEEPGRAM_API_KEY={key} {serve_command}")
