"""Records: what is kept of a session, what survives a kill, and what is exported of it."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import stat
import threading
import wave
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import srt
import trio
import webvtt
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.core.audio import AudioFormat
from omi_rt.core.exports import to_json, to_srt, to_txt, to_vtt
from omi_rt.core.observers import SessionFacts
from omi_rt.core.records import AudioKind, NoRecord, Record, first_line, read_record
from omi_rt.fake import Options, random_script, synthesise
from omi_rt.log import configure_logging
from omi_rt.metrics import Metrics
from omi_rt.records import files as files_module
from omi_rt.records import service as service_module
from omi_rt.records.files import RecordFiles, find_record, forget, mend, remove_old
from omi_rt.records.service import MAX_LINE_BYTES, Records, SessionRecord
from tests.harness import listening_server
from tests.processes_e2e import KEY, fake_in_process, run, serving, wait_until
from tests.test_identities import STRANGER, USER, conversation, stored

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

RATE = 16_000
FACTS = SessionFacts("a" * 32, "alice", "en", AudioFormat(RATE, 1), datetime.now(UTC), lambda _: [])


def segment(number: int, text: str, start: float, end: float, **more: Any) -> dict[str, Any]:
    known = {"is_user": False, "person_id": None, "speaker": "SPEAKER_00", "speaker_id": 0}
    return {"id": f"s{number}", "text": text, "start": start, "end": end} | known | more


def record_of(*lines: dict[str, Any]) -> Record:
    text = first_line(FACTS) + "".join(json.dumps(line) + "\n" for line in lines)
    return read_record(text.encode())


def keeping(root: Path, *, audio: bool = False) -> tuple[Records, list[SessionRecord]]:
    records = Records(root, Metrics(), audio=AudioKind.WAV if audio else None, retention_days=0)
    made: list[SessionRecord] = []
    watch = records.watch
    records.watch = lambda facts: made.append(watch(facts)) or made[-1]  # type: ignore[method-assign,func-returns-value]
    return records, made


async def test_a_record_adds_up_to_what_the_client_knows_in_the_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    records, made = keeping(tmp_path, audio=True)
    script = conversation((STRANGER, USER), 120.0)
    pcm = synthesise(script, 8000)
    async with (
        listening_server(
            profiles=stored(), options=Options(seed=2), watches=(lambda f: records.watch(f),)
        ) as (world, _),
        world.device() as device,
    ):
        await device.stream_audio(pcm, 16_000)
        await device.finish()
    (record,) = made
    assert record.is_closed
    assert record.write(record.lines, record.audio) is None
    record.files.close()
    shown = {each["id"]: dict(each) for each in device.segments}
    corrections = device.events("speaker_identified") + device.events("speakers_merged")
    assert corrections
    for event in device.events("speaker_identified"):
        for each in event["segment_ids"]:
            shown[each] |= {"is_user": event["is_user"], "person_id": event["person_id"]}
    kept = find_record(tmp_path, record.facts.id)
    assert kept.segments == sorted(shown.values(), key=lambda s: (s["start"], s["end"]))
    assert any(each["is_user"] for each in kept.segments)
    assert kept.end == device.event("session_ended")
    path = tmp_path / "u1" / "sessions" / f"{record.facts.id}.wav"
    with wave.open(str(path)) as audio:
        assert audio.getparams()[:3] == (1, 2, 8000)
        assert audio.readframes(audio.getnframes()) == pcm


async def test_the_words_of_a_device_that_has_gone_are_kept(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    records, made = keeping(tmp_path)
    script = random_script(Random(3), 10.0)
    async with listening_server(watches=(lambda f: records.watch(f),)) as (world, _):
        async with world.device(codec="pcm16", sample_rate=RATE) as device:
            await device.stream_audio(synthesise(script, RATE), RATE * 2)
            await device.stream.aclose()
        await world.sessions_ended()
    kept = read_record(made[0].head + b"".join(made[0].lines))
    words = " ".join(each["text"] for each in kept.segments).lower().replace(".", "").split()
    assert [word.strip(",?!") for word in words] == script.transcript()
    assert kept.end is not None


# Exports, read by parsers that are not ours.

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=40)
AWKWARD = ["a --> b", "<b>&amp;", "1\n\n2", "00:00:01,000", "  blank  ", "NOTE x", "é 漢 🎤"]


@given(
    st.lists(
        st.tuples(TEXTS.filter(str.strip) | st.sampled_from(AWKWARD), st.floats(0, 9e4)), max_size=8
    )
)
def test_subtitles_say_what_was_said_when(said: list[tuple[str, float]]) -> None:
    said.sort(key=lambda each: each[1])
    segments = [
        segment(number, text, start, start + 1) for number, (text, start) in enumerate(said)
    ]
    record = record_of({"type": "segments", "segments": segments})
    texts = [" ".join(each["text"].split()) for each in record.segments]
    cues = list(srt.parse(to_srt(record)))
    assert [cue.content for cue in cues] == [f"SPEAKER_00: {text}" for text in texts]
    for cue, each in zip(cues, record.segments, strict=True):
        assert cue.start.total_seconds() == pytest.approx(each["start"], abs=0.00051)
        assert cue.end.total_seconds() == pytest.approx(each["end"], abs=0.00051)
    captions = webvtt.from_buffer(io.StringIO(to_vtt(record))).captions
    assert [caption.identifier for caption in captions] == [s["id"] for s in record.segments]
    for caption, each in zip(captions, record.segments, strict=True):
        assert caption.start_in_seconds == int(round(each["start"] * 1000) / 1000)
        assert caption.voice == "SPEAKER_00"
    assert to_txt(record).count("\n") == len(segments)
    assert json.loads(to_json(record))["segments"] == record.segments


def test_a_cue_lasts_a_millisecond_at_least() -> None:
    kept = record_of(
        {"type": "segments", "segments": [segment(n, "x", n / 8, n / 8) for n in range(9)]}
    )
    cues = list(srt.parse(to_srt(kept)))
    assert [cue.end - cue.start for cue in cues] == [timedelta(milliseconds=1)] * 9
    for caption in webvtt.from_buffer(io.StringIO(to_vtt(kept))).captions:
        assert caption.end > caption.start


def test_corrections_are_applied_and_who_speaks_is_named() -> None:
    record = record_of(
        {"type": "segments", "segments": [segment(1, "one", 0, 1), segment(2, "two", 1, 2)]},
        {"type": "segments", "segments": [segment(3, "three", 2, 3, speaker_id=1)]},
        {"type": "speaker_identified", "segment_ids": ["s1"], "is_user": True, "person_id": None},
        {"type": "speaker_identified", "segment_ids": ["s2"], "is_user": False, "person_id": "bob"},
        {"type": "speakers_merged", "from": 1, "into": 4, "segment_ids": ["s3", "unknown"]},
        {"type": "audio_lost", "start": 3.0, "end": 4.0},
    )
    assert to_txt(record) == (
        "[00:00:00.000] User: one\n[00:00:01.000] bob: two\n[00:00:02.000] SPEAKER_04: three\n"
    )


def test_corrections_of_corrections_are_applied_in_their_order() -> None:
    def merged(source: int, into: int, *ids: str) -> dict[str, Any]:
        return {"type": "speakers_merged", "speaker": source, "into": into, "segment_ids": ids}

    def identified(is_user: bool, person_id: str | None, *ids: str) -> dict[str, Any]:
        whose = {"is_user": is_user, "person_id": person_id}
        return {"type": "speaker_identified", "segment_ids": ids} | whose

    kept = record_of(
        {
            "type": "segments",
            "segments": [segment(n, f"word {n}", n, n + 1, speaker_id=n) for n in range(3)],
        },
        merged(2, 1, "s2"),
        identified(True, None, "s1", "s2"),
        {"type": "segments", "segments": [segment(3, "later", 3, 4, speaker_id=1)]},
        merged(1, 0, "s1", "s2", "s3"),
        identified(False, None, "s1", "s2", "gone"),
        identified(False, "p7", "s2"),
        identified(True, None, "s3"),
        identified(False, None, "s3"),
    )
    assert [(s["speaker_id"], s["speaker"]) for s in kept.segments] == [(0, "SPEAKER_00")] * 4
    assert [(s["is_user"], s["person_id"]) for s in kept.segments] == [
        (False, None),
        (False, None),
        (False, "p7"),
        (False, None),
    ]
    said = [line.partition("] ")[2] for line in to_txt(kept).splitlines()]
    assert said == [
        "SPEAKER_00: word 0",
        "SPEAKER_00: word 1",
        "p7: word 2",
        "SPEAKER_00: later",
    ]


def test_a_last_line_that_is_cut_off_is_left_out_and_other_garbage_is_no_record() -> None:
    whole = first_line(FACTS) + json.dumps(
        {"type": "segments", "segments": [segment(1, "a", 0, 1)]}
    )
    assert read_record((whole + "\n").encode()).segments
    assert read_record((whole[:-3]).encode()).segments == []
    for content in (b"", b"x\n", b"[]\n", b'{"type":"segments"}\n', b'{"a":1}\n', b"\xff\n"):
        with pytest.raises(NoRecord):
            read_record(content)


# Files.


def test_what_a_crash_has_cut_off_is_mended_at_the_next_start(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, FACTS)
    files.write_lines(b'{"a":1}\n')
    files.write_audio(b"\1\0" * 1000)
    base = tmp_path / "alice" / "sessions" / FACTS.id
    lines, audio = base.with_suffix(".jsonl"), base.with_suffix(".wav")
    with wave.open(str(audio)) as wav:
        assert wav.getnframes() == 1000, "right while the session runs"
    with lines.open("ab") as more:
        more.write(b'{"b":')
    with audio.open("ab") as more:
        more.write(b"\2\0" * 500 + b"\3")
    assert mend(tmp_path) == 0, "the session still runs"
    os.close(files._lines or -1)
    assert mend(tmp_path) == 2
    assert lines.read_bytes() == b'{"a":1}\n'
    with wave.open(str(audio)) as wav:
        assert wav.readframes(9999) == b"\1\0" * 1000 + b"\2\0" * 500
    assert mend(tmp_path) == 0
    files._lines = None
    files.close()


def test_nobody_else_may_read_a_record(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path / "kept", FACTS)
    files.write_lines(b"{}\n")
    files.write_audio(b"\0\0")
    files.close()
    for path in (files.base.with_suffix(".jsonl"), files.base.with_suffix(".wav")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.base.parent.stat().st_mode) == 0o700


def test_a_folder_that_is_removed_while_it_is_empty_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload or a ``forget`` may remove it between its making and its first file."""
    make, removals = type(tmp_path).mkdir, iter([True, True, False])

    def make_and_lose(path: Path, *args: Any, **more: Any) -> None:
        make(path, *args, **more)
        if path.name == "sessions" and next(removals, False):
            files_module.remove_if_empty(path)

    monkeypatch.setattr(type(tmp_path), "mkdir", make_and_lose)
    files = RecordFiles(tmp_path, FACTS)
    files.write_lines(b"{}\n")
    assert files.base.with_suffix(".jsonl").read_bytes() == b"{}\n"
    files.close()


