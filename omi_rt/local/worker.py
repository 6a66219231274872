"""``python -m omi_rt.local.worker``: decodes one connection's audio, and then ends.

Plain and synchronous: it waits for a frame of `omi_rt.local.pipe`, works on it, writes what came of
it. It loads the model before it is asked for anything, and ends when its input does.
"""

from __future__ import annotations

import signal
import sys
from time import process_time
from typing import TYPE_CHECKING, BinaryIO

from omi_rt.local import pipe
from omi_rt.local.errors import RecogniserError
from omi_rt.local.pipe import PROGRESS_SECONDS, Kind, Progress
from omi_rt.local.recogniser import Decoder, StreamRecogniser
from omi_rt.local.wire import ResultsWriter

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    """Work until the input ends; return the exit status."""
    # A server that is gone is no error: end as any filter does.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        from omi_rt.local import model

        work(sys.stdin.buffer, sys.stdout.buffer, model.Decoder)
    except RecogniserError as error:
        sys.stderr.write(f"omi-rt: {error}\n")
        return 1
    return 0


def work(source: BinaryIO, sink: BinaryIO, load_decoder: Callable[[], Decoder]) -> None:
    """Serve one connection: frames from ``source``, lines to ``sink``.

    Raises:
        DecodingFailed: as ``load_decoder`` and its decoder do.
    """

    def write(line: str) -> None:
        sink.write(line.encode() + b"\n")
        sink.flush()

    loaded = [load_decoder()]
    write(pipe.READY_LINE)
    first = pipe.read_frame(source)
    if first is None:
        return
    parameters, request_id = pipe.parse_opening(first[1])
    results = ResultsWriter(parameters, request_id)
    recogniser = StreamRecogniser(
        sample_rate=parameters.sample_rate,
        channels=parameters.channels,
        multichannel=parameters.multichannel,
        make_decoder=lambda: loaded.pop() if loaded else load_decoder(),
    )
    bytes_per_second = 2 * parameters.channels * parameters.sample_rate
    cpu_at_start, worked, told = process_time(), 0, 0

    def tell_progress() -> None:
        write(
            pipe.progress_line(Progress(worked / bytes_per_second, process_time() - cpu_at_start))
        )

    while (message := pipe.read_frame(source)) is not None:
        kind, payload = message
        if kind is Kind.AUDIO:
            for final in recogniser.feed(payload):
                write(results.write(final))
            worked += len(payload)
            if worked - told >= PROGRESS_SECONDS * bytes_per_second:
                told = worked
                tell_progress()
        elif kind is Kind.FINALIZE:
            for final in recogniser.flush(payload[0] if payload else None):
                write(results.write(final, from_finalize=True))
        elif kind is Kind.END:
            for final in recogniser.flush():
                if final.end > final.start:
                    write(results.write(final))
            tell_progress()
            return


if __name__ == "__main__":
    sys.exit(main())
