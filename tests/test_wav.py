"""WAV files: what is read, what is refused, and what conversion keeps."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omi_rt.codecs.wav import (
    WavAudio,
    WavError,
    convert,
    missing_wav_share,
    read_wav,
    write_wav,
)

PCM_SUBFORMAT = bytes.fromhex("0100000000001000800000aa00389b71")
FLOAT_SUBFORMAT = bytes.fromhex("0300000000001000800000aa00389b71")


def wav_file(
    body: bytes,
    *,
    tag: int = 1,
    channels: int = 1,
    sample_rate: int = 16_000,
    bits: int = 16,
    frame_bytes: int | None = None,
    extension: bytes = b"",
    data_size: int | None = None,
    before_data: bytes = b"",
) -> bytes:
    frame_bytes = channels * bits // 8 if frame_bytes is None else frame_bytes
    fmt = struct.pack(
        "<HHIIHH", tag, channels, sample_rate, sample_rate * frame_bytes, frame_bytes, bits
    )
    fmt += extension
    size = len(body) if data_size is None else data_size
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + before_data
    chunks += b"data" + struct.pack("<I", size) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def extension(subformat: bytes, valid_bits: int = 16) -> bytes:
    return struct.pack("<HHI", 22, valid_bits, 0) + subformat


def tone(hertz: float, sample_rate: int, seconds: float, peak: float = 12_000.0) -> Any:
    time = np.arange(round(sample_rate * seconds)) / sample_rate
    return np.sin(2 * np.pi * hertz * time) * peak


def mono(samples: Any, sample_rate: int = 16_000) -> WavAudio:
    return WavAudio(sample_rate, 1, np.rint(samples).astype("<i2").tobytes())


@given(
    st.sampled_from([8_000, 11_025, 16_000, 44_100, 48_000]),
    st.integers(1, 8),
    st.binary(max_size=400),
)
@settings(deadline=None)
def test_what_is_written_is_read_back_byte_for_byte(
    sample_rate: int, channels: int, noise: bytes
) -> None:
    audio = WavAudio(sample_rate, channels, noise[: len(noise) // (2 * channels) * 2 * channels])
    assert read_wav(write_wav(audio)) == audio


def test_samples_and_seconds_count_each_channel_once() -> None:
    audio = read_wav(wav_file(bytes(4 * 441), channels=2, sample_rate=44_100))
    assert (audio.samples, audio.seconds) == (441, 0.01)


def test_a_repr_shows_no_audio() -> None:
    assert repr(WavAudio(8_000, 1, b"ab")) == "WavAudio(sample_rate=8000, channels=1)"


def test_the_extensible_format_with_16_bit_pcm_is_read() -> None:
    data = wav_file(b"abcd", tag=0xFFFE, channels=2, extension=extension(PCM_SUBFORMAT))
    assert read_wav(data) == WavAudio(16_000, 2, b"abcd")


def test_chunks_before_the_audio_are_skipped_with_their_padding() -> None:
    odd_list = b"LIST" + struct.pack("<I", 3) + b"abc" + b"\0"
    assert read_wav(wav_file(b"wxyz", before_data=odd_list)).pcm == b"wxyz"


def test_8_bits_are_unsigned_and_become_the_upper_byte() -> None:
    audio = read_wav(wav_file(bytes([0, 128, 129, 255]), bits=8))
    assert np.frombuffer(audio.pcm, "<i2").tolist() == [-32_768, 0, 256, 32_512]


@pytest.mark.parametrize("bits", [24, 32])
def test_wider_integers_keep_their_upper_16_bits(bits: int) -> None:
    wanted = [-32_768, -1, 0, 1, 32_767]
    low = b"\x7f" * (bits // 8 - 2)
    body = b"".join(low + struct.pack("<h", value) for value in wanted)
    audio = read_wav(wav_file(body, bits=bits))
    assert np.frombuffer(audio.pcm, "<i2").tolist() == wanted


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF, 10])
def test_of_a_truncated_file_the_whole_frames_are_taken(size: int) -> None:
    audio = read_wav(wav_file(b"abcdefg", channels=2, data_size=size))
    assert audio.pcm == b"abcd"


@pytest.mark.parametrize(("riff_size", "size"), [(0, 0), (36, 0), (0xFFFF_FFFF, 0xFFFF_FFFF)])
def test_of_a_file_from_a_pipe_all_is_taken_and_nothing_missed(riff_size: int, size: int) -> None:
    data = wav_file(b"abcdef", data_size=size)
    data = data[:4] + struct.pack("<I", riff_size) + data[8:]
    assert read_wav(data).pcm == b"abcdef"
    assert missing_wav_share(data) == 0.0


def test_an_empty_data_chunk_in_a_whole_file_is_empty() -> None:
    trailer = b"LIST" + struct.pack("<I", 4) + b"abcd"
    data = wav_file(b"", data_size=0) + trailer
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    assert read_wav(data).pcm == b""
    assert missing_wav_share(data) == 0.0


@pytest.mark.parametrize(
    ("data", "share"),
    [
        (b"", 0.0),
        (b"RIFF", 0.0),
        (wav_file(b"")[:30], 0.0),
        (wav_file(bytes(100)), 0.0),
        (wav_file(bytes(100)) + b"trailer", 0.0),
        (wav_file(bytes(25), data_size=100), 0.75),
        (wav_file(b"", data_size=100), 1.0),
        (wav_file(bytes(25), tag=7, bits=8, data_size=100), 0.75),
    ],
)
def test_what_a_file_announces_and_does_not_have_is_told(data: bytes, share: float) -> None:
    assert missing_wav_share(data) == share


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no RIFF WAVE header"),
        (b"ID3\x04" + bytes(40), "no RIFF WAVE header"),
        (wav_file(b"")[:20], "broken format chunk"),
        (wav_file(b"")[:36], "no data chunk.: it is truncated$"),
        (b"RIFF\x1c\0\0\0" + wav_file(b"")[8:36], "no data chunk.$"),
        (b"RIFF\0\0\0\0WAVEfmt \x04\0\0\0abcd", "broken format chunk"),
        (b"RIFF\0\0\0\0WAVEdata\x04\0\0\0abcd", "before its format"),
        (wav_file(b"", tag=3, bits=32), "floating point, not linear PCM"),
        (wav_file(b"", tag=7, bits=8), "mu-law, not linear PCM"),
        (wav_file(b"", tag=0x1234), "format 0x1234, not linear PCM"),
        (
            wav_file(b"", tag=0xFFFE, bits=32, extension=extension(FLOAT_SUBFORMAT, 32)),
            "floating point, not linear PCM",
        ),
        (wav_file(b"", tag=0xFFFE), "format 0xfffe, not linear PCM"),
        (wav_file(b"", bits=12, frame_bytes=2), "12 bits per sample"),
        (wav_file(b"", channels=0), "no channels"),
        (wav_file(b"", sample_rate=1), "sample rate of 1 Hz"),
        (wav_file(b"", frame_bytes=3), "contradicts itself"),
    ],
)
def test_anything_else_is_refused_in_one_clear_line(data: bytes, says: str) -> None:
    with pytest.raises(WavError, match=says) as caught:
        read_wav(data)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=60), st.integers(0, 44), st.binary(min_size=1, max_size=8))
@settings(deadline=None)
def test_no_bytes_at_all_raise_anything_but_a_wav_error(
    noise: bytes, position: int, patch: bytes
) -> None:
    whole = wav_file(bytes(16))
    for data in (noise, whole[:position] + patch + whole[position + len(patch) :]):
        try:
            audio = read_wav(data)
        except WavError:
            continue
        assert len(audio.pcm) % (2 * audio.channels) == 0


def test_a_file_over_4_gib_is_not_written() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 32

    with pytest.raises(WavError, match="4 GiB"):
        write_wav(WavAudio(48_000, 2, Huge()))


def test_converting_to_the_same_format_gives_the_audio_itself() -> None:
    audio = mono(tone(440, 16_000, 0.1))
    assert convert(audio, 16_000, 1) is audio


@pytest.mark.parametrize("source", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_pitch_level_and_place(source: int) -> None:
    converted = convert(mono(tone(440, source, 1.0), source), 16_000, 1)
    assert converted.samples == 16_000
    wanted = tone(440, 16_000, 1.0)
    # The filter has no past at either end of the file.
    error = (np.frombuffer(converted.pcm, "<i2") - wanted)[400:-400]
    assert np.abs(error).max() < 12


def test_resampling_clips_instead_of_wrapping_around() -> None:
    square = np.where(tone(100, 44_100, 0.2) >= 0, 32_767.0, -32_768.0)
    converted = np.frombuffer(convert(mono(square, 44_100), 16_000, 1).pcm, "<i2").astype(int)
    wanted = np.where(tone(100, 16_000, 0.2) >= 0, 1, -1)
    assert np.abs(converted).max() == 32_768
    loud = np.abs(converted) > 20_000
    assert (np.sign(converted)[loud] == wanted[loud]).all()


def test_mono_is_duplicated_sample_for_sample() -> None:
    audio = mono(tone(440, 16_000, 0.05))
    both = np.frombuffer(convert(audio, 16_000, 2).pcm, "<i2").reshape(-1, 2)
    assert both[:, 0].tobytes() == both[:, 1].tobytes() == audio.pcm


def test_several_channels_are_averaged_into_one() -> None:
    stereo = WavAudio(16_000, 2, np.array([100, 300, -32_768, -32_768], "<i2").tobytes())
    assert convert(stereo, 16_000, 1).pcm == np.array([200, -32_768], "<i2").tobytes()


def test_an_empty_file_converts_to_an_empty_one() -> None:
    assert convert(WavAudio(44_100, 2, b""), 16_000, 1) == WavAudio(16_000, 1, b"")