def test_links_that_lead_elsewhere_are_neither_mended_nor_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"no line end")
    folder = tmp_path / "kept" / "alice" / "sessions"
    folder.mkdir(parents=True)
    (folder / f"{'c' * 32}.jsonl").symlink_to(outside)
    assert mend(tmp_path / "kept") == 0
    assert remove_old(tmp_path / "kept", 1, 4e9) == 0
    assert files_module.find_left_over(tmp_path / "kept") == []
    assert outside.read_bytes() == b"no line end"


def test_a_record_that_is_just_begun_is_not_taken_for_one_that_a_crash_has_left(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "alice" / "sessions"
    folder.mkdir(parents=True)
    young, old = folder / f"{'d' * 32}.new", folder / f"{'e' * 32}.new"
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    mend(tmp_path)
    assert [path.name for path in folder.iterdir()] == [young.name]


async def test_what_waits_when_the_server_ends_is_written(tmp_path: Path) -> None:
    records = Records(tmp_path, Metrics(), audio=AudioKind.WAV, retention_days=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(records.write_records)
        await trio.testing.wait_all_tasks_blocked()
        record = records.watch(FACTS)
        record.hear(bytes(2000))
        record.close()
        nursery.cancel_scope.cancel()
    assert read_record(record.files.base.with_suffix(".jsonl").read_bytes()).segments == []
    assert record.files.base.with_suffix(".wav").stat().st_size == 2044


async def test_what_waits_while_another_session_is_written_outlives_the_end_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(tmp_path, Metrics(), audio=None, retention_days=0)
    made = [records.watch(evolve(FACTS, id=each * 32)) for each in "abc"]
    for record in made:
        record.add('{"type":"early"}\n')
    write, is_writing, may_write = RecordFiles.write_lines, threading.Event(), threading.Event()

    def write_slowly(files: RecordFiles, data: bytes) -> None:
        is_writing.set()
        assert may_write.wait(10)
        write(files, data)

    monkeypatch.setattr(RecordFiles, "write_lines", write_slowly)
    async with trio.open_nursery() as nursery:
        await nursery.start(records.write_records)
        await wait_until(is_writing.is_set, 10)
        made[0].add('{"type":"late"}\n')
        nursery.cancel_scope.cancel()
        may_write.set()
    kept = [record.files.base.with_suffix(".jsonl").read_bytes() for record in made]
    assert [content.count(b"\n") for content in kept] == [3, 2, 2]
    assert all(read_record(content).session["uid"] == "alice" for content in kept)


async def test_a_disk_that_is_full_at_the_beginning_costs_no_more_than_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "text")
    full, write = [True], os.write

    def write_or_fail(descriptor: int, data: bytes) -> int:
        if full[0] and os.readlink(f"/proc/self/fd/{descriptor}").endswith(".jsonl"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_or_fail)
    records = Records(tmp_path, Metrics(), audio=None, retention_days=0)
    record, tried = records.watch(FACTS), []
    for number in range(3):
        await records.write()
        tried.append(record.waits)
        record.add(
            json.dumps({"type": "segments", "segments": [segment(number, "x", 0, 1)]}) + "\n"
        )
    full[0] = False
    record.close()
    await records.write()
    kept = read_record(record.files.base.with_suffix(".jsonl").read_bytes())
    assert kept.session["id"] == FACTS.id
    assert [each["id"] for each in kept.segments] == ["s2"]
    assert tried == [False] * 3, "the beginning waits for what follows it"
    assert capfd.readouterr().err.count("record_failed") == 1
    assert 'omi_rt_records_lost_total{kind="line"} 2.0' in records._metrics.exposition().decode()


def test_audio_that_is_too_long_for_a_wav_file_goes_into_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "MAX_AUDIO_BYTES", 1000)
    files = RecordFiles(tmp_path, FACTS)
    for number in range(3):
        files.write_audio(bytes([number]) * 600)
    files.close()
    names = sorted(path.name for path in (tmp_path / "alice" / "sessions").iterdir())
    assert names == [f"{FACTS.id}.2.wav", f"{FACTS.id}.3.wav", f"{FACTS.id}.wav"]


