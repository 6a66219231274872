"""Omi's own wire, in all its versions: what the app, the web app and the desktop apps speak.

An array of segments, or an object with a ``type``. What differs between the versions is in
`Version`, and `omi_rt.faces.table` says which path has which.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from omi_rt.core import events
from omi_rt.core.asks import Ask, AssignSpeaker, End, NotUnderstood, Pass
from omi_rt.core.errors import BadRequest
from omi_rt.core.ids import ID_RULE, is_valid_id
from omi_rt.core.json import JSONError, loads
from omi_rt.core.listen import parse_custom_stt, parse_listen
from omi_rt.core.segments import make_segments
from omi_rt.core.speakers import Identified, Merged
from omi_rt.core.suggestions import read_suggestion
from omi_rt.core.updates import Final, Interim
from omi_rt.core.voices import USER_ID
from omi_rt.faces.face import BEARER, MAX_SHOWN_CHARACTERS, Face, Opening, bearer_token
from omi_rt.faces.growth import GrowingSegments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.segments import Segment
    from omi_rt.core.updates import AttributedWord, Update
    from omi_rt.faces.face import Call

AUTH_SECONDS = 5.0
"""So long may the first message take where a client proves itself in that."""
_FAKE_PONG = b"\x8a\x00"
_PASSED_OVER = frozenset({"image_chunk", "skip_question", "client_state", "suggested_transcript"})
"""Types of messages that newer apps send, and that ask nothing; ``suggested_transcript`` does so where
the client has said that it transcribes by itself."""
_PLAIN_BEATS = frozenset({"ping", "pong"})
"""Text, no JSON, that some clients keep their connection alive with."""


class Proof(Enum):
    """Where a client says who it is."""

    UID_PARAMETER = "uid"
    BEARER_TOKEN = "bearer"  # noqa: S105 - a name, no secret
    FIRST_MESSAGE = "auth"


@frozen
class Version:
    """What one version of the wire takes and sends."""

    proof: Proof
    grows: bool = False
    """Whether a segment that has grown, or is corrected, is sent again under its id."""
    takes_suggestions: bool = False
    """Whether a client may say ``custom_stt=enabled``, and then transcribes by itself."""


class OmiFace(Face):
    """Talks to an Omi app, or to whatever speaks as one."""

    has_text_heartbeat = True
    tells_status = True

    def __init__(
        self, version: Version, audio_format: AudioFormat, *, takes_suggestions: bool = False
    ) -> None:
        self._version = version
        self._takes_suggestions = takes_suggestions
        self._format = audio_format
        self._growing = GrowingSegments(audio_format.sample_rate) if version.grows else None
        self._has_told_unknown = False

    def greet(self) -> list[Any]:
        """Confirm the first message, where that was the proof."""
        is_asked = self._version.proof is Proof.FIRST_MESSAGE
        return [events.auth_response(success=True)] if is_asked else []

    def read(self, text: str) -> Ask:
        """Read a text message. Whatever a newer app may send, and means for others, is passed over."""
        if text in _PLAIN_BEATS:
            return Pass()
        message = _object(text)
        kind = message.get("type")
        if kind == "CloseStream":
            return End()
        if kind == "speaker_assigned":
            return read_assignment(message)
        if kind == "suggested_transcript" and self._takes_suggestions:
            return read_suggestion(message)
        if isinstance(kind, str) and kind in _PASSED_OVER:
            return Pass()
        return NotUnderstood(kind[:MAX_SHOWN_CHARACTERS] if isinstance(kind, str) else None)

    def read_short(self, message: bytes) -> Ask | None:
        """Tell the app's answer to a text ping from audio.

        Builds since February 2025 send the two bytes of an empty pong frame as a message of their own
        (``pure_socket.dart``). libopus takes them for 10 ms of audio; in PCM they are a click. Other
        short messages are left alone: Opus has legal packets of one and two bytes.
        """
        return Pass() if message == _FAKE_PONG else None

    def write(self, update: Update) -> list[Any]:
        """Write segments as an array, and everything else as an object with a ``type``."""
        if isinstance(update, dict):
            return [update]
        if isinstance(update, Final):
            return self._arrays(update.segments if self._growing is None else self._grow(update))
        if isinstance(update, Interim):
            segments = _interim_segments(update.words)
            return [events.interim([segment.as_json(self._format) for segment in segments])]
        if isinstance(update, Merged | Identified):
            return self._correct(update)
        if isinstance(update, NotUnderstood) and not self._has_told_unknown:
            self._has_told_unknown = True
            return [events.unknown_message(update.kind)]
        return []

    def take(self, segments: Iterable[Segment]) -> None:
        """Take segments that went out before anybody followed, of a face whose segments grow."""
        if self._growing is not None:
            self._growing.add(segments)

    def write_last(self, most: int) -> list[Any]:
        """Write the last segments as they stand, ``most`` of them at most; of a face whose segments grow."""
        return [] if self._growing is None else self._arrays(self._growing.last(most))

    def _grow(self, final: Final) -> list[Segment]:
        assert self._growing is not None
        return self._growing.add(final.segments)

    def _correct(self, correction: Merged | Identified) -> list[Any]:
        ids, corrected = correction.segment_ids, list[Any]()
        if self._growing is not None:
            ids, corrected = self._growing.correct(correction)
        event = (
            events.speakers_merged(correction, ids)
            if isinstance(correction, Merged)
            else events.speaker_identified(correction, ids)
        )
        return [event, *self._arrays(corrected)]

    def _arrays(self, segments: Sequence[Segment]) -> list[Any]:
        return [[segment.as_json(self._format) for segment in segments]] if segments else []


def open_omi(version: Version, call: Call) -> Opening:
    """Read a request of one version of the wire.

    Raises:
        BadRequest: the message names what is wrong.
    """
    parameters = call.parameters
    if call.uid is None and version.proof is not Proof.UID_PARAMETER:
        parameters["uid"] = _uid_of_token(version, call)
    request = parse_listen(parameters)
    takes_suggestions = version.takes_suggestions and parse_custom_stt(parameters)
    if takes_suggestions:
        # Nobody listens here, so there are no voices to know.
        request = evolve(request, is_transcribed_by_client=True, include_speech_profile=False)
    face = OmiFace(version, request.audio_format, takes_suggestions=takes_suggestions)
    return Opening(request, face)


def needs_provider(version: Version, call: Call) -> bool:
    """Tell whether a request asks to be transcribed here; one that is wrong does not count as asking."""
    try:
        return not (version.takes_suggestions and parse_custom_stt(call.parameters))
    except BadRequest:
        return False


def read_auth(text: str | bytes) -> str:
    """Read the token of a client's first message.

    Raises:
        BadRequest: it is none.
    """
    message = _object(text) if isinstance(text, str) else {}
    token = message.get("token")
    if message.get("type") != "auth" or not isinstance(token, str):
        raise BadRequest('auth: the first message must be {"type":"auth","token":...}')
    return token


def read_assignment(message: Mapping[str, Any]) -> AssignSpeaker:
    """Read ``speaker_assigned``. What is wrong in it is for the session to say, which knows more."""
    speaker, person_id = message.get("speaker_id"), message.get("person_id")
    ids = message.get("segment_ids")
    return AssignSpeaker(
        speaker if type(speaker) is int else None,
        # What is no text is no valid id either, as little as an empty one.
        None if person_id == USER_ID else person_id if isinstance(person_id, str) else "",
        tuple(each for each in ids if isinstance(each, str)) if isinstance(ids, list) else (),
        # Whoever says nothing of it is an app that has never heard of the choice.
        may_store=message.get("store") is not False,
    )


def omi_token(version: Version, call: Call) -> str:
    """Return the token that a client shows; empty where it shows none."""
    return (call.token or "") if version.proof is Proof.FIRST_MESSAGE else bearer_token(call)


def _uid_of_token(version: Version, call: Call) -> str:
    """The uid that a token stands for, as long as there is no login: the one that it names."""
    token = omi_token(version, call)
    scheme = call.headers.get("authorization", "").partition(" ")[0]
    if version.proof is Proof.BEARER_TOKEN and scheme.lower() != BEARER:
        raise BadRequest("Authorization: a Bearer token is required")
    if not call.is_loopback:
        raise BadRequest("token: there is no login here, so tokens are taken on loopback only")
    if not is_valid_id(token):
        raise BadRequest(f"token: it must be the uid, {ID_RULE}")
    return token


def _interim_segments(words: Iterable[AttributedWord]) -> list[Segment]:
    """Group words that may still change; their segments have no id, for nothing can refer to them."""
    words = list(words)
    identities = {word.speaker: word.identity for word in words}
    return make_segments([(w.speaker, w.heard) for w in words], identities.get, lambda: "")


def _object(text: str) -> dict[str, Any]:
    try:
        message = loads(text)
    except JSONError:
        return {}
    return message if isinstance(message, dict) else {}
