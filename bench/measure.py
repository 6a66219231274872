"""One measurement: a scenario on a server, as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import trio
from attrs import evolve, frozen

from bench.processes import BenchError
from bench.rig import IntArray, Recording, Rig, Window, Workshop, open_rig

if TYPE_CHECKING:
    from bench.scenarios import Scenario, Timing
    from bench.servers import Server

RIG_LIMIT = 0.70
"""Above this share of a core, the load generator or the provider may be what is measured."""
LATENESS_LIMIT_MS = 5.0
"""Of the load generator's frames, p99."""
FOREIGN_LIMIT = 0.10
"""Share of the server's core that went to somebody else."""
SATURATED = 0.97


@frozen
class Latency:
    """In milliseconds. What had not arrived when the recording was taken counts with its age then."""

    count: int
    missing: int
    p50: float
    p90: float
    p99: float
    max: float


@frozen
class Measurement:
    """The figures of one steady window."""

    to_provider: Latency
    """Frame sent by the device → the same frame at the provider."""
    to_device: Latency
    """Final sent by the provider → its segment at the device."""
    cpu_ms_per_stream_second: float
    server_utilisation: float
    """Share of one core."""
    rig_utilisation: float
    """Of the load generator's and the provider's busiest core."""
    foreign_utilisation: float
    """Share of the server's core that something else took."""
    lateness_p99_ms: float
    """By how much the load generator missed its own deadlines."""
    streams_gone: int
    """Streams that the server closed."""
    frames_per_message: float
    """How many frames the server put into one message to the provider."""
    pss_bytes: int
    rss_bytes: int
    warnings: tuple[str, ...]


async def measure(
    workshop: Workshop, server: Server, scenario: Scenario, timing: Timing
) -> Measurement:
    """Put a fresh server under the scenario's load and watch one steady window.

    Raises:
        BenchError: the server or the rig failed.
    """
    async with open_rig(
        workshop, server, scenario.framing, tls=scenario.tls, guarded=scenario.guarded
    ) as rig:
        await rig.open_streams(scenario.streams)
        ramp = scenario.frame_ms / 1e3 if scenario.in_step else timing.ramp
        return await measure_window(rig, evolve(timing, ramp=ramp))


async def measure_window(rig: Rig, timing: Timing) -> Measurement:
    """Start the streams of a rig and watch one steady window."""
    await rig.start(timing.ramp)
    await trio.sleep(timing.settle)
    await rig.load.ask("state")  # what came before the window is none of its lateness
    window = await rig.watch(timing.window)
    devices = await rig.load.ask("state")
    await trio.sleep(timing.grace)
    recording = await rig.collect()
    return _evaluate(rig, window, recording, devices["lateness_p99_ms"], devices["gone"])


def _evaluate(
    rig: Rig, window: Window, recording: Recording, lateness_p99_ms: float, gone: int
) -> Measurement:
    cores = rig.workshop.cores
    helpers = (window.load_cpu, window.sink_cpu)
    busiest = (sum(helpers) if cores.shared else max(helpers)) / window.seconds
    foreign = max(0.0, (window.server_core_busy - window.server_cpu) / window.seconds)
    measurement = Measurement(
        to_provider=to_provider(recording, window.start_ns, window.end_ns),
        to_device=to_device(recording, window.start_ns, window.end_ns),
        cpu_ms_per_stream_second=1e3 * window.server_cpu / window.seconds / rig.streams,
        server_utilisation=window.server_cpu / window.seconds,
        rig_utilisation=busiest,
        foreign_utilisation=foreign,
        lateness_p99_ms=lateness_p99_ms,
        streams_gone=gone,
        frames_per_message=window.audio_bytes / rig.framing.frame_bytes / max(window.messages, 1),
        pss_bytes=window.memory.pss,
        rss_bytes=window.memory.rss,
        warnings=(),
    )
    return evolve(measurement, warnings=_warnings(measurement))


def _warnings(measurement: Measurement) -> tuple[str, ...]:
    found = []
    if measurement.rig_utilisation > RIG_LIMIT:
        found.append(
            f"load generator and provider took {measurement.rig_utilisation:.0%} of a core"
        )
    if measurement.lateness_p99_ms > LATENESS_LIMIT_MS:
        found.append(f"frames went out {measurement.lateness_p99_ms:.1f} ms late (p99)")
    if measurement.foreign_utilisation > FOREIGN_LIMIT:
        found.append(f"{measurement.foreign_utilisation:.0%} of the server's core went elsewhere")
    if measurement.streams_gone:
        found.append(f"{measurement.streams_gone} streams were closed")
    return tuple(found)


def to_provider(recording: Recording, start_ns: int, end_ns: int) -> Latency:
    """Of the frames that were sent in the window."""
    counted = (recording.sent >= start_ns) & (recording.sent < end_ns)
    return _latency(recording.sent[counted], recording.arrived[counted], recording.taken_ns)


def to_device(recording: Recording, start_ns: int, end_ns: int) -> Latency:
    """Of the finals that were sent in the window."""
    finals = recording.finals
    finals = finals[(finals >= start_ns) & (finals < end_ns)]
    arrivals = dict(recording.segments.tolist())
    arrived = np.array([arrivals.get(final, 0) for final in finals.tolist()], np.int64)
    return _latency(finals, arrived, recording.taken_ns)


def _latency(sent: IntArray, arrived: IntArray, taken_ns: int) -> Latency:
    if not sent.size:
        raise BenchError("nothing was sent in the window")
    delays = np.where(arrived > 0, arrived, taken_ns) - sent
    p50, p90, p99, top = np.percentile(delays, [50, 90, 99, 100]) / 1e6
    missing = int(np.count_nonzero(arrived == 0))
    return Latency(int(sent.size), missing, float(p50), float(p90), float(p99), float(top))
