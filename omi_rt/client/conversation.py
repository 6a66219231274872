"""What a device knows of its session, over all of its connections. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from omi_rt.client.kept import KeptAudio

if TYPE_CHECKING:
    from omi_rt.client.device import DeviceCodec

JSONObject = dict[str, Any]
_TIMES = {
    "audio_lost": ("start", "end"),
    "session_ended": ("received", "finalised"),
    "audio_received": ("received", "finalised"),
}
"""The session times in events, which become times of the recording."""


class Conversation:
    """Takes the server's messages, each once, and puts their times onto the recording's clock.

    The two clocks differ where a server has forgotten the session, and another has begun within
    the recording.
    """

    def __init__(self, codec: DeviceCodec, channels: int) -> None:
        self.kept = KeptAudio(codec, channels)
        self.secret: str | None = None
        """With which the session can be taken up; None where the server has not told one yet."""
        self.may_come_back = False
        """Whether the server has ever told how."""
        self.goes_on_at: int | None = 0
        """Device position from which on audio is to be sent; None until the server has said it."""
        self.is_new_session = False
        """Whether the server had forgotten the one before."""
        self._rate = codec.sample_rate
        self._last_seq = 0
        self._zero = 0
        """Device position of the session clock's zero."""
        self._finalised = 0
        """Device position up to which there is nothing to send again, come what may."""
        self._said_until = [0] * channels

    def come_back(self) -> dict[str, str | int]:
        """Return the parameters of another connection; the server's first words say how it goes on."""
        self.goes_on_at = None
        return {"resume": self.secret or "", "after": self._last_seq}

    def take(self, text: str) -> list[JSONObject] | JSONObject | None:
        """Take a message: segments, or an event; None for what is neither, or has come before."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if isinstance(message, list):
            segments = [each for each in message if isinstance(each, dict) and self._is_new(each)]
            return [self._take_segment(each) for each in segments] or None
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            return None
        return self._take_event(message) if self._is_new(message) else None

    def _is_new(self, part: JSONObject) -> bool:
        seq = part.pop("seq", None)
        if not isinstance(seq, int):
            return True
        is_new = seq > self._last_seq
        self._last_seq = max(self._last_seq, seq)
        return is_new

    def _take_segment(self, segment: JSONObject) -> JSONObject:
        self._shift(segment, ("start", "end"))
        end, channel = segment.get("end"), segment.get("channel", 0)
        if isinstance(end, int | float) and channel in range(len(self._said_until)):
            self._said_until[channel] = max(self._said_until[channel], round(end * self._rate))
        return segment

    def _take_event(self, event: JSONObject) -> JSONObject:
        self._shift(event, _TIMES.get(event["type"], ()))
        if event["type"] in {"audio_received", "session_ended"}:
            finalised = event.get("finalised")
            if isinstance(finalised, int | float):
                self._finalised = max(self._finalised, round(finalised * self._rate))
                self.kept.acknowledge(self._finalised)
        elif event["type"] == "service_status":
            self._take_status(event)
        return event

    def _take_status(self, event: JSONObject) -> None:
        secret, received = event.pop("resume", None), event.get("received")
        match event.get("status"):
            case "initiating" | "ready" if isinstance(secret, str):
                self.secret, self.may_come_back = secret, True
            case "resumed" if isinstance(received, int | float):
                self.is_new_session = False
                self.goes_on_at = self._zero + round(received * self._rate)
            case "resume_unknown":
                # Channel by channel segments come in order, so that what was said is final.
                self._finalised = max(self._finalised, min(self._said_until), self.kept.start)
                self.is_new_session, self.secret, self._last_seq = True, None, 0
                self.goes_on_at = self._zero = self._finalised

    def _shift(self, part: JSONObject, names: tuple[str, ...]) -> None:
        for name in names:
            value = part.get(name)
            if self._zero and isinstance(value, int | float):
                part[name] = round(value + self._zero / self._rate, 6)
