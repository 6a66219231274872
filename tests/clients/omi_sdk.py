"""Streams Opus packets with Omi's Python SDK, as its example does; prints what came of it as JSON.

Run by the Python that has the SDK: ``omi_sdk.py PACKETS URL``; a line of the file is a packet as a
device sends it over Bluetooth, in hexadecimal digits. The SDK's Bluetooth library is not needed, and its address is fixed in its
code: both are replaced here.
"""

from __future__ import annotations

import asyncio
import json
import sys
import types
from pathlib import Path

sys.modules["bleak"] = types.SimpleNamespace(BleakClient=None, BleakScanner=None)

import websockets  # noqa: E402

_path, _url = sys.argv[1:]
_connect = websockets.connect


def _connect_to_ours(address: str, *more: object, **named: object) -> object:
    return _connect(_url + "/v1/listen" + address[address.index("?") :], *more, **named)


websockets.connect = _connect_to_ours

from omi import OmiOpusDecoder, transcribe  # noqa: E402


async def main() -> None:
    packets = [bytes.fromhex(line) for line in Path(_path).read_text().split()]  # noqa: ASYNC240 - before anything runs
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    opus = OmiOpusDecoder()
    said: list[str] = []
    task = asyncio.create_task(transcribe(queue, "sesame", on_transcript=said.append))
    for packet in packets:
        pcm = opus.decode_packet(packet)
        if pcm:
            await queue.put(pcm)
        await asyncio.sleep(0.01)
    await asyncio.sleep(2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    print(json.dumps({"text": " ".join(said)}))


asyncio.run(main())
