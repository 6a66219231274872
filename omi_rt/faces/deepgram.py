"""Deepgram's live API, ``/v1/listen``, as this server speaks it to clients of Deepgram's.

Times are on the session clock and speakers have the session's numbers, so both go on over whatever
happens to the connection behind them. What Deepgram does not know, whose a word is, is in fields of
its own that typed clients pass over.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from omi_rt.core import live_api
from omi_rt.core.asks import Ask, Configure, End, Finalize, NotUnderstood, StayOpen
from omi_rt.core.ids import ID_RULE, is_valid_id
from omi_rt.core.listen import (
    LANGUAGE,
    MAX_CHANNELS,
    MAX_OPUS_CHANNELS,
    OPUS_SAMPLE_RATES,
    PCM_SAMPLE_RATES,
    ListenRequest,
)
from omi_rt.core.live_api import ControlKind, Refused, bad_parameter, check_value
from omi_rt.core.updates import Configured, Final, Interim, SpeechBegan, SpeechPaused
from omi_rt.faces.face import Face, Opening

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from omi_rt.core.updates import AttributedWord, Update
    from omi_rt.faces.face import Call

ENCODINGS = ("linear16", "opus", "mulaw", "alaw")
"""The encodings that are read, each as bare audio: containers are not."""
MODEL_UUID = "6f6d6972-7400-4c6f-8361-6c0000000002"
"""Of the model that this server names in its messages: words may come of several of a provider's."""
TOLD_ERRORS = 10
"""So many text messages that are not understood are answered; those after them are passed over."""

_OURS = frozenset({"encoding", "sample_rate", "channels", "multichannel", "uid"})
"""Parameters that concern this server alone, or that it says itself to its provider."""
_UNHONOURED = frozenset({"detect_entities", "debug", "search", "callback", "callback_method"})
"""Parameters of Deepgram's whose answers are on a connection's own clock, or go elsewhere."""
_KEYS_IN_QUERY = frozenset({"token", "key", "api_key", "access_token"})
_KEY_SCHEMES = frozenset({"token", "bearer"})
_PUNCTUATING = ("punctuate", "smart_format", "dictation")


