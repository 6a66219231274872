"""Records in Google Cloud Storage: the real client, its emulator, and hosts that fail."""

from __future__ import annotations

import json
import os
import signal
import wave
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import soundfile
import trio

from omi_rt.bucket import Bucket, BucketUnavailable
from omi_rt.core.audio import AudioFormat
from omi_rt.core.errors import BadRequest, SettingsError
from omi_rt.core.observers import SessionFacts
from omi_rt.core.records import (
    AudioKind,
    BucketPlace,
    NoRecord,
    first_line,
    is_file_of_record,
    parse_bucket_place,
)
from omi_rt.fake import random_script, synthesise
from omi_rt.metrics import Metrics
from omi_rt.records import uploads as uploads_module
from omi_rt.records.bucket import RecordBucket
from omi_rt.records.commands import RecordNotFound, forget_person, read_session
from omi_rt.records.files import RecordFiles, find_left_over
from omi_rt.records.service import Records, SessionRecord
from omi_rt.records.uploads import Uploads
from omi_rt.settings import load_settings
from tests.processes_e2e import KEY, fake_in_process, run, serving, wait_until
from tests.test_profile_gcs import BUCKET, address_of, module_emulator, storage_emulator
from tests.test_profile_gcs_faults import ScriptedHost, scripted_host
from tests.test_record_audio import file_size_limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gcp_storage_emulator.server import Server
    from trio.testing import MockClock

__all__ = ["module_emulator", "scripted_host"]

pytestmark = pytest.mark.realtime

RATE = 16_000
PLACE = BucketPlace(BUCKET, "omi/")
BEGAN_AT = datetime(2026, 11, 27, tzinfo=UTC)
PCM = synthesise(random_script(Random(3), 12.0), RATE)


@pytest.fixture
async def bucket(
    module_emulator: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bucket]:
    """A look into the emulator's bucket, which is empty."""
    module_emulator.wipe(keep_buckets=True)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address_of(module_emulator))
    opened = Bucket(BUCKET)
    yield opened
    await opened.aclose()


async def names(bucket: Bucket) -> list[str]:
    return [each.name for each in await bucket.list_objects("", 100)]


def facts(session: str = "a" * 32, uid: str = "alice") -> SessionFacts:
    return SessionFacts(session, uid, "en", AudioFormat(RATE, 1), BEGAN_AT, lambda _: [])


@asynccontextmanager
async def uploading(spool: Path, **more: Any) -> AsyncIterator[Records]:
    """Records on their way to the emulator's bucket; all is uploaded when this is left."""
    metrics, store = Metrics(), RecordBucket(PLACE)
    async with trio.open_nursery() as nursery:
        uploads = Uploads(spool, store, metrics, Random(1))
        end = await nursery.start(uploads.upload_all)
        options: dict[str, Any] = {"audio": AudioKind.WAV, "retention_days": 0} | more
        yield Records(spool, metrics, store=store, uploads=uploads, **options)
        end()
    await store.aclose()


async def keep(records: Records, session: SessionFacts, pcm: bytes = PCM) -> SessionRecord:
    """A session as the server notes it, from its beginning to its end."""
    record = records.watch(session)
    await records.write()
    record.hear(pcm)
    record.add('{"type":"session_ended"}\n')
    record.close()
    await records.write()
    return record


def left(spool: Path) -> list[str]:
    return sorted(str(path.relative_to(spool)) for path in spool.rglob("*"))


def metric(records: Records, outcome: str) -> float:
    line = f'omi_rt_record_uploads_total{{outcome="{outcome}"}} '
    return float(records._metrics.exposition().decode().partition(line)[2].split()[0])


