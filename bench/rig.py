"""Provider, server and devices, put up together: one server process under one kind of load."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np
import trio
import trustme
from attrs import define, frozen

from bench.audio import Framing, token_of
from bench.proc import Memory, core_busy_seconds, cpu_seconds, memory
from bench.processes import (
    LOAD_PRIORITY,
    SINK_PRIORITY,
    BenchError,
    Cores,
    Helper,
    ServerProcess,
    open_helper,
    open_server,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from bench.servers import Server

OPENING_AT_ONCE = 8
MAX_GUARDED_STREAMS = 1_000
"""So many devices have a token."""
PROVIDER_SECONDS = 15.0
"""How long a server may take to dial the provider once it accepted a device."""

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@frozen
class Workshop:
    """What all measurements of one run share."""

    directory: Path
    """For logs, recordings and certificates; gone afterwards."""
    cores: Cores
    _numbers: count[int]

    @classmethod
    def furnish(cls, directory: Path) -> Workshop:
        """Make a certificate authority, a certificate for the provider and the server, and tokens."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(directory / "ca.pem"))
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(directory / "provider.pem"))
        tokens = directory / "tokens"
        tokens.touch(mode=0o600)
        tokens.write_text(
            "".join(f"{token_of(number)} u{number}\n" for number in range(MAX_GUARDED_STREAMS))
        )
        return cls(directory, Cores.choose(), count())

    def path(self, suffix: str) -> Path:
        """A name that nothing has yet."""
        return self.directory / f"{next(self._numbers)}{suffix}"


@frozen
class Window:
    """A stretch of time, and what the processes did in it; seconds unless named otherwise."""

    start_ns: int
    end_ns: int
    seconds: float
    server_cpu: float
    load_cpu: float
    sink_cpu: float
    server_core_busy: float
    messages: int
    """That the server sent to the provider."""
    audio_bytes: int
    memory: Memory


@frozen
class Recording:
    """What devices and provider noted; arrays of nanoseconds, 0 for never."""

    sent: IntArray
    """By stream and sequence number."""
    arrived: IntArray
    """The same shape."""
    numbers: IntArray
    connect: IntArray
    """When each stream of ``numbers`` began to connect."""
    first_segment: IntArray
    user_known: IntArray
    segments: IntArray
    """Rows: the final's time at the provider, the segment's at the device."""
    finals: IntArray
    connections: IntArray
    """Rows: opened, first audio, stream, first sequence, first frame, dropped."""
    taken_ns: int


