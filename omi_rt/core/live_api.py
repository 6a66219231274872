"""The provider's side of Deepgram's live protocol, without the wire.

Names of the query, what a client may say, and the messages that it gets. ``/v1/listen`` of this
server, the embedded recogniser and the fake Deepgram speak it. The shapes are those of Deepgram's AsyncAPI
specification of ``/v1/listen`` (2026-07); its official clients require all fields that are written
here.
"""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from attrs import frozen

from omi_rt.core.errors import OmiRtError
from omi_rt.core.json import JSONError, dumps, loads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LISTEN_PATH = "/v1/listen"
IDLE_SECONDS = 10.0
"""Without audio and without a text message from the client; then the connection is closed."""
IDLE_CODE = 1011
IDLE_REASON = (
    "Deepgram did not receive audio data or a text message within the timeout window. "
    "See https://dpgr.am/net0001"
)
SHOWN_CHARACTERS = 1000
"""So much of a text message that was not understood is in the answer to it."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


BOOLEANS = _names(
    "multichannel interim_results vad_events punctuate smart_format no_delay numerals "
    "profanity_filter filler_words dictation diarize detect_entities mip_opt_out debug"
)
INTEGERS = _names("sample_rate channels utterance_end_ms alternatives")
TEXTS = _names(
    "model version language encoding endpointing diarize_model diarize_version callback "
    "callback_method tier"
)
REPEATABLE = _names("language_hint redact keywords keyterm replace search tag extra")
BATCH_ONLY = _names("detect_language measurements")
ENCODINGS = _names("linear16 linear32 flac alaw mulaw amr-nb amr-wb opus ogg-opus speex g729")
MAX_LENGTHS = {"tag": 128, "extra": 2048}
"""In characters; any other value may have 2048."""
MAX_COUNTS = {"keywords": 100, "search": 50, "replace": 200}
"""How often a parameter may be repeated, where that is bounded."""
_MAX_LENGTH = 2048
_MAX_DIGITS = 9


class Refused(OmiRtError):
    """The upgrade is refused with an HTTP status; the message says why, in one line.

    Attributes:
        status: the HTTP status.
        code: Deepgram's ``err_code``.
        retry_after: seconds for the ``Retry-After`` header, or None for no header.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


def bad_parameter(message: str) -> Refused:
    """Make the refusal of a query, which names the parameter."""
    return Refused(HTTPStatus.BAD_REQUEST, "INVALID_QUERY_PARAMETER", message)


def check_value(name: str, value: str) -> None:
    """Judge one parameter of the query by itself.

    Raises:
        Refused: 400.
    """
    if name in BOOLEANS:
        if value not in {"true", "false"}:
            raise bad_parameter(f"{name} must be true or false")
    elif name in INTEGERS:
        if not is_whole_number(value):
            raise bad_parameter(f"{name} must be a whole number")
    elif name in BATCH_ONLY:
        raise bad_parameter(f"{name} is not for streaming")
    elif name not in TEXTS and name not in REPEATABLE:
        raise bad_parameter(f"{name[:40]} is no parameter")
    elif not value:
        raise bad_parameter(f"{name} is empty")
    elif name in REPEATABLE and value.startswith("["):
        raise bad_parameter(f"{name} is a list in one value: repeat the parameter instead")
    elif len(value) > MAX_LENGTHS.get(name, _MAX_LENGTH):
        raise bad_parameter(f"{name} is too long")


def is_whole_number(value: str) -> bool:
    """Whether ``value`` is written in one to nine digits and nothing else."""
    return value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS


# What a client says.


class ControlKind(Enum):
    """The text messages that a client may send."""

    KEEP_ALIVE = "KeepAlive"
    FINALIZE = "Finalize"
    CLOSE_STREAM = "CloseStream"
    CONFIGURE = "Configure"


@frozen
class Control:
    """A client's text message."""

    kind: ControlKind
    channel: int | None = None
    """The one channel that a Finalize is for, counted from 0; None where it is for all."""
    keyterms: tuple[str, ...] | None = None
    """The key terms that a Configure sets in place of all that were set; None leaves them."""
    numerals: bool | None = None
    """What a Configure makes of the feature of that name; None leaves it."""


def read_control(text: str | bytes) -> Control | None:
    """Read a client's text message; None for one that is not understood."""
    try:
        message = loads(text)
        kind = ControlKind(message["type"])
    except (JSONError, ValueError, TypeError, KeyError):
        return None
    if kind is ControlKind.FINALIZE:
        channel = message.get("channel")
        is_channel = type(channel) is int and channel >= 0
        return Control(kind, channel) if channel is None or is_channel else None
    if kind is ControlKind.CONFIGURE:
        return _read_configure(message)
    return Control(kind)


