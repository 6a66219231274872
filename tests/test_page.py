"""The page to talk to, in a browser: files that are played, names that are given, what is kept of it."""

from __future__ import annotations

import base64
import json
import re
from html import unescape
from io import StringIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import srt
import webvtt

from omi_rt.fake import Script, plain_words, random_script
from tests import page as setting
from tests.page import (
    FAST,
    MARKS,
    account_of,
    faking,
    hasten,
    opened,
    play,
    put_forward,
    recording,
    saved,
    segments,
    serving,
    text_of,
    wait_for_state,
    wait_for_the_end,
    words,
)
from tests.test_identities import ANNA, BEN, STRANGER, USER, conversation, voice_wav

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.page import Program

pytestmark = MARKS
browser, fake, server = setting.browser, setting.fake, setting.server

TALK = conversation((ANNA, BEN), 24.0)
SHORT = random_script(Random(3), 4.0)
RECOLOURINGS = """() => {
    window.recolourings = [];
    const list = document.getElementById("transcript"), colours = new Map();
    const note = () => {
        for (const each of list.children) colours.set(each, getComputedStyle(each).borderLeftColor);
    };
    new MutationObserver((all) => {
        for (const { target, oldValue } of all.filter((each) => (each.oldValue ?? each.target.dataset.voice) !== each.target.dataset.voice)) {
            window.recolourings.push([
                target.dataset.id, target.querySelector("p").textContent, oldValue,
                colours.get(target), getComputedStyle(target).borderLeftColor,
            ]);
            list.dataset.recoloured = "";
        }
        note();
    }).observe(list, { subtree: true, childList: true, attributeFilter: ["data-voice"], attributeOldValue: true });
}"""
NO_MICROPHONE = """navigator.mediaDevices.getUserMedia =
    () => Promise.reject(new DOMException("nothing for people", "NotFoundError"));"""


def voices_of(script: Script) -> list[int]:
    """The voices of a script, one for each turn."""
    voices = [word.voice for word in script.words]
    return [v for i, v in enumerate(voices) if not i or voices[i - 1] != v]


def play_most(page: Page, path: str) -> list[dict[str, str]]:
    """Play a conversation nearly to its end; returns what is shown then."""
    play(page, path)
    wait_for_state(page, "live")
    put_forward(page, 17.0)
    page.wait_for_selector("#transcript li:nth-child(6)")
    return segments(page)


def focus(page: Page, selector: str) -> None:
    """Go to an element by the keyboard alone."""
    for _ in range(40):
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard never comes to {selector}")


def files_under(directory: Path) -> list[str]:
    return sorted(str(each.relative_to(directory)) for each in directory.rglob("*.wav"))


def assert_saved_whole(page: Page, shown: list[dict[str, str]]) -> None:
    """Each format, read by a parser that is not ours, has what the page shows."""
    labels = [f"{each['who']}: {each['text']}" for each in shown]
    cues = list(srt.parse(saved(page, "srt")))
    assert [cue.content for cue in cues] == labels
    captions = webvtt.from_buffer(StringIO(saved(page, "vtt"))).captions
    assert [unescape(f"{c.voice}: {c.text}") for c in captions] == labels
    kept: dict[str, Any] = json.loads(saved(page, "json"))
    assert [f"{s['speaker']}: {s['text']}" for s in kept["segments"]] == labels
    starts = [s["start"] for s in kept["segments"]]
    assert [round(cue.start.total_seconds(), 3) for cue in cues] == [round(s, 3) for s in starts]
    assert starts == sorted(starts)
    assert kept["account"]["lost"] == 0


