"""What the server answers about its page: files and their headers, and a voice that the page brings."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
import trio

import omi_rt
from omi_rt.core.login import BadToken
from omi_rt.profiles.commands import list_profiles
from omi_rt.profiles.service import Profiles
from omi_rt.profiles.store import StoreUnavailable
from omi_rt.server.enrol import BODY_SECONDS, MAX_AT_ONCE, MAX_BYTES
from tests.harness import read_all, running_server, split_response, unreachable
from tests.memory_store import MemoryProfileStore
from tests.processes_e2e import NOWHERE, exchange, serving
from tests.test_identities import USER, voice_wav

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

    from omi_rt.auth.login import Login
    from tests.harness import World

PAGE_FILES = sorted(
    each.name for each in (files(omi_rt) / "web").iterdir() if not each.name.endswith(".png")
)
GOOD = voice_wav(USER)


class OneToken:
    """A login that knows one token."""

    problem: str | None = None

    async def uid_of(self, token: str) -> str:
        await trio.lowlevel.checkpoint()
        if token != "good":
            raise BadToken
        return "alice"


async def request(
    world: World, head: str, body: bytes = b"", *, is_loopback: bool = True
) -> tuple[int, dict[str, str], Any]:
    """Make a request as it stands; returns status, headers, and the body as JSON where it is that."""
    stream = world.open_stream(capacity_bytes=8_388_608, is_loopback=is_loopback)
    await stream.send_all(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
    status, headers, text = split_response(await read_all(stream))
    is_json = headers.get("content-type") == "application/json"
    return status, headers, json.loads(text) if is_json and text else text


def post(
    query: str = "uid=alice",
    length: int | None = len(GOOD),
    kind: str = "audio/wav",
    more: str = "",
) -> str:
    lengths = "" if length is None else f"\nContent-Length: {length}"
    return (
        f"POST /web/profile?{query} HTTP/1.1\nHost: localhost:80\nContent-Type: {kind}"
        f"{lengths}{more}"
    )


@asynccontextmanager
async def enrolling(**more: Any) -> AsyncIterator[tuple[World, MemoryProfileStore]]:
    store = MemoryProfileStore()
    async with running_server(unreachable, profiles=Profiles(store, 10.0), **more) as world:
        yield world, store


async def stored_in(store: MemoryProfileStore, uid: str = "alice") -> int:
    return len(await list_profiles(store, uid))


# The page and its files.


@pytest.mark.parametrize("name", PAGE_FILES)
async def test_every_file_of_the_page_comes_with_its_type_and_lets_nothing_foreign_run(
    autojump_clock: MockClock, name: str
) -> None:
    path = "/" if name == "index.html" else f"/web/{name}"
    async with running_server(unreachable) as world:
        status, headers, body = await world.get(path)
        assert status == 200
        assert body == (files(omi_rt) / "web" / name).read_text()
        kinds = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
        kind = kinds.get(name.rpartition(".")[2], "image/svg+xml")
        assert headers["content-type"].partition(";")[0] == kind
        policy = dict(
            each.strip().partition(" ")[::2]
            for each in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        bare, bare_headers, nothing = await world.get(path, "HEAD")
        assert (bare, nothing) == (200, "")
        assert bare_headers == headers
        assert (await world.get(path, "DELETE"))[0] == 405


async def test_a_browser_that_has_a_file_is_not_sent_it_again(autojump_clock: MockClock) -> None:
    async with running_server(unreachable) as world:
        tag = (await world.get("/"))[1]["etag"]
        head = "GET / HTTP/1.1\nHost: x\nIf-None-Match: "
        assert (await request(world, head + tag))[0] == 304
        assert (await request(world, head + '"other"'))[0] == 200


@pytest.mark.parametrize(
    "target",
    [
        "/web/",
        "/web/../settings.py",
        "/web/..%2fsettings.py",
        "/web/%2e%2e/settings.py",
        "/web//etc/passwd",
        "/web/page.png",
        "/web/index.html",
        "/web/%ff",
        "/../README.md",
        "//web/main.js",
    ],
)
async def test_nothing_but_the_pages_files_can_be_had(
    autojump_clock: MockClock, target: str
) -> None:
    async with running_server(unreachable) as world:
        status, _, body = await world.get(target)
        assert (status, body) in {(404, "not found\n"), (400, "not a request target\n")}


def test_the_page_names_no_foreign_address_and_has_no_script_or_style_of_its_own() -> None:
    found: list[tuple[str, dict[str, str | None]]] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, dict(attrs)))

    Tags().feed((files(omi_rt) / "web" / "index.html").read_text())
    assert [a["src"] for tag, a in found if tag == "script"] == ["/web/main.js"]
    assert "style" not in {tag for tag, _ in found} | {name for _, a in found for name in a}
    assert not [name for _, a in found for name in a if name.startswith("on")]
    for name in PAGE_FILES:
        text = (files(omi_rt) / "web" / name).read_text()
        known = ("http://www.w3.org/2000/svg", "http://localhost")
        assert [a for a in re.findall(r"\bhttps?://[\w./]+", text) if a not in known] == []
        assert "innerHTML" not in text


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2, of ``#rgb`` or ``#rrggbb``."""
    digits = colour.lstrip("#")
    parts = [each * 2 for each in digits] if len(digits) == 3 else re.findall("..", digits)
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(part, 16) / 255 for part in parts)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(colour: str, ground: str, share: float) -> str:
    """A colour over a ground, as ``color-mix`` in sRGB has it."""
    pairs = [re.findall("..", each.lstrip("#")) for each in (colour, ground)]
    parts = [int(c, 16) * share + int(g, 16) * (1 - share) for c, g in zip(*pairs, strict=True)]
    return "#" + "".join(f"{round(part):02x}" for part in parts)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_whatever_is_written_can_be_read(theme: int) -> None:
    style = (files(omi_rt) / "web" / "page.css").read_text()
    block = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", block))
    voices = [name for name in colours if name.startswith("voice-")]
    assert len(voices) == 8
    own = mixed(colours["accent"], colours["page"], 0.09)  # behind one's own words
    for name in ["ink", "soft", "good", "warn", "bad", "accent", *voices]:
        for ground in (colours["page"], colours["card"]):
            assert contrast(colours[name], ground) >= 4.5, (name, ground)
    for name in ("ink", "soft", "accent"):
        assert contrast(colours[name], own) >= 4.5, name
    assert contrast(colours["on-accent"], colours["accent"]) >= 4.5
    assert contrast(colours["edge"], colours["card"]) >= 3
    assert contrast(colours["edge"], colours["page"]) >= 3


