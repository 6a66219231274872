"""Whisper: the one file that imports ``faster_whisper``.

The model hears 30 s at a time, whatever is said in them, and most of its work goes into that. Here it
hears the utterance and `_SLACK_SECONDS` of silence: a third of the work, and the words are the same
(measured on 100 s of recorded and synthetic speech; with 2 s it began to repeat itself). Where it does
repeat itself, the utterance is decoded once more in full.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen

from omi_rt.local.decoding import DecodedWord, RecogniserInfo
from omi_rt.local.endpointer import FRAME_BYTES, FRAME_SAMPLES, WHISPER_PACING, Pacing
from omi_rt.local.errors import DecodingFailed, ModelUnusable
from omi_rt.local.resampler import MODEL_RATE
from omi_rt.local.voice_activity import VoiceActivityDetector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

try:
    import faster_whisper
except ImportError as error:
    raise ModelUnusable("faster-whisper is not installed: pip install 'omi-rt[local]'") from error

_FEATURES_PER_SECOND = 100
_FULL_SECONDS = 30.0
_LEAST_SECONDS = 10.0
_SLACK_SECONDS = 5.0
_BEAMS = 5
_TOKENS_PER_SECOND = 10
"""A fast speaker says 5 words a second; a word takes 1.3 tokens."""
_LEAST_TOKENS = 12

_REPETITIVE = 2.4
"""Compression ratio over which a text repeats itself: Whisper's own limit."""
_CERTAIN, _DOUBTFUL = -0.5, -1.0
"""Mean logarithm of the tokens' probabilities: over the first, and under the second."""
_NO_SPEECH = 0.5
"""Probability that there was no speech, from which what is not certain is nothing."""
_UNVOICED_SLACK = MODEL_RATE * 3 // 10
"""So far from all speech a word may lie, in samples."""
_LEAST_VOICED = 4
"""Frames of speech in an utterance that is decoded at all: 0.12 s."""
_REST_VOICED = 20
"""Frames of speech behind the last word that are worth another look: 0.6 s."""
_MAX_PASSES = 3
_EXCLAMATIONS = frozenset({"thank you", "thanks for watching", "you", "bye", "thank you very much"})
"""What the model says of noise, for that is what stood under the silent ends of films."""
_SHORTEST_WORD = MODEL_RATE // 50
_NOT_IN_WORDS = re.compile(r"[^\w']+")


class Whisper:
    """A model in memory; it takes 0.2 s to load, and 230 MB for tiny.en."""

    pacing: Pacing = WHISPER_PACING

    def __init__(self, path: str, name: str) -> None:
        """Load the model in the directory ``path``; ``name`` is for people.

        Raises:
            ModelUnusable: it is none, or damaged.
        """
        try:
            self._model = _Model(
                path, device="cpu", compute_type="int8", cpu_threads=1, num_workers=1,
                local_files_only=True,
            )  # fmt: skip
        # CTranslate2 raises what C++ does, the tokenizer a bare Exception.
        except Exception as error:
            raise ModelUnusable(f"the Whisper model in {path} cannot be loaded") from error
        self.info = RecogniserInfo("faster-whisper", name, tuple(self._model.supported_languages))

    def open(self, language: str | None) -> WhisperDecoder:
        """Return a decoder for one channel; None finds the language out, for each utterance."""
        if not self._model.model.is_multilingual:
            language = "en"
        return WhisperDecoder(self._model, language, VoiceActivityDetector())


def fetch_model(name: str) -> str:
    """Return the directory of a model that faster-whisper knows by name, fetched if need be.

    Takes as long as the network does. Blocks.

    Raises:
        ModelUnusable: there is no such model, or it cannot be fetched.
    """
    if "/" not in name and name not in faster_whisper.available_models():
        raise ModelUnusable(f"{name!r} is no directory and no model that faster-whisper knows")
    try:
        return str(faster_whisper.download_model(name))
    # Whatever its HTTP library of the day raises.
    except Exception as error:
        raise ModelUnusable(f"the model {name!r} cannot be fetched") from error


class _Model(faster_whisper.WhisperModel):  # type: ignore[misc]
    """Hears as much of each 30 s as it is told to."""

    heard_seconds = _FULL_SECONDS

    def encode(self, features: NDArray[np.float32]) -> Any:
        frames = round(self.heard_seconds * _FEATURES_PER_SECOND)
        # The encoder halves the number of frames.
        return super().encode(np.ascontiguousarray(features[..., : frames - frames % 2]))


