"""Seeded schedules in which the device's line, the provider's, or both are lost at any moment."""

from __future__ import annotations

from http import HTTPStatus
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from omi_rt.client.stream import (
    CameBack,
    SegmentsReceived,
    StreamEvent,
    StreamOptions,
    StreamSummary,
    stream_recording,
)
from omi_rt.codecs.wav import WavAudio
from omi_rt.fake import FaultScript, Options, plain_words, random_script, synthesise
from omi_rt.fake.schedules import random_schedule
from omi_rt.fake.streams import BoundedStream
from omi_rt.profiles.service import Profiles
from tests.harness import Device, World, listening_server
from tests.memory_store import MemoryProfileStore

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from omi_rt.fake import FakeDeepgram, Script

SECONDS = 20.0
KINDS = ("device", "provider", "both")
KNOWN_SECONDS = 2.0
"""Who has said so much under one number keeps it when the provider's line is lost."""
BRIEF_SECONDS = 10.0
"""A connection that is lost with less audio than that, lead-in included, may have brought nothing of the
session's."""


@define
class Line:
    """A way to the server that is cut now and then, and is down for a while each time."""

    world: World
    rng: Random
    drops: int
    streams: list[BoundedStream] = field(factory=list)
    is_down: bool = False

    async def open_stream(self, _host: str, _port: int) -> trio.abc.Stream:
        """Connect, unless the line is down."""
        await trio.lowlevel.checkpoint()
        if self.is_down:
            raise ConnectionRefusedError(111, "Connection refused")
        self.streams.append(self.world.open_stream())
        return self.streams[-1]

    async def run(self) -> None:
        """Cut the line at any moment."""
        for _ in range(self.drops):
            await trio.sleep(self.rng.choice((self.rng.uniform(0.05, 1.0), self.rng.uniform(1, 8))))
            self.is_down = True
            for stream in self.streams:
                await trio.aclose_forcefully(stream)
            await trio.sleep(self.rng.choice((0.0, 0.5, self.rng.uniform(0.0, 8.0))))
            self.is_down = False


def assert_whole(segments: list[dict[str, Any]], script: Script, tolerance: float) -> None:
    """Every word once, in order, and each segment begins and ends with its words' times."""
    assert [w for s in segments for w in plain_words(s["text"])] == script.transcript()
    at = 0
    for segment in segments:
        assert abs(segment["start"] - script.words[at].start) <= tolerance, segment
        at += len(plain_words(segment["text"]))


def assert_same_speakers(
    segments: list[dict[str, Any]], script: Script, fake: FakeDeepgram | None = None
) -> None:
    """No two voices have one number, and one voice has one number, from the beginning to the end.

    Where lines to ``fake`` were lost, that is so from when `KNOWN_SECONDS` were said under it, unless two
    connections in a row were lost before they could bring anything.
    """
    known_seconds = 0.0 if fake is None else KNOWN_SECONDS
    may_forget = fake is not None and _loses_two_in_a_row(fake)
    voices: dict[int, int] = {}
    latest: dict[int, int] = {}
    said: dict[int, float] = {}
    words = iter(script.words)
    for segment in segments:
        number = segment["speaker_id"]
        for _ in plain_words(segment["text"]):
            word = next(words)
            assert voices.setdefault(number, word.voice) == word.voice, segment
            former = latest.setdefault(word.voice, number)
            if former != number:
                assert fake is not None, segment
                assert said[former] < known_seconds or may_forget, segment
            latest[word.voice] = number
            said[number] = said.get(number, 0.0) + word.end - word.start


def _loses_two_in_a_row(fake: FakeDeepgram) -> bool:
    brief = [
        each.status == HTTPStatus.SWITCHING_PROTOCOLS and each.audio_seconds < BRIEF_SECONDS
        for each in fake.connections
    ]
    return any(first and second for first, second in pairwise(brief))


def faults_of(kind: str, rng: Random) -> FaultScript:
    """The provider's own faults, which together cost less than a backlog."""
    return FaultScript() if kind == "device" else random_schedule(rng, 25.0)


