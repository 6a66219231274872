"""Lines that are lost between real processes: ``omi-rt stream`` comes back, and every word is there once."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.fake import FaultScript, random_script, synthesise
from omi_rt.fake.faults import Drop
from omi_rt.net.stream import open_tcp_stream
from tests.harness import words_of
from tests.processes_e2e import KEY, fake_in_process, running, serving

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 8.0


class Relay:
    """A way to a server that can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: list[trio.abc.Stream] = []

    async def serve(self, listener: trio.SocketListener) -> None:
        """Pass on what comes, both ways."""
        await trio.serve_listeners(self._pass_on, [listener])

    async def cut(self) -> None:
        """Drop every connection."""
        streams, self._streams = self._streams, []
        for stream in streams:
            await trio.aclose_forcefully(stream)

    async def _pass_on(self, device: trio.SocketStream) -> None:
        server = await open_tcp_stream("127.0.0.1", self._port)
        self._streams += [device, server]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_copy, device, server)
            nursery.start_soon(_copy, server, device)


async def _copy(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
    try:
        while data := await source.receive_some():
            await target.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    await trio.aclose_forcefully(source)
    await trio.aclose_forcefully(target)


@pytest.mark.realtime
@pytest.mark.parametrize("seed", range(4))
async def test_the_transcript_is_whole_where_lines_are_cut_on_both_sides(
    tmp_path: Path, seed: int
) -> None:
    rng = Random(seed)
    script = random_script(rng, SECONDS)
    path = tmp_path / "a.wav"
    path.write_bytes(write_wav(WavAudio(16_000, 1, synthesise(script, 16_000))))
    faults = FaultScript.of([Drop(after_audio=rng.uniform(1.0, 6.0))])
    codec = rng.choice(("pcm16", "opus"))
    async with (
        fake_in_process(faults) as (_fake, url),
        serving(DEEPGRAM_URL=url, DEEPGRAM_API_KEY=KEY) as server,
    ):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        relay = Relay(server.port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.serve, listener)
            port = listener.socket.getsockname()[1]
            target = f"ws://127.0.0.1:{port}/listen"
            arguments = ("stream", str(path), "--json", "--codec", codec, "--url", target)
            async with running(*arguments) as client:
                for _ in range(2):
                    await trio.sleep(rng.uniform(1.5, 3.5))
                    await relay.cut()
                assert await client.status(40) == 0, client.errors
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    segments = [json.loads(line) for line in client.output.splitlines()]
    assert words_of(segments) == script.transcript()
    assert client.errors.count("the connection was lost, and is back after") == 2
    tolerance = 0.001 if codec == "pcm16" else 0.030
    starts = [word.start for word in script.words]
    assert all(min(abs(s["start"] - at) for at in starts) <= tolerance for s in segments)
