"""Records of sessions: the lines that are kept, and the transcript that they add up to."""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Any

from attrs import frozen

from omi_rt.core import events
from omi_rt.core.json import JSONError, dumps, loads
from omi_rt.core.segments import speaker_name
from omi_rt.core.speakers import Identified, Merged
from omi_rt.core.updates import Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.observers import SessionFacts
    from omi_rt.core.updates import Update

NOBODY = "..nobody"
"""The folder of sessions without a uid: no uid can be called so."""
FOLDER = "sessions"
LINES = ".jsonl"
SESSION_ID = re.compile(r"[0-9a-f]{32}")
BUCKET_SCHEME = "gs://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_PREFIX_PART = re.compile(r"[A-Za-z0-9._-]+")
_KEPT_EVENTS = frozenset({"audio_lost", "session_ended"})


class AudioKind(Enum):
    """How audio is kept; the values are the suffixes of its files."""

    WAV = ".wav"
    FLAC = ".flac"


SUFFIXES = frozenset({LINES, *(kind.value for kind in AudioKind)})
"""Of the files of a record."""


@frozen
class BucketPlace:
    """Where records are in Google Cloud Storage."""

    bucket: str
    prefix: str = ""
    """What all their names begin with; empty, or with ``/`` at its end."""

    def __str__(self) -> str:
        return f"{BUCKET_SCHEME}{self.bucket}/{self.prefix}".rstrip("/")


def parse_bucket_place(text: str) -> BucketPlace:
    """Read ``gs://BUCKET[/PREFIX]``; raises ``ValueError``."""
    bucket, _, path = text.removeprefix(BUCKET_SCHEME).partition("/")
    parts = path.rstrip("/").split("/") if path.strip("/") else []
    good = all(_PREFIX_PART.fullmatch(part) and part.strip(".") for part in parts)
    if not text.startswith(BUCKET_SCHEME) or not _BUCKET.fullmatch(bucket) or not good:
        raise ValueError
    return BucketPlace(bucket, "".join(f"{part}/" for part in parts))


def is_file_of_record(name: str) -> bool:
    """Whether a name below the root is that of a file of a record: nothing else there is ours."""
    uid, folder, file = ["", "", *name.split("/")][-3:]
    session, _, rest = file.partition(".")
    return (
        name.count("/") == 2
        and bool(uid)
        and folder == FOLDER
        and SESSION_ID.fullmatch(session) is not None
        and any(f".{rest}".endswith(suffix) for suffix in SUFFIXES)
    )


class NoRecord(ValueError):
    """What was read is no record of a session."""


def folder_of(uid: str) -> str:
    """Return where the records of a uid are, below the root."""
    return f"{uid or NOBODY}/{FOLDER}"


def first_line(facts: SessionFacts) -> str:
    """Return the line that says what the record is of."""
    return _line(
        {
            "type": "session",
            "id": facts.id,
            "uid": facts.uid,
            "language": facts.language,
            "sample_rate": facts.audio_format.sample_rate,
            "channels": facts.audio_format.channels,
            "began_at": facts.began_at.isoformat(),
        }
    )


def line_of(update: Update, audio_format: AudioFormat) -> str | None:
    """Return the line that keeps an update; None where it is not kept."""
    match update:
        case Final(segments=segments) if segments:
            written = [segment.as_json(audio_format) for segment in segments]
            return _line({"type": "segments", "segments": written})
        case Merged():
            return _line(events.speakers_merged(update, update.segment_ids))
        case Identified():
            return _line(events.speaker_identified(update, update.segment_ids))
        case {"type": kind} if kind in _KEPT_EVENTS:
            assert isinstance(update, dict)
            return _line(update)
        case _:
            return None


@frozen
class Record:
    """A session as it is known in the end: corrections are applied."""

    session: dict[str, Any]
    segments: list[dict[str, Any]]
    """In order of time."""
    end: dict[str, Any] | None
    """``session_ended``; None where the session runs, or was cut off."""


def read_record(content: bytes) -> Record:
    """Read the lines of a record and apply the corrections. A last line without its end is left out.

    Raises:
        NoRecord: it is none.
    """
    whole, _, _ = content.rpartition(b"\n")
    session: dict[str, Any] | None = None
    end = None
    segments: dict[str, dict[str, Any]] = {}
    try:
        for line in whole.split(b"\n"):
            message = loads(line)
            kind = message["type"]
            if kind == "session":
                session = message
            elif kind == "segments":
                segments |= {segment["id"]: segment for segment in message["segments"]}
            elif kind == "session_ended":
                end = message
            else:
                _correct(segments, message)
    except (JSONError, KeyError, TypeError, AttributeError):
        raise NoRecord("it is no record of a session") from None
    if session is None:
        raise NoRecord("it does not say of which session it is")
    return Record(session, sorted(segments.values(), key=lambda s: (s["start"], s["end"])), end)


def _correct(segments: dict[str, dict[str, Any]], event: dict[str, Any]) -> None:
    change: Callable[[dict[str, Any]], None]
    if event["type"] == "speakers_merged":
        speaker = {"speaker_id": event["into"], "speaker": speaker_name(event["into"])}

        def change(segment: dict[str, Any]) -> None:
            segment.update(speaker)
    elif event["type"] == "speaker_identified":
        whose = {"is_user": event["is_user"], "person_id": event["person_id"]}

        def change(segment: dict[str, Any]) -> None:
            segment.update(whose)
    else:
        return
    for segment_id in event["segment_ids"]:
        if segment_id in segments:
            change(segments[segment_id])


def _line(message: dict[str, Any]) -> str:
    return dumps(message) + "\n"