def server_of(
    faults: FaultScript, seed: int
) -> AbstractAsyncContextManager[tuple[World, FakeDeepgram]]:
    """A server that keeps voices, though it knows nobody's."""
    profiles = Profiles(MemoryProfileStore(), 10.0)
    return listening_server(faults=faults, options=Options(seed=seed), profiles=profiles)


async def play_with_a_client_that_keeps_its_audio(seed: int) -> None:
    """``omi-rt stream`` itself is the device."""
    rng = Random(seed)
    kind, codec = rng.choice(KINDS), rng.choice(("pcm8", "pcm16", "opus", "opus_fs320"))
    rate = 8000 if codec == "pcm8" else 16_000
    script = random_script(rng, SECONDS)
    segments: list[dict[str, Any]] = []
    new_sessions = 0

    def note(event: StreamEvent) -> None:
        nonlocal new_sessions
        if isinstance(event, SegmentsReceived):
            segments.extend(event.segments)
        elif isinstance(event, CameBack):
            new_sessions += event.is_new_session

    summary: StreamSummary | None = None
    faults = faults_of(kind, rng)
    async with server_of(faults, seed) as (world, fake):
        line = Line(world, rng, 0 if kind == "provider" else rng.randint(1, 4))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.run)
            summary = await stream_recording(
                WavAudio(rate, 1, synthesise(script, rate)),
                StreamOptions("ws://server/listen", codec=codec),
                note,
                open_stream=line.open_stream,
                random=rng,
            )
            nursery.cancel_scope.cancel()
        assert world.metrics.faults._value.get() == 0
    ended = summary.session_ended
    assert_whole(segments, script, 0.030 if codec.startswith("opus") else 0.001)
    assert ended["lost"] == 0.0
    assert ended["received"] == ended["finalised"]
    assert abs(ended["received"] - SECONDS) <= 0.03
    # A session whose end the device had asked for is not taken up: another begins with its speakers.
    if not new_sessions:
        assert_same_speakers(segments, script, None if kind == "device" else fake)


async def play_with_a_client_that_just_goes_on(seed: int) -> None:
    """A device that hears nothing while it has no connection, and keeps nothing."""
    rng = Random(seed)
    kind = rng.choice(KINDS)
    script = random_script(rng, SECONDS)
    pcm, rate = synthesise(script, 8000), 8000
    cuts = sorted(rng.sample(range(1000, len(pcm) // 2), 0 if kind == "provider" else 3))
    edges = [0, *(2 * cut for cut in cuts), len(pcm)]
    told: dict[int, dict[str, Any]] = {}
    query: dict[str, Any] = {}
    ended: dict[str, Any] = {}
    faults = faults_of(kind, rng)
    async with server_of(faults, seed) as (world, fake):
        for start, end in pairwise(edges):
            async with world.device(**query) as device:
                if not query:
                    query = {"resume": await _secret(device)}
                await device.stream_audio(pcm[start:end], rate * 2)
                if end == len(pcm):
                    ended = await device.finish()
                else:
                    await device.websocket.drained()
                    await trio.testing.wait_all_tasks_blocked()
                    await trio.aclose_forcefully(device.stream)
                    await trio.sleep(rng.uniform(0.0, 12.0))
                told |= {s["seq"]: s for m in device.raw if isinstance(m, list) for s in m}
                if rng.random() < 0.5:
                    query["after"] = max((0, *device.numbers, query.get("after", 0)))
                else:
                    query.pop("after", None)
    segments = [told[number] for number in sorted(told)]
    assert_whole(segments, script, 0.001)
    assert ended["received"] == ended["finalised"] == SECONDS
    assert_same_speakers(segments, script, None if kind == "device" else fake)


async def _secret(device: Device) -> str:
    await device.until(lambda: "ready" in device.statuses())
    return str(next(m["resume"] for m in device.messages if "resume" in m))
