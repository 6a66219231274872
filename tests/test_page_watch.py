"""The page in a browser with the embedded recogniser, and pages that follow what others say."""

from __future__ import annotations

import re
from random import Random
from typing import TYPE_CHECKING

from omi_rt.fake import plain_words, random_script
from omi_rt.local.accuracy import word_accuracy
from omi_rt.local.sample import sample_text
from tests import page as setting
from tests.page import (
    MARKS,
    account_of,
    line_to,
    opened,
    play,
    put_forward,
    recording,
    segments,
    serving,
    wait_for_state,
    wait_for_the_end,
    words,
)

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.page import Program

pytestmark = MARKS
browser, fake, server = setting.browser, setting.fake, setting.server

SCRIPT = random_script(Random(8), 13.0)
CHATTER = """async ([uid, count, id]) => {
    const socket = new WebSocket(`ws://${location.host}/v4/web/listen?codec=pcm16&sample_rate=16000`);
    await new Promise((resolve) => { socket.onopen = resolve; });
    window.chatter = socket;
    let answers = 0;
    const answered = new Promise((resolve) => {
        socket.onmessage = ({ data }) => {
            const { type, status } = JSON.parse(data);
            if (status === "ready") resolve();
            if (type === "assignment_failed") document.body.dataset.answers = answers += 1;
        };
    });
    socket.send(JSON.stringify({ type: "auth", token: uid }));
    await answered;
    window.chat = () => {
        for (let i = 0; i < count; i += 1) {
            socket.send(JSON.stringify({ type: "speaker_assigned", speaker_id: 9, person_id: id, segment_ids: [] }));
        }
    };
}"""


def test_who_speaks_reads_watches_and_enrols_without_a_key(
    browser: Browser, tmp_path: Path
) -> None:
    with (
        serving(tmp_path, OMI_RT_PROFILE_DIR=str(tmp_path / "voices")) as server,
        opened(browser, server.address) as page,
        opened(browser, server.address, "/#watch") as watcher,
        opened(browser, server.address, "/#voice") as voice,
    ):
        watcher.wait_for_selector("text=No session is running")
        page.click("#start")
        voice.click("#record")
        wait_for_state(page, "live")
        # The list tells of the session as soon as there is one.
        watcher.click("#sessions a")
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


def words_of(spoken: str) -> list[str]:
    """The words that a screen reader is told, without who says them."""
    return plain_words(re.sub(r"(Speaker \d+|You): ", "", spoken))


def test_who_has_a_token_sees_their_own_sessions_and_is_asked_once(
    browser: Browser, fake: Program, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("token-a alice\ntoken-b bob\n")
    path = recording(tmp_path / "a.wav", SCRIPT)
    with (
        serving(tmp_path, fake, OMI_RT_AUTH="tokens") as server,
        opened(browser, server.address) as page,
        opened(browser, server.address, "/#watch") as watcher,
        opened(browser, server.address, "/#watch") as other,
    ):
        for each, token in ((watcher, "wrong"), (watcher, "token-a"), (other, "token-b")):
            each.fill("#token", token)
            each.keyboard.press("Enter")
            if token == "wrong":
                each.wait_for_selector("text=The server does not know that token.")
        watcher.wait_for_selector("text=No session is running")
        page.set_input_files("#file", path)
        page.fill("#token", "token-a")
        page.keyboard.press("Enter")
        wait_for_state(page, "live")
        put_forward(page, 6.0)
        page.wait_for_selector("#transcript li:nth-child(2)")
        watcher.click("#sessions a")
        watcher.wait_for_selector("#watched li:nth-child(2)")
        assert watcher.is_hidden("#login")
        assert watcher.is_hidden("#watch-who")
        session = watcher.url.partition("?watch=")[2]
        assert other.inner_text("#watch-state").startswith("No session is running.")
        # Somebody else's is not told from one that is not there.
        other.evaluate("s => { history.pushState(null, '', `/?watch=${s}`); }", session)
        other.evaluate("dispatchEvent(new PopStateEvent('popstate'))")
        other.wait_for_selector("text=There is no such session of yours, or it is over.")
        put_forward(page, 13.0)
        assert wait_for_the_end(page) == account_of(13.0)
        watcher.wait_for_selector("text=The session is over")
        assert words(segments(watcher, "#watched")) == SCRIPT.transcript()
        # What was said before is shown, and not read out.
        spoken = words_of(watcher.inner_text("#watched-spoken"))
        assert 0 < len(spoken) < len(SCRIPT.words)
        assert spoken == SCRIPT.transcript()[-len(spoken) :]
        watcher.click("#watch-back a")
        watcher.wait_for_selector("text=No session is running")
        assert segments(watcher, "#watched") == []


def test_sessions_of_any_uid_are_found_and_followed_through_lost_lines(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    path = recording(tmp_path / "a.wav", SCRIPT)
    with (
        line_to(server) as line,
        opened(browser, server.address, uid="device") as page,
        opened(browser, line.address, "/#watch") as watcher,
    ):
        watcher.wait_for_selector("text=No session is running")
        assert watcher.input_value("#watch-uid") == "me"
        play(page, path)
        wait_for_state(page, "live")
        watcher.fill("#watch-uid", "device")
        watcher.keyboard.press("Enter")
        watcher.wait_for_selector("text=One session is running.")
        watcher.click("#sessions a")
        watcher.wait_for_selector("text=Following a session of “device”")
        assert watcher.is_visible("#watch-empty")
        put_forward(page, 5.0)
        watcher.wait_for_selector("#watched li")
        assert watcher.is_hidden("#watch-empty")
        line.cut()
        watcher.wait_for_selector("text=The connection is lost. The page tries again.")
        put_forward(page, 5.0)
        line.mend()
        put_forward(watcher, 3.0)
        watcher.wait_for_selector("text=Following a session of “device”")
        put_forward(page, 5.0)
        wait_for_the_end(page)
        watcher.wait_for_selector("text=The session is over")
        assert words(segments(watcher, "#watched")) == SCRIPT.transcript()


def test_a_page_that_is_too_slow_says_how_much_it_has_missed(
    browser: Browser, server: Program
) -> None:
    count = 4000
    with (
        line_to(server) as line,
        opened(browser, server.address, uid="chatter") as page,
        opened(browser, line.address, "/#watch", uid="chatter") as watcher,
    ):
        watcher.wait_for_selector("text=No session is running")
        page.evaluate(CHATTER, ["chatter", count, "x" * 64])
        watcher.click("#sessions a")
        watcher.wait_for_selector("text=Following a session")
        line.hold()
        page.evaluate("window.chat()")
        page.wait_for_selector(f"body[data-answers='{count}']")
        line.let_flow()
        note = watcher.locator("#watched li.break").inner_text()
        missed = int(note.partition(" ")[0])
        assert note == f"{missed} messages did not come through, because this page was too slow."
        assert 0 < missed < count
        page.evaluate("window.chatter.send(JSON.stringify({ type: 'CloseStream' }))")
        watcher.wait_for_selector("text=The session is over")
        assert segments(watcher, "#watched") == []