def test_a_name_recolours_what_was_said_and_is_known_in_the_next_session(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    path = recording(tmp_path / "a.wav", TALK)
    with opened(browser, server.address, uid="namer") as page:
        before = play_most(page, path)
        page.click("#transcript li .who")
        assert page.inner_text("#naming-title") == "Who is “Speaker 1”?"
        page.fill("#name", "Anna <b>")
        page.check("#remember")
        page.click("#naming button[value=name]")
        page.wait_for_selector("text=The voice of Anna <b> is stored")
        after = {each["id"]: each for each in segments(page)}
        for each in before:
            is_anna = each["who"] == before[0]["who"]
            assert after[each["id"]]["who"] == ("Anna <b>" if is_anna else each["who"])
            assert (after[each["id"]]["colour"] != each["colour"]) is is_anna
        put_forward(page, 10.0)
        assert wait_for_the_end(page) == account_of(24.0)
        assert words(segments(page)) == TALK.transcript()
        assert_saved_whole(page, segments(page))
        play(page, path)
        wait_for_state(page, "live")
        put_forward(page, 25.0)
        wait_for_the_end(page)
        shown = segments(page)
        assert words(shown) == TALK.transcript()
        assert [each["who"] == "Anna <b>" for each in shown] == [
            voice == ANNA for voice in voices_of(TALK)
        ]


def test_a_voice_is_not_stored_unless_that_is_ticked_for_it(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    path = recording(tmp_path / "a.wav", TALK)
    with opened(browser, server.address, uid="private") as page:
        play_most(page, path)
        # Who ticks it for one voice and thinks better of it has ticked it for no other.
        page.click("#transcript li .who")
        page.check("#remember")
        page.click("#naming-cancel")
        page.click("#transcript li .who")
        assert not page.is_checked("#remember")
        page.fill("#name", "Anna")
        page.click("#naming button[value=name]")
        page.wait_for_selector("text=Anna has this name for this session.")
        page.click("#transcript li:nth-child(2) .who")
        page.click("#is-me")
        page.wait_for_selector("text=You are marked for this session.")
        put_forward(page, 10.0)
        wait_for_the_end(page)
        assert [each["who"] for each in segments(page)] == ["Anna", "You"] * 4
        assert files_under(Path(f"/proc/{server.process.pid}/cwd") / "voices" / "private") == []
        play(page, path)
        wait_for_state(page, "live")
        put_forward(page, 25.0)
        wait_for_the_end(page)
        assert [each["who"] for each in segments(page)] == ["Speaker 1", "Speaker 2"] * 4


def test_why_a_voice_was_not_stored_that_was_to_be_is_said(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    with opened(browser, server.address, uid="brief") as page:
        play(page, recording(tmp_path / "a.wav", SHORT))
        wait_for_state(page, "live")
        put_forward(page, 2.5)
        page.click("#transcript li .who")
        page.fill("#name", "Anna")
        page.check("#remember")
        page.click("#naming button[value=name]")
        page.wait_for_selector("text=Anna has this name for this session, but the voice was not")
        assert re.search(r"was not stored: .+\.$", page.inner_text("#note"))
        assert files_under(Path(f"/proc/{server.process.pid}/cwd") / "voices" / "brief") == []


def test_what_the_speech_profile_tells_later_recolours_what_is_there(
    browser: Browser, tmp_path: Path
) -> None:
    script = conversation((STRANGER, USER), 40.0)
    path = recording(tmp_path / "a.wav", script)
    stored = tmp_path / "voices" / "me" / "speech_profile.wav"
    stored.parent.mkdir(parents=True)
    stored.write_bytes(voice_wav(USER))
    # The connection that hears the profile first is some turns late.
    late = {"connections": [{"faults": []}, {"faults": [{"kind": "late", "seconds": 2.0}]}]}
    with (
        faking(tmp_path, FAST | late) as fake,
        serving(tmp_path, fake, OMI_RT_PROFILE_DIR=str(stored.parent.parent)) as server,
        opened(browser, server.address) as page,
    ):
        play(page, path)
        wait_for_state(page, "live")
        page.evaluate(RECOLOURINGS)
        hasten(page, "#transcript[data-recoloured]", 60)
        put_forward(page, 40.0)
        assert wait_for_the_end(page) == account_of(40.0)
        shown = {each["id"]: each for each in segments(page)}
        assert words(segments(page)) == script.transcript()
        voices = dict(zip(shown, voices_of(script), strict=True))
        changed = page.evaluate("window.recolourings")
        assert changed
        for which, text, voice, old, new in changed:
            # It was there before, as somebody whom nobody knew, and in another colour.
            assert voices[which] == USER
            assert (text, voice) == (shown[which]["text"], "1")
            assert shown[which]["who"] == "You"
            assert old != new == shown[which]["colour"]


def test_the_keyboard_alone_starts_stops_names_copies_and_saves(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    path = recording(tmp_path / "a.wav", TALK)
    with opened(browser, server.address, uid="keys") as page:
        # From now on the browser asks here instead of the person; it takes a moment to know that.
        page.on("filechooser", lambda _: None)
        focus(page, "#choose")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(path)
        page.wait_for_selector("#state[data-state=live]")
        assert page.evaluate("document.activeElement.id") == "stop"
        put_forward(page, 8.5)
        page.wait_for_selector("#transcript li:nth-child(3)")
        focus(page, "#transcript li:nth-child(2) .who")
        page.keyboard.press("Enter")
        page.wait_for_selector("#naming[open]")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.matches('#transcript li:nth-child(2) .who')")
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("document.activeElement.id") == "stop"
        page.keyboard.press("Enter")
        wait_for_the_end(page)
        assert page.evaluate("document.activeElement.id") == "start"
        said = words(segments(page))[:-1]  # the last word may be cut in two
        assert said == TALK.transcript()[: len(said)]
        assert len(said) >= 24
        focus(page, "#transcript li .who")
        page.keyboard.press("Enter")
        page.wait_for_selector("#naming[open]")
        page.keyboard.press("Enter")
        assert page.is_visible("#naming"), "a name of nothing is no name"
        page.keyboard.type("Anna")
        page.keyboard.press("Enter")
        page.wait_for_selector("#transcript li .who:has-text('Anna')")
        shown = segments(page)
        assert [each["who"] for each in shown[:3]] == ["Anna", "Speaker 2", "Anna"]
        focus(page, "#copy")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Copied.")
        copied = page.evaluate("navigator.clipboard.readText()").splitlines()
        assert [line.partition("] ")[2] for line in copied] == [
            f"{each['who']}: {each['text']}" for each in shown
        ]
        assert re.match(r"\[00:00:00\.5\d\d\] Anna: Amber bako", copied[0])
        focus(page, "[data-save=srt]")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert "Anna: Amber bako" in text_of(download.value, "srt")


def test_a_screen_reader_hears_each_word_once_and_nothing_every_second(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    with opened(browser, server.address, uid="reader") as page:
        play_most(page, recording(tmp_path / "a.wav", TALK))
        page.click("#transcript li .who")
        page.click("#is-me")
        page.wait_for_selector("#transcript li[data-voice=user]")
        put_forward(page, 10.0)
        wait_for_the_end(page)
        spoken = page.locator("#spoken p").all_inner_texts()
        labels = [each.partition(":")[0] for each in spoken]
        assert labels == ["Speaker 1", "Speaker 2"] * 3 + ["You", "Speaker 2"]
        said = " ".join(each.partition(":")[2] for each in spoken)
        assert plain_words(said) == TALK.transcript()
        live = page.eval_on_selector_all(
            "[aria-live], [role=status], [role=log], [role=alert], output",
            "all => all.map(each => each.id)",
        )
        assert "clock" not in live
        assert "transcript" not in live
        assert page.get_attribute("#transcript", "lang") == "en"


def drop(page: Page, selector: str, name: str, content: bytes) -> bool:
    """Drop a file on an element; returns whether the browser is kept from opening it."""
    taken: bool = page.evaluate(
        """([selector, name, content]) => {
            const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name));
            const target = document.querySelector(selector);
            const init = { dataTransfer, bubbles: true, cancelable: true };
            target.dispatchEvent(new DragEvent("dragover", init));
            return !target.dispatchEvent(new DragEvent("drop", init));
        }""",
        [selector, name, base64.b64encode(content).decode()],
    )
    return taken


def test_a_file_is_played_wherever_on_the_page_it_is_dropped(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    content = Path(recording(tmp_path / "a.wav", SHORT)).read_bytes()
    with opened(browser, server.address, uid="dropper") as page:
        assert drop(page, "body", "a.wav", content)
        wait_for_state(page, "live")
        assert page.inner_text("#state") == "Playing a.wav."
        assert drop(page, "#stage", "b.wav", content)
        assert page.inner_text("#note").startswith("Stop first: b.wav")
        assert page.get_attribute("#stage", "class") == "card stage running"
        put_forward(page, 2.0)
        assert 0.4 < page.evaluate("document.getElementById('progress').value") < 1
        put_forward(page, 3.0)
        assert wait_for_the_end(page) == account_of(4.0)
        assert words(segments(page)) == SHORT.transcript()


def test_what_goes_wrong_is_said_in_words(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("no sound")
    (tmp_path / "none.wav").write_bytes(voice_wav(USER)[:44])
    with opened(browser, server.address, uid="wrong", script=NO_MICROPHONE) as page:
        page.set_input_files("#file", str(tmp_path / "a.txt"))
        assert wait_for_state(page, "refused") == "This browser cannot play a.txt."
        assert page.is_enabled("#start")
        page.set_input_files("#file", str(tmp_path / "none.wav"))
        page.wait_for_selector("#state:has-text('none.wav')")
        assert wait_for_state(page, "refused") == "This browser cannot play none.wav."
        page.click("#start")
        page.wait_for_selector("text=There is no microphone. You can play a file instead.")
        # Nothing of that is in the way of the next one.
        play(page, recording(tmp_path / "b.wav", Script([], 2.0)))
        wait_for_state(page, "live")
        put_forward(page, 3.0)
        assert wait_for_the_end(page) == account_of(2.0)
        assert page.is_visible("text=No words were understood.")
        assert page.is_hidden("#copy")
        page.click("[data-view=voice]")
        page.click("#record")
        page.wait_for_selector("#verdict:has-text('There is no microphone.')")
        assert page.inner_text("#record") == "Record ten seconds"


def test_what_is_said_while_the_microphone_opens_is_kept(browser: Browser, server: Program) -> None:
    slow = """const resume = AudioContext.prototype.resume;
        AudioContext.prototype.resume = async function () {
            await resume.call(this);
            const began = this.currentTime;
            while (this.currentTime < began + 1) await new Promise((done) => setTimeout(done, 20));
        };"""
    with opened(browser, server.address, uid="early", script=slow) as page:
        # Twice: what comes early must not go to the session before.
        for _ in range(2):
            page.click("#start")
            wait_for_state(page, "live")
            page.click("#stop")
            received = wait_for_the_end(page).partition(" ")[0]
            assert float(received) >= 0.9
