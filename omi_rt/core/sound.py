"""Where a channel's audio sounds and where it is quiet: how silence is told from unanswered speech.

A window of 20 ms sounds if its level is above `LEAST_LEVEL` and stands out from the noise floor: the
level that a tenth of the windows of the next 4 s stay under. Speech has that many pauses, so it does not
raise the floor; the steady noise of a room or a fan does. Where less audio is there yet, the floor is no
higher than it was before, so that the rule errs towards sound: taking noise for speech costs patience,
taking speech for silence would cost words.
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
"""A window below this level (root mean square of 16-bit samples, -60 dBFS) never counts as sound."""
PROMINENCE = 2.5
"""A window sounds if it is this many times louder than the noise floor (8 dB)."""
HIGHEST_FLOOR = 1000.0
"""The noise floor is taken for no louder than this (-30 dBFS), so loud audio always sounds."""
UNKNOWN_FLOOR = 100.0
"""As long as less than 4 s have been heard, the floor is taken for no louder than this (-50 dBFS)."""
_FLOOR_SHARE = 0.1
_LOOK_SECONDS = 4.0
_STEP_SECONDS = 1.0
_QUIET_SECONDS = 0.2
"""This much audio must be quiet for a moment to count as one between two words."""


class SoundFinder:
    """Finds the first sound behind a position of one channel.

    Audio that was found quiet is not looked at again. Only audio that has waited for seconds is looked
    at, never every frame.
    """

    __slots__ = ("_channel", "_floor", "_format", "_scanned", "_sound_at")

    def __init__(self, audio_format: AudioFormat, channel: int) -> None:
        self._format = audio_format
        self._channel = channel
        self._floor = UNKNOWN_FLOOR
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
        look, step = self._format.samples(_LOOK_SECONDS), self._format.samples(_STEP_SECONDS)
        while position + self._window <= until:
            chunk = backlog.read(position, min(look, until - position))
            if chunk is None or chunk.samples < self._window:
                break
            is_whole = chunk.samples == look
            levels = self._levels(chunk.payload)
            loud = np.flatnonzero(levels >= self._threshold(levels, is_whole=is_whole))
            found = int(loud[0]) * self._window if loud.size else look
            if found < (step if is_whole else look):
                self._sound_at = chunk.position + found
                return self._sound_at
            if not is_whole:
                # Audio that is still to come may lower the floor, so this is looked at again then.
                break
            self._scanned = position = chunk.position + step
        return None

    def is_quiet(self, backlog: Backlog, until: int) -> bool:
        """Tell whether the last 0.2 s before session position ``until`` are quiet."""
        samples = self._format.samples(_QUIET_SECONDS)
        chunk = backlog.read(max(0, until - samples), min(samples, until))
        if chunk is None or chunk.position >= until:
            return True
        levels = self._levels(chunk.payload)
        threshold = max(LEAST_LEVEL, PROMINENCE * min(self._floor, HIGHEST_FLOOR))
        return bool((levels < threshold).all())

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

    def _threshold(self, levels: NDArray[np.float32], *, is_whole: bool) -> float:
        rank = round((len(levels) - 1) * _FLOOR_SHARE)
        floor = float(np.partition(levels, rank)[rank])
        if is_whole:
            self._floor = floor
        else:
            floor = min(floor, self._floor)
        return max(LEAST_LEVEL, PROMINENCE * min(floor, HIGHEST_FLOOR))
