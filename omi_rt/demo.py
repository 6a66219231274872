"""``omi-rt demo``: a server with the embedded recogniser, a device, and what came of it."""

from __future__ import annotations

import signal
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import trio

from omi_rt.client.connect import StreamFailed
from omi_rt.client.report import describe_return
from omi_rt.client.stream import (
    AudioSent,
    CameBack,
    SegmentsReceived,
    StreamEvent,
    StreamOptions,
    StreamSummary,
    load_recording,
    stream_recording,
)
from omi_rt.cuts import Cutter
from omi_rt.deepgram.connection import dial_tcp
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.sample import sample_text, sample_wav
from omi_rt.net.stream import open_tcp_stream
from omi_rt.server.main import serve
from omi_rt.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from omi_rt.client.terminal import Terminal

DEMO_SECONDS = 120.0
"""A demo that takes this long has failed; the sample takes 12 s."""
UNPLUGGED_AT = (2.5, 5.6, 8.8)
"""Seconds after the start at which the lines are cut."""


async def run_demo(terminal: Terminal, *, unplugs: bool = False) -> dict[str, str]:
    """Serve on a free port, stream the sample as Opus at real time, print segments and summary.

    Args:
        terminal: where to print.
        unplugs: cut the lines on both sides of the server at `UNPLUGGED_AT`.

    Returns the summary. Cancelling this ends the server.

    Raises:
        OmiRtError: the recogniser, the server or the stream failed.
        KeyboardInterrupt: SIGINT came.
    """
    segments: list[dict[str, Any]] = []
    delays: list[float] = []
    interrupted, cutter = trio.Event(), Cutter()

    show = _shower(terminal, interrupted, segments, delays)
    with sample_wav() as path:
        recording = load_recording(path).audio
    with (
        trio.open_signal_receiver(signal.SIGINT) as signals,
        trio.move_on_after(DEMO_SECONDS) as limit,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                _wait_for_interrupt, signals, interrupted, terminal, nursery.cancel_scope
            )
            address = await nursery.start(_server(terminal, cutter))
            terminal.print_error(f"streaming {recording.seconds:.1f} s of two voices as Opus")
            options = StreamOptions(url=f"{address}/listen", uid="demo", codec="opus")
            if unplugs:
                nursery.start_soon(cutter.cut_at, *UNPLUGGED_AT)
            summary = await stream_recording(
                recording,
                options,
                show,
                open_stream=lambda host, port: cutter.note(open_tcp_stream(host, port)),
            )
            nursery.cancel_scope.cancel()
    if interrupted.is_set():
        raise KeyboardInterrupt
    if limit.cancelled_caught:
        raise StreamFailed(f"the demo took over {DEMO_SECONDS:g} s")
    terminal.clear_progress()
    rows = _summarise(summary, segments, delays)
    if unplugs:
        rows["cut"] = f"{cutter.cuts} times, on both sides of the server"
    terminal.print_summary(rows)
    return rows


def _server(terminal: Terminal, cutter: Cutter) -> partial[Coroutine[Any, Any, int]]:
    """Return what serves on a free port, over lines that ``cutter`` can cut."""
    return partial(
        serve,
        Settings(),
        "127.0.0.1",
        0,
        announce=lambda line, *_event, **_fields: terminal.print_error(line),
        handles_signals=False,
        dial=lambda url: cutter.note(dial_tcp(url)),
    )


def _shower(
    terminal: Terminal,
    interrupted: trio.Event,
    segments: list[dict[str, Any]],
    delays: list[float],
) -> Callable[[StreamEvent], None]:
    """Return what shows events until ``interrupted``, and collects segments with their delays."""

    @trio.lowlevel.enable_ki_protection
    def show(event: StreamEvent) -> None:
        # An interrupt waits until this is done, because a line that is half drawn could not be erased.
        if interrupted.is_set():
            return
        if isinstance(event, AudioSent):
            terminal.show_progress(event.seconds, event.total_seconds)
        elif isinstance(event, CameBack):
            terminal.print_error(describe_return(event))
        elif isinstance(event, SegmentsReceived):
            for segment in event.segments:
                segments.append(segment)
                delays.append(event.elapsed - segment["end"])
                terminal.print_segment(segment)

    return show


def _summarise(
    summary: StreamSummary, segments: list[dict[str, Any]], delays: list[float]
) -> dict[str, str]:
    text = " ".join(segment["text"] for segment in segments)
    return {
        "audio": f"{summary.audio_seconds:.1f} s",
        "segments": str(len(segments)),
        "speakers": _speakers({segment["speaker"] for segment in segments}),
        "words right": f"{word_accuracy(sample_text(), text):.0%}",
        "delay": _range(delays) + " from the end of a segment's last word to the segment",
        "seconds lost": f"{summary.session_ended['lost']:g}",
    }


def _speakers(heard: set[str]) -> str:
    if len(heard) > 1:
        return f"{len(heard)}; the recording has 2"
    return "1; the recording has 2: pip install 'omi-rt[speakers]' tells them apart, and so does Deepgram"


async def _wait_for_interrupt(
    signals: AsyncIterator[int],
    interrupted: trio.Event,
    terminal: Terminal,
    scope: trio.CancelScope,
) -> None:
    """Set ``interrupted`` and cancel ``scope`` when a signal comes, and take the progress away.

    An interrupt that was raised wherever the server happens to be would count as one connection's fault,
    and the client would tell of a lost connection.
    """
    async for _number in signals:
        interrupted.set()
        # The server logs what it loses as it ends, and its lines would run into the progress.
        terminal.clear_progress()
        scope.cancel()


def _range(delays: list[float]) -> str:
    if not delays:
        return "-"
    return f"{median(delays):.2f} s (at most {max(delays):.2f} s)"
