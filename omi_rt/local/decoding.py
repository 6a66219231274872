"""What a recogniser is to the rest: it opens decoders, and a decoder turns utterances into words.

There are two: ``sphinx`` (pocketsphinx, small) and ``whisper`` (faster-whisper, good).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from omi_rt.local.endpointer import Pacing


@frozen
class DecodedWord:
    """A word, in samples at ``MODEL_RATE`` from the start of its utterance."""

    text: str
    """In lower case, without punctuation."""
    start: int
    end: int
    confidence: float
    """How probable the recogniser finds it, from 0.0 to 1.0."""
    written: str = ""
    """As it stands in a text; empty where the recogniser knows no punctuation."""


@frozen
class RecogniserInfo:
    """What a recogniser says of itself."""

    name: str
    """Of the library."""
    model: str
    languages: tuple[str, ...]
    """Codes that it knows, as in ISO 639-1."""
    tells_speakers_apart: bool = False


class Decoder(Protocol):
    """Decodes the utterances of one channel, one after another."""

    def is_speech(self, frame: bytes, /) -> bool:
        """Tell whether 30 ms of s16le sound like speech. Remembers what it heard before."""

    def start(self) -> None:
        """Begin an utterance."""

    def feed(self, pcm: bytes, /) -> None:
        """Take s16le samples of the utterance, at least one. Raises ``DecodingFailed``."""

    def peek(self) -> Sequence[DecodedWord]:
        """Return the words so far; the utterance goes on. Raises ``DecodingFailed``."""

    def finish(self) -> Sequence[DecodedWord]:
        """End the utterance and return its words. Raises ``DecodingFailed``."""


class Recogniser(Protocol):
    """A model that is loaded."""

    @property
    def info(self) -> RecogniserInfo:
        """What it says of itself."""

    @property
    def pacing(self) -> Pacing:
        """When its utterances are to begin and to end."""

    def open(self, language: str | None) -> Decoder:
        """Return a decoder for one channel; ``language`` is one that it knows, None finds it out."""
