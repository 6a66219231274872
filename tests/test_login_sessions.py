"""Login over whole sessions: what each kind of client is told, and whose words they are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.core.errors import HandshakeFailed
from omi_rt.core.login import BadToken, TokenExpired
from omi_rt.faces.deepgram import deepgram_token
from omi_rt.faces.face import Call
from omi_rt.fake import random_script, synthesise
from tests.harness import listening_server, words_of

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.harness import World

SCRIPT = random_script(Random(5), 6.0)
PCM = synthesise(SCRIPT, 16_000)
FORMAT = {"codec": "pcm16", "sample_rate": 16_000}
BEARER_PATHS = ["/listen", "/v2/listen", "/v3/listen", "/v4/listen", "/v1/stt", "/v3/stream"]


class OneToken:
    """A login that knows one token, and one that has expired."""

    def __init__(self, problem: str | None = None) -> None:
        self.problem = problem
        self.asked: list[str] = []

    async def uid_of(self, token: str) -> str:
        await trio.lowlevel.checkpoint()
        self.asked.append(token)
        if token == "old":
            raise TokenExpired
        if token != "good":
            raise BadToken
        return "alice"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("path", BEARER_PATHS)
async def test_the_uid_is_the_tokens_whatever_the_query_says(
    path: str, autojump_clock: MockClock
) -> None:
    async with listening_server(login=OneToken()) as (world, _):
        query = FORMAT | {"uid": "mallory"}
        async with world.client(path, query, headers=bearer("good")) as device:
            assert device.session._request.uid == "alice"
            await device.stream_audio(PCM, 32_000)
            device.send("finalize" if path == "/v3/stream" else '{"type":"CloseStream"}')
            await device.ended()
        found = [
            segment
            for message in device.messages
            for segment in (message if isinstance(message, list) else message.get("segments", []))
        ]
        if path != "/v4/listen":  # there a segment comes again as it grows
            assert words_of(found) == SCRIPT.transcript()


@pytest.mark.parametrize("path", BEARER_PATHS)
@pytest.mark.parametrize(
    ("headers", "code", "kind"),
    [
        ({}, 1008, "missing"),
        ({"Authorization": "Basic good"}, 1008, "missing"),
        (bearer("bad"), 1008, "bad"),
        (bearer("old"), 4001, "expired"),
    ],
)
async def test_who_proves_nothing_is_closed_after_the_upgrade(
    path: str, headers: dict[str, str], code: int, kind: str, autojump_clock: MockClock
) -> None:
    async with listening_server(login=OneToken()) as (world, fake):
        async with world.client(path, FORMAT | {"uid": "alice"}, headers=headers) as device:
            await device.ended()
        assert device.closed is not None
        assert (device.closed.code, device.closed.reason) == (code, "Bad token")
        assert device.messages == []
        assert f'omi_rt_login_failures_total{{kind="{kind}"}} 1.0' in world.exposition()
        assert f'omi_rt_requests_closed_total{{code="{code}"}} 1.0' in world.exposition()
        assert fake.connections == []


@pytest.mark.parametrize(("token", "code"), [("good", None), ("bad", 1008), ("old", 4001)])
async def test_the_web_app_proves_itself_in_its_first_message(
    token: str, code: int | None, autojump_clock: MockClock
) -> None:
    first = json.dumps({"type": "auth", "token": token})
    async with listening_server(login=OneToken()) as (world, _):
        async with world.client("/v4/web/listen", FORMAT, first=[first]) as device:
            if code is None:
                assert device.session._request.uid == "alice"
                await device.finish()
            await device.ended()
        assert device.closed is not None
        assert device.event("auth_response")["success"] is (code is None)
        assert device.closed.code == (code or 1000)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Token good"},
        {"Authorization": "Bearer good"},
    ],
)
@pytest.mark.parametrize("uid", ["", "mallory"])
async def test_a_client_of_deepgrams_has_its_token_for_a_key(
    headers: dict[str, str], uid: str, autojump_clock: MockClock
) -> None:
    query = {"encoding": "linear16", "sample_rate": 16_000} | ({"uid": uid} if uid else {})
    async with listening_server(login=OneToken()) as (world, _):
        async with world.client("/v1/listen", query, headers=headers) as device:
            request = device.session._request
            assert request.uid == "alice"
            assert request.include_speech_profile is bool(uid)
            device.send('{"type":"CloseStream"}')
            await device.ended()


def test_a_browser_shows_its_key_as_a_subprotocol() -> None:
    call = Call(
        "/v1/listen",
        (),
        {"sec-websocket-protocol": "token, good"},
        is_loopback=True,
        session_id="0" * 32,
        called_at=datetime.now(UTC),
    )
    assert deepgram_token(call) == "good"


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Token bad"}, {"Authorization": "Token old"}]
)
async def test_a_client_of_deepgrams_without_a_good_key_gets_401(
    headers: dict[str, str], autojump_clock: MockClock
) -> None:
    query = {"encoding": "linear16", "sample_rate": 16_000}
    async with listening_server(login=OneToken()) as (world, _):
        with pytest.raises(HandshakeFailed) as caught:
            async with world.client("/v1/listen", query, headers=headers):
                pass
        assert caught.value.status == 401
        assert "old" not in str(caught.value)


async def test_failures_are_answered_later_each_time_and_a_good_token_at_once(
    autojump_clock: MockClock,
) -> None:
    waits = []
    async with listening_server(login=OneToken()) as (world, _):
        for token in ("bad",) * 4 + ("good",):
            started = trio.current_time()
            async with world.client("/listen", FORMAT, headers=bearer(token)) as device:
                if token == "good":
                    assert device.session.id
                else:
                    await device.ended()
                waits.append(trio.current_time() - started)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 0.0], abs=0.02)


async def test_a_server_whose_login_has_no_keys_is_not_ready(autojump_clock: MockClock) -> None:
    async with listening_server(login=OneToken("no keys")) as (world, _):
        assert await ready(world) == (503, "no keys\n")
        with pytest.raises(HandshakeFailed) as caught:
            async with world.client("/listen", FORMAT, headers=bearer("good")):
                pass
        assert caught.value.status == 503
        assert 'omi_rt_upgrades_refused_total{reason="login"} 1.0' in world.exposition()


async def ready(world: Any) -> tuple[int, str]:
    status, _, body = await world.get("/readyz")
    return status, body


class SlowLogin:
    """A login that waits until the test lets it answer, as one that fetches keys."""

    problem = None

    def __init__(self) -> None:
        self.may_answer = trio.Event()

    async def uid_of(self, _token: str) -> str:
        await self.may_answer.wait()
        return "alice"


async def test_a_full_server_is_full_also_for_those_who_prove_themselves_late(
    autojump_clock: MockClock,
) -> None:
    auth = json.dumps({"type": "auth", "token": "good"})
    async with (
        listening_server(login=OneToken(), max_sessions=1) as (world, _),
        world.client("/v4/web/listen", FORMAT) as first,
        world.client("/v4/web/listen", FORMAT) as second,
    ):
        first.send(auth)
        await first.until(lambda: first.messages)
        second.send(auth)
        await second.ended()
        assert second.closed is not None
        assert (second.closed.code, second.closed.reason) == (1013, "too many sessions: 1 of 1")
        assert 'omi_rt_upgrades_refused_total{reason="full"} 1.0' in world.exposition()
        (session,) = world.server.sessions
        first.send('{"type":"CloseStream"}')
        await first.ended()
        assert first.closed is not None
        assert first.closed.code == 1000
        assert session.coverage.balance().is_exact


async def test_a_client_of_deepgrams_that_proves_itself_late_gets_503(
    autojump_clock: MockClock,
) -> None:
    login = SlowLogin()
    query = {"encoding": "linear16", "sample_rate": 16_000}
    refusals: list[HandshakeFailed] = []

    async def come(world: World) -> None:
        try:
            async with world.client("/v1/listen", query, headers=bearer("good")) as device:
                device.send('{"type":"CloseStream"}')
                await device.ended()
        except HandshakeFailed as failure:
            refusals.append(failure)

    async with listening_server(login=login, max_sessions=1) as (world, _):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(come, world)
            await trio.testing.wait_all_tasks_blocked()
            login.may_answer.set()
    assert [each.status for each in refusals] == [503, 503]
    assert all(each.retry_after for each in refusals)


async def test_who_proves_itself_while_the_server_goes_is_sent_elsewhere(
    autojump_clock: MockClock,
) -> None:
    async with (
        listening_server(login=OneToken()) as (world, _),
        world.client("/v4/web/listen", FORMAT) as late,
    ):
        world.server.drain()
        late.send(json.dumps({"type": "auth", "token": "good"}))
        await late.ended()
    assert late.closed is not None
    assert (late.closed.code, late.closed.reason) == (1001, "going away")
