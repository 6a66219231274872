"""The made-up language: every word a tone of its own, every voice a timbre of its own.

A word is a steady tone with a fundamental between 220 and 830 Hz, held for a length that is the
word's own. A voice is the choice of which of the second, third and fourth harmonic sound along with
the fundamental, all equally loud. All lies below 3.4 kHz, so a word fits into 8 kHz audio, and it
comes through Opus at 16 kHz and 32 kb/s. Since pitch, length and timbre are all fixed, a word that
was cut, stretched, doubled or spliced on its way is no word any more.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int16]
"""linear16 of one channel."""

_WORDS = (
    "amber bako celu dorin elfa fimo garo hesta ilun jorek kamu lento mirva nolo opal pesto "
    "quano rilke sumi tarok ulmo veska wido xelo yarrow zubin arvo brisa cato dulmo ester fendi"
)
VOCABULARY = tuple(_WORDS.split())
VOICES = range(8)
"""Bits 0, 1 and 2 of a voice tell whether harmonics 2, 3 and 4 sound."""
HARMONICS = np.arange(1, 5)
MIN_SAMPLE_RATE = 8_000

LEVEL = 9_000.0
"""Amplitude of a voice with the fundamental alone; the others have the same power."""
EDGE_SECONDS = 0.003
"""Length of the raised-cosine ramp at either end of a word."""

_LOWEST_HZ = 220.3
_STEP_HZ = 19.6
_SHORTEST_SECONDS = 0.120
_STEP_SECONDS = 0.005
_INDEX = {word: index for index, word in enumerate(VOCABULARY)}


def pitch_of(index: int) -> float:
    """The fundamental, in Hz, of the word with that index; no two words have a harmonic in common."""
    return _LOWEST_HZ + _STEP_HZ * index


def seconds_of(index: int) -> float:
    """How long the word with that index is held: 120 to 275 ms, no two words alike."""
    # 11 has no divisor in common with the number of words, so every length occurs once, and
    # neighbours in pitch differ much in length.
    return _SHORTEST_SECONDS + _STEP_SECONDS * (index * 11 % len(VOCABULARY))


def index_of(word: str) -> int:
    """Index of a word in the vocabulary.

    Raises:
        KeyError: the language has no such word.
    """
    return _INDEX[word]


def timbre_of(voice: int) -> NDArray[np.float64]:
    """The amplitudes of harmonics 1 to 4 of a voice, as a vector of length 1."""
    weights = np.array([1, voice & 1, voice >> 1 & 1, voice >> 2 & 1], dtype=np.float64)
    timbre: NDArray[np.float64] = weights / np.linalg.norm(weights)
    return timbre


@lru_cache(maxsize=1024)
def waveform(index: int, voice: int, sample_rate: int) -> Samples:
    """The samples of a word in a voice, at ``sample_rate`` Hz. The array is shared: do not write."""
    pitch = pitch_of(index)
    count = round(seconds_of(index) * sample_rate)
    time = np.arange(count) / sample_rate
    # Schroeder's phases keep the peaks of the sum low.
    phases = -np.pi * HARMONICS * (HARMONICS - 1) / 4
    tones = np.cos(2 * np.pi * pitch * HARMONICS[:, None] * time + phases[:, None])
    edge = round(EDGE_SECONDS * sample_rate)
    ramp = np.sin(np.pi / 2 * (np.arange(edge) + 0.5) / edge) ** 2
    wave = LEVEL * (timbre_of(voice) @ tones)
    wave[:edge] *= ramp
    wave[-edge:] *= ramp[::-1]
    samples = np.round(wave).astype("<i2")
    # The first and last sample are never zero, so that a word's borders can be told from digital silence.
    samples[0] = samples[0] or 1
    samples[-1] = samples[-1] or 1
    samples.setflags(write=False)
    return samples
