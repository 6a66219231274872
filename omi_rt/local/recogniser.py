"""From the bytes of one connection to its finals: pure, given a decoder for each channel."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import numpy as np
from attrs import evolve, frozen

from omi_rt.local.endpointer import FRAME_BYTES, LEAD_IN_FRAMES, Endpointer, Step
from omi_rt.local.resampler import MODEL_RATE, Resampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

_BLOCK_SECONDS = 0.1
"""Audio is worked on in pieces of this length, however large the messages are."""


class Word(Protocol):
    """A decoded word, in samples at `MODEL_RATE` from the start of its utterance."""

    @property
    def text(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def confidence(self) -> float: ...


class Decoder(Protocol):
    """What `omi_rt.local.model.Decoder` does, so that a test can stand in for the model."""

    def is_speech(self, frame: bytes, /) -> bool: ...
    def start(self) -> None: ...
    def feed(self, pcm: bytes, /) -> None: ...
    def finish(self) -> Sequence[Word]: ...


@frozen
class FinalWord:
    """One word of a final, in seconds on the connection's clock."""

    text: str
    start: float
    end: float
    confidence: float


@frozen
class Final:
    """What was said in a stretch of one channel, in seconds on the connection's clock.

    The finals of one channel follow each other without gap or overlap.
    """

    channel: int
    start: float
    end: float
    words: tuple[FinalWord, ...]
    at_pause: bool = False
    """An utterance ended with it, and not only the stretch."""


class StreamRecogniser:
    """Recognises one connection's linear16 audio, each channel on its own or all mixed into one."""

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        multichannel: bool,
        make_decoder: Callable[[], Decoder],
    ) -> None:
        self._rate = sample_rate
        self._channels = channels
        self._recognisers = [
            _ChannelRecogniser(channel, sample_rate, make_decoder())
            for channel in range(channels if multichannel else 1)
        ]
        self._carried = b""
        self._accepted = 0

    def feed(self, audio: bytes) -> Iterator[Final]:
        """Take s16le audio, interleaved if stereo; a torn sample waits for its rest.

        Yields finals as they are made, so the caller must exhaust it.
        """
        frame_bytes = 2 * self._channels
        audio = self._carried + audio
        whole = len(audio) - len(audio) % frame_bytes
        self._carried = audio[whole:]
        samples = np.frombuffer(audio[:whole], "<i2").reshape(-1, self._channels)
        block = max(1, round(self._rate * _BLOCK_SECONDS))
        for begin in range(0, len(samples), block):
            piece = samples[begin : begin + block]
            self._accepted += len(piece)
            if len(self._recognisers) < self._channels:
                piece = piece.mean(axis=1).astype(np.int16)[:, None]
            for recogniser in self._recognisers:
                yield from recogniser.feed(piece[:, recogniser.channel])

    def flush(self, channel: int | None = None) -> Iterator[Final]:
        """Yield a final for each channel, or for ``channel`` alone, up to the audio taken so far."""
        for recogniser in self._recognisers:
            if channel in (None, recogniser.channel):
                yield recogniser.flush(self._accepted / self._rate)


class _ChannelRecogniser:
    def __init__(self, channel: int, rate: int, decoder: Decoder) -> None:
        self.channel = channel
        self._decoder = decoder
        self._resampler = Resampler(rate)
        self._endpointer = Endpointer()
        self._lead_in: deque[bytes] = deque(maxlen=LEAD_IN_FRAMES)
        self._pending = b""  # less than a frame
        self._utterance_start = 0
        self._covered_seconds = 0.0

    def feed(self, samples: NDArray[np.int16]) -> Iterator[Final]:
        pcm = self._pending + self._resampler.convert(samples).astype("<i2").tobytes()
        whole = len(pcm) - len(pcm) % FRAME_BYTES
        self._pending = pcm[whole:]
        for begin in range(0, whole, FRAME_BYTES):
            final = self._take_frame(pcm[begin : begin + FRAME_BYTES])
            if final is not None:
                yield final

    def flush(self, accepted_seconds: float) -> Final:
        endpointer = self._endpointer
        rest = self._pending + self._resampler.flush().astype("<i2").tobytes()
        self._pending = b""
        if endpointer.begin_faint():
            self._begin()
        was_speaking = endpointer.in_utterance
        if was_speaking and rest:
            self._decoder.feed(rest)
        endpointer.end(endpointer.position + len(rest) // 2)
        self._lead_in.clear()
        # The resampler makes whole samples, so its output can end up to 62 µs after the input.
        covered = min(endpointer.covered / MODEL_RATE, accepted_seconds)
        return self._final(covered, self._finish() if was_speaking else ())

    def _take_frame(self, frame: bytes) -> Final | None:
        endpointer = self._endpointer
        is_speech = self._decoder.is_speech(frame)
        if endpointer.in_utterance:
            self._decoder.feed(frame)
        else:
            self._lead_in.append(frame)
        step = endpointer.push(is_speech)
        match step:
            case Step.NOTHING | Step.CONTINUE:
                return None
            case Step.BEGIN:
                self._begin()
                return None
            case Step.SILENCE:
                words: Sequence[FinalWord] = ()
            case Step.PAUSE:
                words = self._finish()
            case Step.CUT:
                words = self._finish()
                self._begin()
        return self._final(endpointer.covered / MODEL_RATE, words, at_pause=step is Step.PAUSE)

    def _begin(self) -> None:
        self._utterance_start = self._endpointer.utterance_start
        self._decoder.start()
        if self._lead_in:
            self._decoder.feed(b"".join(self._lead_in))
            self._lead_in.clear()

    def _finish(self) -> list[FinalWord]:
        return [
            FinalWord(
                text=word.text,
                start=(self._utterance_start + word.start) / MODEL_RATE,
                end=(self._utterance_start + word.end) / MODEL_RATE,
                confidence=word.confidence,
            )
            for word in self._decoder.finish()
        ]

    def _final(self, end: float, words: Sequence[FinalWord], *, at_pause: bool = False) -> Final:
        """Make the final up to ``end`` seconds. A word's last frame may reach past it: it is cut."""
        start, self._covered_seconds = self._covered_seconds, end
        inside = tuple(
            evolve(word, start=min(word.start, end), end=min(word.end, end)) for word in words
        )
        return Final(self.channel, start, end, inside, at_pause)
