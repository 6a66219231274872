"""A soak in real time: sessions whose provider drops them again and again, and what stays behind.

    python -m bench.soak [--sessions 50] [--minutes 10] [--seed N]

A server in a process of its own; devices and a fake Deepgram over TCP in this one. Every word must
come out once, and with the last session all that the server held must go. Its memory must stay flat, but for
what it keeps for its sessions on purpose, within bounds: audio, clips of the speakers, and what they were
told. Those stores fill for most of an hour; the server's metrics say how much is in them.
The seed gives the talk and the faults; which session meets which fault is the network's choice.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import trio
from attrs import define, field

from bench.proc import memory
from bench.processes import BenchError, Cores, ServerProcess, open_server
from omi_rt.codecs.opus import OpusEncoder
from omi_rt.core.errors import OmiRtError, PeerClosed
from omi_rt.fake import FakeDeepgram, FaultScript, Options, Script, plain_words, random_script
from omi_rt.fake.faults import Close, ConnectionPlan, Drop, Fault, Refuse
from omi_rt.fake.schedules import RETRYABLE_CODES, RETRYABLE_STATUSES
from omi_rt.fake.speech import audio_chunks
from omi_rt.net.handshake import open_websocket
from omi_rt.net.stream import open_tcp_stream

if TYPE_CHECKING:
    from omi_rt.net.websocket import WebSocket

SLOPE_LIMIT = 1.0
"""MB of resident memory a minute, beside the stores."""
WARM_UP_SECONDS, SAMPLE_SECONDS = 60.0, 5.0
SAMPLES_PER_MINUTE = 12
MESSAGE_SECONDS = 0.1
STAGGER_SECONDS = 5.0
OPUS_EVERY = 4
"""Every fourth device sends Opus at 16 kHz, the others linear16 at 8 kHz."""
END_SECONDS = 90.0
"""From CloseStream to the close: a whole backlog at 1.25 times real time, 30 s, and some."""
SETTLE_SECONDS = 15.0
"""For the server to let go of what the last session held."""
IO_SECONDS = 10.0
MAX_QUEUED_BYTES = 60_000
"""In a device, before it waits for the server."""


Recording = tuple[list[bytes], str]
"""The messages that a device sends, and what it says of them in the query."""


@define
class Outcome:
    """What came of one session."""

    session: int
    words: list[str] = field(factory=list, repr=False)
    ended: dict[str, Any] = field(factory=dict)
    """``session_ended``; empty if it never came."""
    code: int | None = None
    error: str = ""

    def problem(self, script: Script) -> str:
        """What is wrong with it, in one line; empty if nothing is."""
        said, heard = script.transcript(), self.words
        if self.error or not self.ended or self.ended["lost"] or self.code != 1000:
            lost = self.ended.get("lost")
            return f"session {self.session}: code {self.code}, lost {lost} s, {self.error or 'no error'}"
        if heard != said:
            at = next((n for n, word in enumerate(said) if heard[n : n + 1] != [word]), len(said))
            return f"session {self.session}: {len(heard)} words of {len(said)}, wrong from {at} on"
        return ""


@define
class Soak:
    """What was seen of the server while the sessions ran and after."""

    outcomes: list[Outcome]
    memory: list[tuple[float, float, float]] = field(factory=list)
    """Seconds since the first session, MB resident, and those of them that the stores hold."""
    descriptors: tuple[int, int] = (0, 0)
    """Before the sessions and after."""
    metrics: dict[str, float] = field(factory=dict)
    violations: list[str] = field(factory=list)

    @property
    def slopes(self) -> tuple[float, float]:
        """MB a minute after the warm-up, by least squares: all that is resident, and all but the stores."""
        late = np.array([sample for sample in self.memory if sample[0] >= WARM_UP_SECONDS])
        minutes, resident, stores = late[:, 0] / 60, late[:, 1], late[:, 2]
        all_of_it = np.polyfit(minutes, resident, 1)[0]
        return float(all_of_it), float(np.polyfit(minutes, resident - stores, 1)[0])


def random_drops(rng: Random, connections: int) -> FaultScript:
    """Draw an end for each connection: most after some audio, some at once or in the handshake."""

    def draw() -> Fault:
        kind = rng.random()
        if kind < 0.1:
            return Refuse(status=rng.choice(RETRYABLE_STATUSES))
        if kind < 0.15:
            return Drop(at=rng.choice(("request", "response")))
        audio = round(rng.uniform(0.02, 1.0) if kind < 0.25 else rng.uniform(4.0, 60.0), 3)
        if kind < 0.4:
            return Close(code=rng.choice(RETRYABLE_CODES), after_audio=audio)
        return Drop(at=rng.choice(("now", "frame", "result")), after_audio=audio)

    return FaultScript(tuple(ConnectionPlan((draw(),)) for _ in range(connections)))


def record(script: Script) -> tuple[Recording, Recording]:
    """Synthesise the talk once, as linear16 and as Opus."""
    narrow = list(audio_chunks(script, 8_000, chunk_seconds=MESSAGE_SECONDS))
    wide = audio_chunks(script, 16_000, chunk_seconds=MESSAGE_SECONDS)
    packets = list(map(OpusEncoder(16_000, 1).encode, wide))
    return (narrow, "codec=pcm16&sample_rate=8000"), (packets, "codec=opus&sample_rate=16000")


async def run_device(port: int, recording: Recording, outcome: Outcome, begin_at: float) -> None:
    """Stream a recording in real time and note what comes back, failures as well; bounded in time."""
    await trio.sleep_until(begin_at)
    messages, query = recording
    url = f"ws://127.0.0.1:{port}/listen?uid=soak-{outcome.session}&{query}"
    try:
        with trio.fail_after(len(messages) * MESSAGE_SECONDS + END_SECONDS):
            async with await open_tcp_stream("127.0.0.1", port) as stream:
                websocket = await open_websocket(stream, url)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(websocket.run_writer, IO_SECONDS)
                    nursery.start_soon(send, websocket, messages)
                    await receive(websocket, outcome)
                    nursery.cancel_scope.cancel()
    except* (OmiRtError, OSError, trio.TooSlowError) as group:
        outcome.error = repr(group.exceptions[0])


async def send(websocket: WebSocket, messages: list[bytes]) -> None:
    """Send each message when it would have been recorded, then CloseStream."""
    started = trio.current_time()
    for number, message in enumerate(messages, 1):
        await trio.sleep_until(started + number * MESSAGE_SECONDS)
        await websocket.drained(MAX_QUEUED_BYTES)
        websocket.send_nowait(message)
    websocket.send_nowait('{"type":"CloseStream"}')


async def receive(websocket: WebSocket, outcome: Outcome) -> None:
    """Take what the server says until it closes."""
    try:
        while True:
            for message in await websocket.receive():
                said = json.loads(message)
                if isinstance(said, list):
                    outcome.words += plain_words(" ".join(segment["text"] for segment in said))
                elif said["type"] == "session_ended":
                    outcome.ended = said
    except PeerClosed as closed:
        outcome.code = closed.code
        await websocket.aclose()


async def watch(server: ServerProcess, soak: Soak) -> None:
    """Note the server's memory at intervals, until cancelled."""
    started = trio.current_time()
    while True:
        server.check()
        metrics = await scrape(server.port)
        stores = metrics["omi_rt_backlog_bytes"] + metrics["omi_rt_outbox_bytes"]
        resident = memory(server.pid).rss
        soak.memory.append((trio.current_time() - started, resident / 1e6, stores / 1e6))
        if len(soak.memory) % SAMPLES_PER_MINUTE == 1:
            line = "{:5.0f} s {:6.1f} MB, of which {:5.1f} in stores".format(*soak.memory[-1])
            print(line, file=sys.stderr, flush=True)
        await trio.sleep(SAMPLE_SECONDS)


