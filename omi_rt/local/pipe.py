"""What the server and a worker say to each other over the worker's standard input and output.

To the worker go frames: kind, length, payload. From it comes a line when it is ready, which says what
it is, and then one line of JSON for each message that the client is to get, until it has answered `Kind.END` and ends.
Between them it says in lines of their own how far it has come.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, BinaryIO

from attrs import asdict, frozen

from omi_rt.core.json import dumps, loads
from omi_rt.local.decoding import RecogniserInfo
from omi_rt.local.wire import ListenParameters

if TYPE_CHECKING:
    from collections.abc import Iterator

_READY = "ready"
PROGRESS_SECONDS = 0.25
"""A worker tells how far it has come each time that it has worked through so much more audio."""
MAX_AUDIO_BYTES = 16_384
"""Of one frame. What it holds is worked on in one go, 0.5 s of 16 kHz mono, so that progress shows."""
_PROGRESS = "progress"

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


def audio_frames(audio: bytes) -> Iterator[bytes]:
    """Yield the frames that carry ``audio``, which may be of any length."""
    for begin in range(0, len(audio), MAX_AUDIO_BYTES):
        yield frame(Kind.AUDIO, audio[begin : begin + MAX_AUDIO_BYTES])


@frozen
class Progress:
    """How far a worker has come."""

    worked_seconds: float
    """Audio that it has worked through."""
    cpu_seconds: float
    """Processor time that this took, without loading the model."""


def progress_line(progress: Progress) -> str:
    """Return the line with which a worker tells how far it has come."""
    return f"{_PROGRESS} {progress.worked_seconds:.3f} {progress.cpu_seconds:.3f}"


def parse_progress(line: str) -> Progress | None:
    """Return what `progress_line` was given; None for a line that is a message for the client."""
    if not line.startswith(_PROGRESS):
        return None
    _, worked, cpu = line.split()
    return Progress(float(worked), float(cpu))


def ready_line(info: RecogniserInfo) -> str:
    """Return the line with which a worker says that it has loaded its model."""
    return f"{_READY} {dumps(asdict(info))}"


def parse_ready(line: str) -> RecogniserInfo | None:
    """Return what `ready_line` was given; None for any other line."""
    kind, _, text = line.partition(" ")
    if kind != _READY:
        return None
    said = loads(text)
    return RecogniserInfo(**{**said, "languages": tuple(said["languages"])})


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
