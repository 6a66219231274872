"""``omi-rt stream``, from its arguments to its exit status."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from omi_rt.client.stream import (
    AudioSent,
    SegmentsReceived,
    StreamEvent,
    StreamOptions,
    load_recording,
    stream_recording,
)
from omi_rt.client.terminal import OutputClosed, Terminal, give_up_output
from omi_rt.core.errors import OmiRtError

if TYPE_CHECKING:
    from pathlib import Path

_FAILED: Final = 1
_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells have it."""


def run_stream(
    path: str | Path, url: str, uid: str, codec: str, speed: float, json_output: bool
) -> int:
    """Stream a WAV file, print the segments as they come, and return the exit status.

    Args:
        path: of the WAV file.
        url: of the server's ``/listen``, ws:// or wss://.
        uid: who is speaking.
        codec: a key of `omi_rt.client.device.DEVICE_CODECS`.
        speed: 1.0 is real time.
        json_output: print one segment object per line, and nothing else to standard output.

    Returns:
        0 after ``session_ended``; 1 otherwise, with one line on standard error; 130 if interrupted.
    """
    terminal = Terminal()
    options = StreamOptions(url=url, uid=uid, codec=codec, speed=speed)
    status = 0
    try:
        status = _stream(path, options, terminal, json_output=json_output)
    except* KeyboardInterrupt:
        terminal.print_error("omi-rt stream: interrupted")
        status = _INTERRUPTED
    return status


def _stream(
    path: str | Path, options: StreamOptions, terminal: Terminal, *, json_output: bool
) -> int:
    def show(event: StreamEvent) -> None:
        if isinstance(event, AudioSent):
            terminal.show_progress(event.seconds, event.total_seconds)
        elif isinstance(event, SegmentsReceived):
            print_one = terminal.print_json_line if json_output else terminal.print_segment
            for segment in event.segments:
                print_one(segment)

    try:
        trio.run(partial(stream_recording, load_recording(path), options, show))
    except OmiRtError as error:
        if isinstance(error, OutputClosed):
            give_up_output()
        terminal.print_error(f"omi-rt stream: {error}")
        return _FAILED
    terminal.clear_progress()
    return 0
