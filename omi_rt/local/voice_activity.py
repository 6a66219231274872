"""Which frames are speech: the Silero network that comes in the wheel of ``faster-whisper``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from omi_rt.local.errors import ModelUnusable
from omi_rt.local.onnx import Network

CHUNK_SAMPLES = 512
"""32 ms: what the network takes at a time."""
_CONTEXT_SAMPLES = 64
_SPEECH = 0.5
"""Probability from which speech begins;"""
_STILL_SPEECH = 0.35
"""and under which it ends, so that one doubtful chunk does not cut a word in two."""
_FILE = "assets/silero_vad_v6.onnx"


class VoiceActivityDetector:
    """Follows one channel at 16 kHz. Takes 2 ms of processor time for each second."""

    def __init__(self) -> None:
        """Load the network.

        Raises:
            ModelUnusable: ``faster-whisper`` is not installed, or has another network.
        """
        found = importlib.util.find_spec("faster_whisper")
        if found is None or found.origin is None:
            raise ModelUnusable("faster-whisper is not installed: pip install 'omi-rt[local]'")
        self._network = Network(Path(found.origin).parent / _FILE)
        self._hidden = np.zeros((1, 1, 128), np.float32)
        self._cell = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(_CONTEXT_SAMPLES, np.float32)
        self._pending = np.zeros(0, np.float32)
        self._is_speech = False

    def is_speech(self, frame: bytes) -> bool:
        """Tell whether the sound is speech up to the end of these s16le samples, or 32 ms before."""
        samples = np.frombuffer(frame, "<i2").astype(np.float32) / np.float32(32_768)
        self._pending = np.concatenate((self._pending, samples))
        while len(self._pending) >= CHUNK_SAMPLES:
            chunk, self._pending = np.split(self._pending, [CHUNK_SAMPLES])
            self._is_speech = self._probability(chunk) > (
                _STILL_SPEECH if self._is_speech else _SPEECH
            )
        return self._is_speech

    def _probability(self, chunk: np.typing.NDArray[np.float32]) -> float:
        output, self._hidden, self._cell = self._network.run(
            {
                "input": np.concatenate((self._context, chunk))[None],
                "h": self._hidden,
                "c": self._cell,
            }
        )
        self._context = chunk[-_CONTEXT_SAMPLES:]
        return float(output.ravel()[0])
