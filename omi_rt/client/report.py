"""The outcome of a stream: the transcript with its corrections, and what the server told on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Mapping


class Return(Protocol):
    """A lost connection has a successor."""

    @property
    def away_seconds(self) -> float: ...
    @property
    def resent_seconds(self) -> float: ...
    @property
    def missing_seconds(self) -> float: ...
    @property
    def is_new_session(self) -> bool: ...


JSONObject = dict[str, Any]

_STATUSES = {
    "stt_degraded": "the speech service failed; the server keeps trying",
    "stt_recovered": "the speech service is back",
    "stt_failed": "the speech service has failed",
    "stt_behind": "the speech service is falling behind",
    "stt_caught_up": "the speech service has caught up",
    "identities_unavailable": "nobody will be recognised by voice",
}


@define
class StreamReport:
    """Collects a session's segments, applies the corrections, and puts events into words."""

    segments: list[JSONObject] = field(factory=list, repr=False)
    """The segments in the order in which they came, as they are known now."""
    is_corrected: bool = False
    """Whether anything that had been shown before is known better now."""
    problem: str = ""
    """The last reason that the server gave for a failure."""
    sent_seconds: float = 0.0
    """Audio that has gone out."""
    lost_seconds: float = 0.0
    """Audio that the server has said to be lost."""
    missing_seconds: float = 0.0
    """Audio that was lost on the way, and was not kept any more."""

    def add(self, segments: list[JSONObject]) -> None:
        """Take segments that have come."""
        self.segments += segments

    def describe(self, event: Mapping[str, Any]) -> str | None:
        """Take an event; return the line to show for it, or None where it tells nothing new."""
        match event.get("type"):
            case "service_status":
                return self._describe_status(event)
            case "audio_lost":
                start, end = _number(event.get("start")), _number(event.get("end"))
                self.lost_seconds += end - start
                return f"lost {end - start:.1f} s of audio: {start:.2f} - {end:.2f}"
            case "undecodable_audio":
                return "the server cannot decode the audio: is the codec right?"
            case "speakers_merged":
                return self._merge(event)
            case "speaker_identified":
                return self._identify(event)
        return None

    def describe_return(self, back: Return) -> str:
        """Take the end of an absence; returns the line to show for it."""
        self.missing_seconds += back.missing_seconds
        return describe_return(back)

    @property
    def words(self) -> int:
        """How many words were understood."""
        return sum(len(str(segment.get("text", "")).split()) for segment in self.segments)

    def summary(self, session_ended: Mapping[str, Any] | None) -> str:
        """Return the last line, which says what was sent, understood and lost, and why.

        Args:
            session_ended: the server's account; where it gave none, None, and the client's own is told.
        """
        account = session_ended or {"received": self.sent_seconds, "lost": self.lost_seconds}
        lost = _number(account.get("lost")) + self.missing_seconds
        line = f"sent {_number(account.get('received')):.1f} s, {self.words} words"
        line += f", lost {lost:.1f} s"
        return f"{line}: {self.problem}" if lost and self.problem else line

    def _describe_status(self, event: Mapping[str, Any]) -> str | None:
        status, reason = str(event.get("status")), event.get("reason")
        text = _STATUSES.get(status)
        if text is None:
            return None
        if reason and status in {"stt_degraded", "stt_failed"}:
            self.problem = str(reason)
        return f"{text}: {reason}" if reason else text

    def _merge(self, event: Mapping[str, Any]) -> str:
        source, into = _name(event.get("from")), _name(event.get("into"))
        for segment in self._corrected(event, source):
            segment["speaker"], segment["speaker_id"] = into, event.get("into")
        return f"{source} is {into}"

    def _identify(self, event: Mapping[str, Any]) -> str:
        speaker = str(event.get("speaker"))
        is_user, person = event.get("is_user") is True, event.get("person_id")
        is_known = is_user or bool(person)
        # Somebody known has said these segments alone, because the number may stand for others too.
        for segment in self._corrected(event, None if is_known else speaker):
            segment["is_user"], segment["person_id"] = is_user, person
        if is_user:
            return f"{speaker} is the user"
        return f"{speaker} is {person}" if person else f"{speaker} is nobody known after all"

    def _corrected(self, event: Mapping[str, Any], speaker: str | None) -> list[JSONObject]:
        """Return the segments that an event corrects: those it lists, and all others of a speaker."""
        ids = event.get("segment_ids")
        listed = set(ids) if isinstance(ids, list) else set()
        found = [s for s in self.segments if s.get("id") in listed or s.get("speaker") == speaker]
        self.is_corrected |= bool(found)
        return found


def describe_return(back: Return) -> str:
    """Put the end of an absence into one line."""
    line = f"the connection was lost, and is back after {back.away_seconds:.1f} s"
    if back.is_new_session:
        line += " in a new session"
    line += f": {back.resent_seconds:.1f} s of audio sent again"
    if back.missing_seconds:
        line += f", {back.missing_seconds:.1f} s lost, because it was not kept any more"
    return line


def _name(number: object) -> str:
    return f"SPEAKER_{number:02d}" if isinstance(number, int) else "?"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
