"""What the embedded recogniser takes and says of Deepgram's live protocol.

This is pure: query parameters and client messages go in, messages for the client come out. Their shapes
are those of `omi_rt.core.live_api`; what the recogniser adds is `progress_message`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from attrs import frozen

from omi_rt.core import live_api
from omi_rt.core.deepgram import PROGRESS_TYPE
from omi_rt.core.json import dumps
from omi_rt.core.live_api import Control, ControlKind
from omi_rt.local.errors import UnusableParameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omi_rt.local.decoding import RecogniserInfo
    from omi_rt.local.recogniser import Final, FinalWord

MODEL_NAME = "omi-rt-local"
"""In the header ``dg-model-name`` and in ``model_info``: a client that finds it knows that every
word will have speaker 0, whoever speaks."""
SPEAKERS_MODEL_NAME = "omi-rt-local-speakers"
"""The same where voices are told apart."""
MODEL_UUID = "6f6d6972-7400-4c6f-8361-6c0000000001"

ANY_LANGUAGE = "multi"
"""Leaves the choice to the recogniser, for each utterance."""
LOWEST_RATE, HIGHEST_RATE = 8_000, 48_000
MOST_CHANNELS = 8
IDLE_REASON = "NET-0001: no audio and no text message within 10 s"
FAULT_REASON = "NET-0000: the recogniser failed"

_FILLERS = frozenset({"uh", "um", "mhm", "mm", "hm", "hmm", "uh-huh"})
_CAPITALISED = {"i": "I", "i'm": "I'm", "i'll": "I'll", "i've": "I've", "i'd": "I'd"}


@frozen
class ListenParameters:
    """The query of one connection, as far as it changes what the recogniser does.

    ``model``, ``endpointing`` and all others are accepted and make no difference: there is one
    model, and finals come at the pauses that it wants.
    """

    sample_rate: int
    channels: int
    multichannel: bool
    diarize: bool
    punctuate: bool
    """Words carry ``punctuated_word``. pocketsphinx knows no punctuation: only "I" is written so."""
    filler_words: bool
    language: str = "en"
    """A code that the recogniser knows, or `ANY_LANGUAGE`."""
    interim_results: bool = False

    @classmethod
    def from_query(cls, query: str, languages: Sequence[str] = ("en",)) -> ListenParameters:
        """Read the query of a request for `PATH`, of a recogniser that knows ``languages``.

        Raises:
            UnusableParameters: the audio or the language is none that can be recognised.
        """
        given = dict(parse_qsl(query, keep_blank_values=True))
        if given.get("encoding") != "linear16":
            raise UnusableParameters("encoding: only linear16 is understood")
        language = given.get("language", "en").lower().split("-")[0]
        if language not in {*languages, ANY_LANGUAGE}:
            known = "English only" if tuple(languages) == ("en",) else "other languages"
            raise UnusableParameters(f"language: the embedded recogniser knows {known}")
        channels = _integer(given, "channels", 1, MOST_CHANNELS, default="1")
        return cls(
            sample_rate=_integer(given, "sample_rate", LOWEST_RATE, HIGHEST_RATE),
            channels=channels,
            multichannel=_flag(given, "multichannel") and channels > 1,
            diarize=_flag(given, "diarize") or "diarize_model" in given,
            punctuate=_flag(given, "punctuate") or _flag(given, "smart_format"),
            filler_words=_flag(given, "filler_words"),
            language=language,
            interim_results=_flag(given, "interim_results"),
        )


def read_control(text: str) -> Control | None:
    """Read a client's text message; None for one that is not understood, which Configure is not here."""
    control = live_api.read_control(text)
    if control is None or control.kind is ControlKind.CONFIGURE:
        return None
    is_there = control.channel is None or control.channel < MOST_CHANNELS
    return control if is_there else None


def model_name(info: RecogniserInfo) -> str:
    """Return the name by which a client knows whether speakers are told apart."""
    return SPEAKERS_MODEL_NAME if info.tells_speakers_apart else MODEL_NAME