def count_descriptors(pid: int) -> int:
    """How many file descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def scrape(port: int) -> dict[str, float]:
    """Read the server's metrics."""
    with trio.fail_after(IO_SECONDS):
        async with await open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: soak\r\n\r\n")
            response = b"".join([bytes(part) async for part in stream]).decode()
    lines = response.partition("\r\n\r\n")[2].splitlines()
    return {line.split()[0]: float(line.split()[-1]) for line in lines if line[0] != "#"}


async def settle(server: ServerProcess, soak: Soak, before: int) -> None:
    """Wait until the server holds what it held before, for `SETTLE_SECONDS` at most."""
    deadline = trio.current_time() + SETTLE_SECONDS
    while trio.current_time() < deadline:
        soak.metrics = await scrape(server.port)
        await trio.sleep(0.5)  # the scrape's own connection has to go
        soak.descriptors = (before, count_descriptors(server.pid))
        if soak.descriptors[1] <= before and not soak.metrics["omi_rt_sessions"]:
            break


async def run_soak(sessions: int, script: Script, faults: FaultScript, directory: Path) -> Soak:
    """Run it all; bounded by the talk's length."""
    recordings = record(script)
    soak = Soak([Outcome(number) for number in range(sessions)])
    fake = FakeDeepgram(Options(), faults)
    command = [sys.executable, "-m", "omi_rt", "serve", "--port", "{port}"]
    async with trio.open_nursery() as nursery:
        port = await nursery.start(fake.serve_tcp, "127.0.0.1", 0)
        environment = {
            "DEEPGRAM_URL": f"ws://127.0.0.1:{port}",
            "DEEPGRAM_API_KEY": "soak",  # the fake takes any
            "OMI_RT_PROFILE_DIR": str(directory / "profiles"),
            "OMI_RT_LOG_LEVEL": "error",
        }
        core = Cores.choose().server
        async with open_server(command, environment, core, directory / "log") as server:
            await trio.sleep(0.5)  # the connection that asked whether it listens has to go
            before = count_descriptors(server.pid)
            async with trio.open_nursery() as watching:
                watching.start_soon(watch, server, soak)
                begin = trio.current_time()
                async with trio.open_nursery() as devices:
                    for number, outcome in enumerate(soak.outcomes):
                        recording = recordings[number % OPUS_EVERY == OPUS_EVERY - 1]
                        at = begin + number * STAGGER_SECONDS / sessions
                        devices.start_soon(run_device, server.port, recording, outcome, at)
                watching.cancel_scope.cancel()
            # Whoever ends gives memory back: only what was seen with all of them counts.
            soak.memory = [sample for sample in soak.memory if sample[0] <= script.seconds]
            await settle(server, soak, before)
        nursery.cancel_scope.cancel()
    soak.violations = fake.violations
    return soak


