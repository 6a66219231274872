"""What the server tells a device besides segments: JSON objects with a ``type``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omi_rt.core.segments import speaker_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from omi_rt.core.asks import AssignSpeaker, Suggest
    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.coverage import Gap
    from omi_rt.core.ledger import Balance, Cost
    from omi_rt.core.outbox import MissingNumbers
    from omi_rt.core.speakers import Identified, Merged

PING: dict[str, Any] = {"type": "ping"}
KNOWN_MESSAGES = ["CloseStream", "speaker_assigned"]
"""The types of the text messages that an Omi client may send with effect."""


def service_status(status: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """``initiating``, ``ready``, ``stt_degraded`` and ``stt_recovered``, ``stt_behind`` and
    ``stt_caught_up``, ``identities_unavailable``, or ``stt_failed``."""
    event: dict[str, Any] = {"type": "service_status", "status": status}
    if reason is not None:
        event["reason"] = reason
    return event | more


def ready(session_id: str, started_at: datetime) -> dict[str, Any]:
    """The first connection to Deepgram is open.

    ``started_at`` is the session clock's zero, when the first audio came; where none has come yet,
    it is now: a device that waits for this event begins with it.
    """
    return service_status("ready", session_id=session_id, started_at=started_at.isoformat())


def resumed(session_id: str, received: int, audio_format: AudioFormat) -> dict[str, Any]:
    """A connection has taken the session up; ``received`` is the position at which audio goes on."""
    seconds = audio_format.seconds(received)
    return service_status("resumed", session_id=session_id, received=seconds)


RESUME_UNKNOWN = service_status("resume_unknown")
"""There is no session with that secret, or no longer: this is a new one."""


def audio_received(received: int, finalised: int, audio_format: AudioFormat) -> dict[str, Any]:
    """How far the audio has come: taken by the server, and final with its words sent."""
    return {
        "type": "audio_received",
        "received": audio_format.seconds(received),
        "finalised": audio_format.seconds(finalised),
    }


def messages_missing(missing: MissingNumbers) -> dict[str, Any]:
    """What was told with these numbers is not kept any more."""
    return {"type": "messages_missing", "first": missing.first, "last": missing.last}


def audio_lost(gap: Gap, audio_format: AudioFormat) -> dict[str, Any]:
    """A stretch of audio was given up; times in seconds on the session clock."""
    return {
        "type": "audio_lost",
        "start": audio_format.seconds(gap.start),
        "end": audio_format.seconds(gap.end),
    }


def undecodable_audio(codec: str, in_a_row: int) -> dict[str, Any]:
    """So many packets in a row could not be decoded: the codec is probably another one."""
    return {"type": "undecodable_audio", "codec": codec, "in_a_row": in_a_row}


def unknown_message(received: str | None) -> dict[str, Any]:
    """A text message is none that the server takes; ``received`` is its type, if it has one."""
    return {"type": "unknown_message", "received": received, "known": KNOWN_MESSAGES}


def auth_response(*, success: bool) -> dict[str, Any]:
    """Whether the token of the client's first message was taken."""
    return {"type": "auth_response", "success": success}


def interim(segments: list[dict[str, Any]]) -> dict[str, Any]:
    """What is being said, as far as it is understood; the next one replaces it.

    The segments have no ``id``: nothing can refer to them.
    """
    for segment in segments:
        del segment["id"]
    return {"type": "interim", "segments": segments}


def speaker_assigned(
    asked: AssignSpeaker, *, is_stored: bool, reason: str | None = None
) -> dict[str, Any]:
    """A speaker is called what the client said. ``reason`` is why the voice was not stored."""
    event: dict[str, Any] = {
        "type": "speaker_assigned",
        "speaker_id": asked.speaker,
        "is_user": asked.person_id is None,
        "person_id": asked.person_id,
        "stored": is_stored,
    }
    return event if reason is None else event | {"reason": reason}


def suggestion_refused(suggested: Suggest) -> dict[str, Any]:
    """So many segments of a ``suggested_transcript`` cannot be taken; ``reason`` is the first one's."""
    return {
        "type": "suggestion_refused",
        "refused": suggested.refused,
        "reason": suggested.reason,
    }


def assignment_failed(asked: AssignSpeaker, reason: str) -> dict[str, Any]:
    """A ``speaker_assigned`` of the client's cannot be followed."""
    return {"type": "assignment_failed", "speaker_id": asked.speaker, "reason": reason}


def speakers_merged(merged: Merged, segment_ids: Sequence[str]) -> dict[str, Any]:
    """Two speaker numbers turned out to be one voice."""
    return {
        "type": "speakers_merged",
        "from": merged.source,
        "into": merged.into,
        "segment_ids": list(segment_ids),
    }


def speaker_identified(identified: Identified, segment_ids: Sequence[str]) -> dict[str, Any]:
    """A speaker turned out to be the user or a known person, or after all not to be."""
    identity = identified.identity
    return {
        "type": "speaker_identified",
        "speaker": speaker_name(identified.speaker),
        "speaker_id": identified.speaker,
        "is_user": identity is not None and identity.is_user,
        "person_id": None if identity is None else identity.person_id,
        "segment_ids": list(segment_ids),
    }


def session_ended(
    balance: Balance,
    cost: Cost,
    audio_format: AudioFormat,
    reason: str,
    identities_known_from: int | None,
) -> dict[str, Any]:
    """The account of the whole session, in seconds."""
    return {
        "type": "session_ended",
        **balance.in_seconds(audio_format),
        "reason": reason,
        "sent": cost.in_seconds(audio_format),
        "identities_known_from": (
            None if identities_known_from is None else audio_format.seconds(identities_known_from)
        ),
    }
