"""Webhooks: what arrives, in what order, who signed it, and what a bad receiver cost."""

from __future__ import annotations

import base64
import json
import ssl
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import standardwebhooks
import trio
import trustme
from attrs import evolve

from omi_rt.core.audio import AudioFormat
from omi_rt.core.observers import SessionFacts
from omi_rt.core.segments import Segment
from omi_rt.core.updates import Final
from omi_rt.core.webhooks import (
    AudioHook,
    is_public,
    parse_audio_hook,
    parse_secret,
    pause_before_retry,
    with_query,
)
from omi_rt.fake import random_script, synthesise
from omi_rt.log import configure_logging
from omi_rt.metrics import Metrics
from omi_rt.net.http_client import open_http_client
from omi_rt.webhooks import service
from omi_rt.webhooks.service import Hooks, SessionHooks, Webhooks
from tests.http_server import HTTPServer, Reply, http_server
from tests.processes_e2e import KEY, fake_in_process, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

SECRET_TEXT = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
SECRET = parse_secret(SECRET_TEXT)
FACTS = SessionFacts(
    "a" * 32, "alice & bob", "en", AudioFormat(8000, 1), datetime.now(UTC), lambda _: []
)


def final(*texts: str) -> Final:
    segments = [Segment(text, 0, 0, 8000, 0, [text]) for text in texts]
    return Final(range(1), None, [], segments)


@asynccontextmanager
async def hooked(
    server: HTTPServer, *, audio: float = 0.0, private: bool = True
) -> AsyncIterator[tuple[SessionHooks, Metrics]]:
    hooks = Hooks(
        server.url("/words?key=k"),
        AudioHook(server.url("/audio"), audio) if audio else None,
        SECRET,
        private,
    )
    metrics = Metrics()
    async with open_http_client() as client, trio.open_nursery() as nursery:
        webhooks = Webhooks(hooks, client, metrics, Random(1))
        end = await nursery.start(webhooks.post_all)
        yield webhooks.watch(FACTS), metrics
        end()


def count(metrics: Metrics, outcome: str, kind: str = "transcript") -> float:
    name = "omi_rt_webhooks_total"
    line = f'{name}{{kind="{kind}",outcome="{outcome}"}} '
    return float(metrics.exposition().decode().partition(line)[2].split()[0])


def texts(server: HTTPServer) -> list[str]:
    return [
        segment["text"]
        for request in server.requests
        if "words" in request.target
        for segment in json.loads(request.body)["segments"]
    ]


async def test_segments_come_in_batches_in_order_and_signed() -> None:
    async with http_server() as server:
        async with hooked(server) as (session, metrics):
            session.note(final("one", "two"))
            session.note({"type": "ping"})
            await server.until(lambda: server.requests)
            session.note(final("three"))
            session.close()
        first, second = server.requests
        assert texts(server) == ["one", "two", "three"]
        assert first.query == {"key": ["k"], "uid": ["alice & bob"]}
        assert json.loads(first.body)["session_id"] == FACTS.id
        for request in (first, second):
            standardwebhooks.Webhook(SECRET_TEXT).verify(request.body, request.headers)
        with pytest.raises(standardwebhooks.webhooks.WebhookVerificationError):
            standardwebhooks.Webhook(SECRET_TEXT).verify(first.body + b" ", first.headers)
        assert first.headers["webhook-id"] != second.headers["webhook-id"]
        assert count(metrics, "delivered") == 2


async def test_audio_comes_whole_and_in_pieces_of_the_length_that_was_asked_for() -> None:
    pcm = Random(1).randbytes(16_000 * 2 + 5000)
    async with http_server() as server:
        async with hooked(server, audio=1.0) as (session, _):
            for start in range(0, len(pcm), 320):
                session.hear(pcm[start : start + 320])
            session.close()
        requests = [request for request in server.requests if "audio" in request.target]
        assert b"".join(request.body for request in requests) == pcm
        assert [len(request.body) for request in requests] == [16_000, 16_000, 5000]
        assert requests[0].query == {"sample_rate": ["8000"], "uid": ["alice & bob"]}
        assert requests[0].headers["content-type"] == "application/octet-stream"


async def test_audio_of_several_channels_says_how_many_and_is_cut_between_samples() -> None:
    async with http_server() as server, open_http_client() as client:
        hooks = Hooks("", AudioHook(server.url("/audio"), 1.0), None, may_be_private=True)
        async with trio.open_nursery() as nursery:
            webhooks = Webhooks(hooks, client, Metrics(), Random(1))
            end = await nursery.start(webhooks.post_all)
            session = webhooks.watch(evolve(FACTS, audio_format=AudioFormat(8000, 3)))
            session.hear(bytes(50_000))
            session.close()
            end()
        assert [len(request.body) for request in server.requests] == [48_000, 2000]
        query = {"channels": ["3"], "sample_rate": ["8000"], "uid": ["alice & bob"]}
        assert [request.query for request in server.requests] == [query] * 2
        assert "webhook-signature" not in server.requests[0].headers


