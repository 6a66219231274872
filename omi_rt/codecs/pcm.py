"""Linear PCM off the wire: interleaved s16le, cut into messages wherever the sender liked."""

from __future__ import annotations

_BYTES_PER_SAMPLE = 2


class PCMDecoder:
    """Gives whole sample frames on; the part of one that ends a message waits for the next.

    Attributes:
        concealed_packets: always 0, because there is nothing to conceal in PCM.
        failures_in_a_row: always 0 as well.
    """

    __slots__ = ("_carry", "_frame_bytes", "concealed_packets", "failures_in_a_row")

    def __init__(self, channels: int) -> None:
        """Take the number of interleaved channels, at least 1."""
        self._frame_bytes = _BYTES_PER_SAMPLE * channels
        self._carry = b""
        self.concealed_packets = 0
        self.failures_in_a_row = 0

    def decode(self, message: bytes) -> bytes:
        """Return the whole frames there are, which is the very same object where nothing is carried."""
        if not self._carry and len(message) % self._frame_bytes == 0:
            return message
        data = self._carry + message
        whole = len(data) - len(data) % self._frame_bytes
        self._carry = data[whole:]
        return data[:whole]

    def cut(self) -> None:
        """Forget the part of a sample that a lost connection ended with: what comes begins a new one."""
        self._carry = b""

    def close(self) -> None:
        """Drop what is carried. A second close does nothing."""
        self._carry = b""
