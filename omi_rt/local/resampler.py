"""Streaming conversion of one channel to the rate that the acoustic model wants."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODEL_RATE = 16_000
"""In Hz: what the pocketsphinx English model was trained on."""

_ZERO_CROSSINGS = 16
"""Of the filter on each side: from 8 kHz its gain falls from 1 to nothing between 3.4 and 4.6 kHz."""
_KAISER_BETA = 8.0
"""Puts the stop band 80 dB down (Kaiser's formula); speech seldom has more range than 60 dB."""


class Resampler:
    """Converts int16 samples at ``rate`` Hz to int16 samples at `MODEL_RATE`.

    A polyphase windowed-sinc filter without delay: output sample n is the sound at n / `MODEL_RATE`
    seconds of the input, however the input is cut into pieces. The output lags behind the input by
    half the filter's length (2 ms or less from 8 kHz up) until `flush`.
    """

    __slots__ = ("_filters", "_half", "_history", "_history_start", "_produced", "_step", "_up")

    def __init__(self, rate: int) -> None:
        common = gcd(rate, MODEL_RATE)
        # Output n lies at input position n * step / up.
        self._up, self._step = MODEL_RATE // common, rate // common
        self._filters = _polyphase_filters(self._up, self._step)
        self._half = self._filters.shape[1] // 2
        self._history = np.zeros(self._half, np.float32)
        self._history_start = -self._half
        self._produced = 0

    def convert(self, samples: NDArray[np.int16]) -> NDArray[np.int16]:
        """Take more input and return the output that it completes."""
        if self._up == self._step:
            return samples
        self._history = np.concatenate((self._history, samples.astype(np.float32)))
        end = self._history_start + len(self._history)
        # The last tap of output n is at floor(n * step / up) + half.
        return self._produce(end - self._half)

    def flush(self) -> NDArray[np.int16]:
        """Return what is left up to the end of the input so far, as if silence followed.

        More input may follow all the same; the clock goes on.
        """
        if self._up == self._step:
            return np.zeros(0, np.int16)
        received = self._history
        end = self._history_start + len(received)
        self._history = np.concatenate((received, np.zeros(self._half, np.float32)))
        output = self._produce(end)
        self._history = self._history[: end - self._history_start]
        return output

    def _produce(self, before: int) -> NDArray[np.int16]:
        """Return the outputs that lie before input position ``before``, and forget old input."""
        stop = max(self._produced, -(-before * self._up // self._step))
        positions = np.arange(self._produced, stop, dtype=np.int64) * self._step
        self._produced = stop
        first_taps = positions // self._up - self._half + 1 - self._history_start
        taps = first_taps[:, None] + np.arange(2 * self._half)
        sums = np.einsum("ij,ij->i", self._history[taps], self._filters[positions % self._up])
        # The next output's first tap; what is before it will not be asked for again.
        keep_from = stop * self._step // self._up - self._half + 1
        drop = min(max(keep_from - self._history_start, 0), len(self._history))
        self._history = self._history[drop:]
        self._history_start += drop
        output: NDArray[np.int16] = np.clip(np.rint(sums), -32_768, 32_767).astype(np.int16)
        return output


def _polyphase_filters(up: int, step: int) -> NDArray[np.float32]:
    """Return one low-pass filter for each of the ``up`` positions between two input samples."""
    cutoff = min(1.0, up / step)  # relative to the input's Nyquist frequency
    half = int(np.ceil(_ZERO_CROSSINGS / cutoff))
    fraction = np.arange(up)[:, None] / up
    distance = np.arange(-half + 1, half + 1)[None, :] - fraction
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (distance / half) ** 2, 0, 1)))
    filters = np.sinc(distance * cutoff) * window
    normalised: NDArray[np.float32] = (filters / filters.sum(axis=1, keepdims=True)).astype(
        np.float32
    )
    return normalised