async def test_a_session_is_in_the_bucket_when_it_has_ended_and_nowhere_else(
    bucket: Bucket, tmp_path: Path
) -> None:
    async with uploading(tmp_path) as records:
        record = records.watch(facts())
        record.hear(PCM)
        await records.write()
        assert await names(bucket) == [], "it still runs"
        assert len(left(tmp_path)) == 4
        record.add('{"type":"session_ended"}\n')
        record.close()
        await records.write()
    base = f"omi/alice/sessions/{'a' * 32}"
    assert await names(bucket) == [f"{base}.jsonl", f"{base}.wav"]
    lines = await bucket.read(f"{base}.jsonl")
    assert lines is not None
    assert [json.loads(line)["type"] for line in lines.splitlines()] == ["session", "session_ended"]
    path = tmp_path / "copy.wav"
    path.write_bytes(await bucket.read(f"{base}.wav") or b"")
    with wave.open(str(path)) as wav:
        assert wav.readframes(wav.getnframes()) == PCM
    path.unlink()
    assert left(tmp_path) == []
    assert (metric(records, "uploaded"), metric(records, "failed")) == (1, 0)


async def test_a_long_recording_goes_up_in_pieces(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omi_rt.bucket.CHUNK_BYTES", 262_144)
    pcm = os.urandom(1_500_002)
    async with uploading(tmp_path) as records:
        await keep(records, facts(), pcm)
    uploaded = await bucket.read(f"omi/alice/sessions/{'a' * 32}.wav")
    assert uploaded is not None
    assert uploaded[44:] == pcm


@pytest.mark.parametrize("uid", ["auth0|a b", "Zoë@x.y", "per%2Fcent?#*[]&=+{}", "x" * 128, ""])
async def test_unusual_uids_are_quoted_on_the_way_and_forgotten(
    uid: str, bucket: Bucket, tmp_path: Path
) -> None:
    async with uploading(tmp_path) as records:
        await keep(records, facts(uid=uid))
        await keep(records, facts("c" * 32, "somebody else"))
    assert len([name for name in await names(bucket) if name.split("/")[1] == (uid or "..nobody")])
    found = await read_session(PLACE, tmp_path, "a" * 32)
    assert found.session["uid"] == uid
    if uid:
        lines = await forget_person(PLACE, tmp_path, tmp_path / "tokens", uid)
        assert lines[0] == "files removed: 2"
        assert {name.split("/")[1] for name in await names(bucket)} == {"somebody else"}


async def test_one_uid_that_begins_like_another_is_not_forgotten_with_it(
    bucket: Bucket, tmp_path: Path
) -> None:
    async with uploading(tmp_path) as records:
        await keep(records, facts("a" * 32, "al"))
        await keep(records, facts("b" * 32, "alice"))
    assert (await forget_person(PLACE, tmp_path, tmp_path / "t", "al"))[0] == "files removed: 2"
    assert {name.split("/")[1] for name in await names(bucket)} == {"alice"}
    with pytest.raises(BadRequest):
        await forget_person(PLACE, tmp_path, tmp_path / "t", "../alice")


async def test_others_objects_in_the_bucket_are_neither_read_nor_removed(
    bucket: Bucket, tmp_path: Path
) -> None:
    others = [
        "omi/alice/sessions/notes.txt",
        f"omi/alice/sessions/{'a' * 32}.txt",
        f"omi/alice/{'a' * 32}.jsonl",
        f"omi/sessions/{'a' * 32}.jsonl",
        f"alice/sessions/{'a' * 32}.jsonl",
        f"omi/alice/more/sessions/{'a' * 32}.jsonl",
        "omi/alice/speech_profile.wav",
    ]
    for name in others:
        await bucket.put(name, b"{}\n", "text/plain")
    with pytest.raises(RecordNotFound):
        await read_session(PLACE, tmp_path, "a" * 32)
    store = RecordBucket(PLACE)
    assert await store.remove_old(0.0, datetime.now(UTC) + timedelta(days=9)) == 0
    assert await store.forget("alice") == 0
    await store.aclose()
    assert sorted(await names(bucket)) == sorted(others)


async def test_a_session_that_is_in_both_is_read_from_the_spool(
    bucket: Bucket, tmp_path: Path
) -> None:
    """It runs, or waits for its upload: what is here is the newer."""
    base = f"omi/alice/sessions/{'a' * 32}.jsonl"
    await bucket.put(base, first_line(facts(uid="bucket")).encode(), "text/plain")
    assert (await read_session(PLACE, tmp_path, "a" * 32)).session["uid"] == "bucket"
    files = RecordFiles(tmp_path, facts(uid="spool"))
    files.write_lines(first_line(facts(uid="spool")).encode())
    assert (await read_session(PLACE, tmp_path, "a" * 32)).session["uid"] == "spool"
    files.close()
    with pytest.raises(RecordNotFound, match="32 hexadecimal"):
        await read_session(PLACE, tmp_path, "*")
    store = RecordBucket(PLACE)
    with pytest.raises(NoRecord, match="32 hexadecimal"):
        await store.find_record("*")
    await store.aclose()


async def test_records_are_removed_after_their_days_here_and_there(
    bucket: Bucket, tmp_path: Path
) -> None:
    async with uploading(tmp_path) as records:
        await keep(records, facts())
    store = RecordBucket(PLACE)
    uploaded_at = min(each.updated for each in await bucket.list_objects("", 9))
    assert await store.remove_old(2.0, uploaded_at + timedelta(days=1.9)) == 0
    assert await store.remove_old(2.0, uploaded_at + timedelta(days=2.1)) == 2
    assert await names(bucket) == []
    await store.aclose()


async def test_retention_is_looked_at_in_spool_and_bucket_when_a_server_starts(
    bucket: Bucket, tmp_path: Path
) -> None:
    async with uploading(tmp_path) as records:
        await keep(records, facts())
    old = RecordFiles(tmp_path, facts("b" * 32))
    old.write_lines(b"{}\n")
    old.close()
    os.utime(old.base.with_suffix(".jsonl"), (0, 0))
    async with uploading(tmp_path, retention_days=1e-9) as records, trio.open_nursery() as nursery:
        nursery.start_soon(records.look_after_records)
        with trio.fail_after(10):
            while await names(bucket):  # noqa: ASYNC110
                await trio.sleep(0.02)
        await wait_until(lambda: find_left_over(tmp_path) == [], 10)
        nursery.cancel_scope.cancel()


async def test_what_a_crash_has_left_is_mended_and_uploaded_at_the_next_start(
    bucket: Bucket, tmp_path: Path
) -> None:
    files = RecordFiles(tmp_path, facts(), AudioKind.FLAC)
    files.write_lines(first_line(facts()).encode() + b'{"type":"segm')
    files.write_audio(PCM)
    path = files.base.with_suffix(".flac")
    cut = path.read_bytes()
    files.close()
    path.write_bytes(cut)
    running = RecordFiles(tmp_path, facts("d" * 32))
    running.write_lines(first_line(facts()).encode())
    async with uploading(tmp_path) as records, trio.open_nursery() as nursery:
        nursery.start_soon(records.look_after_records)
        await wait_until(lambda: not path.exists() and len(left(tmp_path)) == 3, 20)
        nursery.cancel_scope.cancel()
    base = f"omi/alice/sessions/{'a' * 32}"
    assert await names(bucket) == [f"{base}.flac", f"{base}.jsonl"]
    assert await bucket.read(f"{base}.jsonl") == first_line(facts()).encode()
    copy = tmp_path / "copy.flac"
    copy.write_bytes(await bucket.read(f"{base}.flac") or b"")
    there = soundfile.read(copy, dtype="int16")[0].tobytes()
    assert PCM.startswith(there)
    assert len(there) > len(PCM) - 16_384
    running.close()


async def test_a_session_of_another_server_on_the_same_spool_is_left_to_it(
    bucket: Bucket, tmp_path: Path
) -> None:
    other = RecordFiles(tmp_path, facts())
    other.write_lines(first_line(facts()).encode())
    async with uploading(tmp_path) as records:
        assert records._uploads is not None
        await records._uploads.find()
        records._uploads.add(other.base)
    assert await names(bucket) == []
    assert len(left(tmp_path)) == 3
    other.close()


async def test_a_person_who_is_forgotten_during_the_upload_is_not_in_the_bucket_after_it(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = RecordBucket.put

    async def put_and_forget(store: RecordBucket, path: Path) -> None:
        await put(store, path)
        await trio.Path(path).unlink()

    monkeypatch.setattr(RecordBucket, "put", put_and_forget)
    async with uploading(tmp_path) as records:
        await keep(records, facts())
    assert await names(bucket) == []


async def test_a_bucket_that_fails_for_a_while_has_everything_in_the_end(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "PAUSE_SECONDS", (0.01, 0.01))
    put, tries = RecordBucket.put, []

    async def failing_put(store: RecordBucket, path: Path) -> None:
        tries.append(path.suffix)
        if len(tries) in {1, 3, 4}:
            raise BucketUnavailable("profiles: HTTP 503")
        await put(store, path)

    monkeypatch.setattr(RecordBucket, "put", failing_put)
    async with uploading(tmp_path) as records:
        await keep(records, facts())
        await wait_until(lambda: metric(records, "uploaded") == 1, 10)
    # What has arrived does not go again.
    assert tries == [".wav", ".wav", ".jsonl", ".jsonl", ".jsonl"]
    assert len(await names(bucket)) == 2
    assert left(tmp_path) == []


async def test_a_bucket_that_is_away_is_told_once_and_the_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "PAUSE_SECONDS", (0.01, 0.01))
    told: list[dict[str, Any]] = []

    class Log:
        def error(self, event: str, **more: Any) -> None:
            told.append({"event": event} | more)

    monkeypatch.setattr(uploads_module, "get_logger", Log)
    tries = []

    async def put(_store: RecordBucket, path: Path) -> None:
        await trio.lowlevel.checkpoint()
        tries.append(path)
        raise BucketUnavailable("profiles: HTTP 503")

    monkeypatch.setattr(RecordBucket, "put", put)
    async with uploading(tmp_path) as records:
        record = await keep(records, facts())
        await wait_until(lambda: metric(records, "failed") == 1, 10)
        assert len(tries) == 5
        assert "omi_rt_records_waiting 0.0" in records._metrics.exposition().decode()
        assert records._uploads is not None
        await records._uploads.find()
        await wait_until(lambda: metric(records, "failed") == 2, 10)
    assert [(line["event"], line["session"], line["reason"]) for line in told] == [
        ("record_not_uploaded", "a" * 32, "profiles: HTTP 503")
    ]
    assert sorted(path.suffix for path in record.files.base.parent.iterdir()) == [".jsonl", ".wav"]


async def test_a_failed_upload_is_tried_again_later_each_time_and_so_many_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses and slots, without a bucket."""
    first, longest = uploads_module.PAUSE_SECONDS
    pauses: list[int] = []
    active = most = 0

    async def pause(_uploads: Uploads, failures: int) -> None:
        await trio.lowlevel.checkpoint()
        pauses.append(failures)

    async def put(_store: RecordBucket, _path: Path) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        active -= 1
        raise BucketUnavailable("profiles: HTTP 503")

    monkeypatch.setattr(RecordBucket, "put", put)
    monkeypatch.setattr(Uploads, "_pause", pause)
    async with uploading(tmp_path) as records:
        for number in range(12):
            await keep(records, facts(f"{number:032x}"))
        await wait_until(lambda: metric(records, "failed") == 12, 20)
    assert sorted(pauses) == [1] * 12 + [2] * 12 + [3] * 12 + [4] * 12
    assert 1 < most <= uploads_module.UPLOADS_AT_ONCE
    assert 0 < first < longest <= 60


async def test_a_pause_is_cut_short_by_the_end_and_then_there_is_one_more_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "PAUSE_SECONDS", (100.0, 100.0))
    tries: list[Path] = []

    async def put(_store: RecordBucket, path: Path) -> None:
        await trio.lowlevel.checkpoint()
        tries.append(path)
        raise BucketUnavailable("profiles: HTTP 503")

    monkeypatch.setattr(RecordBucket, "put", put)
    with trio.fail_after(20):
        async with uploading(tmp_path) as records:
            await keep(records, facts())
            await wait_until(lambda: len(tries) == 1, 10)
            assert metric(records, "failed") == 0
    assert (len(tries), metric(records, "failed")) == (2, 1)


async def test_pauses_grow_up_to_a_bound(tmp_path: Path, autojump_clock: MockClock) -> None:
    uploads = Uploads(tmp_path, RecordBucket(PLACE), Metrics(), Random(1))
    lengths = []
    for failures in (1, 2, 3, 4, 9):
        began = trio.current_time()
        await uploads._pause(failures)
        lengths.append(trio.current_time() - began)
    for length, whole in zip(lengths, (2, 6, 18, 54, 60), strict=True):
        assert whole / 2 <= length <= whole


async def test_a_host_that_answers_503_is_asked_for_a_bounded_time(
    scripted_host: ScriptedHost,
    tmp_path: Path,
) -> None:
    bucket = Bucket(BUCKET, read_seconds=0.3, write_seconds=0.3)
    scripted_host.statuses = [503] * 1_000
    with pytest.raises(BucketUnavailable, match=r"HTTP 503|RetryError"), trio.fail_after(10):
        await bucket.list_page("", None, None)
    await bucket.aclose()


async def test_the_end_of_a_server_waits_for_uploads_only_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads_module, "LAST_SECONDS", 0.3)

    async def put(_store: RecordBucket, _path: Path) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(RecordBucket, "put", put)
    started = trio.current_time()
    async with uploading(tmp_path) as records:
        for number in range(9):
            await keep(records, facts(f"{number:032x}"))
    assert trio.current_time() - started < 5
    assert len(find_left_over(tmp_path)) == 9


async def test_a_full_disk_under_the_spool_costs_lines_and_what_is_whole_is_uploaded(
    bucket: Bucket, tmp_path: Path
) -> None:
    async with uploading(tmp_path, audio=AudioKind.FLAC) as records:
        record = records.watch(facts())
        record.hear(os.urandom(2_000))
        await records.write()
        with file_size_limit(5_000):
            for _ in range(3):
                record.hear(os.urandom(20_000))
                record.add(json.dumps({"type": "segments", "segments": ["x" * 4_000]}) + "\n")
                await records.write()
        record.add('{"type":"late"}\n')
        record.close()
        await records.write()
    base = f"omi/alice/sessions/{'a' * 32}"
    lines = await bucket.read(f"{base}.jsonl")
    assert lines is not None
    assert [json.loads(line)["type"] for line in lines.splitlines()] == [
        "session",
        "segments",
        "late",
    ]
    assert f"{base}.flac" in await names(bucket)
    assert record.has_told
    assert left(tmp_path) == []


async def test_kill_9_costs_a_quarter_of_a_second_and_the_next_start_uploads_the_rest(
    tmp_path: Path,
) -> None:
    """The whole way, as processes: serve, kill, serve, export, forget."""
    with storage_emulator() as emulator:
        settings: dict[str, Any] = {
            "DEEPGRAM_API_KEY": KEY,
            "OMI_RT_TRANSCRIPT_DIR": f"gs://{BUCKET}",
            "OMI_RT_TRANSCRIPT_SPOOL": str(tmp_path / "spool"),
            "OMI_RT_RECORD_AUDIO": "flac",
            "OMI_RT_TOKEN_FILE": str(tmp_path / "tokens"),
            "OMI_RT_PROFILE_DIR": str(tmp_path / "profiles"),
            "STORAGE_EMULATOR_HOST": address_of(emulator),
        }
        async with fake_in_process() as (_, url):
            async with serving(DEEPGRAM_URL=url, **settings) as server:
                async with server.device(codec="pcm16", sample_rate=RATE) as device:
                    await device.stream_audio(PCM[: RATE * 2 * 6], RATE * 2, speed=1.2)
                    assert device.segments
                    await trio.sleep(0.6)  # two rounds of writing
                    server.program.signal(signal.SIGKILL)
                    await server.program.status()
                delivered = device.segments
            (path,) = (tmp_path / "spool").glob("u1/sessions/*.jsonl")
            async with serving(DEEPGRAM_URL=url, **settings) as server:
                await wait_until(lambda: not path.exists(), 20)
                async with server.device(uid="u2", codec="pcm16", sample_rate=RATE) as second:
                    await second.stream_audio(PCM[: RATE * 2 * 3], RATE * 2, speed=2)
                    await second.finish()
                server.program.signal()
                assert await server.program.status(20) == 0
        done = await run("export", path.stem, "--format", "json", **settings)
        assert json.loads(done.output)["segments"] == delivered
        assert "files removed: 2" in (await run("forget", "u1", **settings)).output
        assert (await run("export", path.stem, **settings)).status == 1
        assert "files removed: 2" in (await run("forget", "u2", **settings)).output
        assert list((tmp_path / "spool").iterdir()) == []


# Names and settings.


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("gs://my-bucket", BucketPlace("my-bucket")),
        ("gs://my-bucket/", BucketPlace("my-bucket")),
        ("gs://my.bucket/a/B_c", BucketPlace("my.bucket", "a/B_c/")),
        ("gs://b12/a/", BucketPlace("b12", "a/")),
    ],
)
def test_a_bucket_is_named_with_what_names_begin_with(text: str, place: BucketPlace) -> None:
    assert parse_bucket_place(text) == place
    assert parse_bucket_place(str(place)) == place
    settings = load_settings({"OMI_RT_TRANSCRIPT_DIR": text, "OMI_RT_RECORD_AUDIO": "flac"})
    assert (settings.transcript_dir, settings.record_audio) == (place, AudioKind.FLAC)


@pytest.mark.parametrize(
    "text",
    [
        "gs://",
        "gs://B",
        "gs:///x",
        "gs://bucket/../x",
        "gs://bucket/a//b",
        "gs://bucket/a b",
        "gs://bucket/*",
        "gs://bucket/.",
        "s3://bucket/x",
        "https://storage.googleapis.com/bucket",
    ],
)
def test_what_is_no_bucket_is_refused_and_makes_no_directory(text: str) -> None:
    with pytest.raises(
        SettingsError, match=r"^OMI_RT_TRANSCRIPT_DIR: must be a directory, or gs://"
    ):
        load_settings({"OMI_RT_TRANSCRIPT_DIR": text})


def test_audio_is_recorded_in_the_form_that_is_asked_for() -> None:
    where = {"OMI_RT_TRANSCRIPT_DIR": "kept"}
    forms = {"1": AudioKind.WAV, "wav": AudioKind.WAV, "FLAC": AudioKind.FLAC, "0": None}
    for text, kind in forms.items():
        assert load_settings(where | {"OMI_RT_RECORD_AUDIO": text}).record_audio is kind
    for text in ("mp3", "2"):
        with pytest.raises(SettingsError, match=r"^OMI_RT_RECORD_AUDIO: must be 1, wav, flac or 0"):
            load_settings(where | {"OMI_RT_RECORD_AUDIO": text})
    with pytest.raises(SettingsError, match="needs OMI_RT_TRANSCRIPT_DIR"):
        load_settings({"OMI_RT_RECORD_AUDIO": "flac"})


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        (f"u/sessions/{'a' * 32}.jsonl", True),
        (f"a b/sessions/{'0' * 32}.2.wav", True),
        (f"u/sessions/{'a' * 32}.flac", True),
        (f"u/sessions/{'a' * 32}.flac.bak", False),
        (f"u/sessions/{'a' * 31}.wav", False),
        (f"u/x/sessions/{'a' * 32}.wav", False),
        (f"u/other/{'a' * 32}.wav", False),
        (f"/sessions/{'a' * 32}.wav", False),
        ("u/speech_profile.wav", False),
    ],
)
def test_only_what_is_named_like_a_record_is_one(name: str, is_one: bool) -> None:
    assert is_file_of_record(name) is is_one
