"""Where the speech is in a recording, and which stretch of it to take. This is pure.

Speech is found by energy alone, in frames of 20 ms. That is enough to tell a voice from the pauses
between its words in a recording that was made to be a profile. Nothing here changes a sample.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
from attrs import frozen

from omi_rt.codecs.wav import WavAudio
from omi_rt.core.audio import BYTES_PER_SAMPLE

Levels: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"
Mask: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.bool_]]"
Indices: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.intp]]"

FRAMES_PER_SECOND: Final = 50
SILENCE_DBFS: Final = -60.0
"""A frame below this level is not speech; the noise of a quiet room in a cheap microphone is about there."""
RANGE_DB: Final = 35.0
"""Speech may be this far below the loudest second, because the weakest consonants are some 28 dB below
the strongest vowels (H. Fletcher, "Speech and Hearing in Communication", 1953)."""
NOISE_DB: Final = 10.0
"""If the loudest second and the background differ by this much or more, that tells speech from noise."""

MARGIN_FRAMES: Final = 5
"""100 ms around speech are kept, because soft onsets and endings are below any threshold."""
PAUSES: Final = (10, 2)
"""The least pause in which to cut, in frames, the best first: between phrases (200 ms), between words
(40 ms)."""
GOOD_SHARE: Final = 0.8
"""A cut in a pause is the better one if it gives this share of the speech that a cut anywhere would give."""
_NUDGE_FRAMES: Final = 12
"""Where no pause will do, each end moves inwards by at most this many frames, to the quietest."""
_FULL_SCALE: Final = 32_768.0
_LOWEST_DBFS: Final = -96.0


@frozen
class Speech:
    """What the frames of a recording hold."""

    frame_samples: int
    """Samples (per channel) in a frame, which make 20 ms, or up to a sample less."""
    frame_seconds: float
    dbfs: Levels
    """The level of each frame over all channels, without its constant part, from -96 to 0."""
    is_speech: Mask
    """Whether each frame is loud enough to be speech."""

    @property
    def seconds(self) -> float:
        """How much speech there is, in seconds."""
        return int(self.is_speech.sum()) * self.frame_seconds

    @property
    def level_dbfs(self) -> float:
        """The mean level of the speech; -96 where there is none."""
        if not self.is_speech.any():
            return _LOWEST_DBFS
        power = np.power(10.0, self.dbfs[self.is_speech] / 10).mean()
        return float(10 * np.log10(power))


def find_speech(audio: WavAudio) -> Speech:
    """Tell the frames that hold speech from those that do not.

    The threshold lies a third of the way from the background (a tenth of the frames is quieter) to
    the loudest second, where they differ by `NOISE_DB`; never below `SILENCE_DBFS`, nor further
    than `RANGE_DB` below the loudest second.
    """
    frame_samples = audio.sample_rate // FRAMES_PER_SECOND
    frame_seconds = frame_samples / audio.sample_rate
    dbfs = _frame_levels(audio, frame_samples)
    if not len(dbfs):
        return Speech(frame_samples, frame_seconds, dbfs, np.zeros(0, np.bool_))
    loudest = min(FRAMES_PER_SECOND, 1 + len(dbfs) // 4)
    loud = float(np.partition(dbfs, -loudest)[-loudest])
    background = float(np.percentile(dbfs, 10))
    threshold = max(SILENCE_DBFS, loud - RANGE_DB)
    if loud - background >= NOISE_DB:
        threshold = max(threshold, background + (loud - background) / 3)
    return Speech(frame_samples, frame_seconds, dbfs, dbfs > threshold)


def best_stretch(audio: WavAudio, seconds: float) -> WavAudio:
    """Return the stretch of at most ``seconds`` with the most speech, sample for sample.

    Silence before the first and after the last word is cut to `MARGIN_FRAMES`. Where that is still too
    long, both ends are put into pauses if that gives `GOOD_SHARE` of the speech, else near the quietest
    frame. The stretch is empty if there is no speech.
    """
    speech = find_speech(audio)
    longest = int(seconds * audio.sample_rate) // speech.frame_samples
    start, end = _best_frames(speech, longest)
    frame_bytes = speech.frame_samples * audio.channels * BYTES_PER_SAMPLE
    pcm = audio.pcm[start * frame_bytes : end * frame_bytes]
    return WavAudio(audio.sample_rate, audio.channels, pcm)


def _frame_levels(audio: WavAudio, frame_samples: int) -> Levels:
    frames = audio.samples // frame_samples
    values = np.frombuffer(audio.pcm, "<i2", frames * frame_samples * audio.channels)
    values = values.reshape(frames, frame_samples * audio.channels)
    # einsum adds up in small buffers; the squares of two minutes in 48 kHz stereo would take 92 MB.
    power = np.einsum("ij,ij->i", values, values, dtype=np.float64, casting="safe")
    power = power / values.shape[1] - np.square(values.mean(axis=1))
    lowest = np.power(10.0, _LOWEST_DBFS / 10)
    levels: Levels = 10 * np.log10(np.maximum(power / _FULL_SCALE**2, lowest))
    return levels


def _best_frames(speech: Speech, longest: int) -> tuple[int, int]:
    """Return the first frame of the best stretch and the one behind its last."""
    where = np.flatnonzero(speech.is_speech)
    if not len(where) or longest < 1:
        return 0, 0
    frames = len(speech.is_speech)
    first = max(0, int(where[0]) - MARGIN_FRAMES)
    last = min(frames, int(where[-1]) + 1 + MARGIN_FRAMES)
    if last - first <= longest:
        return first, last
    counted = np.concatenate([[0], np.cumsum(speech.is_speech)])
    window = min(longest, frames)
    in_window = counted[window:] - counted[:-window]
    for pause in PAUSES:
        starts, ends = _phrases(speech.is_speech, pause)
        fitting = np.searchsorted(ends, starts + longest, side="right") - 1
        in_phrases = np.where(
            fitting >= np.arange(len(starts)), counted[ends[fitting]] - counted[starts], 0
        )
        best = int(in_phrases.argmax())
        if in_phrases[best] >= GOOD_SHARE * in_window.max():
            return int(starts[best]), int(ends[fitting[best]])
    start = int(in_window.argmax())
    return _nudged(speech.dbfs, start, start + window)


def _phrases(is_speech: Mask, pause: int) -> tuple[Indices, Indices]:
    """Return where speech begins after at least ``pause`` frames without any, and ends before as many.

    Both reach into the pause by no more than half of it, so two phrases never overlap.
    """
    where = np.flatnonzero(is_speech)
    breaks = np.flatnonzero(np.diff(where) > pause)
    margin = min(MARGIN_FRAMES, pause // 2)
    starts = where[np.concatenate([[0], breaks + 1])] - margin
    ends = where[np.concatenate([breaks, [len(where) - 1]])] + 1 + margin
    return np.maximum(starts, 0), np.minimum(ends, len(is_speech))


def _nudged(dbfs: Levels, start: int, end: int) -> tuple[int, int]:
    """Move both ends inwards to the quietest frame nearby."""
    reach = min(_NUDGE_FRAMES, (end - start) // 4)
    if not reach:
        return start, end
    start += int(dbfs[start : start + reach].argmin())
    end -= int(dbfs[end - reach : end][::-1].argmin())
    return start, end
