"""Deepgram's live protocol without the wire: query, messages, and what its refusals mean.

Sources: Deepgram's AsyncAPI specification of ``/v1/listen`` (2026-07), its pages on live streaming,
errors and recovery, and issues of its SDKs. The service moves, so unknown message types and fields
are ignored, and what comes wrong is handled by a stated rule:

===============================================  ===================================================
what comes                                       what is done
===============================================  ===================================================
no JSON, no object, no ``type``                  counted as malformed, skipped
an unknown ``type``, ``Error``                   counted as ignored, skipped
``OmiRtProgress`` without usable numbers         counted as malformed, skipped
Results without ``channel`` or alternatives      counted as malformed, skipped
``start`` or ``duration`` missing, negative,     the final ends where its last word ends;
NaN, infinite, no number                         without words it is malformed
a word's times missing, negative, NaN ...        the word stands at the end of the one before it
                                                 (the first at the final's start), length 0
a word that ends before it starts                its end is its start
no usable ``channel_index``                      it is channel 0's where there is only one, else it
                                                 brings nothing
``speaker`` no whole number from 0 to 999         as if there were none: the word before's
no ``punctuated_word``                           ``word``
a word without text                              skipped
half of a surrogate pair in a text               U+FFFD in its place
a transcript without words                       one word that spans the final
over 1 MiB (closed with 1009), invalid UTF-8     the connection is lost: a new epoch begins at the
(1007)                                           watermark
a final beyond what was sent                     it covers what its words cover
overlapping or doubled finals, of an ended epoch each word once, by the rules in ``core/timeline.py``
===============================================  ===================================================
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlencode, urlsplit, urlunsplit

import cattrs
from attrs import field, frozen
from cattrs.errors import BaseValidationError

from omi_rt.core.json import JSONError, dumps, loads
from omi_rt.core.values import Decoder, Meta, MsgspecError, Struct

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from omi_rt.core.listen import ListenRequest

KEEP_ALIVE = '{"type":"KeepAlive"}'
FINALIZE = '{"type":"Finalize"}'
CLOSE_STREAM = '{"type":"CloseStream"}'
PROGRESS_TYPE = "OmiRtProgress"
"""The type of a message that Deepgram does not have; the embedded recogniser sends it while it is
behind."""


def configure(keyterms: Sequence[str] | None, *, numerals: bool | None) -> str:
    """Make the message that changes options from now on; what is None stays as it is."""
    message: dict[str, Any] = {"type": "Configure"}
    if keyterms is not None:
        message["keyterms"] = list(keyterms)
    if numerals is not None:
        message["features"] = {"numerals": numerals}
    return dumps(message)


def finalize_channel(channel: int) -> str:
    """Make the message that asks for the finals of one channel, counted from 0."""
    return f'{{"type":"Finalize","channel":{channel}}}'


DEFAULT_OPTIONS: dict[str, tuple[str, ...]] = {
    "punctuate": ("true",),
    "no_delay": ("true",),
    "endpointing": ("100",),
    "interim_results": ("false",),
    "smart_format": ("true",),
    "profanity_filter": ("false",),
    "diarize": ("true",),
    "filler_words": ("false",),
    "model": ("nova-2-general",),
}
"""The fixed rows of the configuration table; the others depend on the request."""

MAX_LABEL = 999
"""A speaker label or channel over this is no number that a provider means."""
UNKNOWN_SPEAKER = MAX_LABEL
"""The embedded recogniser's label of words of which it cannot tell whose they are. They may be anybody's:
they are no vote, and nobody's voice."""

_FINAL_CLOSE_CODES = frozenset({1008})
_RETRYABLE_STATUSES = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS, 499}
)