async def test_a_full_disk_is_told_once_and_leaves_whole_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "text")
    records = Records(tmp_path, Metrics(), audio=AudioKind.WAV, retention_days=0)
    record = records.watch(FACTS)
    await records.write()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        for _ in range(3):
            record.hear(bytes(4000))
            record.add(json.dumps({"type": "segments", "segments": ["x" * 4000]}) + "\n")
            await records.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    record.add('{"type":"late"}\n')
    record.close()
    await records.write()
    base = tmp_path / "alice" / "sessions" / FACTS.id
    kept = [json.loads(line) for line in base.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["type"] for line in kept] == ["session", "segments", "late"]
    with wave.open(str(base.with_suffix(".wav"))) as wav:
        assert wav.getnframes() * 2 + 44 <= 5000
    assert capfd.readouterr().err.count("record_failed") == 1
    text = records._metrics.exposition().decode()
    assert 'omi_rt_records_lost_total{kind="line"} 2.0' in text
    assert 'omi_rt_records_lost_total{kind="audio"} 1.0' in text


def test_what_waits_for_a_slow_disk_is_bounded(tmp_path: Path) -> None:
    records = Records(tmp_path, Metrics(), audio=AudioKind.WAV, retention_days=0)
    record = records.watch(FACTS)
    for _ in range(3000):
        record.add("x" * 999 + "\n")
        record.hear(bytes(3200))
    assert record.line_bytes <= MAX_LINE_BYTES
    assert sum(map(len, record.audio)) <= 4_194_304
    assert 'kind="line"} 19' in records._metrics.exposition().decode()


