"""What one final of twelve words costs in the server: to parse, to locate, to narrate, and to finalise.

``python -m bench.finals [--finals N]`` prints the medians in microseconds of this thread's CPU time. It
runs in one process, without sockets, so it can be repeated while the server is being changed.
"""

from __future__ import annotations

import argparse
from itertools import count
from statistics import median
from time import thread_time_ns
from typing import TYPE_CHECKING

import orjson

from bench.messages import make_final
from omi_rt.core.audio import AudioFormat
from omi_rt.core.coverage import Coverage
from omi_rt.core.deepgram import Results, parse_message
from omi_rt.core.json import dumps
from omi_rt.core.speakers import EpochLabels
from omi_rt.core.timeline import Timeline
from omi_rt.core.transcript import Transcript
from omi_rt.faces.omi import OmiFace, Proof, Version

if TYPE_CHECKING:
    from omi_rt.core.updates import Update

_RATE = 16_000
_KEPT_SECONDS = 60
_ROUNDS = 20
"""The finals are measured in so many groups: the median of the groups is what is printed."""


def measure(finals: int) -> dict[str, float]:
    """The microseconds that each part of one final takes, and their sum."""
    audio = AudioFormat(_RATE, 1)
    coverage, timeline, labels = Coverage(audio, _KEPT_SECONDS), Timeline(audio), EpochLabels()
    numbers = count()
    transcript = Transcript(
        "bench",
        audio,
        tell=_tell,
        new_id=lambda: f"{next(numbers):032x}",
        keeps_voices=False,
    )
    texts = [
        orjson.dumps(make_final(1, float(n), n + 1.0, from_finalize=False)).decode()
        for n in range(finals)
    ]
    second = b"\x01\x00" * _RATE
    spent = {
        "parse": list[int](),
        "locate": list[int](),
        "narrate": list[int](),
        "finalise": list[int](),
    }
    for n, text in enumerate(texts):
        coverage.receive(second)
        if n == 0:
            timeline.begin(coverage)
        timeline.record_sent(n * _RATE, _RATE)
        started = thread_time_ns()
        results = parse_message(text)
        parsed = thread_time_ns()
        assert isinstance(results, Results)
        heard = timeline.hear(results, coverage)
        located = thread_time_ns()
        assert heard.words
        transcript.narrate(labels, heard, coverage.backlog)
        narrated = thread_time_ns()
        heard.finalise(coverage)
        finalised = thread_time_ns()
        spent["parse"].append(parsed - started)
        spent["locate"].append(located - parsed)
        spent["narrate"].append(narrated - located)
        spent["finalise"].append(finalised - narrated)
    size = max(1, finals // _ROUNDS)
    parts = {
        name: median(sum(each[at : at + size]) / size for at in range(0, finals - size + 1, size))
        / 1000
        for name, each in spent.items()
    }
    return {**parts, "all": sum(parts.values())}


_face = OmiFace(Version(Proof.UID_PARAMETER), AudioFormat(_RATE, 1))


def _tell(update: Update) -> None:
    """Write what the session tells, as the face of an Omi app does."""
    for message in _face.write(update):
        dumps(message)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finals", type=int, default=4000)
    figures = measure(parser.parse_args().finals)
    print("  ".join(f"{name} {value:.1f} µs" for name, value in figures.items()))


if __name__ == "__main__":
    main()