@define
class Rig:
    """One server with its devices and its provider."""

    server: ServerProcess
    load: Helper
    sink: Helper
    framing: Framing
    workshop: Workshop
    streams: int = 0

    async def open_streams(self, number: int, *, profile: bool = False) -> None:
        """Open more streams; each has sent one frame and has its provider's connection afterwards.

        Raises:
            BenchError: the server refused or did not dial the provider in time.
        """
        # Streams whose frames carry no marker are told apart by the order of their connections.
        at_once = OPENING_AT_ONCE if self.framing.is_marked else 1
        target = self.streams + number
        while self.streams < target:
            self.server.check()
            step = min(at_once, target - self.streams)
            answer = await self.load.ask("open", first=self.streams, count=step, profile=profile)
            self.server.check()
            if answer["failures"]:
                raise BenchError(f"stream {self.streams}: {answer['failures'][0]}")
            self.streams += step
            await self.sink.ask("wait_connections", count=self.streams, within=PROVIDER_SECONDS)

    async def start(self, ramp: float) -> None:
        """Let the streams send; returns when all do."""
        await self.load.ask("start", ramp_seconds=ramp)
        await trio.sleep(ramp)

    async def watch(self, seconds: float) -> Window:
        """Take stock before and after so many seconds."""
        before = await self._take_stock()
        await trio.sleep(seconds)
        after = await self._take_stock()
        time, load, sink, server, core, messages, audio = (
            b - a for a, b in zip(before, after, strict=True)
        )
        return Window(
            start_ns=int(before[0]),
            end_ns=int(after[0]),
            seconds=time / 1e9,
            server_cpu=server,
            load_cpu=load,
            sink_cpu=sink,
            server_core_busy=core,
            messages=int(messages),
            audio_bytes=int(audio),
            memory=memory(self.server.pid),
        )

    async def _take_stock(self) -> tuple[float, ...]:
        self.server.check()
        provider = await self.sink.ask("state")
        return (
            perf_counter_ns(),
            cpu_seconds(self.load.pid),
            cpu_seconds(self.sink.pid),
            cpu_seconds(self.server.pid),
            core_busy_seconds(self.workshop.cores.server),
            provider["messages"],
            provider["received_bytes"],
        )

    async def collect(self) -> Recording:
        """Everything that was noted so far."""
        load_path, sink_path = self.workshop.path(".npz"), self.workshop.path(".npz")
        taken_ns = perf_counter_ns()
        await self.load.ask("save", path=str(load_path))
        await self.sink.ask("save", path=str(sink_path))
        with np.load(load_path) as devices, np.load(sink_path) as provider:
            arrived = np.zeros_like(devices["sent"])
            seen = provider["arrived"][: arrived.shape[0], : arrived.shape[1]]
            arrived[: seen.shape[0], : seen.shape[1]] = seen
            recording = Recording(
                sent=devices["sent"],
                arrived=arrived,
                numbers=devices["numbers"],
                connect=devices["connect"],
                first_segment=devices["first_segment"],
                user_known=devices["user_known"],
                segments=devices["segments"],
                finals=provider["finals"],
                connections=provider["connections"],
                taken_ns=taken_ns,
            )
        load_path.unlink()
        sink_path.unlink()
        return recording


@asynccontextmanager
async def open_rig(
    workshop: Workshop,
    server: Server,
    framing: Framing,
    *,
    tls: bool = False,
    guarded: bool = False,
    environment: Mapping[str, str] | None = None,
    final_seconds: float = 1.0,
) -> AsyncIterator[Rig]:
    """Start provider, server and load generator; all are killed on leaving.

    Raises:
        BenchError: one of them did not start.
    """
    cores, path = workshop.cores, workshop.path
    arguments = ["--codec", framing.codec, "--frame-ms", str(framing.frame_ms)]
    provider = [*arguments, "--final-seconds", str(final_seconds)]
    if tls:
        provider += ["--certificate", str(workshop.directory / "provider.pem")]
    async with open_helper("sink", provider, cores.sink, SINK_PRIORITY, path(".log")) as (
        sink,
        hello,
    ):
        base = f"{'wss' if tls else 'ws'}://localhost:{hello['port']}"
        variables = {
            "DEEPGRAM_URL": base if tls else base.replace("localhost", "127.0.0.1"),
            "DEEPGRAM_API_KEY": "bench",
            "SSL_CERT_FILE": str(workshop.directory / "ca.pem"),
            **(_guard(workshop.directory) if guarded else {}),
            **(environment or {}),
        }
        async with open_server(server.command, variables, cores.server, path(".log")) as process:
            devices = [*arguments, "--port", str(process.port)]
            if guarded:
                devices += ["--authority", str(workshop.directory / "ca.pem")]
            async with open_helper("load", devices, cores.load, LOAD_PRIORITY, path(".log")) as (
                load,
                _,
            ):
                yield Rig(process, load, sink, framing, workshop)


def _guard(directory: Path) -> dict[str, str]:
    """The settings of a server with TLS and a login."""
    return {
        "OMI_RT_TLS_CERT": str(directory / "provider.pem"),
        "OMI_RT_TLS_KEY": str(directory / "provider.pem"),
        "OMI_RT_AUTH": "tokens",
        "OMI_RT_TOKEN_FILE": str(directory / "tokens"),
    }