async def test_what_is_written_makes_room_for_more(tmp_path: Path) -> None:
    records = Records(tmp_path, Metrics(), audio=AudioKind.WAV, retention_days=0)
    record = records.watch(FACTS)
    for _ in range(3):
        record.add("x" * (MAX_LINE_BYTES - 1) + "\n")
        record.hear(bytes(service_module.MAX_AUDIO_BYTES))
        await records.write()
    record.close()
    await records.write()
    assert record.files.base.with_suffix(".jsonl").stat().st_size > 3 * MAX_LINE_BYTES
    wav = record.files.base.with_suffix(".wav").stat()
    assert wav.st_size == 3 * service_module.MAX_AUDIO_BYTES + 44
    assert 'records_lost_total{kind="line"} 0.0' in records._metrics.exposition().decode()


def test_old_records_go_and_a_person_is_forgotten(tmp_path: Path) -> None:
    for uid in ("alice", "bob"):
        files = RecordFiles(
            tmp_path,
            SessionFacts("b" * 32, uid, "en", FACTS.audio_format, FACTS.began_at, lambda _: []),
        )
        files.write_lines(b"{}\n")
        files.write_audio(b"\0\0")
        files.close()
    now = (tmp_path / "bob" / "sessions" / f"{'b' * 32}.wav").stat().st_mtime
    assert remove_old(tmp_path, 2, now + 86_400) == 0
    assert forget(tmp_path, "alice") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bob"]
    assert forget(tmp_path, "alice") == 0
    assert remove_old(tmp_path, 2, now + 2.1 * 86_400) == 2


