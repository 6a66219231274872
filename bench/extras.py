"""What one steady window does not show: memory, set-up, reconnect, the speech profile."""

from __future__ import annotations

import re
import wave
from statistics import fmean, median
from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np
import trio
from attrs import frozen

from bench.audio import BYTES_PER_SAMPLE, BYTES_PER_SECOND, SAMPLE_RATE, Framing, make_tone
from bench.proc import memory
from bench.processes import BenchError
from bench.rig import Rig, Workshop, open_rig
from omi_rt.core.coverage import OVERLAP_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

    from bench.servers import Server

LINEAR16_20_MS = Framing("linear16", 20)
WARM_UP_STREAMS = 2
"""The first sessions load what every later one shares."""
MEMORY_SAMPLES = 5
SETTLE_SECONDS = 3.0
WAITING_SECONDS = 8.0
"""For the last finals to come, and for the server to give freed memory back; less than a session waits."""
CATCH_UP_SECONDS = 10.0
"""What is sent again is paced: a second of it takes four at 1.25 times real time."""
PROFILE_SECONDS = 10.0
FIRST_SEGMENT_SECONDS = 10.0
USER_KNOWN_SECONDS = 40.0
POLL_SECONDS = 0.1


@frozen
class MemoryFigures:
    """Per stream, in bytes (PSS, the idle server's taken off)."""

    idle: float
    """The session is open, one frame was sent."""
    running: float
    pending: float
    """Audio that no final has covered yet, on the average, and the half second before it that the next
    connection begins with; 0 for a server that keeps no audio."""

    running_without_pending: float
    """What the goal speaks of."""
    waiting: float | None = None
    """The device was lost after that, and its session waits for it; None for a server in which none does."""


async def measure_memory(workshop: Workshop, server: Server, streams: int) -> MemoryFigures:
    """Compare a server that is warm with the same server under so many sessions."""
    async with open_rig(workshop, server, LINEAR16_20_MS) as rig:
        await rig.open_streams(WARM_UP_STREAMS)
        await trio.sleep(1.0)
        if server.resumes:
            await waiting_sessions(rig)  # which loads what a later look does not load again
        base = memory(rig.server.pid).pss
        await rig.open_streams(streams)
        await trio.sleep(1.0)
        idle = memory(rig.server.pid).pss
        await rig.start(1.0)
        await trio.sleep(SETTLE_SECONDS)
        running, pending = [], []
        for _ in range(MEMORY_SAMPLES):
            running.append(memory(rig.server.pid).pss)
            pending.append((await rig.sink.ask("state"))["pending_bytes"])
            await trio.sleep(0.23)  # not in step with the finals
        per_stream = (fmean(running) - base) / streams
        kept = fmean(pending) / rig.streams + OVERLAP_SECONDS * BYTES_PER_SECOND
        audio = kept if server.keeps_audio else 0.0
        waiting = None
        if server.resumes:
            await rig.load.ask("vanish")
            await trio.sleep(WAITING_SECONDS)
            # The first streams wait as well, and have become larger since the base was taken.
            sessions = await waiting_sessions(rig)
            if sessions != rig.streams:
                raise BenchError(f"{sessions} of {rig.streams} sessions wait for their devices")
            waiting = (memory(rig.server.pid).pss - base) / streams
        return MemoryFigures(
            (idle - base) / streams, per_stream, audio, per_stream - audio, waiting
        )


async def waiting_sessions(rig: Rig) -> int:
    """How many sessions of the server wait for their devices, by its metrics."""
    stream = await trio.open_tcp_stream("127.0.0.1", rig.server.port)
    async with stream:
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join([part async for part in stream])
    (found,) = re.findall(rb"^omi_rt_sessions_away ([\d.]+)$", answer, re.MULTILINE)
    return int(float(found))


@frozen
class Times:
    """Of single events, in milliseconds."""

    count: int
    median: float
    p90: float
    max: float

    @classmethod
    def of(cls, milliseconds: list[float]) -> Times:
        """The figures of a list.

        Raises:
            BenchError: it is empty.
        """
        if not milliseconds:
            raise BenchError("nothing happened that could be timed")
        p90 = float(np.percentile(milliseconds, 90))
        return cls(len(milliseconds), median(milliseconds), p90, max(milliseconds))


