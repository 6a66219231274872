"""The page in a browser, for tests: real processes, a browser, and a line between them that can be cut.

The browser is Debian's ``chromium``, driven by Playwright; where either is missing the tests are skipped.
Recordings of the made-up language are played as files. The page's clock can be put forward, and the
way to the fake Deepgram takes audio as fast as it comes, so that a minute of it need not last one.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from omi_rt.codecs.wav import WavAudio, write_wav
from omi_rt.fake import Script, plain_words, synthesise
from omi_rt.local.sample import sample_wav
from tests.processes_e2e import KEY, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install '.[test]'"
)
CHROMIUM = shutil.which("chromium")
MARKS = [
    pytest.mark.realtime,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]

RATE = 16_000
START_SECONDS = 40.0
FAST = {"options": {"rate": 200.0, "burst": 600.0}}
"""A fake that takes minutes of audio at once."""
_COMMAND = [
    sys.executable,
    "-c",
    # Before whoever uses them: the server sends up what it has, without regard for a provider's limit.
    """
from omi_rt.core import token_bucket as limits
limits.UPSTREAM_RATE, limits.UPSTREAM_DEPTH_SECONDS = 200.0, 600.0
from omi_rt.cli import main
main()
""",
]


class Program:
    """An ``omi-rt`` process, started when it has said that it is ready."""

    def __init__(self, directory: Path, *arguments: str, **settings: str) -> None:
        self.process = subprocess.Popen(
            [*_COMMAND, *arguments],
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
    with program(
        directory, "serve", "--port", "0", **(settings | provider(fake) if fake else settings)
    ) as server:
        yield server


def provider(fake: Program) -> dict[str, str]:
    """The settings of a server that has this fake behind it."""
    return {"DEEPGRAM_URL": f"ws://{fake.address}", "DEEPGRAM_API_KEY": KEY}


@contextmanager
def faking(directory: Path, script: dict[str, Any] = FAST) -> Iterator[Program]:
    """A fake Deepgram that follows a script."""
    (directory / "script.json").write_text(json.dumps(script))
    with program(directory, "fake-deepgram", "--port", "0", "--script", "script.json") as started:
        yield started


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


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with faking(tmp_path_factory.mktemp("fake")) as started:
        yield started


@pytest.fixture(scope="module")
def server(fake: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A server without a login, for all: each test has a uid of its own."""
    directory = tmp_path_factory.mktemp("server")
    settings = {"OMI_RT_PROFILE_DIR": "voices", "OMI_RT_PROFILE_MODE": "first"}
    with serving(directory, fake, **settings) as started:
        yield started


@contextmanager
def opened(
    browser: Browser, address: str, path: str = "/", *, uid: str = "me", script: str = ""
) -> Iterator[Page]:
    """A page of its own; nothing may go wrong in it without being noticed.

    ``script`` is run in it before its own.
    """
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write", "microphone"])
    page = context.new_page()
    page.set_default_timeout(30_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda message: (
            problems.append(message.text) if "Content Security Policy" in message.text else None
        ),
    )
    page.clock.install()
    page.add_init_script(f"localStorage.setItem('omi_rt.uid', {json.dumps(uid)}); {script}")
    page.goto(f"http://{address}{path}")
    try:
        yield page
    finally:
        context.close()
    assert problems == []


class Line:
    """A TCP line to a server, which can be cut and mended, and held up."""

    def __init__(self, server: Program) -> None:
        host, _, port = server.address.rpartition(":")
        self._server = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        # What is held up is not to wait in the kernel instead.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._is_whole = True
        self._flows = threading.Event()
        self._flows.set()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def _begin(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with self._lock:
                    if not self._is_whole:
                        client.close()
                        continue
                    there = socket.socket()
                    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    there.connect(self._server)
                    self._sockets += [client, there]
                self._begin(self._carry, client, there, False)
                self._begin(self._carry, there, client, True)

    def _carry(self, source: socket.socket, target: socket.socket, is_down: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if is_down:
                    self._flows.wait()
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        with self._lock:
            self._is_whole = False
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._sockets.clear()

    def mend(self) -> None:
        """Let new connections through."""
        self._is_whole = True

    def hold(self) -> None:
        """Let nothing more come down from the server."""
        self._flows.clear()

    def let_flow(self) -> None:
        """Let it come down again."""
        self._flows.set()

    def close(self) -> None:
        self.let_flow()
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def line_to(server: Program) -> Iterator[Line]:
    line = Line(server)
    try:
        yield line
    finally:
        line.close()


def recording(path: Path, script: Script) -> str:
    path.write_bytes(write_wav(WavAudio(RATE, 1, synthesise(script, RATE))))
    return str(path)


def play(page: Page, path: str) -> None:
    page.set_input_files("#file", path)
    page.wait_for_selector("#stop:visible")


def put_forward(page: Page, seconds: float) -> None:
    """Let so much time pass in the page at once."""
    page.clock.fast_forward(round(seconds * 1000))


def hasten(page: Page, selector: str, most: int = 30) -> None:
    """Let the page go about three times as fast until an element is there, for so many seconds at most."""
    for _ in range(most):
        if page.locator(selector).count():
            return
        put_forward(page, 0.75)
        page.wait_for_timeout(250)
    raise AssertionError(f"{selector} is not there after {most} s")


def mend(page: Page, line: Line) -> None:
    """Mend a line, and tell the page as a browser does that is back on the network."""
    line.mend()
    page.evaluate("dispatchEvent(new Event('online'))")


def wait_for_state(page: Page, state: str) -> str:
    """Wait for a state of the connection; returns how the page says it."""
    page.wait_for_selector(f"#state[data-state={state}]")
    return page.inner_text("#state")


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
    return text_of(download.value, kind)


def text_of(download: Any, kind: str) -> str:
    assert download.suggested_filename == f"transcript.{kind}"
    return str(download.path().read_text(encoding="utf-8"))


def account_of(seconds: float, lost: float = 0.0, sessions: int = 1) -> str:
    """What the page says at the end where all else was finalised."""
    more = f", in {sessions} sessions" if sessions > 1 else ""
    return f"{seconds:.1f} s received, {seconds:.1f} s finalised, {lost:.1f} s lost{more}."
