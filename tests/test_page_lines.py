"""The page in a browser while lines are lost, servers restarted, and tokens out of date."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from omi_rt.fake import Script, random_script
from omi_rt.fake.speech import utterance
from tests import page as setting
from tests import tokens
from tests.page import (
    MARKS,
    account_of,
    line_to,
    mend,
    opened,
    play,
    program,
    provider,
    put_forward,
    recording,
    segments,
    serving,
    wait_for_state,
    wait_for_the_end,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    from tests.page import Program

pytestmark = MARKS
browser, fake, server = setting.browser, setting.fake, setting.server

SCRIPT = random_script(Random(8), 13.0)
LEEWAY_SECONDS = 60
KEPT_SECONDS = 120.0
LOST = "The connection is lost. The page tries again, and keeps what is played."


def played(page: Page) -> float:
    """The share of the file that has been played."""
    return float(page.evaluate("document.getElementById('progress').value"))


def test_a_restart_of_the_server_costs_no_word(
    browser: Browser, fake: Program, tmp_path: Path
) -> None:
    path = recording(tmp_path / "a.wav", SCRIPT)
    with serving(tmp_path, fake) as first, opened(browser, first.address) as page:
        port = first.address.rpartition(":")[2]
        play(page, path)
        wait_for_state(page, "live")
        put_forward(page, 5.0)
        page.wait_for_selector("#transcript li:nth-child(2)")
        first.end()
        assert wait_for_state(page, "waiting") == LOST
        with program(tmp_path, "serve", "--port", port, **provider(fake)):
            wait_for_state(page, "live")
            put_forward(page, 13.0)
            account = wait_for_the_end(page)
        assert "restarted" in page.inner_text("#transcript li.break")
        assert words(segments(page)) == SCRIPT.transcript()
        assert account == account_of(13.0, sessions=2)


def test_a_line_that_is_lost_is_taken_up_in_the_same_session(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    path = recording(tmp_path / "a.wav", SCRIPT)
    with line_to(server) as line, opened(browser, line.address, uid="liner") as page:
        asked: list[dict[str, list[str]]] = []
        page.on("websocket", lambda socket: asked.append(parse_qs(urlsplit(socket.url).query)))
        play(page, path)
        wait_for_state(page, "live")
        put_forward(page, 4.0)
        page.wait_for_selector("#transcript li")
        for _ in range(2):
            line.cut()
            assert wait_for_state(page, "waiting") == LOST
            put_forward(page, 3.0)
            mend(page, line)
            wait_for_state(page, "live")
        put_forward(page, 13.0)
        assert wait_for_the_end(page) == account_of(13.0)
        assert words(segments(page)) == SCRIPT.transcript()
        assert page.query_selector("#transcript li.break") is None
        assert page.is_hidden("#note")
        # What the page has is not sent again.
        assert "resume" not in asked[0]
        after = [int(each["after"][0]) for each in asked[1:] if "resume" in each]
        assert len(after) >= 2
        assert min(after) > 0
        starts = [word.start for word in SCRIPT.words]
        shown = page.eval_on_selector_all(
            "#transcript time", "all => all.map(each => parseFloat(each.dateTime.slice(2)))"
        )
        assert all(min(abs(each - start) for start in starts) < 0.02 for each in shown)


def test_a_line_that_is_lost_with_the_last_words_on_it_costs_none(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    path = recording(tmp_path / "a.wav", SCRIPT)
    with line_to(server) as line, opened(browser, line.address, uid="last") as page:
        play(page, path)
        wait_for_state(page, "live")
        put_forward(page, 6.0)
        page.wait_for_selector("#transcript li:nth-child(2)")
        line.hold()
        put_forward(page, 8.0)
        wait_for_state(page, "finishing")
        page.wait_for_timeout(500)
        # By now the session is over, and the page knows nothing of that.
        line.cut()
        line.let_flow()
        wait_for_state(page, "waiting")
        mend(page, line)
        assert wait_for_the_end(page) == account_of(13.0, sessions=2)
        assert words(segments(page)) == SCRIPT.transcript()


def test_of_a_server_that_is_away_for_long_two_minutes_are_kept_and_the_rest_is_told(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    # A word each second: which of them are lost says which audio was.
    names = ["amber", "bako", "celu", "dorin", "elfa", "fimo", "garo", "hesta"]
    said = [utterance(names[i % 8], 1, i + 0.2)[0] for i in range(150)]
    script = Script(said, 150.0)
    path = recording(tmp_path / "a.wav", script)
    with line_to(server) as line, opened(browser, line.address, uid="away") as page:
        play(page, path)
        wait_for_state(page, "live")
        put_forward(page, 6.0)
        page.wait_for_selector("#transcript li")
        line.cut()
        wait_for_state(page, "waiting")
        sent = played(page) * 150.0
        put_forward(page, 128.0)
        page.wait_for_selector("text=The oldest audio is now given up.")
        page.click("#stop")
        recorded = played(page) * 150.0
        assert recorded > sent + 128.0
        assert wait_for_state(page, "waiting").endswith("and keeps what was recorded.")
        mend(page, line)
        account = wait_for_the_end(page)
        lost = float(page.inner_text("#note").partition(" s were lost")[0])
        assert abs(lost - (recorded - KEPT_SECONDS - sent)) < 1.0
        received = float(account.partition(" ")[0])
        assert abs(received + lost - recorded) < 0.11
        assert account == account_of(received, lost)
        shown = words(segments(page))
        heard = [word.text for word in script.words if word.end < recorded]
        assert shown[-115:] == heard[-115:]
        assert len(heard) - len(shown) <= lost + 1
        # And what comes after the gap is where it was said.
        times = page.eval_on_selector_all(
            "#transcript time", "all => all.map(each => parseFloat(each.dateTime.slice(2)))"
        )
        assert sum(abs((each % 1) - 0.2) > 0.03 for each in times) <= 1


def test_who_does_not_want_to_wait_any_longer_is_told_what_is_lost(
    browser: Browser, server: Program, tmp_path: Path
) -> None:
    path = recording(tmp_path / "a.wav", SCRIPT)
    with line_to(server) as line, opened(browser, line.address, uid="impatient") as page:
        play(page, path)
        wait_for_state(page, "live")
        put_forward(page, 4.0)
        page.wait_for_selector("#transcript li")
        line.cut()
        wait_for_state(page, "waiting")
        assert page.is_hidden("#give-up")
        put_forward(page, 13.0)
        page.click("#give-up")
        received, finalised, lost = (
            float(each.split()[0]) for each in wait_for_the_end(page)[:-1].split(", ")
        )
        assert received == finalised > 0
        assert abs(finalised + lost - 13.0) < 0.11
        assert page.inner_text("#state") == "You did not wait for the last words."
        line.mend()
        play(page, path)
        wait_for_state(page, "live")


def test_a_token_is_asked_for_and_kept_nowhere_and_a_full_server_is_waited_for(
    browser: Browser, fake: Program, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("right-token alice\n")
    path = recording(tmp_path / "a.wav", SCRIPT)
    settings = {"OMI_RT_AUTH": "tokens", "OMI_RT_MAX_SESSIONS": "1"}
    with (
        serving(tmp_path, fake, **settings) as server,
        opened(browser, server.address) as page,
        opened(browser, server.address) as other,
    ):
        assert page.is_hidden("#uid-field")
        page.click("#start")
        assert page.inner_text("#state") == "Give your token first."
        page.click("#token-cancel")
        assert wait_for_state(page, "refused") == "No token was given."
        page.set_input_files("#file", path)
        page.fill("#token", "wrong-token")
        page.keyboard.press("Enter")
        page.wait_for_selector("#token-error:has-text('The server does not know that token.')")
        assert page.inner_text("#state").endswith("The page keeps what is played.")
        # Who gives none after all has ended it, and can begin again.
        page.click("#token-cancel")
        assert wait_for_state(page, "refused") == "No token was given."
        wait_for_the_end(page)
        page.set_input_files("#file", path)
        page.wait_for_selector("#login:visible")
        assert page.is_hidden("#token-error")
        page.fill("#token", "right-token")
        page.keyboard.press("Enter")
        wait_for_state(page, "live")
        other.set_input_files("#file", path)
        other.fill("#token", "right-token")
        other.click("#login button[type=submit]")
        other.wait_for_selector("text=The server takes nobody now (too many sessions: 1 of 1).")
        put_forward(page, 14.0)
        assert wait_for_the_end(page) == account_of(13.0)
        assert words(segments(page)) == SCRIPT.transcript()
        assert page.query_selector("#transcript li.break") is None
        kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
        assert "token" not in kept + page.url + repr(page.context.cookies())
        put_forward(other, 14.0)
        assert wait_for_the_end(other) == account_of(13.0)
        assert words(segments(other)) == SCRIPT.transcript()
        assert not [line for line in server.said if "right-token" in line]


@contextmanager
def key_server() -> Iterator[str]:
    """The keys of an OpenID provider, on a port of its own."""

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = tokens.jwks("k1")
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Keys)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/keys"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_token_that_expires_meanwhile_is_asked_for_again_and_costs_no_word(
    browser: Browser, fake: Program, tmp_path: Path
) -> None:
    path = recording(tmp_path / "a.wav", SCRIPT)
    with key_server() as keys:
        settings = {
            "OMI_RT_AUTH": "jwks",
            "OMI_RT_JWKS_URL": keys,
            "OMI_RT_JWT_ISSUER": tokens.ISSUER,
            "OMI_RT_JWT_AUDIENCE": tokens.PROJECT,
        }
        with (
            serving(tmp_path, fake, **settings) as server,
            line_to(server) as line,
            opened(browser, line.address) as page,
        ):
            page.set_input_files("#file", path)
            expires = time.time() + 1.5
            page.fill("#token", tokens.token(exp=expires - LEEWAY_SECONDS))
            page.keyboard.press("Enter")
            wait_for_state(page, "live")
            put_forward(page, 4.0)
            page.wait_for_selector("#transcript li")
            line.cut()
            wait_for_state(page, "waiting")
            time.sleep(max(0.0, expires - time.time()) + 0.2)
            mend(page, line)
            page.wait_for_selector("#token-error:has-text('The token has expired.')")
            put_forward(page, 3.0)
            page.fill("#token", tokens.token())
            page.keyboard.press("Enter")
            wait_for_state(page, "live")
            put_forward(page, 13.0)
            assert wait_for_the_end(page) == account_of(13.0)
            assert words(segments(page)) == SCRIPT.transcript()
