"""Lines that are lost between real processes: ``omi-rt stream`` comes back, and every word is there once."""

from __future__ import annotations

import json
import re
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, field

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.fake import FaultScript, Script, random_script, synthesise
from omi_rt.fake.faults import Drop
from omi_rt.net.stream import open_tcp_stream
from tests.line_drops import assert_same_speakers, assert_whole
from tests.processes_e2e import (
    KEY,
    START_SECONDS,
    fake_in_process,
    running,
    serving,
    wait_until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from omi_rt.fake.faults import Fault
    from tests.processes_e2e import ServerProgram

SECONDS = 8.0
SCHEDULES = 20


class Relay:
    """A way to a server that can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: list[trio.abc.Stream] = []
        self.connected = trio.Event()
        """Set while a device is connected and has been answered."""

    async def serve(self, listener: trio.SocketListener) -> None:
        """Pass on what comes, both ways."""
        await trio.serve_listeners(self._pass_on, [listener])

    async def cut(self) -> None:
        """Drop every connection."""
        streams, self._streams = self._streams, []
        self.connected = trio.Event()
        for stream in streams:
            await trio.aclose_forcefully(stream)

    async def _pass_on(self, device: trio.SocketStream) -> None:
        server = await open_tcp_stream("127.0.0.1", self._port)
        self._streams += [device, server]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_copy, device, server)
            nursery.start_soon(_copy, server, device, self.connected)


async def _copy(
    source: trio.abc.Stream, target: trio.abc.Stream, passed: trio.Event | None = None
) -> None:
    """Pass on what comes, and set ``passed`` when anything has been."""
    try:
        while data := await source.receive_some():
            await target.send_all(data)
            if passed is not None:
                passed.set()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    await trio.aclose_forcefully(source)
    await trio.aclose_forcefully(target)


@define
class Played:
    """One schedule: a device whose line is cut, and what it printed."""

    seed: int
    script: Script
    codec: str
    cuts: int
    segments: list[dict[str, Any]] = field(factory=list)
    errors: str = ""

    async def play(
        self, server: ServerProgram, directory: Path, starting: trio.CapacityLimiter
    ) -> None:
        """Stream the script with ``omi-rt stream`` through a relay, and cut that.

        The program begins when ``starting`` has room: it needs a second of a core to be there.
        """
        rng = Random(self.seed)
        path = directory / f"{self.seed}.wav"
        path.write_bytes(write_wav(WavAudio(16_000, 1, synthesise(self.script, 16_000))))
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        relay = Relay(server.port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.serve, listener)
            target = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/listen"
            arguments = ("stream", str(path), "--json", "--codec", self.codec, "--url", target)
            async with AsyncExitStack() as stack:
                async with starting:
                    client = await stack.enter_async_context(running(*arguments))
                    with trio.fail_after(START_SECONDS):
                        await relay.connected.wait()
                for _ in range(self.cuts):
                    await relay.connected.wait()
                    await trio.sleep(rng.uniform(0.5, 2.0))
                    await relay.cut()
                assert await client.status(60) == 0, client.errors
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        self.segments = [json.loads(line) for line in client.output.splitlines()]
        self.errors = client.errors


def schedules() -> list[Played]:
    """The device's line is cut in three of four, and the provider's in two of three."""
    drawn = []
    for seed in range(SCHEDULES):
        rng = Random(seed)
        codec = rng.choice(("pcm16", "opus"))
        drawn.append(Played(seed, random_script(rng, SECONDS), codec, seed % 4))
    return drawn


@pytest.mark.realtime
async def test_twenty_transcripts_are_whole_where_lines_are_cut_on_both_sides(
    tmp_path: Path,
) -> None:
    """All at once: who connects when is up to the machine, so which of them meets which fault is as well."""
    rng, played = Random(1), schedules()
    plans: list[list[Fault]] = [
        [Drop(after_audio=rng.uniform(1.0, 6.0))] if number % 3 else []
        for number in range(2 * SCHEDULES)
    ]
    async with (
        fake_in_process(FaultScript.of(*plans)) as (fake, url),
        # So many programs on two cores make it late, which is not what this is about.
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY, OMI_RT_MAX_LAG="0") as server,
    ):
        starting = trio.CapacityLimiter(2)
        async with trio.open_nursery() as nursery:
            for each in played:
                nursery.start_soon(each.play, server, tmp_path, starting)
        await wait_until(lambda: server.program.errors.count(" session_ended ") == SCHEDULES, 10)
        assert len(fake.connections) > SCHEDULES
    for each in played:
        assert_whole(each.segments, each.script, 0.001 if each.codec == "pcm16" else 0.030)
        if "new session" not in each.errors:
            assert_same_speakers(each.segments, each.script, fake)
        returns = each.errors.count("the connection was lost, and is back after")
        # A second cut may come before the device has noticed that it is back.
        assert min(1, each.cuts) <= returns <= each.cuts, each.errors
    accounts = [
        {name: float(value) for name, value in re.findall(r" (\w+)=([\d.]+)(?= |$)", line)}
        for line in server.program.errors.splitlines()
        if " session_ended " in line
    ]
    for account in accounts:
        assert account["received"] == account["finalised"] == account["sent_live"]
        assert abs(account["received"] - SECONDS) <= 0.03
        assert account.get("lost", 0.0) == account.get("pending", 0.0) == 0.0