def _read_configure(message: Mapping[str, Any]) -> Control | None:
    keyterms, features = message.get("keyterms"), message.get("features")
    if keyterms is not None and not (
        isinstance(keyterms, list) and all(isinstance(term, str) for term in keyterms)
    ):
        return None
    if features is not None and not isinstance(features, dict):
        return None
    numerals = (features or {}).get("numerals")
    if numerals is not None and not isinstance(numerals, bool):
        return None
    return Control(
        ControlKind.CONFIGURE,
        keyterms=None if keyterms is None else tuple(keyterms),
        numerals=numerals,
    )


# What a client gets.


def results(
    words: Sequence[Mapping[str, Any]],
    *,
    channel_index: tuple[int, int],
    start: float,
    duration: float,
    metadata: Mapping[str, Any],
    confidence: float,
    is_final: bool = True,
    speech_final: bool = False,
    from_finalize: bool = False,
    languages: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Make a Results message.

    Args:
        words: each with ``word``, ``start``, ``end``, ``confidence``, and what else was asked for.
        channel_index: which channel, counted from 0, of how many.
        start: where the stretch begins, in seconds from the first audio.
        duration: of the stretch, in seconds.
        metadata: with ``request_id``, ``model_uuid`` and ``model_info``.
        confidence: of the whole transcript, 0 to 1.
        is_final: False for an interim result.
        speech_final: whether a pause ended the stretch.
        from_finalize: whether it answers a Finalize.
        languages: those that were heard, where the client asked for several.
    """
    alternative: dict[str, Any] = {
        "transcript": " ".join(word.get("punctuated_word", word["word"]) for word in words),
        "confidence": confidence,
        "words": words,
    }
    if languages is not None:
        alternative["languages"] = languages
    return {
        "type": "Results",
        "channel_index": list(channel_index),
        "duration": duration,
        "start": start,
        "is_final": is_final,
        "speech_final": speech_final,
        "from_finalize": from_finalize,
        "channel": {"alternatives": [alternative]},
        "metadata": metadata,
    }


def metadata(
    *,
    request_id: str,
    sha256: str,
    created: str,
    duration: float,
    channels: int,
    model_uuid: str,
    model_info: Mapping[str, str],
    extra: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Make the Metadata message that ends a stream; ``duration`` in seconds of audio accepted."""
    message = {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": request_id,
        "sha256": sha256,
        "created": created,
        "duration": duration,
        "channels": channels,
        "models": [model_uuid],
        "model_info": {model_uuid: model_info},
    }
    return message | ({"extra": extra} if extra else {})


def utterance_end(channel_index: tuple[int, int], last_word_end: float) -> dict[str, Any]:
    """Make the message that nothing was said since ``last_word_end``, in seconds."""
    return {
        "type": "UtteranceEnd",
        "channel": list(channel_index),
        "last_word_end": last_word_end,
    }


def speech_started(channel_index: tuple[int, int], timestamp: float) -> dict[str, Any]:
    """Make the message that speech began at ``timestamp``, in seconds."""
    return {"type": "SpeechStarted", "channel": list(channel_index), "timestamp": timestamp}


def configure_success(request_id: str, keyterms: Sequence[str] | None) -> dict[str, Any]:
    """Make the answer to a Configure that was taken; ``keyterms`` where it replaced them."""
    message: dict[str, Any] = {"type": "ConfigureSuccess", "request_id": request_id}
    return message if keyterms is None else message | {"keyterms": list(keyterms)}


def configure_failure(request_id: str, code: str, description: str) -> dict[str, Any]:
    """Make the answer to a Configure that was not taken."""
    return {
        "type": "ConfigureFailure",
        "request_id": request_id,
        "code": code,
        "description": description,
    }


def schema_error(text: str) -> dict[str, Any]:
    """Make the answer to a text message that is not understood; the stream goes on."""
    return {
        "type": "Error",
        "variant": "SchemaError",
        "description": "Could not deserialize last text message: expected a known type",
        "message": text[:SHOWN_CHARACTERS],
    }


def refusal_body(code: str, message: str, request_id: str) -> str:
    """Write the body of a refusal over HTTP."""
    return dumps({"err_code": code, "err_msg": message, "request_id": request_id})