class DeepgramFace(Face):
    """Talks to a client of Deepgram's.

    Args:
        request: of the session.
        request_id: of the session, and of each of its messages.
        created: when the session began, as Deepgram writes it.
    """

    idle_seconds: ClassVar[float | None] = live_api.IDLE_SECONDS
    hears_audio: ClassVar[bool] = True

    def __init__(self, request: ListenRequest, request_id: str, created: str) -> None:
        options = request.options or {}
        self._format = request.audio_format
        self._request_id = request_id
        self._created = created
        self._tells_identities = request.include_speech_profile
        self._tells_speakers = _is_on(options, "diarize") or "diarize_model" in options
        self._punctuates = _is_on(options, *_PUNCTUATING)
        self._tells_languages = options.get("language") == ("multi",)
        self._tells_beginnings = _is_on(options, "vad_events")
        self._tells_pauses = "utterance_end_ms" in options
        self._tracks = 1 if request.is_mixed_down else request.channels
        self._told_until = [0] * self._tracks
        self._digest = hashlib.sha256()
        self._heard_bytes = 0
        self._errors = 0
        name = (options.get("model") or ("general",))[0]
        self._model = {"name": name, "version": "omi-rt", "arch": "omi-rt"}
        self._metadata: dict[str, Any] = {
            "request_id": request_id,
            "model_uuid": MODEL_UUID,
            "model_info": self._model,
        }
        self._extra = dict(each.partition(":")[::2] for each in options.get("extra", ()))
        if self._extra:
            self._metadata["extra"] = self._extra

    def read(self, text: str) -> Ask:
        """Read a control message."""
        control = live_api.read_control(text)
        if control is None:
            shown = text[: live_api.SHOWN_CHARACTERS]
            return NotUnderstood(kind=None, text=shown)
        match control.kind:
            case ControlKind.KEEP_ALIVE:
                return StayOpen()
            case ControlKind.CLOSE_STREAM:
                return End()
            case ControlKind.CONFIGURE:
                return Configure(control.keyterms, control.numerals)
            case ControlKind.FINALIZE:
                channel = control.channel
                return Finalize(channel if channel is not None and channel < self._tracks else None)

    def read_short(self, message: bytes) -> Ask | None:
        """Take an empty message for the end: so clients once ended a stream, and still may."""
        return None if message else End()

    def hear(self, payload: bytes) -> None:
        """Count the audio for the Metadata message, as it is after decoding."""
        self._digest.update(payload)
        self._heard_bytes += len(payload)

    def write(self, update: Update) -> list[Any]:
        """Write Results, UtteranceEnd, SpeechStarted, Metadata, and the answers to control messages."""
        seconds = self._format.seconds
        match update:
            case Final():
                return self._results(update)
            case Interim():
                return self._interim(update)
            case SpeechBegan(channels=channels, position=position) if self._tells_beginnings:
                index = self._index(channels)
                return [live_api.speech_started(index, seconds(position))]
            case SpeechPaused(channels=channels, last_word_end=end) if self._tells_pauses:
                return [live_api.utterance_end(self._index(channels), seconds(end))]
            case Configured(keyterms=keyterms, failure=failure):
                if failure is not None:
                    text = "the key terms or options could not be changed"
                    return [live_api.configure_failure(self._request_id, failure, text)]
                return [live_api.configure_success(self._request_id, keyterms)]
            case NotUnderstood(text=text):
                self._errors += 1
                return [live_api.schema_error(text)] if self._errors <= TOLD_ERRORS else []
            case {"type": "session_ended"}:
                return [self._summary()]
            case _:
                return []

    def _results(self, final: Final) -> list[Any]:
        channel = self._track(final.channels)
        start = self._start(channel, final.words)
        end = max([start, final.covered or 0, *(word.heard.end for word in final.words)])
        is_new = end > self._told_until[channel] or bool(final.words)
        self._told_until[channel] = max(self._told_until[channel], end)
        # A final of audio that an earlier one covered brings nothing, unless it was asked for.
        if not is_new and not final.from_finalize:
            return []
        return [
            self._message(
                final.words,
                channel,
                (start, end),
                speech_final=final.speech_final,
                from_finalize=final.from_finalize,
            )
        ]

    def _interim(self, interim: Interim) -> list[Any]:
        channel = self._track(interim.channels)
        start = self._start(channel, interim.words)
        end = max([start, interim.covered or 0, *(word.heard.end for word in interim.words)])
        return [self._message(interim.words, channel, (start, end), is_final=False)]

    def _message(
        self, words: Sequence[AttributedWord], channel: int, stretch: tuple[int, int], **more: bool
    ) -> dict[str, Any]:
        seconds = self._format.seconds
        start, end = seconds(stretch[0]), seconds(stretch[1])
        confidences = [word.heard.confidence for word in words]
        languages: list[str] | None = None
        if self._tells_languages:
            languages = list(dict.fromkeys(w.heard.language for w in words if w.heard.language))
        return live_api.results(
            [self._word(word) for word in words],
            channel_index=(channel, self._tracks),
            start=start,
            duration=round(end - start, 6),
            metadata=self._metadata,
            confidence=round(sum(confidences) / len(words), 6) if words else 0.0,
            languages=languages,
            **more,
        )

    def _word(self, word: AttributedWord) -> dict[str, Any]:
        heard, seconds = word.heard, self._format.seconds
        written: dict[str, Any] = {
            "word": heard.plain or heard.text,
            "start": seconds(heard.start),
            "end": seconds(heard.end),
            "confidence": round(heard.confidence, 6),
        }
        if self._punctuates:
            written["punctuated_word"] = heard.text
        if self._tells_speakers:
            written["speaker"] = word.speaker
        if self._tells_languages and heard.language:
            written["language"] = heard.language
        if self._tells_identities:
            identity = word.identity
            written["is_user"] = identity is not None and identity.is_user
            written["person_id"] = None if identity is None else identity.person_id
        return written

    def _summary(self) -> dict[str, Any]:
        samples = self._heard_bytes // self._format.frame_bytes
        return live_api.metadata(
            request_id=self._request_id,
            sha256=self._digest.hexdigest(),
            created=self._created,
            duration=self._format.seconds(samples),
            channels=self._format.channels if samples else 0,
            model_uuid=MODEL_UUID,
            model_info=self._model,
            extra=self._extra,
        )

    def _start(self, channel: int, words: Sequence[AttributedWord]) -> int:
        """Where a stretch begins: at the end of the one before, or with a word that lies across it."""
        return min([self._told_until[channel], *(word.heard.start for word in words)])

    def _track(self, channels: range) -> int:
        return min(channels.start, self._tracks - 1)

    def _index(self, channels: range) -> tuple[int, int]:
        return self._track(channels), self._tracks


