"""Opus, bare packets in and out: libopus through the ``ctypes`` handle of opuslib.

The one file that imports ``opuslib``. Its own ``Decoder`` copies sample by sample; the handle alone,
with one buffer that is used again and again, takes about half the time.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from typing import Any, Final

from attrs import frozen

from omi_rt.core.audio import BYTES_PER_SAMPLE
from omi_rt.core.errors import OmiRtError
from omi_rt.core.listen import OPUS_SAMPLE_RATES

MAX_PACKET_MILLISECONDS: Final = 120
_FIRST_HYBRID: Final = 12
_FIRST_CELT: Final = 16
"""Of the configurations in a packet's first byte (RFC 6716, table 2)."""
"""The longest legal packet (RFC 6716, 3.2.5)."""

_MAX_CHANNELS: Final = 2
_RESTRICTED_LOWDELAY: Final = 2051
_SET_BITRATE: Final = 4002
_GET_LOOKAHEAD: Final = 4027
# A packet of 120 ms is six frames of 20 ms, each of the 1275 bytes that RFC 6716, 3.2.1 allows, and the
# TOC byte.
_MAX_PACKET_BYTES: Final = 6 * (1275 + 2) + 2

# Every decoder writes here and copies out before it returns, so one buffer serves all of them: 23 KiB
# for the process instead of 4 to 23 KiB for each session. It binds all decoders to one thread.
_decoded = ctypes.create_string_buffer(
    max(OPUS_SAMPLE_RATES) * MAX_PACKET_MILLISECONDS // 1000 * _MAX_CHANNELS * BYTES_PER_SAMPLE
)
_decoded_address = ctypes.c_void_p(ctypes.addressof(_decoded))
_encoded = ctypes.create_string_buffer(_MAX_PACKET_BYTES)


class OpusUnavailable(OmiRtError):
    """libopus is not installed; the message says what to install."""


@frozen
class _Library:
    decoder_bytes: Any
    init_decoder: Any
    decode: Any
    encoder_bytes: Any
    init_encoder: Any
    control_encoder: Any
    encode: Any


@functools.cache
def _library() -> _Library:
    """Load libopus at its first use, so that a server of PCM alone runs without it."""
    with warnings.catch_warnings():
        # opuslib 3.0.1 compares with a literal by identity, of which Python warns when it compiles it.
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            from opuslib.api import libopus
        except Exception as error:
            # opuslib raises a bare Exception where it finds no library.
            raise OpusUnavailable(
                "Opus needs libopus, which is not installed: apt-get install libopus0"
            ) from error
    pointer, integer, length = ctypes.c_void_p, ctypes.c_int, ctypes.c_int32

    def function(name: str, *argument_types: Any) -> Any:
        # Subscription makes a new function object, so opuslib's own argument types stay as they are.
        made = libopus[name]
        made.argtypes = argument_types
        made.restype = integer
        return made

    return _Library(
        decoder_bytes=function("opus_decoder_get_size", integer),
        init_decoder=function("opus_decoder_init", pointer, length, integer),
        decode=function("opus_decode", pointer, ctypes.c_char_p, length, pointer, integer, integer),
        encoder_bytes=function("opus_encoder_get_size", integer),
        init_encoder=function("opus_encoder_init", pointer, length, integer, integer),
        # The function is variadic; these are the types of the two arguments that are always there.
        control_encoder=function("opus_encoder_ctl", pointer, integer),
        encode=function("opus_encode", pointer, ctypes.c_char_p, integer, pointer, length),
    )