def listen_url(
    base: str, request: ListenRequest, options: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Make the URL of one live connection.

    Args:
        base: a ws(s) or http(s) address, with or without a path; ``/v1/listen`` is appended.
        request: the client's request. Its rate and channels go up, and its language; where it has
            options of its own, they go up as they came, and the defaults do not.
        options: parameters that replace or join the defaults; a value is a list, repeated in the
            query; an empty list leaves the parameter out. The client's own go before them.
    """
    multichannel = request.channels > 1 and not request.is_mixed_down
    sound: dict[str, Sequence[str]] = {
        "sample_rate": (str(request.sample_rate),),
        "encoding": ("linear16",),
        "channels": (str(request.channels),),
        "multichannel": ("true" if multichannel else "false",),
    }
    query: dict[str, Sequence[str]]
    if request.options is None:
        language = "multi" if request.language == "auto" else request.language
        query = {"language": (language,), **sound, **DEFAULT_OPTIONS, **(options or {})}
        if request.wants_interims:
            query["interim_results"] = ("true",)
    else:
        query = {**sound, **(options or {}), **request.options}
        if request.include_speech_profile and "diarize_model" not in query:
            # Whose a voice is, is learned from its label.
            query["diarize"] = ("true",)
    parts = urlsplit(base)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    path = parts.path.rstrip("/").removesuffix("/v1/listen").removesuffix("/v1") + "/v1/listen"
    return urlunsplit((scheme, parts.netloc, path, urlencode(query, doseq=True), ""))


def is_retryable_status(status: int) -> bool:
    """Tell whether a handshake refused with this HTTP status may succeed later, unchanged."""
    return status >= 500 or status in _RETRYABLE_STATUSES


def retry_after_seconds(header: str) -> float | None:
    """Read ``Retry-After`` in seconds; its date form (RFC 9110) is ignored, as no known provider uses it."""
    try:
        return max(0.0, float(header))
    except ValueError:
        return None


def is_retryable_close(code: int) -> bool:
    """Tell whether a connection that ended with this close code is worth another.

    Only 1008 is final, because the same bytes would be refused again. A 1000 that nobody asked for is
    abnormal and retried. So are the undocumented 4xxx, on which Deepgram's own examples disagree: the
    back-off bounds what that costs, and giving up would cost words.
    """
    return code not in _FINAL_CLOSE_CODES


# A time may be anything that JSON can say; what is not a usable number becomes None here.
def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _label(value: Any) -> int | None:
    # The type must be exact, because True is an int to isinstance, and no label.
    return value if type(value) is int and 0 <= value <= MAX_LABEL else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _channel_index(value: Any) -> tuple[int, int] | None:
    numbers = value if isinstance(value, list) else []
    match [_label(number) for number in numbers]:
        case [int(channel), int(count)]:
            return channel, count
        case _:
            return None


_Seconds = Annotated[float, Meta(ge=0.0)]
_Label = Annotated[int, Meta(ge=0, le=MAX_LABEL)]


# No part of a message can be in a cycle, so the collector does not have to look at any.
class Word(Struct, frozen=True, gc=False):
    """One word of a Results message; times in seconds of this connection's audio."""

    word: str = ""
    start: _Seconds | None = None
    end: _Seconds | None = None
    punctuated_word: str = ""
    speaker: _Label | None = None
    confidence: _Seconds | None = None
    language: str = ""

    @property
    def text(self) -> str:
        """The word as it is written."""
        return self.punctuated_word.strip() or self.word.strip()

    def __repr__(self) -> str:
        return f"Word(start={self.start}, end={self.end}, speaker={self.speaker})"


class Alternative(Struct, frozen=True, gc=False):
    """One reading of a stretch of audio."""

    transcript: str = ""
    words: tuple[Word, ...] = ()

    def __repr__(self) -> str:
        return f"Alternative({len(self.words)} words)"


class Channel(Struct, frozen=True, gc=False):
    """The readings of one channel, the best first."""

    alternatives: tuple[Alternative, ...]


class Results(Struct, frozen=True, gc=False):
    """A transcript of a stretch of one channel; only those with ``is_final`` count here."""

    type: Literal["Results"]
    channel: Channel
    channel_index: tuple[_Label, _Label] | None = None
    """The channel, counted from 0, and the number of channels; None if the message does not say."""
    start: _Seconds | None = None
    duration: _Seconds | None = None
    is_final: bool = False
    speech_final: bool = False
    from_finalize: bool = False

    @property
    def end(self) -> float | None:
        """End of the stretch in seconds, if the message says so usably."""
        if self.start is None or self.duration is None:
            return None
        return self.start + self.duration

    @property
    def best(self) -> Alternative:
        """The first alternative."""
        return self.channel.alternatives[0]

    @property
    def is_bare(self) -> bool:
        """Whether it has a transcript and no words, so that no word has times of its own."""
        best = self.best
        return not best.words and bool(best.transcript.strip())

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of the best alternative; a bare transcript is one word that spans the final."""
        if not self.is_bare:
            return self.best.words
        return (Word(word=self.best.transcript, start=self.start, end=self.end),)

    @property
    def is_usable(self) -> bool:
        """Whether it has a reading, and times or words."""
        if not self.channel.alternatives:
            return False
        return (self.start is not None and self.duration is not None) or bool(self.words)


def _read_results(data: dict[str, Any]) -> Results:
    """Read a Results message by the rules above, whatever its fields are.

    Raises:
        KeyError, TypeError: it has no channel, or no list of alternatives that are objects.
    """
    return Results(
        type="Results",
        channel=Channel(tuple(map(_read_alternative, data["channel"]["alternatives"]))),
        channel_index=_channel_index(data.get("channel_index")),
        start=_number(data.get("start")),
        duration=_number(data.get("duration")),
        is_final=data.get("is_final") is True,
        speech_final=data.get("speech_final") is True,
        from_finalize=data.get("from_finalize") is True,
    )


def _read_alternative(data: Any) -> Alternative:
    if not isinstance(data, dict):
        raise TypeError("an alternative is an object")
    words = data.get("words")
    items = words if isinstance(words, list) else []
    return Alternative(
        _text(data.get("transcript")),
        tuple(_read_word(item) for item in items if isinstance(item, dict)),
    )


def _read_word(data: dict[str, Any]) -> Word:
    return Word(
        word=_text(data.get("word")),
        start=_number(data.get("start")),
        end=_number(data.get("end")),
        punctuated_word=_text(data.get("punctuated_word")),
        speaker=_label(data.get("speaker")),
        confidence=_number(data.get("confidence")),
        language=_text(data.get("language")),
    )


@frozen
class Metadata:
    """The summary after CloseStream."""

    duration: float | None = field(default=None, converter=_number)
    """Seconds of audio that the provider accepted."""
    request_id: str = field(default="", converter=_text)


@frozen
class Malformed:
    """A message that cannot be understood."""


@frozen
class Ignored:
    """A message of a type that does not concern us."""

    type: str


@frozen
class Progress:
    """How far the embedded recogniser has come while it is busy, in seconds of this connection's audio."""

    seconds_worked: float | None = field(default=None, converter=_number)
    """Seconds of audio that it has worked through so far."""
    seconds_behind: float | None = field(default=None, converter=_number)
    """Seconds of audio that it has received and still has to work through."""

    @property
    def is_usable(self) -> bool:
        """Whether the message holds both figures."""
        return self.seconds_worked is not None and self.seconds_behind is not None


@frozen
class SpeechStarted:
    """The provider has noticed speech."""

    channel_index: tuple[int, int] | None
    timestamp: float | None
    """In seconds of this connection's audio."""


@frozen
class UtteranceEnd:
    """The provider has heard no word for as long as it was asked to tell."""

    channel_index: tuple[int, int] | None
    last_word_end: float | None
    """In seconds of this connection's audio."""


@frozen
class ConfigureAnswer:
    """What became of a Configure that went up."""

    failure: str | None = None
    """The provider's code for the reason where it was not taken; None where it was."""


Message = (
    Results
    | Metadata
    | Progress
    | SpeechStarted
    | UtteranceEnd
    | ConfigureAnswer
    | Malformed
    | Ignored
)

# The field converters above tolerate what is wrong, so cattrs hands every value to them as it is.
_converter = cattrs.Converter(detailed_validation=False, prefer_attrib_converters=True)
_strict = Decoder(Results)


def parse_message(text: str | bytes) -> Message:
    """Structure one message. This never raises; a message that cannot be understood is a `Malformed`.

    Nearly all messages are Results in which every field is as the provider documents it. Those are read
    in one go, which takes 4 µs for a final of twelve words; any other is read field by field, in 30 µs.
    """
    try:
        results = _strict.decode(text)
    except (MsgspecError, ValueError, RecursionError):
        return _parse_leniently(text)
    return results if results.is_usable else Malformed()


def _parse_leniently(text: str | bytes) -> Message:
    try:
        data = loads(text, mends=True)
    except JSONError:
        return Malformed()
    kind = data.get("type") if isinstance(data, dict) else None
    try:
        if kind == "Results":
            results = _read_results(data)
            return results if results.is_usable else Malformed()
        if kind == "Metadata":
            return _converter.structure(data, Metadata)
        if kind == PROGRESS_TYPE:
            progress = _converter.structure(data, Progress)
            return progress if progress.is_usable else Malformed()
    except (BaseValidationError, KeyError, TypeError, ValueError, AttributeError):
        return Malformed()
    if not isinstance(kind, str):
        return Malformed()
    return _event(kind, data) or Ignored(kind)


def _event(kind: str, data: Mapping[str, Any]) -> Message | None:
    """Read a message that is no transcript; None where it is of no use."""
    channel = _channel_index(data.get("channel"))
    if kind == "SpeechStarted" and (timestamp := _number(data.get("timestamp"))) is not None:
        return SpeechStarted(channel, timestamp)
    if kind == "UtteranceEnd" and (end := _number(data.get("last_word_end"))) is not None:
        return UtteranceEnd(channel, end)
    if kind == "ConfigureSuccess" and isinstance(data.get("request_id"), str):
        return ConfigureAnswer()
    if kind == "ConfigureFailure":
        code = data.get("code")
        return ConfigureAnswer(
            code if isinstance(code, str) and code else "CONFIGURE_INTERNAL_ERROR"
        )
    is_about_configure = kind == "Error" and "Configure" in str(data.get("variant"))
    return ConfigureAnswer("CONFIGURE_KEYTERMS_NOT_SUPPORTED") if is_about_configure else None
