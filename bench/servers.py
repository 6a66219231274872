"""What is measured: the server, and the peers."""

from __future__ import annotations

import sys

from attrs import frozen

OURS = "omi_rt"
SDK = "sdk"
ASYNCIO = "asyncio"
TRIO_WEBSOCKET = "trio-websocket"
FLOOR = "floor"


@frozen
class Server:
    """A program that relays ``/listen`` to the provider."""

    name: str
    title: str
    letter: str
    """As the goals name it."""
    command: tuple[str, ...]
    """``{port}`` stands for the port."""
    keeps_audio: bool = False
    """Whether it holds audio until a final covers it, to send it again after a drop."""
    resumes: bool = False
    """Whether a session waits for a device that was lost."""


def _peer(name: str, title: str, letter: str, module: str) -> Server:
    command = (sys.executable, "-m", f"bench.peers.{module}", "--port", "{port}")
    return Server(name, title, letter, command)


SERVERS = {
    server.name: server
    for server in (
        Server(
            OURS,
            "omi_rt",
            "ours",
            (sys.executable, "-m", "omi_rt", "serve", "--port", "{port}"),
            keeps_audio=True,
            resumes=True,
        ),
        _peer(SDK, "FastAPI + uvicorn + deepgram-sdk 3", "(a)", "fastapi_sdk"),
        _peer(ASYNCIO, "FastAPI + uvloop + asyncio websockets", "(b)", "fastapi_asyncio"),
        _peer(TRIO_WEBSOCKET, "trio-websocket on both sides", "(c)", "trio_websocket_relay"),
        _peer(FLOOR, "picows + uvloop, no structure", "(d)", "floor"),
    )
}
PEERS = (SDK, ASYNCIO, TRIO_WEBSOCKET, FLOOR)