class OpusDecoder:
    """Decodes one stream of bare Opus packets.

    Use all decoders of a process from one thread. The state lies in memory that Python owns, so a
    decoder that is dropped leaves nothing behind, closed or not.

    Attributes:
        concealed_packets: packets so far that could not be decoded.
        failures_in_a_row: the same since the last good packet.
    """

    __slots__ = (
        "_bytes_per_frame",
        "_capacity",
        "_decode",
        "_last_samples",
        "_state",
        "concealed_packets",
        "failures_in_a_row",
    )

    def __init__(self, sample_rate: int, channels: int) -> None:
        """Make the state.

        Args:
            sample_rate: the output's rate, one of `OPUS_SAMPLE_RATES`.
            channels: the output's channels, 1 or 2, whatever the packets hold.

        Raises:
            OpusUnavailable: libopus is not installed.
            ValueError: an argument is out of its range.
        """
        _check(sample_rate, channels)
        library = _library()
        self._state: Any = ctypes.create_string_buffer(library.decoder_bytes(channels))
        status = library.init_decoder(self._state, sample_rate, channels)
        assert status == 0, status
        self._decode = library.decode
        self._capacity = sample_rate * MAX_PACKET_MILLISECONDS // 1000
        self._bytes_per_frame = channels * BYTES_PER_SAMPLE
        self._last_samples = 0
        self.concealed_packets = 0
        self.failures_in_a_row = 0

    def decode(self, packet: bytes) -> bytes:
        """Return the interleaved s16le of a packet of 2.5 to 120 ms.

        A packet that cannot be decoded is concealed for as long as the last good one was, and
        counted; before the first good one nothing comes of it.

        Raises:
            ValueError: the decoder is closed.
        """
        state = self._state
        if state is None:
            raise ValueError("the decoder is closed")
        # An empty packet would ask libopus to conceal the whole of the buffer, so it never gets one.
        samples = (
            self._decode(state, packet, len(packet), _decoded_address, self._capacity, 0)
            if packet
            else 0
        )
        if samples > 0:
            self._last_samples = samples
            self.failures_in_a_row = 0
            return ctypes.string_at(_decoded_address, samples * self._bytes_per_frame)
        return self._conceal()

    def cut(self) -> None:
        """Go on with the next connection's packets as with those of one: a packet is never in parts."""

    def close(self) -> None:
        """Free the state. A second close does nothing."""
        self._state = None

    def _conceal(self) -> bytes:
        self.concealed_packets += 1
        self.failures_in_a_row += 1
        if self._last_samples == 0:
            return b""
        samples = self._decode(self._state, None, 0, _decoded_address, self._last_samples, 0)
        return ctypes.string_at(_decoded_address, max(samples, 0) * self._bytes_per_frame)


class OpusEncoder:
    """Encodes one stream as the Omi firmware does: restricted low delay, variable bit rate.

    Attributes:
        lookahead: by how many samples the decoded audio comes late.
    """

    __slots__ = ("_bytes_per_frame", "_encode", "_state", "lookahead")

    def __init__(self, sample_rate: int, channels: int, bitrate: int = 32_000) -> None:
        """Make the state.

        Args:
            sample_rate: one of `OPUS_SAMPLE_RATES`.
            channels: 1 or 2.
            bitrate: bits per second; libopus takes 500 to 512,000.

        Raises:
            OpusUnavailable: libopus is not installed.
            ValueError: an argument is out of its range.
        """
        _check(sample_rate, channels)
        library = _library()
        self._encode = library.encode
        self._bytes_per_frame = channels * BYTES_PER_SAMPLE
        self._state = ctypes.create_string_buffer(library.encoder_bytes(channels))
        status = library.init_encoder(self._state, sample_rate, channels, _RESTRICTED_LOWDELAY)
        assert status == 0, status
        if library.control_encoder(self._state, _SET_BITRATE, ctypes.c_int32(bitrate)) != 0:
            raise ValueError(f"Opus has no bit rate of {bitrate}")
        lookahead = ctypes.c_int32()
        library.control_encoder(self._state, _GET_LOOKAHEAD, ctypes.byref(lookahead))
        self.lookahead = lookahead.value

    def encode(self, pcm: bytes) -> bytes:
        """Return one packet of interleaved s16le.

        Raises:
            ValueError: the audio is not 2.5, 5, 10, 20, 40, 60, 80, 100 or 120 ms long.
        """
        samples, rest = divmod(len(pcm), self._bytes_per_frame)
        size = self._encode(self._state, pcm, samples, _encoded, _MAX_PACKET_BYTES)
        if rest or size < 0:
            raise ValueError(f"Opus has no packets of {samples} samples at this rate")
        return ctypes.string_at(_encoded, size)


def packet_samples(packet: bytes, sample_rate: int) -> int:
    """Return how long a packet is, in samples at ``sample_rate``; 0 where it says no length.

    The packet is not decoded: its first bytes say it (RFC 6716, 3.1 and 3.2).
    """
    if not packet:
        return 0
    configuration, code = packet[0] >> 3, packet[0] & 3
    if configuration < _FIRST_HYBRID:
        microseconds = (10_000, 20_000, 40_000, 60_000)[configuration & 3]
    elif configuration < _FIRST_CELT:
        microseconds = (10_000, 20_000)[configuration & 1]
    else:
        microseconds = (2_500, 5_000, 10_000, 20_000)[configuration & 3]
    frames = (1, 2, 2, packet[1] & 0x3F if len(packet) > 1 else 0)[code]
    return frames * microseconds * sample_rate // 1_000_000


def _check(sample_rate: int, channels: int) -> None:
    if sample_rate not in OPUS_SAMPLE_RATES:
        raise ValueError(f"Opus has no sample rate of {sample_rate} Hz")
    if channels not in {1, 2}:
        raise ValueError(f"Opus has no streams of {channels} channels")
