"""Where a channel's audio sounds and where it is quiet: how silence is told from unanswered speech.

A window of 20 ms sounds if its level is above `LEAST_LEVEL` and stands out from the noise floor that
the stretch before it had. The rule errs towards sound: taking noise for speech costs patience, taking
speech for silence would cost words.

The floor is the level that a tenth of the windows of a second stay under. Speech has that many
pauses, so it does not raise the floor; the steady noise of a room or a fan does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.backlog import Backlog

WINDOW_SECONDS = 0.02
LEAST_LEVEL = 33.0
"""A quieter window (root mean square of 16-bit samples, -60 dBFS) never counts as sound."""
PROMINENCE = 2.5
"""A window sounds if it is that many times louder than the noise floor (8 dB)."""
HIGHEST_FLOOR = 1000.0
"""The noise floor is taken for no louder than this (-30 dBFS), so loud audio always sounds."""
_FLOOR_PERCENTILE = 10
_FLOOR_RISE = 0.1
"""A louder second raises the floor by this share of the difference; a quieter one sets it at once."""
_STEP_SECONDS = 1.0
_QUIET_SECONDS = 0.2
"""This much audio must be quiet for a moment to count as one between two words."""


class SoundFinder:
    """Finds the first sound behind a position of one channel, scanning each sample once.

    Scanning a second of audio at 16 kHz takes about 40 µs, so it is done for audio that has waited
    for seconds only, never for every frame.
    """

    __slots__ = ("_channel", "_floor", "_format", "_scanned", "_sound_at")

    def __init__(self, audio_format: AudioFormat, channel: int) -> None:
        self._format = audio_format
        self._channel = channel
        self._floor: float | None = None
        self._scanned = 0
        self._sound_at: int | None = None

    def first_sound(self, backlog: Backlog, start: int, until: int) -> int | None:
        """Return the session position of the first sound from ``start`` to ``until``, if there is one.

        Positions are in samples. ``start`` may only grow from call to call. Audio that has left the
        backlog counts as quiet; up to 20 ms before ``until`` are not looked at yet.
        """
        if self._sound_at is not None and self._sound_at >= start:
            return self._sound_at if self._sound_at < until else None
        self._sound_at = None
        position = max(start, self._scanned)
        step, window = self._format.samples(_STEP_SECONDS), self._window
        while position + window <= until and self._sound_at is None:
            chunk = backlog.read(position, min(step, until - position))
            if chunk is None:
                break
            levels = self._levels(chunk.payload)
            if not levels.size:
                break
            loud = np.flatnonzero(levels >= self._threshold(levels))
            if loud.size:
                self._sound_at = chunk.position + int(loud[0]) * window
                position = self._sound_at
            else:
                position = chunk.position + levels.size * window
        self._scanned = max(self._scanned, position)
        return self._sound_at

    def is_quiet(self, backlog: Backlog, until: int) -> bool:
        """Tell whether the last 0.2 s before session position ``until`` are quiet."""
        samples = self._format.samples(_QUIET_SECONDS)
        chunk = backlog.read(max(0, until - samples), min(samples, until))
        if chunk is None or chunk.position >= until:
            return True
        levels = self._levels(chunk.payload)
        floor = min(self._floor or 0.0, HIGHEST_FLOOR)
        return bool((levels < max(LEAST_LEVEL, PROMINENCE * floor)).all())

    @property
    def _window(self) -> int:
        return self._format.samples(WINDOW_SECONDS)

    def _levels(self, payload: bytes) -> NDArray[np.float32]:
        """Root mean squares of the whole windows of one channel."""
        samples = np.frombuffer(payload, dtype="<i2")[self._channel :: self._format.channels]
        count = len(samples) // self._window
        windows = samples[: count * self._window].astype(np.float32).reshape(count, self._window)
        levels: NDArray[np.float32] = np.sqrt(np.mean(windows * windows, axis=1))
        return levels

    def _threshold(self, levels: NDArray[np.float32]) -> float:
        quiet = float(np.percentile(levels, _FLOOR_PERCENTILE))
        if self._floor is None or quiet < self._floor:
            self._floor = quiet
        else:
            self._floor += _FLOOR_RISE * (quiet - self._floor)
        return max(LEAST_LEVEL, PROMINENCE * min(self._floor, HIGHEST_FLOOR))


def has_sound(backlog: Backlog, audio_format: AudioFormat, start: int, until: int) -> bool:
    """Tell whether anything sounds on any channel between two session positions, in samples."""
    return any(
        SoundFinder(audio_format, channel).first_sound(backlog, start, until) is not None
        for channel in range(audio_format.channels)
    )
