"""A record as subtitles, plain text or JSON."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from omi_rt.core.records import Record

LEAST_SECONDS = 0.001
"""A cue that lasts no time is none to many players."""


def speaker_of(segment: Mapping[str, Any]) -> str:
    """Return who speaks, for a reader."""
    if segment["is_user"]:
        return "User"
    return str(segment["person_id"] or segment["speaker"])


def to_srt(record: Record) -> str:
    """Write SubRip subtitles."""
    cues = [
        f"{number}\n{_span(segment, ',')}\n{speaker_of(segment)}: {_one_line(segment['text'])}\n"
        for number, segment in enumerate(record.segments, start=1)
    ]
    return "\n".join(cues)


def to_vtt(record: Record) -> str:
    """Write WebVTT (W3C), with the speaker as a voice."""
    cues = [
        f"{segment['id']}\n{_span(segment, '.')}\n"
        f"<v {_escape(speaker_of(segment))}>{_escape(segment['text'])}</v>\n"
        for segment in record.segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def to_txt(record: Record) -> str:
    """Write a line a segment."""
    return "".join(
        f"[{_time(segment['start'], '.')}] {speaker_of(segment)}: {_one_line(segment['text'])}\n"
        for segment in record.segments
    )


def to_json(record: Record) -> str:
    """Write one object with the session, its segments and its end."""
    whole = {"session": record.session, "segments": record.segments, "end": record.end}
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


FORMATS: Mapping[str, Callable[[Record], str]] = {
    "srt": to_srt,
    "vtt": to_vtt,
    "txt": to_txt,
    "json": to_json,
}


def _span(segment: Mapping[str, Any], point: str) -> str:
    end = max(segment["end"], segment["start"] + LEAST_SECONDS)
    return f"{_time(segment['start'], point)} --> {_time(end, point)}"


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    whole, rest = divmod(milliseconds, 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{rest:03d}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escape(text: str) -> str:
    # "-->" would end a cue's text, and "&" and "<" begin something else (WebVTT, 4.2.2).
    return html.escape(_one_line(text), quote=False)