def report(soak: Soak, script: Script) -> bool:
    """Print the figures; returns whether all is well."""
    problems = [problem for outcome in soak.outcomes if (problem := outcome.problem(script))]
    metrics, (before, after) = soak.metrics, soak.descriptors
    running, own = metrics["omi_rt_sessions"], metrics["omi_rt_faults_total"]
    drops, sessions = metrics["omi_rt_provider_drops_total"], len(soak.outcomes)
    (_, *first), (_, *last) = soak.memory[0], soak.memory[-1]
    all_of_it, beside_stores = soak.slopes
    rows = [
        ("sessions word for word", f"{sessions - len(problems)} of {sessions}", not problems),
        ("provider connections lost", f"{drops:.0f}", drops > 0),
        ("RSS first, last (MB)", f"{first[0]:.1f}, {last[0]:.1f}", True),
        ("in stores first, last (MB)", f"{first[1]:.1f}, {last[1]:.1f}", True),
        ("RSS slope (MB/min)", f"{all_of_it:+.3f}", True),
        ("the same beside stores", f"{beside_stores:+.3f}", beside_stores < SLOPE_LIMIT),
        ("descriptors before, after", f"{before}, {after}", after <= before),
        ("sessions left", f"{running:.0f}", running == 0),
        ("errors of the server's own", f"{own:.0f}", own == 0),
        ("the provider's rules broken", f"{len(soak.violations)}", not soak.violations),
    ]
    for name, figure, is_well in rows:
        print(f"{name:30}{figure:>16}{'' if is_well else '  WRONG'}")
    print(*problems[:10], *soak.violations[:10], sep="\n")
    return all(is_well for _, _, is_well in rows)


def main() -> int:
    """Run the soak; the exit status is 0 if all is well."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak", description="A soak in real time."
    )
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10.0, help="at least 1.25")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.sessions < 1 or options.minutes < (WARM_UP_SECONDS + 3 * SAMPLE_SECONDS) / 60:
        parser.error("at least one session, and some time after the warm-up")
    rng = Random(options.seed)
    script = random_script(rng, float(round(options.minutes * 60)))
    faults = random_drops(rng, options.sessions * round(script.seconds))
    is_well = False
    try:
        with TemporaryDirectory() as name:
            soak = trio.run(run_soak, options.sessions, script, faults, Path(name))
        is_well = report(soak, script)
    except* BenchError as group:
        print(f"soak: {group.exceptions[0]}", file=sys.stderr)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
