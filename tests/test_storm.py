"""Random faults by the thousand, and hours of a session, on virtual time."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from omi_rt.fake import Script, random_provider, random_script, synthesise
from omi_rt.fake.speech import audio_chunks
from omi_rt.log import configure_logging
from tests.harness import listening_server, words_of
from tests.test_identities import ANNA, stored

RATE = 8000
STORM_SEEDS = 1000
SEEDS_PER_TEST = 50


async def storm(seed: int) -> None:
    """One session with a random provider: slow, silent, untidy, and with faults that cost it less
    than the backlog holds.

    Every tenth has a speech profile: epochs are primed and switched in the middle of it all.
    """
    random = Random(seed)
    profiles = stored(people={"anna": ANNA}) if seed % 10 == 0 else None
    channels = 1 if random.random() < 0.8 else 2
    # In a pause a provider may say nothing: all of it waits in the backlog.
    pause = random.choice([2.0, 2.0, 10.0, 25.0])
    script = random_script(
        random, random.uniform(15.0, 40.0), channels=channels, longest_pause=pause
    )
    script = Script(script.words, round(script.seconds, 2), channels)
    options, faults = random_provider(random, 40.0 - pause, channels=channels)
    pcm = synthesise(script, RATE)
    async with (
        listening_server(options=options, faults=faults, seed=seed, profiles=profiles) as (
            world,
            _fake,
        ),
        world.device(channels=channels) as device,
    ):
        message_seconds = random.choice([0.06, 0.1, 0.25, 0.25, 0.25, 0.5])
        await device.stream_audio(pcm, RATE * 2 * channels, message_seconds=message_seconds)
        ended = await device.finish(300)
    assert ended["received"] == pytest.approx(ended["finalised"] + ended["lost"])
    assert ended["lost"] < 1.0, "no more than silence at the very end"
    for channel in range(channels):
        heard = words_of(device.segments, channel if channels > 1 else None)
        assert heard == script.transcript(channel)
    statuses = device.statuses()
    assert statuses.count("ready") == 1
    assert statuses.count("stt_degraded") - statuses.count("stt_recovered") in {0, 1}


def resident_bytes() -> int:
    """The process's resident set."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def run_storm(seed: int) -> None:
    try:
        trio.run(storm, seed, clock=MockClock(autojump_threshold=0))
    except BaseException as error:
        error.add_note(f"storm seed {seed}")
        raise


@pytest.mark.parametrize("first", range(0, STORM_SEEDS, SEEDS_PER_TEST))
def test_under_random_faults_every_word_comes_exactly_once(first: int) -> None:
    configure_logging("error")
    for seed in range(first, first + SEEDS_PER_TEST):
        run_storm(seed)


def test_eight_hours_of_a_session_stay_exact_with_flat_memory() -> None:
    configure_logging("error")
    hours = 8
    started = perf_counter()
    sizes: list[int] = []

    async def session() -> None:
        script = random_script(Random(88), hours * 3600.0, longest_pause=20.0)
        heard: list[str] = []
        async with listening_server() as (world, _fake), world.device() as device:
            for number, chunk in enumerate(audio_chunks(script, RATE)):
                await trio.sleep(1.0)
                device.send(chunk)
                if number % 3600 == 1800:
                    heard += words_of(device.segments)
                    device.messages.clear()
                    gc.collect()
                    sizes.append(resident_bytes())
            ended: dict[str, Any] = await device.finish()
            heard += words_of(device.segments)
        assert heard == script.transcript()
        assert ended["finalised"] == hours * 3600.0

    trio.run(session, clock=MockClock(autojump_threshold=0))
    assert max(sizes[1:]) - sizes[1] < 4_000_000
    assert perf_counter() - started < 90