def open_deepgram(call: Call) -> Opening:
    """Read a request for ``/v1/listen``.

    Raises:
        Refused: 400 or 401; the message names what is wrong.
    """
    _check_keys(call)
    values = _checked(call.pairs)
    encoding = _only(values, "encoding")
    if encoding is None:
        raise bad_parameter(
            "encoding is missing: containers are not read here, only bare " + ", ".join(ENCODINGS)
        )
    if encoding not in ENCODINGS:
        raise bad_parameter("encoding must be one of " + ", ".join(ENCODINGS))
    rate, channels = _sound(values, encoding)
    language = _only(values, "language") or "en"
    if not LANGUAGE.fullmatch(language):
        raise bad_parameter("language must be a tag such as en, pt-BR or multi")
    uid = _only(values, "uid") or ""
    if uid and not is_valid_id(uid):
        raise bad_parameter(f"uid must have {ID_RULE}")
    options = {name: texts for name, texts in values.items() if name not in _OURS}
    request = ListenRequest(
        uid=uid if call.uid is None else call.uid,
        language=language,
        sample_rate=rate,
        codec=encoding,
        channels=channels,
        include_speech_profile=bool(uid),
        options=options,
        is_mixed_down=channels > 1 and not _is_on(values, "multichannel"),
        wants_interims=_is_on(options, "interim_results"),
    )
    created = call.called_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Opening(request, DeepgramFace(request, request_id_of(call.session_id), created))


def deepgram_token(call: Call) -> str:
    """Return the key that a client shows, in the header or as a subprotocol; empty where it shows none.

    Raises:
        Refused: 400 or 401; it shows two, or half of one.
    """
    _check_keys(call)
    scheme, _, credential = call.headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() in _KEY_SCHEMES:
        return credential.strip()
    protocols = _protocols(call)
    return protocols[1] if protocols and protocols[0].lower() in _KEY_SCHEMES else ""


def request_id_of(session_id: str) -> str:
    """The request id that a client gets, in the form that Deepgram's have."""
    return str(UUID(session_id))


def answer_headers(call: Call) -> dict[str, str]:
    """The headers with which the upgrade is answered."""
    headers = {"dg-request-id": request_id_of(call.session_id)}
    protocols = _protocols(call)
    if protocols and protocols[0].lower() in _KEY_SCHEMES:
        # A browser closes a connection whose server picks none of the protocols that it offered.
        headers["Sec-WebSocket-Protocol"] = protocols[0]
    return headers