def test_every_field_of_the_page_has_a_label() -> None:
    labelled: set[str] = set()
    fields: list[dict[str, str | None]] = []
    depth = 0

    class Labels(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            nonlocal depth
            known = dict(attrs)
            if tag == "label":
                depth += 1
                labelled.add(known.get("for") or "")
            elif tag in {"input", "select", "meter", "progress", "audio", "output"}:
                if depth:
                    labelled.add(known["id"] or "")
                fields.append(known)

        def handle_endtag(self, tag: str) -> None:
            nonlocal depth
            depth -= tag == "label"

    Labels().feed((files(omi_rt) / "web" / "index.html").read_text())
    assert len(fields) >= 10
    assert [f["id"] for f in fields if f["id"] not in labelled and "aria-label" not in f] == []


@pytest.mark.parametrize(
    ("login", "is_loopback", "listen", "may"),
    [
        (None, True, "/v4/web/listen", True),
        (None, False, "/listen", False),
        (OneToken(), False, "/v4/web/listen", True),
    ],
)
async def test_the_page_is_told_what_this_server_wants(
    autojump_clock: MockClock, login: Login | None, is_loopback: bool, listen: str, may: bool
) -> None:
    async with enrolling(login=login) as (world, _):
        about = await request(world, "GET /web/about HTTP/1.1\nHost: x", is_loopback=is_loopback)
        assert about[0] == 200
        assert about[1]["cache-control"] == "no-store"
        assert about[2]["asks_token"] is (login is not None)
        assert about[2]["listen"] == listen
        assert about[2]["may_watch"] is about[2]["may_enrol"] is may


# Enrolment.


async def test_a_good_voice_is_checked_then_stored_then_replaced_only_if_that_is_said(
    autojump_clock: MockClock,
) -> None:
    async with enrolling() as (world, store):
        checked = await request(world, post("uid=alice&check=true"), GOOD)
        assert checked[0] == 200
        assert checked[2]["fit"] is True
        assert checked[2]["stored"] is None
        assert await stored_in(store) == 0
        assert (await request(world, post(), GOOD))[2] == {"fit": True, "stored": "stored"}
        assert (await request(world, post(), GOOD))[2] == {"fit": True, "stored": "unchanged"}
        other = voice_wav(USER, 10.0)
        status, _, told = await request(world, post(length=len(other)), other)
        assert (status, told["exists"]) == (409, True)
        assert "--force" not in told["reason"]
        done = await request(world, post("uid=alice&replace=true", len(other)), other)
        assert done[2] == {"fit": True, "stored": "replaced"}
        (row,) = await list_profiles(store, "alice")
        assert row.size == len(other)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (GOOD[:44] + bytes(8 * 32_000), "too quiet"),
        (voice_wav(USER, 3.6), "a profile needs 5 to 120 s"),
        (b"RIFF....nothing of the kind", "WAV"),
    ],
    ids=["silence", "short", "no wav"],
)
async def test_a_voice_that_is_not_good_enough_is_not_stored_and_the_reason_is_told(
    autojump_clock: MockClock, body: bytes, reason: str
) -> None:
    async with enrolling() as (world, store):
        status, _, told = await request(world, post(length=len(body)), body)
        assert (status, told["fit"]) == (422, False)
        assert reason in told["reason"]
        assert await stored_in(store) == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (post(length=MAX_BYTES + 1), 413),
        (post(length=None), 411),
        (post(kind="text/plain"), 415),
        (post(kind="multipart/form-data; boundary=x"), 415),
        (post(more="\nOrigin: http://evil.example"), 403),
        (post(more="\nOrigin: null"), 403),
        # A name that was made to point at this machine.
        (post(more="\nOrigin: http://evil.example").replace("localhost:80", "evil.example"), 403),
        (post("uid=.."), 400),
        (post("uid=..&check=true"), 400),
        (post().replace(f"Content-Length: {len(GOOD)}", "Content-Length: \u00b2"), 411),
        (post("uid="), 400),
        (post(length=None).replace("POST", "GET"), 405),
        (post(length=None).replace("POST", "OPTIONS"), 405),
    ],
)
async def test_what_is_no_enrolment_is_refused_and_stores_nothing(
    autojump_clock: MockClock, head: str, status: int
) -> None:
    async with enrolling() as (world, store):
        refused = await request(world, head, GOOD)
        assert refused[0] == status
        assert not any(name.startswith("access-control") for name in refused[1])
        assert store._objects == {}


