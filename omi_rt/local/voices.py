"""The voices of one channel: an embedder that hears them, and a tracker that tells them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omi_rt.local.speakers import SpeakerTracker

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from omi_rt.local.embedder import Embedder


class ChannelVoices:
    """Labels the words of one channel by the sound of their voices.

    Args:
        embedder: may be shared by all channels of a worker.
        sample_rate: at which the audio came.
    """

    def __init__(self, embedder: Embedder, sample_rate: int) -> None:
        self._embedder = embedder
        self._tracker = SpeakerTracker(sample_rate)

    def label(self, samples: NDArray[np.int16], words: Sequence[tuple[int, int]]) -> list[int]:
        """Return a label for each word of an utterance at the models' rate."""
        first, last = words[0][0], words[-1][1]
        vectors = self._embedder.embed(samples[first:last])
        return self._tracker.label(vectors, [(start - first, end - first) for start, end in words])
