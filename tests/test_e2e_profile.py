"""``omi-rt profile`` on a directory, one process a command."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import trio

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.fake import random_script, synthesise
from tests.processes_e2e import Finished, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.realtime


def write_voice(path: Path, voice: int, seconds: float = 8.0) -> str:
    """Record one voice as a WAV file; return its path."""
    script = random_script(Random(voice), seconds, voices=(voice,), longest_pause=0.3)
    path.write_bytes(write_wav(WavAudio(16_000, 1, synthesise(script, 16_000))))
    return str(path)


async def profile(tmp_path: Path, *arguments: str) -> Finished:
    """Run ``omi-rt profile`` on the store of this test."""
    return await run("profile", *arguments, OMI_RT_PROFILE_DIR=str(tmp_path / "store"))


async def test_a_profile_is_put_listed_got_and_deleted(tmp_path: Path) -> None:
    mine, theirs = write_voice(tmp_path / "me.wav", 1), write_voice(tmp_path / "p.wav", 2, 6.0)
    copy = tmp_path / "copy.wav"

    put = await profile(tmp_path, "put", "u1", mine)
    assert (put.status, put.errors) == (0, "")
    assert put.output.startswith("stored u1/")
    assert (await profile(tmp_path, "put", "u1", theirs, "--person", "p1")).status == 0

    listed = await profile(tmp_path, "list", "u1")
    rows = [line.split("\t") for line in listed.output.splitlines()]
    assert [row[:2] for row in rows] == [["user", "8.0 s"], ["person p1", "6.0 s"]]
    assert (listed.status, listed.errors) == (0, "")

    assert await profile(tmp_path, "get", "u1", str(copy)) == Finished(0, "", "")
    assert copy.read_bytes() == (tmp_path / "me.wav").read_bytes()

    deleted = await profile(tmp_path, "delete", "u1")
    assert (deleted.status, deleted.output) == (0, f"deleted {rows[0][3]}\n")
    deleted = await profile(tmp_path, "delete", "u1", "--person", "p1")
    assert (deleted.status, deleted.output) == (0, f"deleted {rows[1][3]}\n")
    assert not list((tmp_path / "store").rglob("*.wav"))


async def test_what_is_refused_is_one_clear_line_and_status_1(tmp_path: Path) -> None:
    good = write_voice(tmp_path / "good.wav", 1)
    short = write_voice(tmp_path / "short.wav", 1, 3.0)
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    refusals = {
        "3.0 s long": ("put", "u1", short),
        "not a WAV file": ("put", "u1", str(text)),
        "uid: ": ("put", "../u1", good),
        "person id: ": ("put", "u1", good, "--person", "a/b"),
        "no profile is stored for u1": ("get", "u1", str(tmp_path / "none.wav")),
    }
    finished: dict[str, Finished] = {}

    async def refuse(reason: str, arguments: tuple[str, ...]) -> None:
        finished[reason] = await profile(tmp_path, *arguments)

    async with trio.open_nursery() as nursery:
        for reason, arguments in refusals.items():
            nursery.start_soon(refuse, reason, arguments)
    for reason, result in finished.items():
        assert (result.status, result.output) == (1, ""), reason
        assert result.errors.startswith("omi-rt: "), reason
        assert result.errors.count("\n") == 1, reason
        assert reason in result.errors
    assert not list((tmp_path / "store").rglob("*.wav"))


async def test_another_voice_is_not_stored_over_the_first_without_force(tmp_path: Path) -> None:
    mine, theirs = write_voice(tmp_path / "me.wav", 1), write_voice(tmp_path / "p.wav", 2)
    (first, again, other, forced) = [
        await profile(tmp_path, "put", "u1", *arguments)
        for arguments in ((mine,), (mine,), (theirs,), (theirs, "--force"))
    ]
    name = "u1/speech_profile.wav\n"
    assert first == Finished(0, f"stored {name}", "")
    assert again == Finished(0, f"unchanged: {name}", "")
    assert (other.status, other.output) == (1, "")
    assert other.errors.startswith("omi-rt: another recording is stored for u1, of ")
    assert other.errors.endswith(": --force replaces it\n")
    assert forced == Finished(0, f"replaced {name}", "")


async def test_a_get_that_finds_nothing_leaves_the_file_that_is_there(tmp_path: Path) -> None:
    kept = tmp_path / "kept.wav"
    kept.write_bytes(b"a recording that exists once")
    assert (await profile(tmp_path, "get", "u1", str(kept))).status == 1
    assert kept.read_bytes() == b"a recording that exists once"