def has_had(server: HTTPServer, requests: int) -> bool:
    return len(server.requests) == requests


async def test_a_piece_of_audio_is_no_longer_than_what_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A minute of many channels at a high rate is more than the queue of a session holds."""
    monkeypatch.setattr(service, "MAX_AUDIO_BYTES", 40_000)
    pcm = Random(1).randbytes(90_000)
    async with http_server() as server:
        async with hooked(server, audio=60.0) as (session, metrics):
            for start in range(0, len(pcm), 5000):
                session.hear(pcm[start : start + 5000])
                if (start + 5000) % 20_000 == 0:
                    whole = (start + 5000) // 20_000
                    await server.until(partial(has_had, server, whole))
            session.close()
        assert [len(request.body) for request in server.requests] == [20_000] * 4 + [10_000]
        assert b"".join(request.body for request in server.requests) == pcm
        assert 'webhooks_dropped_total{kind="audio"} 0.0' in metrics.exposition().decode()


async def test_a_receiver_that_fails_gets_the_same_message_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "pause_before_retry", lambda *_: 0.01)
    began = int(time.time())
    seconds = iter(range(began, began + 9))
    monkeypatch.setattr(service, "time", SimpleNamespace(time=lambda: next(seconds)))
    answers = [Reply(500), Reply(503), Reply(429), Reply(204)]
    async with http_server(lambda _: answers.pop(0)) as server:
        async with hooked(server) as (session, metrics):
            session.note(final("one"))
            session.close()
        assert len({request.headers["webhook-id"] for request in server.requests}) == 1
        assert len({request.body for request in server.requests}) == 1
        # Receivers refuse what is signed long ago, so each try has a time of its own.
        stamps = [int(request.headers["webhook-timestamp"]) for request in server.requests]
        assert stamps == [began, began + 1, began + 2, began + 3]
        for request in server.requests:
            standardwebhooks.Webhook(SECRET_TEXT).verify(request.body, request.headers)
        assert (count(metrics, "delivered"), count(metrics, "failed")) == (1, 0)


@pytest.mark.parametrize(
    ("reply", "tries"),
    [
        (Reply(500), 5),
        (Reply(400), 1),
        (Reply(302, headers={"Location": "/elsewhere"}), 1),
        (Reply(307, headers={"Location": "/elsewhere"}), 1),
        (Reply(None), 5),
    ],
)
async def test_a_message_that_is_not_taken_is_given_up_and_counted(
    reply: Reply, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "pause_before_retry", lambda *_: 0.01)
    monkeypatch.setattr(service, "POST_SECONDS", 0.2)
    async with http_server(lambda _: reply) as server:
        async with hooked(server) as (session, metrics):
            session.note(final("one"))
            session.close()
        assert len(server.requests) == tries
        assert all("words" in request.target for request in server.requests)
        assert (count(metrics, "delivered"), count(metrics, "failed")) == (0, 1)


async def test_a_receiver_whose_certificate_is_not_trusted_gets_nothing_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "text")
    monkeypatch.setattr(service, "pause_before_retry", lambda *_: 0.01)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with http_server(context=context) as server:
        async with hooked(server) as (session, metrics):
            session.note(final("one"))
            session.close()
        assert server.requests == []
        assert count(metrics, "failed") == 1
    told = capfd.readouterr().err
    assert "reason='no trusted certificate: unable to get local issuer certificate'" in told
    assert "127.0.0.1" not in told


async def test_an_endless_answer_is_not_read() -> None:
    async with http_server(lambda _: Reply(200, b"x" * 65_536, endless=True)) as server:
        async with hooked(server) as (session, metrics):
            session.note(final("one"))
            session.close()
        assert count(metrics, "delivered") == 1
        assert server.sent_bytes < 20_000_000


async def test_what_waits_for_a_slow_receiver_is_bounded_and_counted() -> None:
    async with http_server(lambda _: Reply(None)) as server:
        async with hooked(server, audio=1.0) as (session, metrics):
            started = trio.current_time()
            for number in range(1500):
                session.note(final(str(number)))
                session.hear(bytes(8000))
            assert trio.current_time() - started < 2, "nothing waits for the receiver"
            assert [s["text"] for s in session.segments] == [str(n) for n in range(500, 1500)]
            assert len(session.audio) <= service.MAX_AUDIO_BYTES
            text = metrics.exposition().decode()
            assert 'omi_rt_webhooks_dropped_total{kind="transcript"} 500.0' in text
            assert 'omi_rt_webhooks_dropped_total{kind="audio"} 976.0' in text
            session.segments.clear()
            session.audio.clear()
            session.close()


class Receiver:
    """Takes messages in virtual time, as slowly as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes: float = 0.0) -> None:
        self.takes = takes
        self.came: list[tuple[float, list[str]]] = []
        self.now = self.most = 0
        monkeypatch.setattr(service, "post", self.post)

    async def post(self, _client: Any, _url: str, body: bytes, *_: Any, **__: Any) -> int:
        self.came.append((trio.current_time(), [s["text"] for s in json.loads(body)["segments"]]))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(self.takes)
        finally:
            self.now -= 1
        return 200