class WhisperDecoder:
    """Decodes the utterances of one channel. All work is done at the end of an utterance."""

    def __init__(
        self, model: _Model, language: str | None, detector: VoiceActivityDetector
    ) -> None:
        self._model = model
        self._language = language
        self._detector = detector
        self._recent: deque[bool] = deque(maxlen=64)
        self._pcm = bytearray()
        self._voiced: list[bool] = []

    def is_speech(self, frame: bytes) -> bool:
        """Tell whether 30 ms of s16le sound like speech. Remembers what it heard before."""
        self._recent.append(self._detector.is_speech(frame))
        return self._recent[-1]

    def start(self) -> None:
        """Begin an utterance."""
        self._pcm.clear()
        self._voiced.clear()

    def feed(self, pcm: bytes) -> None:
        """Take s16le samples of the utterance: the last ones that `is_speech` was asked about."""
        self._pcm += pcm
        frames = len(pcm) // FRAME_BYTES
        if frames:
            self._voiced += list(self._recent)[-frames:]

    def peek(self) -> list[DecodedWord]:
        """Return the words so far. Takes as long as `finish`."""
        return self._decode()

    def finish(self) -> list[DecodedWord]:
        """End the utterance and return its words. Takes 0.1 to 0.5 s.

        Raises:
            DecodingFailed: the model broke down.
        """
        return self._decode()

    def _decode(self) -> list[DecodedWord]:
        if sum(self._voiced) < _LEAST_VOICED:
            return []
        samples = np.frombuffer(bytes(self._pcm), "<i2").astype(np.float32) / np.float32(32_768)
        voiced = np.array(self._voiced)
        heard = len(samples) / MODEL_RATE + _SLACK_SECONDS
        words = self._transcribe(samples, voiced, max(_LEAST_SECONDS, heard))
        if words is None:
            words = self._transcribe(samples, voiced, _FULL_SECONDS) or []
        return words

    def _transcribe(
        self, samples: NDArray[np.float32], voiced: NDArray[np.bool_], heard_seconds: float
    ) -> list[DecodedWord] | None:
        """Return the words; None where the model repeated itself."""
        self._model.heard_seconds = min(_FULL_SECONDS, heard_seconds)
        seconds = len(samples) / MODEL_RATE
        words: list[DecodedWord] = []
        try:
            segments, _ = self._model.transcribe(
                samples,
                language=self._language,
                beam_size=_BEAMS,
                temperature=0.0,
                condition_on_previous_text=False,
                without_timestamps=True,
                word_timestamps=True,
                max_new_tokens=_LEAST_TOKENS + round(seconds * _TOKENS_PER_SECOND),
            )
            # Each is a pass over what is left behind the last word of the one before it.
            for number, segment in enumerate(segments, 1):
                if heard_seconds < _FULL_SECONDS and repeats_itself(segment.text):
                    return None
                if segment.compression_ratio > _REPETITIVE:
                    break
                if is_believable(
                    segment.text, segment.avg_logprob, segment.no_speech_prob, len(words) > 0
                ):
                    words += decoded_words(segment.words or (), words, len(samples))
                behind = round(segment.end * MODEL_RATE) // FRAME_SAMPLES
                if number == _MAX_PASSES or voiced[behind:].sum() < _REST_VOICED:
                    break
        except RuntimeError as error:
            raise DecodingFailed("the model broke down") from error
        return [word for word in words if is_near_speech(word, voiced)]


@frozen
class TimedWord:
    """What faster-whisper says of a word; times in seconds from the start of the utterance."""

    word: str
    start: float
    end: float
    probability: float


def is_believable(text: str, mean_logprob: float, no_speech: float, is_rest: bool) -> bool:
    """Tell whether a text was said, and is not what the model makes of noise.

    Args:
        text: of one pass over an utterance.
        mean_logprob: mean logarithm of the probabilities of its tokens.
        no_speech: probability that there was no speech.
        is_rest: whether other words of the utterance came before it.
    """
    if mean_logprob < _DOUBTFUL:
        return False
    if mean_logprob >= _CERTAIN and no_speech < _NO_SPEECH:
        return True
    if is_rest or _plain(text) in _EXCLAMATIONS:
        return False
    return no_speech < _NO_SPEECH or mean_logprob >= _CERTAIN


def repeats_itself(text: str) -> bool:
    """Tell whether two words or more come twice in a row, or one comes three times.

    People do that too. The model does it where it has heard the end of the sound, and goes on.
    """
    words = _plain(text).split()
    for begin in range(len(words)):
        for length in range(1, (len(words) - begin) // 2 + 1):
            times = 3 if length == 1 else 2
            piece = words[begin : begin + length]
            if words[begin : begin + times * length] == piece * times:
                return True
    return False


def is_near_speech(word: DecodedWord, voiced: NDArray[np.bool_]) -> bool:
    """Tell whether there was speech where the word is, or close by."""
    first = max(0, word.start - _UNVOICED_SLACK) // FRAME_SAMPLES
    last = (word.end + _UNVOICED_SLACK) // FRAME_SAMPLES
    return bool(voiced[first : last + 1].any())


def decoded_words(
    timed: Sequence[TimedWord], before: Sequence[DecodedWord], length: int
) -> list[DecodedWord]:
    """Return words that follow each other and last for some time each.

    The model gives some words no length; these begin a little earlier or end a little later.

    Args:
        timed: as the model says.
        before: the words of the utterance that came before.
        length: of the utterance, in samples.
    """
    words: list[DecodedWord] = []
    previous = before[-1].end if before else 0
    for each in timed:
        text = _plain(each.word)
        if not text:
            continue
        end = min(max(round(each.end * MODEL_RATE), previous + _SHORTEST_WORD), length)
        start = min(max(round(each.start * MODEL_RATE), previous), end - _SHORTEST_WORD)
        if start < previous:
            # There is no room left in the utterance.
            continue
        previous = end
        confidence = min(1.0, max(0.0, float(each.probability)))
        words.append(DecodedWord(text, start, end, confidence, each.word.strip()))
    return words


def _plain(text: str) -> str:
    return " ".join(
        _NOT_IN_WORDS.sub(" ", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")).lower().split()
    )
