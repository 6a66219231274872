"""What the server and a worker say to each other over the worker's standard input and output.

To the worker go frames: kind, length, payload. From it comes a line when it is ready, and then one
line of JSON for each message that the client is to get, until it has answered `Kind.END` and ends.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import BinaryIO

from attrs import asdict

from omi_rt.core.json import dumps, loads
from omi_rt.local.wire import ListenParameters

READY_LINE = "ready"

_HEADER = struct.Struct("<BI")


class Kind(IntEnum):
    """What a frame carries."""

    OPEN = 0
    """The first: the connection's parameters and request id."""
    AUDIO = 1
    """s16le samples, cut anywhere."""
    FINALIZE = 2
    """Nothing, or the number of the channel in one byte."""
    END = 3
    """No more audio follows."""


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    return _HEADER.pack(kind, len(payload)) + payload


def open_frame(parameters: ListenParameters, request_id: str) -> bytes:
    """Return the frame that a connection begins with."""
    opening = {"parameters": asdict(parameters), "request_id": request_id}
    return frame(Kind.OPEN, dumps(opening).encode())


def parse_opening(payload: bytes) -> tuple[ListenParameters, str]:
    """Return what `open_frame` was given."""
    opening = loads(payload)
    return ListenParameters(**opening["parameters"]), opening["request_id"]


def read_frame(source: BinaryIO) -> tuple[Kind, bytes] | None:
    """Wait for the next frame; None at the end of ``source``, also in the middle of a frame."""
    header = source.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    kind, length = _HEADER.unpack(header)
    payload = source.read(length)
    return (Kind(kind), payload) if len(payload) == length else None
