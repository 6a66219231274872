"""Reads ``suggested_transcript``: what an Omi app has transcribed by itself ("Custom STT")."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from omi_rt.core.asks import Suggest, SuggestedSegment
from omi_rt.core.errors import BadRequest
from omi_rt.core.ids import ID_RULE, is_valid_id
from omi_rt.core.voices import USER, USER_ID, Identity

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SUGGESTED_SEGMENTS = 100
"""In one message; apps send a few."""
MAX_SUGGESTED_CHARACTERS = 10_000
"""In one segment: ten minutes of fast speech."""
MAX_SUGGESTED_SECONDS = 31_622_400.0
"""Session time is told in seconds from the session's begin, and no session lasts a year. What is later
is a wall clock, or milliseconds."""
MAX_SUGGESTED_SPEAKER = 99
"""The label that apps show has two digits."""

_LABEL = re.compile(r"[A-Za-z]+_([0-9]{1,2})")


def read_suggestion(message: Mapping[str, Any]) -> Suggest:
    """Read one message. A segment that cannot be taken is left out, and counted."""
    listed = message.get("segments")
    if not isinstance(listed, list):
        return Suggest((), reason="segments: must be a list")
    if len(listed) > MAX_SUGGESTED_SEGMENTS:
        return Suggest((), len(listed), f"segments: at most {MAX_SUGGESTED_SEGMENTS} in a message")
    taken: list[SuggestedSegment] = []
    refused = 0
    reason: str | None = None
    for place, each in enumerate(listed):
        try:
            segment = _read_segment(each)
        except BadRequest as error:
            refused += 1
            reason = reason or f"segments[{place}].{error}"
        else:
            # A recogniser that has heard nothing may well say so.
            if segment.text:
                taken.append(segment)
    taken.sort(key=lambda segment: segment.start)
    return Suggest(tuple(taken), refused, reason)


def _read_segment(value: Any) -> SuggestedSegment:
    fields = value if isinstance(value, dict) else {}
    text = fields.get("text")
    if not isinstance(text, str):
        raise BadRequest("text: must be text")
    if len(text) > MAX_SUGGESTED_CHARACTERS:
        raise BadRequest(f"text: at most {MAX_SUGGESTED_CHARACTERS} characters")
    start, end = _read_seconds(fields, "start"), _read_seconds(fields, "end")
    if end < start:
        raise BadRequest("end: must not be before the start")
    return SuggestedSegment(
        " ".join(text.split()), start, end, _read_speaker(fields), _read_identity(fields)
    )


def _read_seconds(fields: Mapping[str, Any], name: str) -> float:
    value: Any = fields.get(name)
    # Comparing comes first: NaN is in no range, and a huge integer is no float.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MAX_SUGGESTED_SECONDS:
        raise BadRequest(f"{name}: must be seconds since the session began")
    return float(value)


def _read_speaker(fields: Mapping[str, Any]) -> int:
    """The speaker's number, by ``speaker_id``, or else by the label; without both it is 0, as in the apps."""
    number = fields.get("speaker_id")
    if number is None and (label := fields.get("speaker")) is not None:
        found = _LABEL.fullmatch(label) if isinstance(label, str) else None
        if found is None:
            raise BadRequest("speaker: must be a label such as SPEAKER_01")
        return int(found[1])
    number = 0 if number is None else number
    if type(number) is not int or not 0 <= number <= MAX_SUGGESTED_SPEAKER:
        raise BadRequest(f"speaker_id: must be from 0 to {MAX_SUGGESTED_SPEAKER}")
    return number


def _read_identity(fields: Mapping[str, Any]) -> Identity | None:
    is_user, person_id = fields.get("is_user"), fields.get("person_id")
    if is_user is not None and not isinstance(is_user, bool):
        raise BadRequest("is_user: must be true or false")
    if is_user or person_id == USER_ID:
        return USER
    if person_id is None or person_id == "":
        return None
    if not isinstance(person_id, str) or not is_valid_id(person_id):
        raise BadRequest(f"person_id: {ID_RULE}")
    return Identity(person_id)
