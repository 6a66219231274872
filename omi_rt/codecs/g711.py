"""Telephone audio: G.711, eight bits a sample, mu-law and A-law (ITU-T Recommendation G.711)."""

from __future__ import annotations

from typing import Final

import numpy as np

from omi_rt.codecs.pcm import PCMDecoder

_BIAS: Final = 0x84


def _mulaw(code: int) -> int:
    bits = ~code & 0xFF
    size = ((((bits & 0x0F) << 3) + _BIAS) << ((bits & 0x70) >> 4)) - _BIAS
    return -size if bits & 0x80 else size


def _alaw(code: int) -> int:
    bits = code ^ 0x55
    segment = (bits & 0x70) >> 4
    size = ((bits & 0x0F) << 4) + 8
    if segment:
        size = (size + 0x100) << (segment - 1)
    return size if bits & 0x80 else -size


_TABLES: Final = {
    "mulaw": np.array([_mulaw(code) for code in range(256)], "<i2"),
    "alaw": np.array([_alaw(code) for code in range(256)], "<i2"),
}
NAMES: Final = frozenset(_TABLES)


class G711Decoder(PCMDecoder):
    """Turns each byte into a sample; messages may be cut anywhere.

    Attributes:
        concealed_packets: 0; every byte is a sample.
        failures_in_a_row: 0, likewise.
    """

    __slots__ = ("_table",)

    def __init__(self, codec: str, channels: int) -> None:
        """Take one of `NAMES`, and the number of interleaved channels, at least 1."""
        super().__init__(channels)
        self._table = _TABLES[codec]

    def decode(self, message: bytes) -> bytes:
        """Return the whole frames that there are, as interleaved s16le."""
        return super().decode(self._table[np.frombuffer(message, np.uint8)].tobytes())
