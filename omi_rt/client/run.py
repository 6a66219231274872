"""``omi-rt stream``, from its arguments to its exit status."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from omi_rt.client.report import StreamReport
from omi_rt.client.stream import (
    AudioSent,
    CameBack,
    EventReceived,
    JSONObject,
    SegmentsReceived,
    StreamEvent,
    StreamOptions,
    load_recording,
    recording_name,
    stream_recording,
)
from omi_rt.client.terminal import OutputClosed, Terminal, give_up_output
from omi_rt.core.audio import AudioFormat
from omi_rt.core.backlog import Backlog
from omi_rt.core.errors import OmiRtError
from omi_rt.core.sound import SoundFinder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from omi_rt.codecs.wav import WavAudio

_FAILED: Final = 1
_INTERRUPTED: Final = 130
"""The exit status is 128 + SIGINT, as shells have it."""


def run_stream(
    path: str | Path,
    url: str,
    uid: str,
    codec: str,
    speed: float,
    json_output: bool,
    *,
    with_events: bool = False,
    language: str = "",
    uses_profile: bool = True,
    headers: Mapping[str, str] | None = None,
) -> int:
    """Stream a recording, print the segments as they come, and return the exit status.

    What the server tells of its state, and a line at the end, go to standard error. Where speakers
    turned out to be others than was shown, the whole transcript is printed once more.

    Args:
        path: the recording's path; ``-`` is standard input.
        url: the address of the server's ``/listen``, ws:// or wss://.
        uid: who is speaking.
        codec: a key of `omi_rt.client.device.DEVICE_CODECS`.
        speed: how fast to stream; 1.0 is real time.
        json_output: print one segment object per line, and nothing else to standard output.
        with_events: with ``json_output``, print the server's events as well, in order.
        language: the language spoken; empty leaves it to the URL or the server.
        uses_profile: whether voices may be kept and sent.
        headers: extra headers of the handshake.

    Returns:
        0 after ``session_ended`` with nothing lost; 1 otherwise, and where nothing was understood of
        audio that is not silent; 130 if interrupted.
    """
    terminal = Terminal()
    options = StreamOptions(
        url=url,
        uid=uid,
        codec=codec,
        speed=speed,
        language=language,
        uses_profile=uses_profile,
        headers=headers or {},
    )
    status = 0
    try:
        status = _stream(path, options, terminal, json_output=json_output, with_events=with_events)
    except* KeyboardInterrupt:
        terminal.print_error("omi-rt stream: interrupted")
        status = _INTERRUPTED
    return status


def _stream(
    path: str | Path,
    options: StreamOptions,
    terminal: Terminal,
    *,
    json_output: bool,
    with_events: bool,
) -> int:
    report = StreamReport()

    @trio.lowlevel.enable_ki_protection
    def show(event: StreamEvent) -> None:
        # An interrupt waits until this is done, because a line that is half drawn could not be erased.
        if isinstance(event, AudioSent):
            report.sent_seconds = event.seconds
            terminal.show_progress(event.seconds, event.total_seconds)
        elif isinstance(event, SegmentsReceived):
            report.add(event.segments)
            print_one = terminal.print_json_line if json_output else terminal.print_segment
            for segment in event.segments:
                print_one(segment)
        elif isinstance(event, CameBack):
            terminal.print_error(report.describe_return(event))
        elif isinstance(event, EventReceived):
            line = report.describe(event.event)
            if line is not None:
                terminal.print_error(line)
            if json_output and with_events:
                terminal.print_json_line(event.event)

    def conclude(session_ended: JSONObject | None) -> None:
        terminal.clear_progress()
        if report.is_corrected and not json_output:
            terminal.print_heading("with the speakers as they are known now:")
            for segment in report.segments:
                terminal.print_segment(segment)
        terminal.print_error(report.summary(session_ended))

    try:
        recording = load_recording(path)
        audio = recording.audio
        if recording.shortfall:
            terminal.print_error(f"{recording_name(path)} {recording.shortfall}")
        summary = trio.run(partial(stream_recording, audio, options, show))
        conclude(summary.session_ended)
    except OmiRtError as error:
        if isinstance(error, OutputClosed):
            give_up_output()
        elif report.sent_seconds:
            conclude(None)
        terminal.print_error(f"omi-rt stream: {error}")
        return _FAILED
    if report.words == 0 and _sounds(audio):
        terminal.print_error("omi-rt stream: nothing was understood, but the audio is not silent")
        return _FAILED
    return _FAILED if summary.session_ended.get("lost") or report.missing_seconds else 0


def _sounds(audio: WavAudio) -> bool:
    """Whether anything in a recording stands out from its noise."""
    audio_format = AudioFormat(audio.sample_rate, audio.channels)
    backlog = Backlog(audio_format, audio.samples)
    backlog.append(audio.pcm)
    return any(
        SoundFinder(audio_format, channel).first_sound(backlog, 0, backlog.end) is not None
        for channel in range(audio.channels)
    )
