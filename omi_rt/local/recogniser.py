"""From the bytes of one connection to its results: pure, given a decoder for each channel."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import numpy as np
from attrs import evolve, frozen

from omi_rt.local.endpointer import FRAME_BYTES, LEAD_IN_FRAMES, Endpointer, Pacing, Step
from omi_rt.local.resampler import MODEL_RATE, Resampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from omi_rt.local.decoding import DecodedWord, Decoder

_BLOCK_SECONDS = 0.1
"""Audio is worked on in pieces of this length, however large the messages are."""


class Voices(Protocol):
    """Tells the voices of one channel apart, utterance after utterance."""

    def label(
        self, samples: NDArray[np.int16], words: Sequence[tuple[int, int]], /
    ) -> Sequence[int]:
        """Return a label for each word; ``words`` are samples from the start of the utterance."""


@frozen
class FinalWord:
    """One word of a result, in seconds on the connection's clock."""

    text: str
    start: float
    end: float
    confidence: float
    written: str = ""
    """With punctuation; empty where the recogniser knows none."""
    speaker: int = 0


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
    is_interim: bool = False
    """It is none: the same stretch and more comes again, with other words maybe."""


class StreamRecogniser:
    """Recognises one connection's linear16 audio, each channel on its own or all mixed into one.

    Args:
        sample_rate: of the audio, in Hz.
        channels: of the audio.
        multichannel: whether each channel is recognised on its own.
        make_decoder: opens a decoder for a channel.
        make_voices: opens what tells the voices of a channel apart; without it all are speaker 0.
        pacing: that the decoders want.
        interim_seconds: an interim result comes each time that so much more of an utterance is
            there; 0.0 for none.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        channels: int,
        multichannel: bool,
        make_decoder: Callable[[], Decoder],
        make_voices: Callable[[], Voices] | None = None,
        pacing: Pacing | None = None,
        interim_seconds: float = 0.0,
    ) -> None:
        self._rate = sample_rate
        self._channels = channels
        self._recognisers = [
            _ChannelRecogniser(
                channel,
                sample_rate,
                make_decoder(),
                make_voices() if make_voices else None,
                Endpointer(pacing or Pacing()),
                round(interim_seconds * MODEL_RATE),
            )
            for channel in range(channels if multichannel else 1)
        ]
        self._carried = b""
        self._accepted = 0

    def feed(self, audio: bytes) -> Iterator[Final]:
        """Take s16le audio, interleaved if stereo; a torn sample waits for its rest.

        Yields finals, and interims among them, as they are made, so the caller must exhaust it.
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
    def __init__(
        self,
        channel: int,
        rate: int,
        decoder: Decoder,
        voices: Voices | None,
        endpointer: Endpointer,
        interim_samples: int,
    ) -> None:
        self.channel = channel
        self._decoder = decoder
        self._voices = voices
        self._resampler = Resampler(rate)
        self._endpointer = endpointer
        self._interim_samples = interim_samples
        self._lead_in: deque[bytes] = deque(maxlen=LEAD_IN_FRAMES)
        self._pending = b""  # less than a frame
        self._last: list[bytes] = []
        """The last frames of the utterance."""
        self._utterance = bytearray()
        """Kept for its voices alone."""
        self._utterance_start = 0
        self._interim_at = 0
        """Samples of the utterance with which the next interim is due."""
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
            self._feed(rest)
        endpointer.end(endpointer.position + len(rest) // 2)
        self._lead_in.clear()
        # The resampler makes whole samples, so its output can end up to 62 µs after the input.
        covered = min(endpointer.covered / MODEL_RATE, accepted_seconds)
        return self._final(covered, self._finish() if was_speaking else ())

    def _take_frame(self, frame: bytes) -> Final | None:
        endpointer = self._endpointer
        is_speech = self._decoder.is_speech(frame)
        if endpointer.in_utterance:
            self._feed(frame)
            self._last = [*self._last[1 - LEAD_IN_FRAMES :], frame]
        else:
            self._lead_in.append(frame)
        step = endpointer.push(is_speech)
        match step:
            case Step.NOTHING:
                return None
            case Step.CONTINUE:
                return self._interim()
            case Step.BEGIN:
                self._begin()
                return None
            case Step.SILENCE:
                words: Sequence[FinalWord] = ()
            case Step.PAUSE:
                words = self._finish()
                self._lead_in.extend(self._last[len(self._last) - endpointer.kept :])
            case Step.CUT:
                words = self._finish()
                self._begin()
        return self._final(endpointer.covered / MODEL_RATE, words, at_pause=step is Step.PAUSE)

    def _begin(self) -> None:
        self._utterance_start = self._endpointer.utterance_start
        self._interim_at = self._interim_samples
        self._utterance.clear()
        self._decoder.start()
        if self._lead_in:
            self._feed(b"".join(self._lead_in))
            self._lead_in.clear()

    def _feed(self, pcm: bytes) -> None:
        self._decoder.feed(pcm)
        if self._voices is not None:
            self._utterance += pcm

    def _interim(self) -> Final | None:
        length = self._endpointer.position - self._utterance_start
        if not self._interim_samples or length < self._interim_at:
            return None
        self._interim_at = length + self._interim_samples
        words = self._decoder.peek()
        if not words:
            return None
        # Whose they are is asked once, when all of them are there.
        timed = self._timed(words, [0] * len(words))
        end = self._endpointer.position / MODEL_RATE
        return self._result(end, timed, is_interim=True)

    def _finish(self) -> list[FinalWord]:
        words = self._decoder.finish()
        speakers: Sequence[int] = [0] * len(words)
        if self._voices is not None and words:
            samples = np.frombuffer(bytes(self._utterance), "<i2")
            speakers = self._voices.label(samples, [(word.start, word.end) for word in words])
        return self._timed(words, speakers)

    def _timed(self, words: Sequence[DecodedWord], speakers: Sequence[int]) -> list[FinalWord]:
        return [
            FinalWord(
                text=word.text,
                start=(self._utterance_start + word.start) / MODEL_RATE,
                end=(self._utterance_start + word.end) / MODEL_RATE,
                confidence=word.confidence,
                written=word.written,
                speaker=speaker,
            )
            for word, speaker in zip(words, speakers, strict=True)
        ]

    def _final(self, end: float, words: Sequence[FinalWord], *, at_pause: bool = False) -> Final:
        final = self._result(end, words, at_pause=at_pause)
        self._covered_seconds = end
        return final

    def _result(
        self,
        end: float,
        words: Sequence[FinalWord],
        *,
        at_pause: bool = False,
        is_interim: bool = False,
    ) -> Final:
        """Make the result up to ``end`` seconds. A word's last frame may reach past it: it is cut."""
        inside = tuple(
            evolve(word, start=min(word.start, end), end=min(word.end, end)) for word in words
        )
        return Final(self.channel, self._covered_seconds, end, inside, at_pause, is_interim)