def test_a_session_that_runs_is_not_old_and_goes_as_a_whole_once_it_is(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, FACTS)
    files.write_lines(b"{}\n")
    files.write_audio(b"\0\0")
    lines, audio = files.base.with_suffix(".jsonl"), files.base.with_suffix(".wav")
    day = 86_400
    os.utime(lines, (0, 0))
    os.utime(audio, (5 * day, 5 * day))
    assert remove_old(tmp_path, 1, 9 * day) == 0, "it runs, and says nothing"
    files.write_lines(b'{"b":1}\n')
    assert lines.read_bytes() == b'{}\n{"b":1}\n'
    files.close()
    os.utime(lines, (0, 0))
    os.utime(audio, (5 * day, 5 * day))
    assert remove_old(tmp_path, 1, 6 * day) == 0, "the audio is a day old"
    assert remove_old(tmp_path, 1, 6 * day + 1) == 2
    assert list(tmp_path.iterdir()) == [], "not even the uid is left"


def test_a_session_that_is_forgotten_while_it_runs_brings_nothing_back(tmp_path: Path) -> None:
    files = RecordFiles(tmp_path, FACTS)
    files.write_lines(b"{}\n")
    assert forget(tmp_path, "alice") == 1
    files.write_audio(b"\0\0")
    files.write_lines(b"{}\n")
    files.close()
    assert list(tmp_path.iterdir()) == []


def test_what_an_upload_removes_meanwhile_does_not_disturb_forgetting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RecordFiles(tmp_path, FACTS)
    files.write_lines(b"{}\n")
    files.write_audio(b"\0\0")
    files.close()
    unlink = type(tmp_path).unlink

    def unlink_late(path: Path, *args: Any, **more: Any) -> None:
        if path.suffix == ".jsonl":
            os.unlink(path)
        unlink(path, *args, **more)

    monkeypatch.setattr(type(tmp_path), "unlink", unlink_late)
    assert forget(tmp_path, "alice") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.realtime
async def test_kill_9_leaves_what_was_delivered_and_the_next_start_mends_it(tmp_path: Path) -> None:
    root = tmp_path / "kept"
    settings: dict[str, Any] = {
        "DEEPGRAM_API_KEY": KEY,
        "OMI_RT_TRANSCRIPT_DIR": str(root),
        "OMI_RT_RECORD_AUDIO": "1",
        "OMI_RT_TOKEN_FILE": str(tmp_path / "tokens"),
    }
    pcm = synthesise(random_script(Random(3), 6.0), RATE)
    async with fake_in_process() as (_, url):
        async with serving(DEEPGRAM_URL=url, **settings) as server:
            async with server.device(codec="pcm16", sample_rate=RATE) as device:
                await device.stream_audio(pcm, RATE * 2, speed=1.2)
                assert device.segments
                await trio.sleep(0.6)  # two rounds of writing
                server.program.signal(signal.SIGKILL)
                await server.program.status()
            delivered = device.segments
        (path,) = root.glob("u1/sessions/*.jsonl")
        assert path.read_bytes().endswith(b"\n")
        with path.open("ab") as more:
            more.write(b'{"type":"segm')
        async with serving(DEEPGRAM_URL=url, **settings) as server:
            await server.program.says("records_mended")
        done = await run("export", path.stem, "--format", "json", **settings)
        assert json.loads(done.output)["segments"] == delivered
        with wave.open(str(path.with_suffix(".wav"))) as wav:
            kept = wav.readframes(wav.getnframes())
        assert pcm.startswith(kept)
        assert len(kept) > len(pcm) * 0.9
        assert (await run("export", "0" * 32, **settings)).status == 1
        assert "files removed: 2" in (await run("forget", "u1", **settings)).output
        assert list(root.iterdir()) == []
