"""Recorded audio: WAV and FLAC as it comes, after a kill, and on a full disk."""

from __future__ import annotations

import os
import resource
import signal
import wave
from contextlib import contextmanager
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
import trio

from omi_rt.codecs.recording import mend_flac, read_recording
from omi_rt.core.audio import AudioFormat
from omi_rt.core.observers import SessionFacts
from omi_rt.core.records import AudioKind
from omi_rt.fake import random_script, synthesise
from omi_rt.metrics import Metrics
from omi_rt.records import files as files_module
from omi_rt.records.files import RecordFiles, mend
from omi_rt.records.service import Records
from tests.processes_e2e import KEY, fake_in_process, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RATE = 16_000
BLOCK_BYTES = 4_096 * 2
"""Of FLAC: what a kill may cost."""
PCM = synthesise(random_script(Random(4), 20.0), RATE)


def facts(rate: int = RATE, channels: int = 1) -> SessionFacts:
    return SessionFacts(
        "b" * 32, "alice", "en", AudioFormat(rate, channels), datetime.now(UTC), lambda _: []
    )


def write_flac(root: Path, pcm: bytes, *, rate: int = RATE, channels: int = 1) -> RecordFiles:
    files = RecordFiles(root, facts(rate, channels), AudioKind.FLAC)
    files.write_lines(b'{"type":"session"}\n')
    for start in range(0, len(pcm), 8_000):
        files.write_audio(pcm[start : start + 8_000])
    return files


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (RATE, 1), (48_000, 2), (44_100, 8)])
def test_flac_holds_what_came_and_says_how_long_it_is(
    tmp_path: Path, rate: int, channels: int
) -> None:
    pcm = PCM[: len(PCM) // (2 * channels) * 2 * channels]
    files = write_flac(tmp_path, pcm, rate=rate, channels=channels)
    files.close()
    path = files.base.with_suffix(".flac")
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (rate, channels, "PCM_16")
    assert info.frames == len(pcm) // 2 // channels
    assert soundfile.read(path, dtype="int16")[0].tobytes() == pcm
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size < len(pcm)


def test_half_a_sample_waits_for_its_other_half(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, facts(), AudioKind.FLAC)
    for start in range(0, 30_000, 333):
        files.write_audio(PCM[start : min(start + 333, 30_000)])
    files.close()
    path = files.base.with_suffix(".flac")
    assert soundfile.read(path, dtype="int16")[0].tobytes() == PCM[:30_000]


def test_more_channels_than_flac_knows_are_kept_as_wav(tmp_path: Path) -> None:
    files = write_flac(tmp_path, PCM[: 20 * 4_000], channels=10)
    files.close()
    with wave.open(str(files.base.with_suffix(".wav"))) as wav:
        assert wav.getnchannels() == 10
    assert not files.base.with_suffix(".flac").exists()


def test_flac_that_a_crash_has_cut_off_is_mended_at_the_next_start(tmp_path: Path) -> None:
    files = write_flac(tmp_path, PCM)
    path = files.base.with_suffix(".flac")
    assert mend(tmp_path) == 0, "the session still runs"
    kept = path.read_bytes()
    assert files._lines is not None
    os.close(files._lines)
    files._lines = None
    files.close()
    path.write_bytes(kept)
    assert soundfile.info(path).frames > 1 << 40, "no length is taken for an endless one"
    assert mend(tmp_path) == 1
    assert mend(tmp_path) == 0
    there = soundfile.read(path, dtype="int16")[0].tobytes()
    assert PCM.startswith(there)
    assert len(PCM) - len(there) <= 2 * BLOCK_BYTES
    assert read_recording(path.read_bytes()).shortfall == ""


@pytest.mark.parametrize("cut", [1, 700, 5_000])
def test_flac_that_ends_within_a_block_is_mended_to_its_whole_blocks(
    tmp_path: Path, cut: int
) -> None:
    files = write_flac(tmp_path, PCM)
    path = files.base.with_suffix(".flac")
    kept = path.read_bytes()[:-cut]
    files.close()
    path.write_bytes(kept)
    assert mend(tmp_path) == 1
    frames = soundfile.info(path).frames
    assert frames % 4_096 == 0
    assert len(PCM) // 2 - frames <= 8 * 4_096
    there = soundfile.read(path, dtype="int16")[0].tobytes()
    assert there == PCM[: frames * 2]


@pytest.mark.parametrize("content", [b"", b"fLaC", b"fLaC" + bytes(60), b"RIFF" + bytes(90)])
def test_what_is_no_audio_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.flac"
    path.write_bytes(content)
    with path.open("r+b") as file:
        assert not mend_flac(file.fileno())
    assert path.read_bytes() == content


def test_flac_on_a_full_disk_ends_with_a_whole_block(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(-9_000, 9_000, RATE * 4, np.int16).tobytes()
    files = RecordFiles(tmp_path, facts(), AudioKind.FLAC)

    def write_all() -> None:
        for start in range(0, len(noise), 8_000):
            files.write_audio(noise[start : start + 8_000])

    with file_size_limit(50_000):
        with pytest.raises(OSError, match="cannot be written"):
            write_all()
        files.give_up_audio()
    path = files.base.with_suffix(".flac")
    there = soundfile.read(path, dtype="int16")[0].tobytes()
    assert noise.startswith(there)
    assert len(there) > 40_000
    assert path.stat().st_size < 50_000


@pytest.mark.parametrize("kind", AudioKind)
def test_a_disk_that_is_full_at_the_beginning_leaves_no_file_that_cannot_be_played(
    kind: AudioKind, tmp_path: Path
) -> None:
    metrics = Metrics()
    records = Records(tmp_path, metrics, audio=kind, retention_days=0)
    record = records.watch(facts())
    record.hear(PCM[:8_000])
    failing = record.audio.copy()
    # This comes while the disk is being tried.
    record.hear(PCM[8_000:16_000])
    with file_size_limit(0):
        assert record.write([], failing) == "File too large"
    record.forget_written([], failing)
    assert record.write([], record.audio.copy()) is None
    record.files.close()
    assert list(record.files.base.parent.glob("*.wav")) == []
    assert list(record.files.base.parent.glob("*.flac")) == []
    assert 'omi_rt_records_lost_total{kind="audio"} 1.0' in metrics.exposition().decode()


def test_flac_that_is_too_long_goes_on_in_the_next_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "MAX_AUDIO_BYTES", 20_000)
    files = write_flac(tmp_path, PCM[:40_000])
    files.close()
    paths = [files.base.with_suffix(suffix) for suffix in (".flac", ".2.flac", ".3.flac")]
    parts = [soundfile.read(path, dtype="int16")[0].tobytes() for path in paths]
    assert b"".join(parts) == PCM[:40_000]


@pytest.mark.realtime
async def test_kill_9_leaves_flac_that_the_next_start_makes_whole(tmp_path: Path) -> None:
    root = tmp_path / "kept"
    settings: dict[str, Any] = {
        "DEEPGRAM_API_KEY": KEY,
        "OMI_RT_TRANSCRIPT_DIR": str(root),
        "OMI_RT_RECORD_AUDIO": "flac",
    }
    async with fake_in_process() as (_, url):
        async with serving(DEEPGRAM_URL=url, **settings) as server:
            async with server.device(codec="pcm16", sample_rate=RATE) as device:
                await device.stream_audio(PCM[: RATE * 2 * 8], RATE * 2, speed=1.5)
                await trio.sleep(0.6)  # two rounds of writing
                server.program.signal(signal.SIGKILL)
                await server.program.status()
        (path,) = root.glob("u1/sessions/*.flac")
        async with serving(DEEPGRAM_URL=url, **settings) as server:
            await server.program.says("records_mended")
    there = soundfile.read(path, dtype="int16")[0].tobytes()
    assert PCM.startswith(there)
    assert len(there) >= RATE * 2 * 8 - 2 * BLOCK_BYTES
