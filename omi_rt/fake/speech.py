"""Scripts: who says what and when in the made-up language, and the audio of it.

Times are in seconds, on a grid of a millisecond, so that a script means the same samples at 8 and at
16 kHz. The audio is digital silence wherever nobody speaks.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from omi_rt.fake.language import (
    MIN_SAMPLE_RATE,
    VOCABULARY,
    index_of,
    seconds_of,
    waveform,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from random import Random

MIN_GAP_SECONDS = 0.060
"""Two words of a channel are at least this far apart, which Opus needs to keep them apart."""
MAX_GAP_SECONDS = 0.090
"""Two words of an utterance are at most this far apart, which is less than the documented
``endpointing`` of 100 ms."""
LONG_UTTERANCE = 0.1
"""With this chance somebody speaks for longer than a provider waits with a final."""
INTERRUPTION = 0.15
"""With this chance the next speaker falls in without a pause."""


@frozen
class SpokenWord:
    """One word said by a voice on a channel."""

    text: str
    voice: int
    start: float
    """Seconds from the start of the script."""
    channel: int = 0

    @property
    def end(self) -> float:
        """Seconds from the start of the script; each word has a length of its own."""
        return round(self.start + seconds_of(index_of(self.text)), 6)


def _in_order(words: Iterable[SpokenWord]) -> tuple[SpokenWord, ...]:
    return tuple(sorted(words, key=attrgetter("start")))


@frozen
class Script:
    """What is said, in order of time, and how long the recording is."""

    words: tuple[SpokenWord, ...] = field(converter=_in_order)
    seconds: float
    channels: int = 1

    def transcript(self, channel: int | None = None) -> list[str]:
        """The words of one channel, or of all, in order of their start."""
        return [word.text for word in self.words if channel is None or word.channel == channel]

    def on_channel(self, channel: int) -> list[SpokenWord]:
        """The words of one channel."""
        return [word for word in self.words if word.channel == channel]


def utterance(
    text: str, voice: int, start: float, *, gap: float = MAX_GAP_SECONDS, channel: int = 0
) -> list[SpokenWord]:
    """Let a voice say the words of ``text``, ``gap`` seconds between two.

    Raises:
        ValueError: a word is not in the vocabulary, or the gap is too short.
    """
    if gap < MIN_GAP_SECONDS:
        raise ValueError(f"words closer than {MIN_GAP_SECONDS} s run into each other")
    words = []
    for word in text.split():
        if word not in VOCABULARY:
            raise ValueError(f"{word!r} is not in the vocabulary")
        words.append(SpokenWord(word, voice, round(start, 3), channel))
        start = words[-1].end + gap
    return words


def plain_words(text: str) -> list[str]:
    """Undo punctuation and capitals, so that the words are as a script has them."""
    return text.lower().replace(".", "").split()


def random_script(
    rng: Random,
    seconds: float,
    *,
    voices: Sequence[int] = (1, 4, 6),
    channels: int = 1,
    longest_pause: float = 2.0,
) -> Script:
    """Draw a conversation: turns of one to three utterances, pauses, now and then an interruption.

    Each channel has a conversation of its own among the same voices. Nobody speaks in the first and
    the last 0.3 s.
    """
    words: list[SpokenWord] = []
    for channel in range(channels):
        words += _conversation(rng, seconds, voices, channel, longest_pause)
    return Script(words, seconds, channels)


def synthesise(script: Script, sample_rate: int) -> bytes:
    """Return the whole script as interleaved linear16."""
    return b"".join(audio_chunks(script, sample_rate, chunk_seconds=10.0))


def audio_chunks(
    script: Script, sample_rate: int, *, chunk_seconds: float = 1.0
) -> Iterator[bytes]:
    """Yield the script's audio piece by piece; one piece is held at a time, however long the script is.

    Args:
        script: what is said; whatever reaches beyond its end is cut.
        sample_rate: in Hz, at least `MIN_SAMPLE_RATE`.
        chunk_seconds: length of a piece; the last may be shorter.

    Raises:
        ValueError: the rate is too low for the language.
    """
    if sample_rate < MIN_SAMPLE_RATE:
        raise ValueError(f"the language needs at least {MIN_SAMPLE_RATE} Hz")
    total = round(script.seconds * sample_rate)
    size = max(1, round(chunk_seconds * sample_rate))
    overhang: list[SpokenWord] = []
    upcoming = iter(script.words)
    following = next(upcoming, None)
    for begin in range(0, total, size):
        end = min(begin + size, total)
        chunk = np.zeros((end - begin, script.channels), dtype="<i2")
        while following is not None and round(following.start * sample_rate) < end:
            overhang.append(following)
            following = next(upcoming, None)
        reaching_on = []
        for word in overhang:
            wave = waveform(index_of(word.text), word.voice, sample_rate)
            at = round(word.start * sample_rate)
            low, high = max(at, begin), min(at + len(wave), end)
            chunk[low - begin : high - begin, word.channel] = wave[low - at : high - at]
            if at + len(wave) > end:
                reaching_on.append(word)
        overhang = reaching_on
        yield chunk.tobytes()


def _conversation(
    rng: Random, seconds: float, voices: Sequence[int], channel: int, longest_pause: float
) -> Iterator[SpokenWord]:
    now = 0.3 + rng.uniform(0, longest_pause / 2)
    voice = rng.choice(voices)
    while True:
        for _ in range(rng.randint(1, 3)):
            count = rng.randint(20, 32) if rng.random() < LONG_UTTERANCE else rng.randint(1, 9)
            for _ in range(count):
                word = SpokenWord(rng.choice(VOCABULARY), voice, round(now, 3), channel)
                if word.end > seconds - 0.3:
                    return
                yield word
                now = word.end + rng.uniform(MIN_GAP_SECONDS + 0.001, MAX_GAP_SECONDS)
            now += rng.uniform(0.3, max(0.3, longest_pause))
        others = [other for other in voices if other != voice] or list(voices)
        voice = rng.choice(others)
        if rng.random() < INTERRUPTION:
            # The pause shrinks back to what the gap within an utterance would have been.
            now = word.end + MAX_GAP_SECONDS
