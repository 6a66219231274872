"""Finds the words of the made-up language in one channel's audio as it arrives, without a clock.

These rules tell what is a word:

* A stretch of sound with 20 ms of quiet on either side is one utterance of something. Shorter than
  10 ms it is a click, and nothing.
* With digital silence around it, and a word's wave to the sample (cosine squared over 0.999), it is
  that word. Its times are exact.
* Else, if its first or last 10 ms are a word's to the bit, it came through no codec and is no word:
  one packet dropped, doubled, moved or zeroed inside a word shows.
* Else its spectrum must be a word's in some voice (cosine squared over 0.85) and its length the
  word's within 30 ms, which is what Opus at 32 kb/s needs. Its times are within 25 ms.
* What is neither is `UNKNOWN`: a word cut off at the start of a stream, trimmed, stretched, spliced
  with another, or noise. It is reported in its place, in the most likely voice, and never guessed.

Sound that goes on for longer than any word is cut to pieces, each of which is unknown.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from omi_rt.fake.language import (
    EDGE_SECONDS,
    HARMONICS,
    VOCABULARY,
    VOICES,
    Samples,
    pitch_of,
    seconds_of,
    timbre_of,
    waveform,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNKNOWN = "?"
THRESHOLD = 600
"""A sample over this amplitude is sound; the noise that Opus leaves between words is below it."""
GAP_SECONDS = 0.020
"""This much quiet ends a word. Opus makes holes of up to 13 ms inside a word, and leaves 45 ms of a gap
of 60 ms."""
CLICK_SECONDS = 0.010
"""Shorter sounds are clicks and no words."""
MAX_SECONDS = 0.400
"""This is longer than any word, with what Opus adds at its ends."""
LENGTH_TOLERANCE_SECONDS = 0.030
"""A word that came through Opus may differ in length by less than this."""
SPECTRUM_MATCH = 0.85
"""The least match (cosine squared) between the spectra of a sound and of the word that it is."""
WAVE_MATCH = 0.999
"""The least match (cosine squared) between the samples of a sound and of the word that it is."""
THRESHOLD_DELAY_SECONDS = 0.0008
"""A ramp crosses the threshold this long after it begins; 0.4 to 1.4 ms were measured."""

_FRAME_SECONDS = 0.5
_TIMBRES = np.array([timbre_of(voice) for voice in VOICES], dtype=np.float32)
_HERTZ = np.array([pitch_of(index) for index in range(len(VOCABULARY))])[:, None] * HARMONICS


@frozen
class RecognisedWord:
    """A word, or `UNKNOWN`, and where it is in the stream."""

    text: str
    start: int
    """The first sample, counted from the beginning of the stream."""
    end: int
    """The sample just behind the last one."""
    voice: int
    confidence: float
    """How well it matched, 0 to 1."""


class Recogniser:
    """The words of one channel of linear16.

    Attributes:
        position: samples taken so far.
    """

    __slots__ = (
        "_click",
        "_edge",
        "_gap",
        "_last_loud",
        "_max",
        "_onset",
        "_rate",
        "_recent",
        "_tail",
        "position",
    )

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._gap = round(GAP_SECONDS * sample_rate)
        self._click = round(CLICK_SECONDS * sample_rate)
        self._edge = round(EDGE_SECONDS * sample_rate)
        self._max = round(MAX_SECONDS * sample_rate)
        self._tail = self._gap
        self._recent: Samples = np.zeros(0, dtype=np.int16)
        self._onset: int | None = None
        self._last_loud = 0
        self.position = 0

    @property
    def open_since(self) -> int | None:
        """Where the sound began that has not ended yet, or None in silence."""
        return None if self._onset is None else max(0, self._onset - self._edge)

    def feed(self, samples: Samples) -> list[RecognisedWord]:
        """Take the next samples of the stream; return the words that have now ended."""
        begin = self.position
        self.position += len(samples)
        (loud,) = ((samples > THRESHOLD) | (samples < -THRESHOLD)).nonzero()
        if self._onset is None and not loud.size and len(samples) >= self._tail:
            self._recent = samples[-self._tail :]
            return []
        self._recent = np.concatenate((self._recent, samples))
        words = self._advance(loud + begin)
        if self._onset is None:
            self._recent = self._recent[-self._tail :]
        else:
            keep_from = self._onset - self._tail
            self._recent = self._recent[max(0, keep_from - self._recent_from) :]
        return words

    def flush(self) -> list[RecognisedWord]:
        """End the stream, or a part of it, so that sound that is going on ends here."""
        words: list[RecognisedWord] = []
        if self._onset is not None:
            self._complete(self._onset, self._last_loud + 1, words)
            self._onset = None
        return words

    @property
    def _recent_from(self) -> int:
        return self.position - len(self._recent)

    def _advance(self, loud: NDArray[np.intp]) -> list[RecognisedWord]:
        words: list[RecognisedWord] = []
        if loud.size:
            if self._onset is None:
                self._onset = int(loud[0])
            elif loud[0] - self._last_loud > self._gap:
                self._complete(self._onset, self._last_loud + 1, words)
                self._onset = int(loud[0])
            for index in (loud[1:] - loud[:-1] > self._gap).nonzero()[0].tolist():
                self._complete(self._onset, int(loud[index]) + 1, words)
                self._onset = int(loud[index + 1])
            self._last_loud = int(loud[-1])
        if self._onset is not None:
            if self.position - 1 - self._last_loud > self._gap:
                self._complete(self._onset, self._last_loud + 1, words)
                self._onset = None
            else:
                self._onset = self._cut_up(self._onset, self._last_loud + 1, words)
        return words

    def _complete(self, start: int, end: int, words: list[RecognisedWord]) -> None:
        start = self._cut_up(start, end, words)
        if end - start >= self._click:
            words.append(self._recognise(start, end))

    def _cut_up(self, start: int, end: int, words: list[RecognisedWord]) -> int:
        """Take the pieces off a sound too long for a word; return where the rest begins."""
        while end - start > self._max:
            words.append(self._recognise(start, start + self._max))
            start += self._max
        return start

    def _recognise(self, start: int, end: int) -> RecognisedWord:
        first, last = self._exact_border(start, -1), self._exact_border(end - 1, 1)
        if first is not None and last is not None:
            found = _by_wave(self._part(first, last + 1), self._rate)
            if found is not None:
                index, voice, score = found
                return RecognisedWord(VOCABULARY[index], first, last + 1, voice, score)
        delay = round(THRESHOLD_DELAY_SECONDS * self._rate)
        start = max(0, start - delay) if first is None else first
        end = min(self.position, end + delay) if last is None else last + 1
        samples = self._part(start, end)
        index, voice, score = _by_spectrum(samples, self._rate)
        known = (
            score >= SPECTRUM_MATCH
            and abs((end - start) / self._rate - seconds_of(index)) < LENGTH_TOLERANCE_SECONDS
            and not _shares_an_end(samples, waveform(index, voice, self._rate), self._click)
        )
        return RecognisedWord(VOCABULARY[index] if known else UNKNOWN, start, end, voice, score)

    def _exact_border(self, loud: int, step: int) -> int | None:
        """Follow the ramp outward from a loud sample to digital silence, if that is what is there."""
        ramp, quiet = self._edge, self._gap - self._edge
        if step < 0:
            around = self._part(loud - ramp - quiet, loud + 1)[::-1]
        else:
            around = self._part(loud, loud + ramp + quiet + 1)
        if around[ramp + 1 :].any():
            return None
        # The ramp's own samples may be zero; the silence is what is zero to the end.
        return loud + step * int(around.nonzero()[0][-1])

    def _part(self, start: int, end: int) -> Samples:
        base = self._recent_from
        return self._recent[max(0, start - base) : max(0, end - base)]


def _by_wave(samples: Samples, sample_rate: int) -> tuple[int, int, float] | None:
    index = _indices_by_length(sample_rate).get(len(samples))
    if index is None:
        return None
    heard = samples.astype(np.float32)
    cosines = _unit_waves(index, sample_rate) @ heard
    voice = int(cosines.argmax())
    score = float(cosines[voice] ** 2 / (heard @ heard))
    return (index, voice, min(1.0, score)) if score > WAVE_MATCH else None


def _shares_an_end(samples: Samples, wave: Samples, length: int) -> bool:
    return np.array_equal(samples[:length], wave[:length]) or np.array_equal(
        samples[-length:], wave[-length:]
    )


def _by_spectrum(samples: Samples, sample_rate: int) -> tuple[int, int, float]:
    """Return the word and voice that come nearest, and the cosine squared between the spectra."""
    window = _window(len(samples))
    heard = samples * window
    energy = float(heard @ heard)
    size = round(_FRAME_SECONDS * sample_rate)
    spectrum = np.abs(np.fft.rfft(heard, size))
    lines = spectrum[_bins(size, sample_rate)]
    matches = lines @ _TIMBRES.T
    index, voice = divmod(int(matches.argmax()), len(VOICES))
    # A tone of amplitude A has a line of A/2 times the window's sum, and A²/2 times the sum of its
    # squares as energy.
    amplitude = 2 * float(matches[index, voice]) / float(window.sum())
    score = amplitude**2 / 2 * float(window @ window) / energy if energy else 0.0
    return index, voice, min(1.0, score)


@lru_cache(maxsize=16)
def _indices_by_length(sample_rate: int) -> dict[int, int]:
    return {round(seconds_of(index) * sample_rate): index for index in range(len(VOCABULARY))}


@lru_cache(maxsize=256)
def _unit_waves(index: int, sample_rate: int) -> NDArray[np.float32]:
    waves = np.array([waveform(index, voice, sample_rate) for voice in VOICES], dtype=np.float32)
    unit: NDArray[np.float32] = waves / np.linalg.norm(waves, axis=1, keepdims=True)
    return unit


@lru_cache(maxsize=16)
def _bins(size: int, sample_rate: int) -> NDArray[np.intp]:
    return np.round(_HERTZ * size / sample_rate).astype(np.intp)


@lru_cache(maxsize=512)
def _window(length: int) -> NDArray[np.float32]:
    return np.hanning(length + 2)[1:-1].astype(np.float32)