def model_info(info: RecogniserInfo) -> dict[str, str]:
    """Return ``model_info`` as Deepgram has it."""
    return {"name": model_name(info), "version": info.model, "arch": info.name}


class ResultsWriter:
    """Writes the results of one connection as Deepgram's."""

    def __init__(self, parameters: ListenParameters, request_id: str, info: RecogniserInfo) -> None:
        self._parameters = parameters
        self._channels = parameters.channels if parameters.multichannel else 1
        self._metadata = {
            "request_id": request_id,
            "model_uuid": MODEL_UUID,
            "model_info": model_info(info),
        }

    def write(self, final: Final, *, from_finalize: bool = False) -> str:
        """Return the message for one final, or interim."""
        words = [
            self._word(word)
            for word in final.words
            if self._parameters.filler_words or word.text not in _FILLERS
        ]
        confidences = [word["confidence"] for word in words]
        start, end = _rounded(final.start), _rounded(final.end)
        return dumps(
            live_api.results(
                words,
                channel_index=(final.channel, self._channels),
                start=start,
                duration=_rounded(end - start),
                metadata=self._metadata,
                confidence=_rounded(sum(confidences) / len(words)) if words else 0.0,
                is_final=not final.is_interim,
                speech_final=final.at_pause,
                from_finalize=from_finalize,
            )
        )

    def _word(self, word: FinalWord) -> dict[str, Any]:
        written: dict[str, Any] = {
            "word": word.text,
            "start": _rounded(word.start),
            "end": _rounded(word.end),
            "confidence": _rounded(word.confidence),
        }
        if self._parameters.punctuate:
            written["punctuated_word"] = word.written or _CAPITALISED.get(word.text, word.text)
        if self._parameters.diarize:
            written["speaker"] = word.speaker
        return written


def metadata_message(
    *,
    request_id: str,
    sha256: str,
    created: str,
    duration: float,
    channels: int,
    info: RecogniserInfo,
) -> str:
    """Return the summary that ends a stream; ``duration`` in seconds of audio accepted."""
    return dumps(
        live_api.metadata(
            request_id=request_id,
            sha256=sha256,
            created=created,
            duration=_rounded(duration),
            channels=channels,
            model_uuid=MODEL_UUID,
            model_info=model_info(info),
        )
    )


def progress_message(*, seconds_worked: float, seconds_behind: float) -> str:
    """Return what tells a client that the recogniser is busy, and gets on.

    Deepgram has no such message. Clients pass over types that they do not know.

    Args:
        seconds_worked: audio that has been worked through since the connection began.
        seconds_behind: audio that has come in and is still to be worked through.
    """
    return dumps(
        {
            "type": PROGRESS_TYPE,
            "seconds_worked": _rounded(seconds_worked),
            "seconds_behind": _rounded(seconds_behind),
        }
    )


def schema_error_message(text: str) -> str:
    """Return what answers a text message that is not understood; the stream goes on."""
    return dumps(live_api.schema_error(text))


def split_target(target: str) -> tuple[str, str]:
    """Return path and query of a request line's target.

    Raises:
        UnusableParameters: it is no URL at all.
    """
    try:
        parts = urlsplit(target)
    except ValueError as error:
        raise UnusableParameters("the request target is no URL") from error
    return parts.path, parts.query


def _integer(
    given: Mapping[str, str], name: str, lowest: int, highest: int, default: str = ""
) -> int:
    value = given.get(name, default)
    # isdecimal alone would let any number of digits through to int.
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise UnusableParameters(f"{name}: a whole number is needed")
    if not lowest <= int(value) <= highest:
        raise UnusableParameters(f"{name}: only {lowest} to {highest} is understood")
    return int(value)


def _flag(given: Mapping[str, str], name: str) -> bool:
    return given.get(name, "false").lower() == "true"


def _rounded(value: float) -> float:
    """Cut the noise of binary fractions; a microsecond is less than a sample at any rate."""
    return round(value, 6)