def _checked(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Judge every parameter by itself; returns the values of each that is honoured, in order."""
    values: dict[str, tuple[str, ...]] = {}
    for name, value in pairs:
        if name in live_api.BOOLEANS | {"endpointing"} and value.lower() in {"true", "false"}:
            # One of Deepgram's own clients wrote them as Python does until 2026.
            value = value.lower()
        if name in _KEYS_IN_QUERY:
            raise bad_parameter(f"{name}: a key must not be in the query, where logs would keep it")
        is_known = name in live_api.BOOLEANS | live_api.INTEGERS | live_api.TEXTS
        is_known = (is_known or name in live_api.REPEATABLE | {"uid"}) and name not in _UNHONOURED
        if not is_known:
            if value.lower() == "false":
                continue
            raise bad_parameter(f"{name[:40]} is not supported here: leave it out, or say false")
        if name != "uid":
            check_value(name, value)
        if name in values and name not in live_api.REPEATABLE:
            raise bad_parameter(f"{name} is given twice")
        values[name] = (*values.get(name, ()), value)
    _check_combinations(values)
    return values


def _check_combinations(values: Mapping[str, tuple[str, ...]]) -> None:
    for name, most in live_api.MAX_COUNTS.items():
        if len(values.get(name, ())) > most:
            raise bad_parameter(f"more than {most} of {name}")
    if int(_only(values, "alternatives") or "1") != 1:
        raise bad_parameter("alternatives must be 1: there is one transcript here")
    pause = _only(values, "utterance_end_ms")
    if pause is not None and not (_is_on(values, "interim_results") and int(pause) >= 1000):
        raise bad_parameter("utterance_end_ms needs interim_results and at least 1000")
    endpointing = _only(values, "endpointing") or "10"
    if endpointing not in {"true", "false"} and not live_api.is_whole_number(endpointing):
        raise bad_parameter("endpointing must be milliseconds or false")
    model = _only(values, "model") or ""
    if "keyterm" in values and "keywords" in values:
        raise bad_parameter("keyterm and keywords do not go together")
    if "keywords" in values and model.startswith("nova-3"):
        raise bad_parameter("keywords does not go with a nova-3 model: use keyterm")
    if values.get("diarize") == ("false",) and "diarize_model" in values:
        raise bad_parameter("diarize=false and diarize_model contradict each other")
    if _is_on(values, "dictation") and not _is_on(values, "punctuate"):
        raise bad_parameter("dictation needs punctuate")


def _sound(values: Mapping[str, tuple[str, ...]], encoding: str) -> tuple[int, int]:
    """Read sample rate and channels."""
    rate = int(_only(values, "sample_rate") or "0")
    if not rate:
        raise bad_parameter("sample_rate is missing, or 0")
    is_opus = encoding == "opus"
    if is_opus and rate not in OPUS_SAMPLE_RATES:
        raise bad_parameter("sample_rate of opus must be 8000, 12000, 16000, 24000 or 48000")
    if rate not in PCM_SAMPLE_RATES:
        raise bad_parameter("sample_rate must be 8000 to 48000")
    channels = int(_only(values, "channels") or "1")
    most = MAX_OPUS_CHANNELS if is_opus else MAX_CHANNELS
    if not 1 <= channels <= most:
        raise bad_parameter(f"channels must be 1 to {most} with {encoding}")
    return rate, channels


def _check_keys(call: Call) -> None:
    """See that a key is given in one place at most; without a login any will do."""
    scheme, _, credential = call.headers.get("authorization", "").strip().partition(" ")
    in_header = scheme.lower() in _KEY_SCHEMES
    if in_header and not credential.strip():
        raise Refused(
            HTTPStatus.UNAUTHORIZED, "INVALID_AUTH", "the Authorization header has no key"
        )
    protocols = _protocols(call)
    in_protocol = bool(protocols) and protocols[0].lower() in _KEY_SCHEMES
    if in_protocol and len(protocols) != 2:
        raise Refused(
            HTTPStatus.UNAUTHORIZED,
            "INVALID_AUTH",
            "the subprotocols must be two: token, and the key",
        )
    if in_header and in_protocol:
        raise bad_parameter("a key is given in Authorization and as a subprotocol: give one")


def _protocols(call: Call) -> list[str]:
    text = call.headers.get("sec-websocket-protocol", "")
    return [part.strip() for part in text.split(",") if part.strip()]


def _only(values: Mapping[str, tuple[str, ...]], name: str) -> str | None:
    found = values.get(name)
    return found[0] if found else None


def _is_on(values: Mapping[str, tuple[str, ...]], *names: str) -> bool:
    return any(values.get(name) == ("true",) for name in names)
