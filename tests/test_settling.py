"""What a final leaves behind when its words have been told, over real sockets and with a poller."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from omi_rt.core.deepgram import CLOSE_STREAM
from omi_rt.net.poller import Poller, open_poller
from omi_rt.net.stream import open_tcp_stream
from tests.harness import running_server, words_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.harness import Device

pytestmark = pytest.mark.realtime

RATE = 8000
SECONDS = 2.0
METADATA = json.dumps({"type": "Metadata", "duration": SECONDS, "channels": 1})


def final(start: float, text: str) -> str:
    """A final of one second with one word."""
    word = {
        "word": text,
        "punctuated_word": text,
        "start": start + 0.2,
        "end": start + 0.6,
        "confidence": 0.9,
        "speaker": 0,
    }
    alternative = {"transcript": text, "confidence": 0.9, "words": [word]}
    return json.dumps(
        {
            "type": "Results",
            "channel_index": [0, 1],
            "start": start,
            "duration": 1.0,
            "is_final": True,
            "speech_final": False,
            "channel": {"alternatives": [alternative]},
        }
    )


async def answer_at_once(said: list[str], stream: trio.SocketStream) -> None:
    """Be a provider that says all of ``said`` in one write when it has all the audio, and then no more."""
    protocol, audio_bytes = ServerProtocol(), 0
    async for data in stream:
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Request):
                protocol.send_response(protocol.accept(event))
            elif isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                audio_bytes += len(event.data)
                if audio_bytes == SECONDS * RATE * 2:
                    for message in said:
                        protocol.send_text(message.encode())
            elif isinstance(event, Frame) and event.data == CLOSE_STREAM.encode():
                protocol.send_text(METADATA.encode())
                protocol.send_close(1000)
        await stream.send_all(b"".join(protocol.data_to_send()))
        if protocol.state is not State.OPEN:
            return


@asynccontextmanager
async def talking(*said: str) -> AsyncIterator[Device]:
    """A device that has sent its two seconds of audio to a server whose provider says that."""
    serve = partial(answer_at_once, list(said))
    async with open_poller(lambda: 0.0), trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]

        async def dial(_url: str) -> trio.abc.Stream:
            return await open_tcp_stream("127.0.0.1", port)

        parameters: dict[str, Any] = {"codec": "pcm16", "sample_rate": RATE}
        async with running_server(dial) as world, world.device(**parameters) as device:
            device.send(bytes(range(1, 251)) * int(SECONDS * RATE * 2 / 250))
            yield device
            await device.stream.aclose()
        nursery.cancel_scope.cancel()


async def test_the_watermark_moves_behind_the_telling_though_no_other_message_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finalised: list[int] = []
    put_off = Poller.put_off

    def note(poller: Poller, rest: Callable[[], None]) -> None:
        finalised.append(device.session.coverage.ledger.finalised)
        put_off(poller, rest)

    monkeypatch.setattr(Poller, "put_off", note)
    async with talking(final(0.0, "amber")) as device:
        await device.until(lambda: device.segments, within=10.0)
        assert finalised == [0]
        assert device.session.coverage.ledger.finalised == RATE
        ended = await device.finish(20.0)
    assert words_of(device.segments) == ["amber"]
    assert ended["finalised"] == SECONDS


async def test_finals_of_one_read_are_settled_in_turn_so_that_one_that_comes_again_is_known() -> (
    None
):
    first, second = final(0.0, "amber"), final(1.0, "bako")
    async with talking(first, second, first, second) as device:
        await device.until(lambda: len(device.segments) > 1, within=10.0)
        assert device.session.coverage.ledger.finalised == 2 * RATE
        ended = await device.finish(20.0)
    assert words_of(device.segments) == ["amber", "bako"]
    assert ended["finalised"] == SECONDS