async def test_a_media_type_is_read_as_http_has_it(autojump_clock: MockClock) -> None:
    async with enrolling() as (world, _):
        head = post("uid=alice&check=true", kind="Audio/WAV ; codecs=1")
        assert (await request(world, head, GOOD))[0] == 200


async def test_who_is_refused_while_still_sending_can_read_why(autojump_clock: MockClock) -> None:
    async with enrolling() as (world, _):
        stream = world.open_stream(capacity_bytes=4096, is_loopback=True)
        head = post("uid=alice", kind="text/plain").replace("\n", "\r\n").encode()
        # More than the line holds: it is sent to the end only if somebody takes it.
        with trio.fail_after(10):
            await stream.send_all(head + b"\r\n\r\n" + GOOD)
            assert split_response(await read_all(stream))[0] == 415


class SlowLogin(OneToken):
    """A login that takes its time."""

    async def uid_of(self, token: str) -> str:
        await trio.sleep(5.0)
        return await super().uid_of(token)


async def test_those_who_enrol_at_once_are_counted_after_their_login(
    autojump_clock: MockClock,
) -> None:
    good = post(more="\nAuthorization: Bearer good").replace("\n", "\r\n").encode()
    async with enrolling(login=SlowLogin()) as (world, _):
        streams = []
        for _ in range(MAX_AT_ONCE + 2):
            stream = world.open_stream(is_loopback=True)
            await stream.send_all(good + b"\r\n\r\n" + GOOD[:100])
            streams.append(stream)
        await trio.sleep(6.0)
        for stream in streams:
            await stream.send_all(GOOD[100:])
        answers = sorted([split_response(await read_all(stream))[0] for stream in streams])
        assert answers == [200] * MAX_AT_ONCE + [503] * 2


