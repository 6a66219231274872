"""What devices send, as audio: Opus, PCM and the messages that are neither."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
import weakref
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omi_rt.codecs import AudioDecoder, open_decoder, opus
from omi_rt.codecs.opus import OpusDecoder, OpusEncoder, OpusUnavailable
from omi_rt.codecs.pcm import PCMDecoder
from omi_rt.core.listen import OPUS_SAMPLE_RATES

if TYPE_CHECKING:
    from pathlib import Path

UNDECODABLE = b"\xff\xff\xff"
LENGTHS_MS = [2.5, 5, 10, 20, 40, 60, 80, 100, 120]


def speechlike(sample_rate: int, seconds: float, channels: int = 1) -> bytes:
    """Return a few harmonics that swell and fade, a different voice on each channel."""
    time = np.arange(round(sample_rate * seconds)) / sample_rate
    voices = [
        sum(
            np.sin(2 * np.pi * pitch * harmonic * time) * 6_000 / harmonic for harmonic in (1, 2, 3)
        )
        * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))
        for pitch in (220, 330)[:channels]
    ]
    return np.stack(voices, axis=1).astype("<i2").tobytes()


def packets(pcm: bytes, sample_rate: int, channels: int, milliseconds: float) -> list[bytes]:
    encoder = OpusEncoder(sample_rate, channels, 64_000)
    size = round(sample_rate * milliseconds / 1000) * 2 * channels
    return [encoder.encode(pcm[at : at + size]) for at in range(0, len(pcm) - size + 1, size)]


def samples(pcm: bytes) -> Any:
    return np.frombuffer(pcm, "<i2").astype(float)


@pytest.mark.parametrize("milliseconds", LENGTHS_MS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_packet_of_any_legal_length_decodes_to_just_that_length(
    milliseconds: float, channels: int
) -> None:
    packet = packets(speechlike(16_000, 0.12, channels), 16_000, channels, milliseconds)[0]
    decoded = OpusDecoder(16_000, channels).decode(packet)
    assert len(decoded) == round(16 * milliseconds) * 2 * channels


@pytest.mark.parametrize("sample_rate", OPUS_SAMPLE_RATES)
@pytest.mark.parametrize("channels", [1, 2])
def test_what_comes_out_is_what_went_in_after_the_lookahead(
    sample_rate: int, channels: int
) -> None:
    pcm = speechlike(sample_rate, 1.0, channels)
    encoder = OpusEncoder(sample_rate, channels, 64_000 * channels)
    size = sample_rate // 50 * 2 * channels
    decoder = OpusDecoder(sample_rate, channels)
    decoded = b"".join(
        decoder.decode(encoder.encode(pcm[at : at + size])) for at in range(0, len(pcm), size)
    )
    assert len(decoded) == len(pcm)
    assert encoder.lookahead == sample_rate // 400
    late = encoder.lookahead * channels
    wanted, heard = samples(pcm)[:-late], samples(decoded)[late:]
    signal_to_noise = 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - heard) ** 2))
    assert signal_to_noise > 20
    assert decoder.concealed_packets == decoder.failures_in_a_row == 0


def test_packets_of_changing_length_decode_in_one_stream() -> None:
    encoder, decoder = OpusEncoder(16_000, 1), OpusDecoder(16_000, 1)
    pcm = speechlike(16_000, 0.5)
    at = 0
    for milliseconds in (20, 10, 60, 2.5, 120):
        size = round(16 * milliseconds) * 2
        assert len(decoder.decode(encoder.encode(pcm[at : at + size]))) == size
        at += size


def test_the_decoder_of_one_session_does_not_hear_another() -> None:
    """They share one output buffer."""
    first = packets(speechlike(16_000, 0.4), 16_000, 1, 20)
    second = packets(speechlike(16_000, 0.4)[::-1], 16_000, 1, 20)
    alone = OpusDecoder(16_000, 1)
    wanted = [alone.decode(packet) for packet in first]
    one, other = OpusDecoder(16_000, 1), OpusDecoder(48_000, 2)
    heard = []
    for mine, theirs in zip(first, second, strict=True):
        heard.append(one.decode(mine))
        other.decode(theirs)
    assert heard == wanted


def test_an_undecodable_packet_is_concealed_for_as_long_as_the_last_good_one() -> None:
    decoder = OpusDecoder(16_000, 1)
    good = packets(speechlike(16_000, 0.2), 16_000, 1, 20)
    for packet in good:
        last = decoder.decode(packet)
    concealed = decoder.decode(UNDECODABLE)
    assert len(concealed) == len(last)
    # Concealment goes on with what was there; it is not silence.
    assert np.abs(samples(concealed)).max() > 1_000


def test_concealing_follows_the_length_of_the_last_good_packet() -> None:
    decoder = OpusDecoder(16_000, 2)
    pcm = speechlike(16_000, 0.5, 2)
    for milliseconds in (60, 2.5, 120):
        decoder.decode(packets(pcm, 16_000, 2, milliseconds)[0])
        assert len(decoder.decode(UNDECODABLE)) == round(16 * milliseconds) * 4


@pytest.mark.parametrize("packet", [UNDECODABLE, b""])
def test_before_the_first_good_packet_nothing_is_made_up(packet: bytes) -> None:
    decoder = OpusDecoder(16_000, 1)
    assert decoder.decode(packet) == b""
    assert decoder.concealed_packets == decoder.failures_in_a_row == 1


def test_an_empty_packet_is_concealed_not_120_ms_long() -> None:
    decoder = OpusDecoder(16_000, 1)
    decoder.decode(packets(speechlike(16_000, 0.02), 16_000, 1, 10)[0])
    assert len(decoder.decode(b"")) == 320
    assert decoder.concealed_packets == 1


def test_a_good_packet_ends_the_failures_in_a_row_but_not_the_total() -> None:
    decoder = OpusDecoder(16_000, 1)
    good = packets(speechlike(16_000, 0.02), 16_000, 1, 10)[0]
    for count in range(1, 61):
        decoder.decode(UNDECODABLE)
        assert decoder.failures_in_a_row == count
    decoder.decode(good)
    assert (decoder.failures_in_a_row, decoder.concealed_packets) == (0, 60)
    decoder.decode(UNDECODABLE)
    assert (decoder.failures_in_a_row, decoder.concealed_packets) == (1, 61)


@given(st.lists(st.binary(max_size=64), max_size=8))
@settings(deadline=None)
def test_no_message_raises_or_gives_over_120_ms_or_a_broken_frame(messages: list[bytes]) -> None:
    decoder = OpusDecoder(16_000, 2)
    for message in messages:
        decoded = decoder.decode(message)
        assert len(decoded) <= 1_920 * 4
        assert len(decoded) % 4 == 0


def test_closing_twice_is_closing_once_and_a_closed_decoder_says_so() -> None:
    decoder = OpusDecoder(16_000, 1)
    decoder.close()
    decoder.close()
    with pytest.raises(ValueError, match="closed"):
        decoder.decode(b"\x08\x00")


def test_a_closed_decoder_frees_its_state() -> None:
    decoder = OpusDecoder(16_000, 1)
    state = weakref.ref(decoder._state)
    assert state() is not None
    decoder.close()
    assert state() is None


@pytest.mark.parametrize(("sample_rate", "channels"), [(44_100, 1), (0, 1), (16_000, 3)])
@pytest.mark.parametrize("codec", [OpusDecoder, OpusEncoder])
def test_opus_refuses_what_it_does_not_have(
    codec: type[OpusDecoder | OpusEncoder], sample_rate: int, channels: int
) -> None:
    with pytest.raises(ValueError, match="Opus has no"):
        codec(sample_rate, channels)


@pytest.mark.parametrize("size", [0, 2, 318, 319, 321, 16_000])
def test_the_encoder_refuses_a_frame_of_no_legal_length(size: int) -> None:
    with pytest.raises(ValueError, match="no packets of"):
        OpusEncoder(16_000, 1).encode(bytes(size))


def test_the_encoder_refuses_an_impossible_bit_rate() -> None:
    with pytest.raises(ValueError, match="bit rate of -5"):
        OpusEncoder(16_000, 1, -5)


def test_the_device_s_bit_rate_is_32_kb_a_second() -> None:
    encoder = OpusEncoder(16_000, 1)
    pcm = speechlike(16_000, 2.0)
    size = sum(len(encoder.encode(pcm[at : at + 320])) for at in range(0, len(pcm), 320))
    assert 28_000 < size * 8 / 2 < 36_000


def test_without_libopus_opening_a_decoder_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "opuslib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    opus._library.cache_clear()
    with pytest.raises(OpusUnavailable, match="libopus0") as caught:
        open_decoder("opus", 16_000, 1)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert open_decoder("opus", 16_000, 1).decode(b"") == b""


@pytest.mark.realtime
def test_opuslib_s_own_warnings_do_not_leak_under_w_error(tmp_path: Path) -> None:
    """With an empty byte code cache, so that opuslib is compiled and warns."""
    code = "from omi_rt.codecs import open_decoder; open_decoder('opus', 16000, 1)"
    command = [sys.executable, "-W", "error", "-X", f"pycache_prefix={tmp_path}", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_whole_pcm_messages_pass_without_a_copy() -> None:
    decoder = PCMDecoder(2)
    message = b"aabb" * 10
    assert decoder.decode(message) is message


@given(st.integers(1, 8), st.lists(st.binary(max_size=40), max_size=20))
def test_however_pcm_is_cut_the_sample_grid_holds(channels: int, messages: list[bytes]) -> None:
    decoder = PCMDecoder(channels)
    heard = b""
    for message in messages:
        decoded = decoder.decode(message)
        assert len(decoded) % (2 * channels) == 0
        heard += decoded
    sent = b"".join(messages)
    assert heard == sent[: len(sent) // (2 * channels) * 2 * channels]
    assert decoder.concealed_packets == decoder.failures_in_a_row == 0


def test_an_odd_byte_waits_for_the_next_message() -> None:
    decoder = PCMDecoder(1)
    assert [decoder.decode(part) for part in (b"abc", b"d", b"", b"e", b"fg")] == [
        b"ab",
        b"cd",
        b"",
        b"",
        b"ef",
    ]


def test_closing_a_pcm_decoder_drops_what_it_carries() -> None:
    decoder = PCMDecoder(1)
    decoder.decode(b"a")
    decoder.close()
    decoder.close()
    assert decoder.decode(b"bc") == b"bc"


@pytest.mark.parametrize("codec", ["opus", "opus_fs320"])
def test_both_opus_names_take_packets_of_any_length(codec: str) -> None:
    decoder = open_decoder(codec, 16_000, 1)
    pcm = speechlike(16_000, 0.1)
    assert len(decoder.decode(packets(pcm, 16_000, 1, 10)[0])) == 320
    assert len(decoder.decode(packets(pcm, 16_000, 1, 60)[0])) == 1_920


@pytest.mark.parametrize("codec", ["pcm16", "linear16", "pcm8"])
def test_every_pcm_name_is_s16le(codec: str) -> None:
    decoder: AudioDecoder = open_decoder(codec, 8_000, 1)
    assert decoder.decode(b"\x01\x02\x03") == b"\x01\x02"
    decoder.close()


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="'aac'"):
        open_decoder("aac", 16_000, 1)


def test_a_fake_pong_would_be_10_ms_of_audio_to_the_decoder() -> None:
    """Why it must be dropped before it is decoded."""
    assert len(OpusDecoder(16_000, 1).decode(b"\x8a\x00")) == 320


@pytest.mark.parametrize(("codec", "subtype"), [("mulaw", "ULAW"), ("alaw", "ALAW")])
def test_g711_is_decoded_as_another_library_decodes_it(codec: str, subtype: str) -> None:
    codes = bytes(range(256))
    wanted, _ = soundfile.read(
        BytesIO(codes), dtype="int16", format="RAW", subtype=subtype, samplerate=8000, channels=1
    )
    assert open_decoder(codec, 8000, 1).decode(codes) == wanted.astype("<i2").tobytes()


def test_g711_of_several_channels_may_be_cut_anywhere() -> None:
    codes = bytes(range(250))
    whole = open_decoder("alaw", 8000, 2).decode(codes)
    decoder = open_decoder("alaw", 8000, 2)
    assert b"".join(decoder.decode(codes[start : start + 7]) for start in range(0, 250, 7)) == whole
