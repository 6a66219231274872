"""What all peers share: the provider's query, the grouping of words, and the fast Opus decoder."""

from __future__ import annotations

import argparse
import ctypes
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import opuslib.api
import opuslib.api.decoder

if TYPE_CHECKING:
    from collections.abc import Iterable

OPUS_CODECS = frozenset({"opus", "opus_fs320"})
MAX_PACKET_SECONDS = 0.12
"""The longest duration one Opus packet can have (RFC 6716, section 3.2.5)."""

CLOSE_STREAM = '{"type":"CloseStream"}'

Word = tuple[int, float, float, str]
"""Speaker, start and end in seconds, punctuated text."""


def parse_port(description: str | None) -> int:
    """The port to listen on, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, required=True)
    return int(parser.parse_args().port)


def deepgram_url() -> str:
    """The provider's base URL, ``ws://`` or ``wss://``, without a trailing slash."""
    return os.environ["DEEPGRAM_URL"].rstrip("/")


def authorization() -> dict[str, str]:
    """The header that the provider wants."""
    return {"Authorization": f"Token {os.environ['DEEPGRAM_API_KEY']}"}


def live_options(language: str, sample_rate: int, channels: int) -> dict[str, Any]:
    """The provider's options, as the server under test sends them by default."""
    return {
        "language": language,
        "sample_rate": sample_rate,
        "encoding": "linear16",
        "channels": channels,
        "punctuate": True,
        "no_delay": True,
        "endpointing": 100,
        "interim_results": False,
        "smart_format": True,
        "profanity_filter": False,
        "diarize": True,
        "filler_words": False,
        "multichannel": channels > 1,
        "model": "nova-2-general",
    }


def listen_url(language: str, sample_rate: int, channels: int) -> str:
    """The whole URL of one live connection to the provider."""
    options = live_options(language, sample_rate, channels)
    query = {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in options.items()
    }
    return f"{deepgram_url()}/v1/listen?{urlencode(query)}"


def group_words(words: Iterable[Word]) -> list[dict[str, Any]]:
    """Join neighbouring words of one speaker into segments."""
    segments: list[dict[str, Any]] = []
    current: dict[str, Any] | None = None
    for speaker, start, end, text in words:
        if current is not None and current["speaker_id"] == speaker:
            current["end"] = end
            current["text"] += " " + text
            continue
        current = {
            "speaker": f"SPEAKER_{speaker:02d}",
            "speaker_id": speaker,
            "start": start,
            "end": end,
            "text": text,
            "is_user": False,
            "person_id": None,
        }
        segments.append(current)
    return segments


def segments_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The segments of one message of the provider; none unless it is a final with words."""
    if message.get("type") != "Results" or not message.get("is_final"):
        return []
    return group_words(
        (word.get("speaker", 0), word["start"], word["end"], word["punctuated_word"])
        for word in message["channel"]["alternatives"][0]["words"]
    )


class OpusDecoder:
    """libopus through opuslib's ctypes handle, into one output buffer that is used again.

    ``opuslib.Decoder.decode`` copies its output sample by sample through Python integers; this does not.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._state = opuslib.api.decoder.create_state(sample_rate, channels)
        self._room = int(sample_rate * MAX_PACKET_SECONDS)
        self._bytes_per_sample = 2 * channels
        self._output = ctypes.create_string_buffer(self._room * self._bytes_per_sample)
        self._pointer = ctypes.cast(self._output, opuslib.api.c_int16_pointer)
        self._view = memoryview(self._output).cast("B")

    def __del__(self) -> None:
        if hasattr(self, "_state"):
            opuslib.api.decoder.destroy(self._state)

    def decode(self, packet: bytes) -> memoryview:
        """The packet's samples, s16le; valid until the next call.

        Raises:
            ValueError: libopus refused the packet.
        """
        samples = opuslib.api.decoder.libopus_decode(
            self._state, packet, len(packet), self._pointer, self._room, 0
        )
        if samples < 0:
            raise ValueError(f"libopus answered {samples}")
        return self._view[: samples * self._bytes_per_sample]