async def measure_setup(workshop: Workshop, server: Server, sessions: int) -> Times:
    """From a device's first SYN to its first frame at the provider; one session after another."""
    async with open_rig(workshop, server, Framing("opus", 20)) as rig:
        # Opus: streams are opened one by one. The first pays for what is loaded once.
        await rig.open_streams(1)
        await rig.open_streams(sessions)
        await trio.sleep(0.5)
        recording = await rig.collect()
        connect, arrived = recording.connect[1:], recording.arrived[1:, 0]
        return Times.of(((arrived - connect)[arrived > 0] / 1e6).tolist())


@frozen
class Reconnects:
    """What a connection to the provider that is cut costs."""

    first_frame: Times
    """From the cut to the first frame on the next connection."""
    replayed: float
    """Frames that were sent a second time, on the average per cut."""
    lost: int
    """Frames that never arrived."""


async def measure_reconnect(workshop: Workshop, server: Server, streams: int) -> Reconnects:
    """Cut the provider's connections one after another while audio flows."""
    async with open_rig(workshop, server, LINEAR16_20_MS) as rig:
        await rig.open_streams(streams)
        await rig.start(1.0)
        await trio.sleep(SETTLE_SECONDS)
        for stream in range(streams):
            await rig.sink.ask("drop", stream=stream)
            await trio.sleep(0.1)
        last_cut_ns = perf_counter_ns()
        await trio.sleep(CATCH_UP_SECONDS)
        recording = await rig.collect()
    rows = recording.connections.tolist()
    times, replayed = [], []
    for _, _, stream, _, _, dropped in rows:
        later = [row for row in rows if dropped and row[2] == stream and row[0] > dropped]
        if not later:
            continue
        _, _, _, first_sequence, first_frame_ns, _ = later[0]
        times.append((first_frame_ns - dropped) / 1e6)
        arrived = recording.arrived[stream]
        replayed.append(np.count_nonzero((arrived > 0) & (arrived < dropped)) - first_sequence)
    if len(times) < streams:
        raise BenchError(f"{streams - len(times)} of {streams} streams were not taken up again")
    due = (recording.sent > 0) & (recording.sent < last_cut_ns)
    lost = int(np.count_nonzero(due & (recording.arrived == 0)))
    return Reconnects(Times.of(times), float(fmean(replayed)), lost)


@frozen
class ProfileFigures:
    """From a device's connecting, with the user's speech profile and without."""

    first_segment: Times
    first_segment_without: Times
    user_known: Times | None
    """Until a segment said that the user speaks; None: none did in the time given."""


async def measure_profile(workshop: Workshop, server: Server, sessions: int) -> ProfileFigures:
    """Open sessions of users who have a speech profile, then of the same users without it."""
    directory = workshop.path(".profiles")
    for number in range(sessions):
        _write_profile(directory / f"u{number}" / "speech_profile.wav")
    first, known = await _time_sessions(workshop, server, sessions, directory)
    without, _ = await _time_sessions(workshop, server, sessions, None)
    return ProfileFigures(Times.of(first), Times.of(without), Times.of(known) if known else None)


async def _time_sessions(
    workshop: Workshop, server: Server, sessions: int, profiles: Path | None
) -> tuple[list[float], list[float]]:
    """Milliseconds to the first segment, and to the first that knows the user."""
    environment = {} if profiles is None else {"OMI_RT_PROFILE_DIR": str(profiles)}
    async with open_rig(workshop, server, LINEAR16_20_MS, environment=environment) as rig:
        await rig.open_streams(sessions, profile=profiles is not None)
        await rig.start(0.0)
        await trio.sleep(FIRST_SEGMENT_SECONDS)
        if profiles is not None:
            await _wait_users_known(rig, sessions)
        recording = await rig.collect()
    if not recording.first_segment.all():
        raise BenchError("not every session had a segment")
    first = (recording.first_segment - recording.connect) / 1e6
    known = recording.user_known > 0
    return first.tolist(), ((recording.user_known - recording.connect)[known] / 1e6).tolist()


async def _wait_users_known(rig: Rig, sessions: int) -> None:
    with trio.move_on_after(USER_KNOWN_SECONDS):
        known = 0
        while known < sessions:
            await trio.sleep(POLL_SECONDS)
            known = (await rig.load.ask("state"))["users_known"]


def _write_profile(path: Path) -> None:
    path.parent.mkdir(parents=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(BYTES_PER_SAMPLE)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(make_tone(int(SAMPLE_RATE * PROFILE_SECONDS)).tobytes())
