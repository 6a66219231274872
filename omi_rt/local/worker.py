"""``python -m omi_rt.local.worker``: decodes one connection's audio, and then ends.

Plain and synchronous: it waits for a frame of `omi_rt.local.pipe`, works on it, writes what came of
it. It loads the model before it is asked for anything, and ends when its input does.
"""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, BinaryIO

from attrs import evolve

from omi_rt.local import pipe
from omi_rt.local.choice import Choice
from omi_rt.local.errors import RecogniserError
from omi_rt.local.pipe import PROGRESS_SECONDS, Kind, Progress
from omi_rt.local.recogniser import StreamRecogniser
from omi_rt.local.wire import ANY_LANGUAGE, ResultsWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.local.decoding import Recogniser
    from omi_rt.local.recogniser import Voices
    from omi_rt.local.wire import ListenParameters

INTERIM_SECONDS = 1.0
"""Of an utterance, from one interim result to the next, where they are asked for."""


def main() -> int:
    """Work until the input ends; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m omi_rt.local.worker")
    for option in ("--whisper", "--embedder", "--name"):
        parser.add_argument(option, default="")
    choice = Choice(**vars(parser.parse_args()))
    # A server that is gone is no error: end as any filter does.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        recogniser, make_voices = load(choice)
        work(sys.stdin.buffer, sys.stdout.buffer, recogniser, make_voices)
    except RecogniserError as error:
        sys.stderr.write(f"omi-rt: {error}\n")
        return 1
    return 0


def arguments(choice: Choice) -> list[str]:
    """Return the arguments with which `main` loads what was chosen."""
    return ["--whisper", choice.whisper, "--embedder", choice.embedder, "--name", choice.name]


def load(choice: Choice) -> tuple[Recogniser, Callable[[int], Voices] | None]:
    """Load what was chosen: a recogniser, and what makes voices for a sample rate, if anything.

    Raises:
        RecogniserError: it is not installed, or cannot be loaded.
    """
    # Each brings its libraries, and a worker has use for one.
    if choice.whisper:
        from omi_rt.local.whisper import Whisper

        recogniser: Recogniser = Whisper(choice.whisper, choice.name)
    else:
        from omi_rt.local.sphinx import Sphinx

        recogniser = Sphinx()
    if not choice.embedder:
        return recogniser, None
    from omi_rt.local.embedder import Embedder
    from omi_rt.local.voices import ChannelVoices

    return recogniser, partial(ChannelVoices, Embedder(Path(choice.embedder)))


def work(
    source: BinaryIO,
    sink: BinaryIO,
    recogniser: Recogniser,
    make_voices: Callable[[int], Voices] | None = None,
) -> None:
    """Serve one connection: frames from ``source``, lines to ``sink``.

    Args:
        source: of frames.
        sink: of lines.
        recogniser: that is loaded.
        make_voices: for each channel, of a sample rate; without it all words are one speaker's.

    Raises:
        DecodingFailed: as the recogniser's decoders do.
    """

    def write(line: str) -> None:
        sink.write(line.encode() + b"\n")
        sink.flush()

    info = evolve(recogniser.info, tells_speakers_apart=make_voices is not None)
    write(pipe.ready_line(info))
    first = pipe.read_frame(source)
    if first is None:
        return
    parameters, request_id = pipe.parse_opening(first[1])
    results = ResultsWriter(parameters, request_id, info)
    stream = _open_stream(parameters, recogniser, make_voices)
    bytes_per_second = 2 * parameters.channels * parameters.sample_rate
    cpu_at_start, worked, told = process_time(), 0, 0

    def tell_progress() -> None:
        write(
            pipe.progress_line(Progress(worked / bytes_per_second, process_time() - cpu_at_start))
        )

    while (message := pipe.read_frame(source)) is not None:
        kind, payload = message
        if kind is Kind.AUDIO:
            for final in stream.feed(payload):
                write(results.write(final))
            worked += len(payload)
            if worked - told >= PROGRESS_SECONDS * bytes_per_second:
                told = worked
                tell_progress()
        elif kind is Kind.FINALIZE:
            for final in stream.flush(payload[0] if payload else None):
                write(results.write(final, from_finalize=True))
        elif kind is Kind.END:
            for final in stream.flush():
                if final.end > final.start:
                    write(results.write(final))
            tell_progress()
            return


def _open_stream(
    parameters: ListenParameters,
    recogniser: Recogniser,
    make_voices: Callable[[int], Voices] | None,
) -> StreamRecogniser:
    language = None if parameters.language == ANY_LANGUAGE else parameters.language
    if not parameters.diarize:
        make_voices = None
    return StreamRecogniser(
        sample_rate=parameters.sample_rate,
        channels=parameters.channels,
        multichannel=parameters.multichannel,
        make_decoder=partial(recogniser.open, language),
        make_voices=partial(make_voices, parameters.sample_rate) if make_voices else None,
        pacing=recogniser.pacing,
        interim_seconds=INTERIM_SECONDS if parameters.interim_results else 0.0,
    )


if __name__ == "__main__":
    sys.exit(main())
