"""The page, in a browser: real processes, the sample as the microphone, coded speech as files.

The browser is Debian's ``chromium``, driven by Playwright; where either is missing this is skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from io import StringIO
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import srt
import webvtt

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.fake import Script, plain_words, random_script, synthesise
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.sample import sample_text, sample_wav
from tests.processes_e2e import KEY, environment
from tests.test_identities import ANNA, BEN, conversation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install '.[test]'"
)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]

RATE = 16_000
START_SECONDS = 40.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all; whoever opens the microphone hears the sample once, then silence."""
    with sample_wav() as sample, playwright.sync_playwright() as started:
        arguments = [
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={sample}%noloop",
        ]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


class Program:
    """An ``omi-rt`` process, started when it has said that it is ready."""

    def __init__(self, directory: Path, *arguments: str, **settings: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "omi_rt", *arguments],
            env=environment(settings),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self.address = ""
        self._is_ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._is_ready.wait(START_SECONDS), self.said
        assert self.address, self.said

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"ready on (?:https?|ws)://([\d.:]+)", line):
                self.address = found[1]
                self._is_ready.set()
        self._is_ready.set()

    def end(self) -> None:
        """Kill it, as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def program(directory: Path, *arguments: str, **settings: str) -> Iterator[Program]:
    started = Program(directory, *arguments, **settings)
    try:
        yield started
    finally:
        started.end()


@contextmanager
def serving(directory: Path, fake: Program | None = None, **settings: str) -> Iterator[Program]:
    """A server, with the embedded recogniser or a fake Deepgram behind it."""
    if fake is not None:
        settings |= {"DEEPGRAM_URL": f"ws://{fake.address}", "DEEPGRAM_API_KEY": KEY}
    with program(directory, "serve", "--port", "0", **settings) as server:
        yield server


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with program(tmp_path_factory.mktemp("fake"), "fake-deepgram", "--port", "0") as started:
        yield started


@contextmanager
def opened(browser: Browser, server: Program, path: str = "/") -> Iterator[Page]:
    """A page of its own; nothing may go wrong in it without being noticed."""
    context = browser.new_context()
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text) if "Content Security Policy" in message.text else None
        ),
    )
    page.goto(f"http://{server.address}{path}")
    page.set_default_timeout(30_000)
    yield page
    context.close()
    assert problems == []


def recording(path: Path, script: Script) -> str:
    path.write_bytes(write_wav(WavAudio(RATE, 1, synthesise(script, RATE))))
    return str(path)


def play(page: Page, path: str) -> None:
    page.set_input_files("#file", path)
    page.wait_for_selector("#stop:visible")


def wait_for_the_end(page: Page) -> str:
    page.wait_for_selector("#account:visible")
    return page.inner_text("#account")


def segments(page: Page, where: str = "#transcript") -> list[dict[str, str]]:
    """What the page shows, in order."""
    found: list[dict[str, str]] = page.eval_on_selector_all(
        f"{where} li[data-id]",
        """items => items.map(item => ({
            id: item.dataset.id, voice: item.dataset.voice,
            who: item.querySelector(".who").textContent, text: item.querySelector("p").textContent,
            colour: getComputedStyle(item).borderLeftColor, meta: item.querySelector(".head").textContent,
        }))""",
    )
    return found


def words(shown: list[dict[str, str]]) -> list[str]:
    return plain_words(" ".join(each["text"] for each in shown))


def saved(page: Page, kind: str) -> str:
    with page.expect_download() as download:
        page.click(f'[data-save="{kind}"]')
    assert download.value.suggested_filename == f"transcript.{kind}"
    return download.value.path().read_text(encoding="utf-8")


def assert_saved_whole(page: Page, shown: list[dict[str, str]]) -> None:
    """Each format, read by a parser that is not ours, has what the page shows."""
    labels = [f"{each['who']}: {each['text']}" for each in shown]
    cues = list(srt.parse(saved(page, "srt")))
    assert [cue.content for cue in cues] == labels
    captions = webvtt.from_buffer(StringIO(saved(page, "vtt"))).captions
    assert [f"{c.voice}: {c.text}" for c in captions] == labels
    kept: dict[str, Any] = json.loads(saved(page, "json"))
    assert [f"{s['speaker']}: {s['text']}" for s in kept["segments"]] == labels
    starts = [s["start"] for s in kept["segments"]]
    assert [round(cue.start.total_seconds(), 3) for cue in cues] == [round(s, 3) for s in starts]
    assert starts == sorted(starts)
    assert kept["account"]["lost"] == 0


def test_who_speaks_reads_watches_and_enrols_without_a_key(
    browser: Browser, tmp_path: Path
) -> None:
    with (
        serving(tmp_path, OMI_RT_PROFILE_DIR=str(tmp_path / "voices")) as server,
        opened(browser, server) as page,
        opened(browser, server, "/#watch") as watcher,
        opened(browser, server, "/#voice") as voice,
    ):
        watcher.wait_for_selector("text=No session is running")
        page.click("#start")
        voice.click("#record")
        page.wait_for_selector("#state[data-state=live]")
        # The list tells of the session as soon as there is one.
        watcher.click("#sessions a")
        page.wait_for_selector("#transcript li")
        page.wait_for_selector("#transcript li:nth-child(5)")
        page.click("#stop")
        account = wait_for_the_end(page)
        shown = segments(page)
        text = " ".join(each["text"] for each in shown)
        assert word_accuracy(sample_text(), text) >= 0.9
        assert [each["who"] for each in shown] == ["Speaker 1", "Speaker 2"] * 2 + ["Speaker 1"]
        assert len({each["colour"] for each in shown}) == 2
        assert all(re.search(r"\d:\d\d\d+\.\d s delay", each["meta"]) for each in shown)
        assert re.fullmatch(r"(\S+) s received, \1 s finalised, 0.0 s lost\.", account)
        assert_saved_whole(page, shown)
        watcher.wait_for_selector("text=The session is over")
        assert [each["text"] for each in segments(watcher, "#watched")] == [
            each["text"] for each in shown
        ]
        assert watcher.query_selector("#watched button") is None
        voice.wait_for_selector("#store:enabled")
        assert voice.inner_text("#verdict").startswith("This is good.")
        assert not (tmp_path / "voices").exists()
        voice.click("#store")
        voice.wait_for_selector("text=Stored.")
        assert (tmp_path / "voices" / "me" / "speech_profile.wav").stat().st_size == 320_044


def test_a_restart_of_the_server_costs_no_word(
    browser: Browser, fake: Program, tmp_path: Path
) -> None:
    script = random_script(Random(8), 13.0)
    path = recording(tmp_path / "a.wav", script)
    settings = {"DEEPGRAM_URL": f"ws://{fake.address}", "DEEPGRAM_API_KEY": KEY}
    with serving(tmp_path, fake) as first, opened(browser, first) as page:
        port = first.address.rpartition(":")[2]
        play(page, path)
        page.wait_for_selector("#transcript li:nth-child(2)")
        first.end()
        page.wait_for_selector("#state[data-state=waiting]")
        assert "Recording goes on" in page.inner_text("#state")
        with program(tmp_path, "serve", "--port", port, **settings):
            account = wait_for_the_end(page)
        assert "restarted" in page.inner_text("#transcript li.break")
        shown = segments(page)
        assert words(shown) == script.transcript()
        assert account == "13.0 s received, 13.0 s finalised, 0.0 s lost, in 2 sessions."
        assert_saved_whole(page, shown)


def test_a_name_recolours_what_was_said_and_is_known_in_the_next_session(
    browser: Browser, fake: Program, tmp_path: Path
) -> None:
    talk = conversation((ANNA, BEN), 24.0)
    later = conversation((ANNA, BEN), 11.0)
    first, second = recording(tmp_path / "a.wav", talk), recording(tmp_path / "b.wav", later)
    with (
        serving(tmp_path, fake, OMI_RT_PROFILE_MODE="first") as server,
        opened(browser, server) as page,
    ):
        play(page, first)
        page.wait_for_selector("#transcript li:nth-child(5)")
        before = segments(page)
        # By the keyboard alone.
        page.focus("#transcript li .who")
        page.keyboard.press("Enter")
        page.wait_for_selector("#naming[open]")
        page.keyboard.type("Anna <b>")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=the voice is stored")
        after = {each["id"]: each for each in segments(page)}
        for each in before:
            is_anna = each["who"] == before[0]["who"]
            assert after[each["id"]]["who"] == ("Anna <b>" if is_anna else each["who"])
            assert (after[each["id"]]["colour"] != each["colour"]) is is_anna
        wait_for_the_end(page)
        assert words(segments(page)) == talk.transcript()
        play(page, second)
        wait_for_the_end(page)
        said = {word.text: word.voice for word in later.words}
        assert said
        shown = segments(page)
        assert words(shown) == later.transcript()
        assert {each["who"] for each in shown} >= {"Anna <b>"}
        assert [each["who"] == "Anna <b>" for each in shown] == [
            voice == ANNA for voice in turns(later)
        ]


def turns(script: Script) -> list[int]:
    """The voices of a script, one for each turn."""
    voices = [word.voice for word in script.words]
    return [v for i, v in enumerate(voices) if not i or voices[i - 1] != v]


def test_a_token_is_asked_for_and_kept_nowhere(
    browser: Browser, fake: Program, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("right-token alice\n")
    script = random_script(Random(3), 3.0)
    path = recording(tmp_path / "a.wav", script)
    with (
        serving(tmp_path, fake, OMI_RT_AUTH="tokens") as server,
        opened(browser, server) as page,
    ):
        page.set_input_files("#file", path)
        page.fill("#token", "wrong-token")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=That token was not taken.")
        page.fill("#token", "right-token")
        page.keyboard.press("Enter")
        account = wait_for_the_end(page)
        assert account.startswith("3.0 s received, 3.0 s finalised, 0.0 s lost")
        assert words(segments(page)) == script.transcript()
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
        assert "token" not in kept + page.url + page.context.cookies().__repr__()
        assert not [line for line in server.said if "right-token" in line]


def test_what_cannot_be_played_is_said_in_words(
    browser: Browser, fake: Program, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("no sound")
    with serving(tmp_path, fake) as server, opened(browser, server) as page:
        page.set_input_files("#file", str(tmp_path / "a.txt"))
        page.wait_for_selector("text=This browser cannot play a.txt.")
        assert page.is_visible("#start")
        assert page.is_enabled("#start")
