"""The audio that a device keeps until the server has made words of it. Pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from omi_rt.client.device import BYTES_PER_SAMPLE, DeviceMessage

if TYPE_CHECKING:
    from omi_rt.client.device import DeviceCodec

MAX_KEPT_SECONDS = 120.0
"""Twice what a server keeps of a session unless it is set otherwise."""


class KeptAudio:
    """The last messages that were sent; the oldest goes where there are over `MAX_KEPT_SECONDS`."""

    def __init__(self, codec: DeviceCodec, channels: int) -> None:
        self._is_opus = codec.is_opus
        self._frame_bytes = BYTES_PER_SAMPLE * channels
        self._most = round(MAX_KEPT_SECONDS * codec.sample_rate)
        self._messages: deque[DeviceMessage] = deque()
        self.start = 0
        """Device position in samples from which on everything sent is kept."""
        self.end = 0
        """Device position up to which audio was sent."""

    def add(self, message: DeviceMessage) -> None:
        """Keep a message that follows the one before."""
        self._messages.append(message)
        self.end = message.end
        while self.end - self.start > self._most:
            self._drop()

    def acknowledge(self, position: int) -> None:
        """Let go of what lies whole before ``position``."""
        while self._messages and self._messages[0].end <= position:
            self._drop()

    def since(self, position: int) -> list[DeviceMessage]:
        """What to send again: PCM from that very sample on, Opus from the nearest packet on."""
        found: list[DeviceMessage] = []
        start = self.start
        for message in self._messages:
            if self._is_opus:
                is_new = (start + message.end) / 2 > position
                found += [message] if is_new else []
            elif message.end > position:
                cut = max(0, position - start) * self._frame_bytes
                found.append(DeviceMessage(message.payload[cut:], message.end))
            start = message.end
        return found

    def _drop(self) -> None:
        self.start = self._messages.popleft().end