async def test_without_a_login_only_this_machine_may_enrol(autojump_clock: MockClock) -> None:
    async with enrolling() as (world, store):
        assert (await request(world, post(), GOOD, is_loopback=False))[0] == 403
        assert await stored_in(store) == 0
        own = post(more="\nOrigin: http://localhost:80")
        assert (await request(world, own, GOOD))[0] == 200


async def test_with_a_login_the_token_says_whose_voice_it_is(autojump_clock: MockClock) -> None:
    async with enrolling(login=OneToken()) as (world, store):
        assert (await request(world, post(), GOOD))[0] == 401
        assert (await request(world, post(more="\nAuthorization: Bearer bad"), GOOD))[0] == 401
        assert store._objects == {}
        good = post("uid=mallory", more="\nAuthorization: Bearer good")
        assert (await request(world, good, GOOD, is_loopback=False))[0] == 200
        assert await stored_in(store, "alice") == 1
        assert await stored_in(store, "mallory") == 0


async def test_a_body_that_does_not_come_is_given_up_and_gives_its_place_back(
    autojump_clock: MockClock,
) -> None:
    async with enrolling() as (world, store):
        slow = []
        for _ in range(MAX_AT_ONCE):
            stream = world.open_stream(is_loopback=True)
            await stream.send_all(post().replace("\n", "\r\n").encode() + b"\r\n\r\n" + GOOD[:100])
            slow.append(stream)
        await trio.testing.wait_all_tasks_blocked()
        status, headers, _ = await request(world, post(), GOOD)
        assert (status, headers["retry-after"]) == (503, "2")
        began = trio.current_time()
        for stream in slow:
            assert split_response(await read_all(stream))[0] == 408
        assert trio.current_time() - began <= BODY_SECONDS + 1.0
        gone = world.open_stream(is_loopback=True)
        await gone.send_all(post().replace("\n", "\r\n").encode() + b"\r\n\r\n" + GOOD[:100])
        await gone.aclose()
        assert (await request(world, post(), GOOD))[0] == 200
        assert await stored_in(store) == 1


async def test_where_profiles_are_off_or_the_store_is_away_that_is_said(
    autojump_clock: MockClock,
) -> None:
    async with running_server(unreachable) as world:
        assert (await request(world, post(), GOOD))[0] == 503
    failing = MemoryProfileStore(failure=StoreUnavailable("the store is away"))
    async with running_server(unreachable, profiles=Profiles(failing, 10.0)) as world:
        status, _, told = await request(world, post(), GOOD)
        assert (status, told["reason"]) == (503, "the store is away")


@pytest.mark.parametrize(
    ("proxies", "forwarded", "is_near"),
    [
        ("", "", True),
        ("", "203.0.113.7", False),
        ("", "127.0.0.1", False),
        ("127.0.0.1", "203.0.113.7", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "unknown", False),
    ],
)
@pytest.mark.realtime
async def test_whoever_comes_through_a_proxy_on_this_machine_is_not_on_it(
    proxies: str, forwarded: str, is_near: bool
) -> None:
    """Without a login this machine alone may watch and store voices, whatever the proxy's setting is."""
    async with serving(DEEPGRAM_URL=NOWHERE, OMI_RT_TRUSTED_PROXIES=proxies) as server:
        header = f"X-Forwarded-For: {forwarded}\r\n" if forwarded else ""
        request = f"GET /web/about HTTP/1.1\r\nHost: x\r\n{header}\r\n"
        _, _, body = await exchange(await server.connect(), request)
        assert json.loads(body)["may_watch"] is is_near
