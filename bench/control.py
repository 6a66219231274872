"""How the runner talks to the load generator and the provider: one JSON object a line, both ways."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

Command = Callable[..., Awaitable[dict[str, Any]]]


async def serve_commands(commands: Mapping[str, Command]) -> None:
    """Answer the runner's commands, one after another, until it says ``quit`` or goes away.

    A command is ``{"command": name, ...arguments}``; its answer is what the function returns, or
    ``{"error": text}``.
    """
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        arguments = orjson.loads(line)
        name = arguments.pop("command")
        if name == "quit":
            return
        try:
            answer = await commands[name](**arguments)
        except Exception as error:  # noqa: BLE001 - the runner decides what a failure means
            answer = {"error": f"{type(error).__name__}: {error}"}
        reply(answer)


def reply(answer: Mapping[str, Any]) -> None:
    """Write one line to the runner."""
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    sys.stdout.buffer.flush()