@asynccontextmanager
async def hooks_in_virtual_time() -> AsyncIterator[Webhooks]:
    hooks = Hooks("https://x.example/", None, SECRET, may_be_private=True)
    async with open_http_client() as client, trio.open_nursery() as nursery:
        webhooks = Webhooks(hooks, client, Metrics(), Random(1))
        end = await nursery.start(webhooks.post_all)
        yield webhooks
        end()


async def test_what_comes_within_a_second_is_one_message(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(monkeypatch)
    async with hooks_in_virtual_time() as webhooks:
        session, began = webhooks.watch(FACTS), trio.current_time()
        for text, pause in (("one", 0.5), ("two", 0.4), ("three", 0.2), ("four", 5.0)):
            session.note(final(text))
            await trio.sleep(pause)
        session.note(final("five"))
        session.close()
    times = [(round(at - began, 3), texts) for at, texts in receiver.came]
    assert times == [(1.0, ["one", "two", "three"]), (2.1, ["four"]), (6.1, ["five"])]


async def test_so_many_messages_are_on_their_way_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(monkeypatch, takes=1.0)
    async with hooks_in_virtual_time() as webhooks:
        for _ in range(50):
            session = webhooks.watch(FACTS)
            session.note(final("one"))
            session.close()
    assert (len(receiver.came), receiver.most) == (50, service.MAX_POSTS)


async def test_the_end_of_a_server_waits_for_a_receiver_only_for_a_while_and_tells_what_is_left(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "text")
    receiver = Receiver(monkeypatch)
    async with hooks_in_virtual_time() as webhooks:
        for takes in (0.0, 1e6, 1e6):
            receiver.takes = takes
            session = webhooks.watch(FACTS)
            session.note(final("one"))
            session.close()
            await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(service.LAST_SECONDS)
    assert len(receiver.came) == 3
    told = [line for line in capfd.readouterr().err.splitlines() if "webhooks_cut" in line]
    assert [line.partition("webhooks_cut ")[2].strip() for line in told] == ["transcript=2"]


async def test_a_server_that_has_posted_everything_tells_nothing_of_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", "text")
    Receiver(monkeypatch, takes=5.0)
    async with hooks_in_virtual_time() as webhooks:
        session = webhooks.watch(FACTS)
        session.note(final("one"))
        session.close()
    assert capfd.readouterr().err == ""


async def test_a_receiver_of_audio_that_hangs_holds_up_nobody_s_words(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: list[float] = []

    async def answer(_client: Any, url: str, *_: Any, **__: Any) -> int:
        if "audio" in url:
            await trio.sleep_forever()
        words.append(trio.current_time())
        return 200

    monkeypatch.setattr(service, "post", answer)
    hooks = Hooks("https://x.example/", AudioHook("https://x.example/audio", 1.0), SECRET, True)
    async with open_http_client() as client, trio.open_nursery() as nursery:
        webhooks = Webhooks(hooks, client, Metrics(), Random(1))
        end = await nursery.start(webhooks.post_all)
        sessions = [webhooks.watch(FACTS) for _ in range(50)]
        for session in sessions:
            session.hear(bytes(16_000))
        await trio.sleep(1)
        for session in sessions:
            session.note(final("one"))
        await trio.sleep(2)
        assert len(words) == 50
        end()
    assert webhooks._waiting.audio_bytes == 0


async def test_a_receiver_that_is_gone_is_told_once_a_session_until_it_is_back(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info", "text")
    status = [400]

    async def answer(*_: Any, **__: Any) -> int:
        await trio.lowlevel.checkpoint()
        return status[0]

    monkeypatch.setattr(service, "post", answer)
    async with hooks_in_virtual_time() as webhooks:
        session = webhooks.watch(FACTS)
        for now in (400, 400, 400, 200, 400, 400):
            status[0] = now
            session.note(final("one"))
            await trio.sleep(3)
        assert count(webhooks._metrics, "failed") == 5
        session.close()
    assert capfd.readouterr().err.count("webhook_failed") == 2


async def test_what_all_sessions_queue_for_a_receiver_that_hangs_is_bounded(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_ALL_AUDIO_BYTES", 130_000)
    monkeypatch.setattr(service, "MAX_ENDED", 6)
    hooks = Hooks("https://x.example/", AudioHook("https://x.example/audio", 1.0), SECRET, True)
    metrics = Metrics()

    async def answer(*_: Any, **__: Any) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(service, "post", answer)
    async with open_http_client() as client, trio.open_nursery() as nursery:
        webhooks = Webhooks(hooks, client, metrics, Random(1))
        end = await nursery.start(webhooks.post_all)
        for _ in range(5):
            session = webhooks.watch(FACTS)
            await trio.sleep(0.1)
            session.hear(bytes(30_000))
            session.note(final("one"))
            await trio.sleep(5)
            session.note(final("two"))
            session.close()
        await trio.testing.wait_all_tasks_blocked()
        text = metrics.exposition().decode()
        # Three sessions that have ended may wait for the receiver. What others leave is given up.
        assert (webhooks._waiting.ended, webhooks._waiting.audio_bytes) == (6, 3 * 30_000)
        assert 'omi_rt_webhooks_dropped_total{kind="transcript"} 2.0' in text
        assert 'omi_rt_webhooks_dropped_total{kind="audio"} 2.0' in text
        assert (count(metrics, "failed"), count(metrics, "failed", "audio")) == (2, 2)
        last = webhooks.watch(FACTS)
        last.hear(bytes(40_001))
        assert webhooks._waiting.audio_bytes == 90_000
        last.hear(bytes(40_000))
        assert webhooks._waiting.audio_bytes == 130_000
        last.close()
        end()
    assert (webhooks._waiting.audio_bytes, webhooks._waiting.ended) == (0, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_receiver_in_a_private_network_is_asked_for_nothing(host: str) -> None:
    async with http_server() as server:
        hooks = Hooks(server.url("/", host), None, None, may_be_private=False)
        metrics = Metrics()
        async with open_http_client() as client, trio.open_nursery() as nursery:
            webhooks = Webhooks(hooks, client, metrics, Random(1))
            end = await nursery.start(webhooks.post_all)
            session = webhooks.watch(FACTS)
            session.note(final("one"))
            session.close()
            end()
        assert server.connections == 0
        assert count(metrics, "failed") == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("::ffff:127.0.0.1", False),
        ("fe80::1%eth0", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::1", False),
        ("fd00::1", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("100.64.0.1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_settings_of_webhooks_are_checked() -> None:
    assert parse_audio_hook("https://x.example/a?b=1,2,5") == AudioHook(
        "https://x.example/a?b=1,2", 5
    )
    for text in ("https://x.example", "https://x.example,0", "https://x.example,nan"):
        with pytest.raises(ValueError, match=r".*"):
            parse_audio_hook(text)
    for text in ("x", "whsec_", "whsec_AAAA", "whsec_!!"):
        with pytest.raises(ValueError, match=r".*"):
            parse_secret(text)
    assert with_query("https://x/a?b=1#c", uid="a b") == "https://x/a?b=1&uid=a+b#c"
    assert [pause_before_retry(n, 0.0) for n in (1, 2, 3, 9)] == [0.5, 1.0, 2.0, 8.0]
    assert "x.example" not in repr(Hooks("https://x.example", None, b"s", may_be_private=False))


@pytest.mark.realtime
async def test_a_server_posts_the_words_of_a_session_and_all_of_them_before_it_ends() -> None:
    async with http_server() as receiver, fake_in_process() as (_, url):
        settings: dict[str, Any] = {
            "DEEPGRAM_URL": url,
            "DEEPGRAM_API_KEY": KEY,
            "OMI_RT_WEBHOOK_TRANSCRIPT": receiver.url("/words"),
            "OMI_RT_WEBHOOK_AUDIO": receiver.url("/audio,2"),
            "OMI_RT_WEBHOOK_SECRET": SECRET_TEXT,
            "OMI_RT_WEBHOOK_PRIVATE": "1",
        }
        async with serving(**settings) as server:
            pcm = synthesise(random_script(Random(3), 6.0), 16_000)
            async with server.device(codec="pcm16", sample_rate=16_000) as device:
                await device.stream_audio(pcm, 32_000, speed=1.2)
                await device.finish()
            server.program.signal()
            assert await server.program.status(20) == 0
        assert texts(receiver) == [segment["text"] for segment in device.segments]
        audio = [request.body for request in receiver.requests if "audio" in request.target]
        assert b"".join(audio) == pcm
        assert SECRET_TEXT not in server.program.errors
