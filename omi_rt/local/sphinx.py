"""The small recogniser: the one file that imports ``pocketsphinx``."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omi_rt.local.decoding import DecodedWord, RecogniserInfo
from omi_rt.local.endpointer import Pacing
from omi_rt.local.errors import DecodingFailed, RecogniserNotInstalled
from omi_rt.local.resampler import MODEL_RATE

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import pocketsphinx
except ImportError as error:
    raise RecogniserNotInstalled from error

DECODER_FRAME = MODEL_RATE // 100
"""In samples: the decoder tells times in frames of 10 ms (its ``frate``)."""

_MEASURED_BYTES = MODEL_RATE * 2
"""One second: half of it does slightly worse, all of the utterance no better."""
_MAX_STATES = 5_000
"""Models searched in a frame. The default of 30,000 finds no more of the words of easy sentences,
and takes 0.4 s for each second of noise or slurred speech where this takes 0.2 s."""
_VARIANT = re.compile(r"\(\d+\)$")
_NOT_A_WORD = re.compile(r"[<\[+]")
"""What the entries of the language model's markers and of the noise dictionary begin with."""


class Sphinx:
    """The stock US English model; each decoder loads one of its own, the first at once."""

    info = RecogniserInfo("pocketsphinx", "en-us", ("en",))
    pacing = Pacing()

    def __init__(self) -> None:
        """Load a decoder.

        Raises:
            DecodingFailed: the model cannot be loaded.
        """
        self._loaded = [SphinxDecoder()]

    def open(self, language: str | None) -> SphinxDecoder:
        """Return a decoder for one channel. It knows English alone, whatever ``language`` is."""
        return self._loaded.pop() if self._loaded else SphinxDecoder()


class SphinxDecoder:
    """Decodes the utterances of one channel, one after another.

    Loading takes about half a second and 90 MB. The stock US English model and dictionary are used
    as they come in the wheel.

    The features of speech are taken relative to their mean, which tells of the microphone, the
    level and the bandwidth. The decoder learns it from one utterance for the next, so a decoder is
    for one channel of one connection; for the first utterance it is measured on its first second.
    Without that 8 kHz audio fares badly (63 % of the words of easy sentences right, with it 87 %).
    """

    def __init__(self) -> None:
        try:
            self._decoder = pocketsphinx.Decoder(loglevel="FATAL", maxhmmpf=_MAX_STATES)
            self._detector = pocketsphinx.Vad(pocketsphinx.Vad.LOOSE, MODEL_RATE)
        except (RuntimeError, ValueError) as error:
            raise DecodingFailed("the English model cannot be loaded") from error
        self._unmeasured: bytes | None = b""

    def is_speech(self, frame: bytes) -> bool:
        """Tell whether 30 ms of s16le sound like speech. Remembers what it heard before."""
        return bool(self._detector.is_speech(frame))

    def start(self) -> None:
        """Begin an utterance."""
        self._decoder.start_utt()

    def feed(self, pcm: bytes) -> None:
        """Take s16le samples of the utterance, at least one. Takes up to 20 ms for 30 ms.

        Raises:
            DecodingFailed: the search broke down.
        """
        if self._unmeasured is not None:
            self._unmeasured += pcm
            if len(self._unmeasured) < _MEASURED_BYTES:
                return
            pcm = self._measure(self._unmeasured)
        with _failures_mapped():
            self._decoder.process_raw(pcm)

    def finish(self) -> list[DecodedWord]:
        """End the utterance and return its words. Takes 0.1 s after a sentence, up to 1 s after 10 s of babble.

        Raises:
            DecodingFailed: the search broke down.
        """
        with _failures_mapped():
            if self._unmeasured:
                self._decoder.process_raw(self._measure(self._unmeasured))
            self._decoder.end_utt()
        return self._words()

    def peek(self) -> list[DecodedWord]:
        """Return the words so far. The search goes on, and may come to others."""
        return self._words()

    def _words(self) -> list[DecodedWord]:
        return [
            DecodedWord(
                text=text,
                start=segment.start_frame * DECODER_FRAME,
                end=(segment.end_frame + 1) * DECODER_FRAME,
                confidence=min(1.0, max(0.0, segment.prob)),
            )
            for segment in self._decoder.seg() or ()
            if (text := spelling(segment.word)) is not None
        ]

    def _measure(self, pcm: bytes) -> bytes:
        """Set the feature mean to that of ``pcm`` and start the utterance afresh, to decode it."""
        with _failures_mapped():
            # As a whole utterance it is normalised by its own mean, and that mean stays.
            self._decoder.process_raw(pcm, no_search=True, full_utt=True)
            self._decoder.end_utt()
            self._decoder.start_utt()
        self._unmeasured = None
        return pcm


def spelling(entry: str) -> str | None:
    """Return the word that an entry of the dictionary stands for; None for silence and noise.

    "and(2)" is the second pronunciation of "and"; "<sil>" and "[NOISE]" are no words.
    """
    return None if _NOT_A_WORD.match(entry) else _VARIANT.sub("", entry)


@contextmanager
def _failures_mapped() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise DecodingFailed("the search broke down") from error
