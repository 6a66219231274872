"""Recordings of every usual kind: what is read, what is missing, what is refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omi_rt.codecs import recording as module
from omi_rt.codecs.recording import RecordingError, read_recording
from omi_rt.codecs.wav import WavError
from tests.processes_e2e import environment

RATE, SECONDS = 16_000, 4
TIME = np.arange(RATE * SECONDS) / RATE
SOUND = (np.sin(2 * np.pi * 440 * TIME) * np.linspace(0.1, 0.9, len(TIME))).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=len(TIME)).astype(np.float32) * 0.1

KINDS: dict[str, tuple[str, str, float]] = {
    # The last number is the largest error of a sample, as a share of full scale.
    "16 bit WAV": ("WAV", "PCM_16", 1.1 / 32_768),
    "24 bit WAV": ("WAV", "PCM_24", 1.1 / 32_768),
    "32 bit WAV": ("WAV", "PCM_32", 1.1 / 32_768),
    "extensible WAV": ("WAVEX", "PCM_24", 1.1 / 32_768),
    "float WAV": ("WAV", "FLOAT", 0.6 / 32_768),
    "extensible float WAV": ("WAVEX", "FLOAT", 0.6 / 32_768),
    "double WAV": ("WAV", "DOUBLE", 0.6 / 32_768),
    "mu-law WAV": ("WAV", "ULAW", 0.04),
    "A-law WAV": ("WAV", "ALAW", 0.04),
    "ADPCM WAV": ("WAV", "IMA_ADPCM", 0.1),
    "FLAC": ("FLAC", "PCM_16", 0.6 / 32_768),
    "24 bit FLAC": ("FLAC", "PCM_24", 0.6 / 32_768),
    "MP3": ("MP3", "MPEG_LAYER_III", 0.04),
    "Vorbis": ("OGG", "VORBIS", 0.04),
    "Ogg Opus": ("OGG", "OPUS", 0.08),
    "AIFF": ("AIFF", "PCM_16", 1.1 / 32_768),
}


def encoded(kind: str, sound: Any = SOUND, rate: int = RATE, **options: Any) -> bytes:
    container, codec, _ = KINDS[kind]
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=container, subtype=codec, **options)
    return file.getvalue()


def samples(data: bytes, channels: int = 1) -> Any:
    audio = read_recording(data).audio
    assert audio.channels == channels
    return np.frombuffer(audio.pcm, "<i2").reshape(-1, channels) / 32_768


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_whole_and_nothing_is_said_to_be_missing(kind: str) -> None:
    recording = read_recording(encoded(kind))
    assert recording.shortfall == ""
    assert (recording.audio.sample_rate, recording.audio.channels) == (RATE, 1)
    heard = np.frombuffer(recording.audio.pcm, "<i2") / 32_768
    # ADPCM is coded in blocks of up to 505 samples.
    assert 0 <= len(heard) - len(SOUND) <= (505 if kind == "ADPCM WAV" else 0)
    # This encoder of Opus loses the last milliseconds.
    end = len(SOUND) - (320 if kind == "Ogg Opus" else 0)
    assert np.abs(heard[:end] - SOUND[:end]).max() < KINDS[kind][2]


@pytest.mark.parametrize("kind", ["float WAV", "mu-law WAV", "FLAC", "Vorbis", "MP3"])
def test_two_channels_stay_two(kind: str) -> None:
    heard = samples(encoded(kind, np.stack([SOUND, SOUND * 0.25], axis=1), 44_100), 2)
    ratio = np.abs(heard[:, 1]).mean() / np.abs(heard[:, 0]).mean()
    assert ratio == pytest.approx(0.25, abs=0.02)


def test_floats_beyond_full_scale_are_clipped_and_do_not_wrap_around() -> None:
    heard = samples(encoded("float WAV", np.array([2.0, -2.0, 1.0, -1.0], dtype=np.float32)))
    top = 32_767 / 32_768
    assert heard[:, 0].tolist() == [top, -1.0, top, -1.0]


@pytest.mark.parametrize(
    "kind", ["16 bit WAV", "float WAV", "mu-law WAV", "A-law WAV", "FLAC", "MP3"]
)
def test_a_truncated_file_is_said_to_be_one_with_what_it_announces(kind: str) -> None:
    data = encoded(kind)
    recording = read_recording(data[: len(data) // 2])
    seconds = recording.audio.seconds
    assert 1.2 < seconds < 2.5
    how = "truncated or damaged" if kind == "FLAC" else "truncated"
    assert recording.shortfall == f"is {how}: {seconds:.1f} of 4.0 s are there"
    heard = np.frombuffer(recording.audio.pcm, "<i2") / 32_768
    # A codec in frames has no part of the one that was cut.
    there = len(heard) - 2_000
    assert np.abs(heard[:there] - SOUND[:there]).max() < KINDS[kind][2]


@pytest.mark.parametrize("kind", ["Vorbis", "Ogg Opus"])
@pytest.mark.parametrize("missing", [1, 10, 1_000, 3_000])
def test_a_truncated_ogg_file_keeps_its_whole_pages(kind: str, missing: int) -> None:
    data = encoded(kind, SOUND + NOISE)
    recording = read_recording(data[:-missing])
    seconds = recording.audio.seconds
    assert 1.0 < seconds < 4.0
    assert recording.shortfall == f"is truncated: {seconds:.1f} s are there"


def test_an_ogg_file_that_ends_between_two_pages_is_truncated() -> None:
    data = encoded("Vorbis", SOUND + NOISE)
    recording = read_recording(data[: data.rfind(b"OggS")])
    assert recording.shortfall.startswith("is truncated: ")


@pytest.mark.parametrize("kind", ["16 bit WAV", "float WAV"])
def test_a_file_without_any_of_its_audio_is_truncated(kind: str) -> None:
    data = encoded(kind)
    recording = read_recording(data[: data.index(b"data") + 8])
    assert recording.audio.seconds == 0
    assert recording.shortfall == "is truncated: 0.0 s are there"


@pytest.mark.parametrize("kind", ["16 bit WAV", "float WAV", "mu-law WAV"])
def test_a_wav_file_from_a_pipe_is_whole(kind: str) -> None:
    data = bytearray(encoded(kind))
    for position in (4, data.index(b"data") + 4):
        struct.pack_into("<I", data, position, 0xFFFF_FFFF)
    recording = read_recording(bytes(data))
    assert recording.shortfall == ""
    assert recording.audio.samples == len(SOUND)


def test_flac_from_a_pipe_says_no_length_and_is_whole() -> None:
    data = bytearray(encoded("FLAC"))
    # The last 36 bits before the checksum in STREAMINFO are the number of samples.
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    recording = read_recording(bytes(data))
    assert recording.shortfall == ""
    assert recording.audio == read_recording(encoded("FLAC")).audio


def test_damage_in_the_middle_is_told() -> None:
    data = bytearray(encoded("FLAC", SOUND + NOISE))
    middle = len(data) // 2
    data[middle : middle + 20_000] = bytes(20_000)
    recording = read_recording(bytes(data))
    seconds = recording.audio.seconds
    assert 1.0 < seconds < 4.0
    assert recording.shortfall == f"is truncated or damaged: {seconds:.1f} of 4.0 s are there"


def without_its_count(mp3: bytes) -> bytes:
    """Take away the first frame, which is no audio and says how many frames follow."""
    kilobits = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320][mp3[2] >> 4]
    return mp3[144_000 * kilobits // 44_100 + (mp3[2] >> 1 & 1) :]


def test_an_mp3_of_constant_bit_rate_that_says_no_length_is_whole() -> None:
    data = encoded("MP3", SOUND + NOISE, 44_100, bitrate_mode="CONSTANT", compression_level=0.5)
    recording = read_recording(without_its_count(data))
    assert recording.shortfall == ""
    assert recording.audio.samples >= len(SOUND)


def test_an_mp3_whose_length_is_only_guessed_is_not_said_to_be_truncated() -> None:
    # Silence takes few bytes, so a guess by the size and the first frame says too much.
    sound = np.concatenate([np.zeros(160_000, np.float32), np.tile(NOISE * 5, 10)])
    data = encoded("MP3", sound, 44_100, bitrate_mode="VARIABLE", compression_level=0.5)
    bare = without_its_count(data)
    assert soundfile.info(io.BytesIO(bare)).frames > len(sound) * 1.5
    recording = read_recording(bare)
    assert recording.shortfall == ""
    assert len(sound) <= recording.audio.samples < len(sound) + 3_000


def test_a_truncated_mp3_with_a_picture_before_it_is_said_to_be_one() -> None:
    data = encoded("MP3")
    picture = b"ID3\x04\0\0" + bytes([0, 0, 5_000 >> 7, 5_000 & 127]) + bytes(5_000)
    assert read_recording(picture + data).shortfall == ""
    recording = read_recording(picture + data[: len(data) // 2])
    assert recording.shortfall.startswith("is truncated: ")
    assert recording.shortfall.endswith(" of 4.0 s are there")


def test_an_mp3_that_libsndfile_would_cut_short_is_refused() -> None:
    data = encoded("MP3", SOUND + NOISE, 44_100, bitrate_mode="VARIABLE", compression_level=0.5)
    assert read_recording(data).audio.samples == len(SOUND)
    with pytest.raises(RecordingError, match=r"^only .* can be decoded: convert it"):
        read_recording(without_its_count(data))


@pytest.mark.parametrize(
    "data",
    [b"hello", b"OggS", b"fLaC", b"ID3" + bytes(100), b"\0" * 5_000, encoded("FLAC")[:60]],
)
def test_what_is_no_recording_is_refused_in_one_line_that_says_what_would_help(data: bytes) -> None:
    with pytest.raises(RecordingError, match="convert it, for example with: ffmpeg") as caught:
        read_recording(data)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_a_broken_wav_file_is_told_as_one() -> None:
    with pytest.raises(WavError, match="no data chunk"):
        read_recording(encoded("16 bit WAV")[:36])


def test_what_decodes_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DECODED_BYTES", 50_000)
    endless = bytearray(encoded("FLAC"))
    endless[21] &= 0xF0
    endless[22:26] = bytes(4)
    for data in (encoded("FLAC"), encoded("MP3"), bytes(endless)):
        with pytest.raises(RecordingError, match="over 50000 bytes"):
            read_recording(data)


def test_a_rate_that_no_microphone_has_is_refused() -> None:
    with pytest.raises(RecordingError, match="sample rate of 500000 Hz"):
        read_recording(encoded("float WAV", rate=500_000))


def test_what_a_decoder_says_is_not_shown_and_standard_error_is_there_again() -> None:
    code = (
        "import sys; from omi_rt.codecs.recording import read_recording; "
        "read_recording(sys.stdin.buffer.read()); print('after', file=sys.stderr)"
    )
    data = encoded("MP3", SOUND + NOISE)
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=data[: len(data) // 2 + 7],
        env=environment({}),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b"after\n"


@pytest.mark.parametrize("kind", ["float WAV", "FLAC", "MP3", "Vorbis", "Ogg Opus"])
@given(cut=st.integers(0, 3_000), position=st.integers(0, 3_000), patch=st.binary(max_size=20))
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_no_bytes_raise_anything_but_an_error_of_ours(
    kind: str, cut: int, position: int, patch: bytes
) -> None:
    data = encoded(kind, SOUND[:4_000])
    data = data[:position] + patch + data[position + len(patch) : max(0, len(data) - cut)]
    try:
        audio = read_recording(data).audio
    except (RecordingError, WavError):
        return
    assert len(audio.pcm) % (2 * audio.channels) == 0


def test_linear_wav_is_read_without_the_library() -> None:
    code = (
        "import sys; from omi_rt.codecs.recording import read_recording; "
        "read_recording(sys.stdin.buffer.read()); sys.exit('soundfile' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    wav = encoded("16 bit WAV")
    assert subprocess.run(command, input=wav, env=environment({}), check=False).returncode == 0
