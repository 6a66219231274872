"""Who may speak as whom: tokens, good and bad, and what a failure costs."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import stat
import time
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from omi_rt.auth import keys as keys_module
from omi_rt.auth.jwt import (
    FIREBASE_ALGORITHMS,
    OPENID_ALGORITHMS,
    JWTRules,
    read_certificates,
    read_jwks,
    read_token,
)
from omi_rt.auth.keys import KeySet, NoKeys, PublishedKeys
from omi_rt.auth.signed import EmulatorLogin, KeyLogin
from omi_rt.auth.tokens import TokenFile, TokensUnusable, add_token, forget_tokens
from omi_rt.core.errors import BadRequest
from omi_rt.core.login import (
    MAX_TOKEN_CHARACTERS,
    BadToken,
    FailedLogins,
    TokenExpired,
    TokenFileError,
    hash_token,
    max_age_seconds,
    parse_tokens,
)
from omi_rt.log import configure_logging
from omi_rt.net.http_client import open_http_client
from tests import tokens
from tests.http_server import HTTPServer, Reply, Request, http_server
from tests.processes_e2e import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

RULES = JWTRules(tokens.ISSUER, tokens.PROJECT, FIREBASE_ALGORITHMS)
KEYS = read_certificates(tokens.certificates("k1", "k2"))


def hs256_with_the_public_key(algorithm: str = "HS256") -> str:
    """The classic: what is public is used as a secret."""
    unsigned = tokens.raw_token({"alg": algorithm, "kid": "k1", "typ": "JWT"}, tokens.claims())
    secret, signed = tokens.public_pem("k1"), unsigned.rpartition(".")[0]
    digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return tokens.raw_token({"alg": algorithm, "kid": "k1", "typ": "JWT"}, tokens.claims(), digest)


BAD = {
    "alg none": tokens.raw_token({"alg": "none", "kid": "k1"}, tokens.claims()),
    "alg None": tokens.raw_token({"alg": "None", "kid": "k1"}, tokens.claims()),
    "no alg": tokens.raw_token({"kid": "k1"}, tokens.claims()),
    "HS256 with the public key": hs256_with_the_public_key(),
    "HS256 that says RS256": hs256_with_the_public_key("RS256"),
    "unknown key id": tokens.token("k3"),
    "another key under a known id": tokens.token("k3", kid="k1"),
    "no key id": tokens.raw_token({"alg": "RS256"}, tokens.claims(), b"x" * 256),
    "key id with a path": tokens.token("k1", kid="../../etc/passwd"),
    "key id that is no text": tokens.raw_token({"alg": "RS256", "kid": 7}, tokens.claims(), b"x"),
    "key id that is a list": tokens.raw_token({"alg": "RS256", "kid": ["k1"]}, {}, b"x"),
    "another audience": tokens.token(aud="another-project"),
    "no audience": tokens.token(aud=None),
    "another issuer": tokens.token(iss="https://securetoken.google.com/another-project"),
    "no issuer": tokens.token(iss=None),
    "from the future": tokens.token(iat=time.time() + 3600),
    "not yet": tokens.token(nbf=time.time() + 3600),
    "no end": tokens.token(exp=None),
    "no time": tokens.token(iat=None),
    "no subject": tokens.token(sub=None),
    "empty subject": tokens.token(sub=""),
    "subject with a path": tokens.token(sub="../bob"),
    "1 MB": tokens.token(more="x" * 1_000_000),
    "1 MB of nothing": "x" * 1_000_000,
    "not ASCII": "é" * 20,
    "empty": "",
    "two dots": "..",
    "deeply nested": tokens.raw_token({"alg": "RS256", "kid": "k1"}, {}, b"x").replace(".", ".["),
    "cut": tokens.token()[:-8],
    "another's signature": ".".join(
        [*tokens.token().split(".")[:2], tokens.token(sub="bob").split(".")[2]]
    ),
}


def test_a_good_token_proves_its_subject() -> None:
    assert read_token(tokens.token("k1"), KEYS, RULES) == "alice"
    assert read_token(tokens.token("k2", sub="bob"), KEYS, RULES) == "bob"


def test_clocks_may_differ_by_a_minute() -> None:
    now = time.time()
    assert read_token(tokens.token(exp=now - 50), KEYS, RULES) == "alice"
    assert read_token(tokens.token(iat=now + 50), KEYS, RULES) == "alice"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_token_is_refused_without_a_word_why(name: str) -> None:
    for rules in (RULES, JWTRules(tokens.ISSUER, tokens.PROJECT, OPENID_ALGORITHMS)):
        with pytest.raises(BadToken) as caught:
            read_token(BAD[name], KEYS, rules)
        assert (str(caught.value), caught.value.close_code) == ("Bad token", 1008)


def test_an_expired_token_is_told_from_a_bad_one_by_its_code_alone() -> None:
    with pytest.raises(TokenExpired) as caught:
        read_token(tokens.token(exp=time.time() - 70), KEYS, RULES)
    assert (str(caught.value), caught.value.close_code) == ("Bad token", 4001)


def test_claims_nested_too_deep_are_bad_also_where_nothing_is_signed() -> None:
    deep = "[" * 4000
    parts = [json.dumps({"alg": "none"}), '{"sub":' + deep]
    text = ".".join(base64.urlsafe_b64encode(each.encode()).rstrip(b"=").decode() for each in parts)
    assert len(text) < MAX_TOKEN_CHARACTERS
    with pytest.raises(BadToken):
        read_token(text + ".", KeySet(), evolve(RULES, is_unsigned=True))


def test_an_expired_token_with_a_bad_signature_is_bad() -> None:
    forged = tokens.token("k3", kid="k1", exp=time.time() - 70)
    with pytest.raises(BadToken) as caught:
        read_token(forged, KEYS, RULES)
    assert caught.value.close_code == 1008


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("latin-1")))
def test_whatever_comes_for_a_token_raises_nothing_else(text: str) -> None:
    with pytest.raises(BadToken):
        read_token(text, KEYS, RULES)


def test_a_key_set_passes_over_secrets_and_unknown_keys() -> None:
    document = tokens.jwks("k1").decode()
    secret = '{"kty":"oct","kid":"s","k":"c2VjcmV0","alg":"HS256"},{"kty":"??","kid":"u"},'
    keys = read_jwks(document.replace("[", "[" + secret, 1).encode())
    assert set(keys.by_id) == {"k1"}
    rules = JWTRules(tokens.ISSUER, tokens.PROJECT, OPENID_ALGORITHMS)
    assert read_token(tokens.token("k1"), keys, rules) == "alice"


@pytest.mark.parametrize(
    "document", [b"", b"[]", b"{}", b'{"keys":7}', b'{"keys":[7]}', b'{"k1":"pem"}', b"\xff"]
)
def test_a_document_without_keys_is_none(document: bytes) -> None:
    with pytest.raises(NoKeys):
        read_jwks(document)
    with pytest.raises(NoKeys):
        read_certificates(document)


async def test_the_emulators_tokens_are_unsigned_and_checked_otherwise() -> None:
    rules = JWTRules(tokens.ISSUER, tokens.PROJECT, FIREBASE_ALGORITHMS, is_unsigned=True)
    login = EmulatorLogin(rules)
    header = {"alg": "none", "typ": "JWT"}
    assert await login.uid_of(tokens.raw_token(header, tokens.claims())) == "alice"
    for changed in ({"aud": "x"}, {"iss": "x"}, {"iat": time.time() + 90}, {"sub": None}):
        with pytest.raises(BadToken):
            await login.uid_of(tokens.raw_token(header, tokens.claims(**changed)))
    with pytest.raises(TokenExpired):
        await login.uid_of(tokens.raw_token(header, tokens.claims(exp=time.time() - 90)))
    with pytest.raises(BadToken):
        await login.uid_of(tokens.token())


# Static tokens.


def test_a_token_file_holds_tokens_as_they_are_or_as_hashes() -> None:
    table = parse_tokens(f"# ours\n\nsecret1 alice\n{hash_token('secret2')} bob smith\n")
    assert table.find("secret1") == "alice"
    assert table.find("secret2") == "bob smith"
    assert table.find(hash_token("secret2")) is None, "a hash is no token"
    assert table.find("") is None
    assert "secret" not in repr(table)


def test_what_only_begins_like_a_hash_is_a_token_as_it_is() -> None:
    for token in ("sha256:short", "sha256:" + "G" * 64, hash_token("x").upper()):
        assert parse_tokens(f"{token} alice\n").find(token) == "alice"


def test_a_login_costs_no_more_where_a_hundred_thousand_may_log_in() -> None:
    table = parse_tokens("".join(f"token{number} u{number}\n" for number in range(100_000)))

    def seconds(token: str, uid: str | None) -> float:
        began_at = time.perf_counter()
        assert table.find(token) == uid
        return time.perf_counter() - began_at

    for token, uid in (("token0", "u0"), ("token99999", "u99999"), ("none of them", None)):
        # All rows took over 10 ms, in which nothing else happens; the least of many is the work alone.
        assert min(seconds(token, uid) for _ in range(20)) < 0.001


def test_of_a_token_that_is_there_twice_the_last_line_counts() -> None:
    assert parse_tokens(f"secret alice\n{hash_token('secret')} bob\n").find("secret") == "bob"


def test_forgetting_one_uid_keeps_those_that_begin_like_it(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# al\na al\nb alice\nc al ice\n sha256:x  al\n")
    assert forget_tokens(path, "al")
    assert path.read_text() == "# al\nb alice\nc al ice\n"


@pytest.mark.parametrize("text", ["a alice\nb bo", "alone\n", "a ../x\n", "a \n"])
def test_a_token_file_that_is_not_whole_is_refused(text: str) -> None:
    with pytest.raises(TokenFileError) as caught:
        parse_tokens(text)
    assert "alone" not in str(caught.value)


async def look(file: TokenFile) -> None:
    await trio.testing.wait_all_tasks_blocked()
    await file._look()


def write_tokens(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def one_token(folder: Path) -> Path:
    """Write a token file with one line; what becomes of it is logged from now on."""
    configure_logging("info")
    path = folder / "tokens"
    write_tokens(path, "one alice\n")
    return path


@asynccontextmanager
async def reading(path: Path) -> AsyncIterator[TokenFile]:
    file = TokenFile(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(file.follow_file)
        yield file
        nursery.cancel_scope.cancel()


async def test_a_token_is_made_used_and_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokens"
    made = add_token(path, "alice")
    other = add_token(path, "bob")
    assert made not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with reading(path) as file:
        assert (await file.uid_of(made), await file.uid_of(other)) == ("alice", "bob")
        with pytest.raises(BadToken):
            await file.uid_of(made + "x")
        assert forget_tokens(path, "alice")
        assert not forget_tokens(path, "alice")
        await look(file)
        with pytest.raises(BadToken):
            await file.uid_of(made)
        assert await file.uid_of(other) == "bob"
    with pytest.raises(BadRequest):
        add_token(path, "../x")


async def test_a_changed_file_is_read_again_and_a_half_written_one_is_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = one_token(tmp_path)
    async with reading(path) as file:
        path.write_text("one alice\ntwo bo")
        for _ in range(3):
            await look(file)
        assert await file.uid_of("one") == "alice"
        with pytest.raises(BadToken):
            await file.uid_of("two")
        path.write_text("one alice\ntwo bob\n")
        await look(file)
        assert await file.uid_of("two") == "bob"
        path.unlink()
        await look(file)
        await look(file)
        with pytest.raises(BadToken):
            await file.uid_of("one")
        write_tokens(path, "one alice\n")
        await look(file)
        assert await file.uid_of("one") == "alice"
    told = capfd.readouterr().err
    assert told.count("tokens_unreadable") == told.count("tokens_gone") == 1
    assert told.count("tokens_read") == 2, (
        "whoever reads that they are gone reads that they are back"
    )


async def test_a_file_that_is_emptied_or_removed_for_a_moment_is_not_believed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = one_token(tmp_path)
    async with reading(path) as file:
        for take_away in (lambda: path.write_text(""), path.unlink):
            take_away()
            await look(file)
            assert await file.uid_of("one") == "alice"
            write_tokens(path, "one alice\ntwo bob\n")
            await look(file)
            assert await file.uid_of("two") == "bob"
        path.write_text("# nobody\n")
        await look(file)
        assert await file.uid_of("one") == "alice"
        await look(file)
        with pytest.raises(BadToken):
            await file.uid_of("one")
    assert "tokens_gone" not in capfd.readouterr().err


async def test_a_change_is_noticed_that_leaves_size_and_time_and_so_is_a_mode(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = one_token(tmp_path)
    times = path.stat()
    async with reading(path) as file:
        await wait_until(lambda: time.time_ns() - times.st_ctime_ns > 20_000_000, 10)
        path.write_text("two alice\n")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        await look(file)
        assert await file.uid_of("two") == "alice"
        with pytest.raises(BadToken):
            await file.uid_of("one")
        path.chmod(0o644)
        await look(file)
    told = capfd.readouterr().err
    assert told.count("tokens_read") == 2
    assert told.count("tokens_open_to_others") == 1


async def test_the_file_is_looked_at_every_second(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("one alice\n")
    async with reading(path) as file:
        path.write_text("two alice\n")
        await wait_until(lambda: file._table.find("two") is not None, 10)


@pytest.mark.parametrize(("text", "reason"), [(None, "no such token file"), ("x", "line end")])
async def test_a_server_does_not_start_without_a_whole_token_file(
    tmp_path: Path, text: str | None, reason: str
) -> None:
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
    with pytest.RaisesGroup(pytest.RaisesExc(TokensUnusable, match=reason)):
        async with reading(path):
            pass


# Keys that somebody publishes.


@asynccontextmanager
async def published(server: HTTPServer) -> AsyncIterator[KeyLogin]:
    async with open_http_client() as client, trio.open_nursery() as nursery:
        keys = PublishedKeys(server.url("/certs"), read_certificates, client, Random(1))
        await nursery.start(keys.keep_fresh)
        yield KeyLogin(keys, RULES)
        nursery.cancel_scope.cancel()


def certs(*names: str, **more: Any) -> Reply:
    headers = {"Cache-Control": "public, max-age=19845, must-revalidate, no-transform"}
    return Reply(body=tokens.certificates(*names), **({"headers": headers} | more))


async def test_the_keys_are_fetched_once_for_all_tokens() -> None:
    async with http_server(lambda _: certs("k1")) as server, published(server) as login:
        assert login.problem is None
        for _ in range(3):
            assert await login.uid_of(tokens.token("k1")) == "alice"
        with pytest.raises(BadToken):
            await login.uid_of(tokens.token("k9"))
        assert len(server.requests) == 1


async def test_a_new_key_is_fetched_when_a_token_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "ASKED_AGAIN_SECONDS", 0.0)
    async with http_server(lambda _: certs("k1")) as server, published(server) as login:
        server.answer = lambda _: certs("k1", "k2")
        assert await login.uid_of(tokens.token("k2")) == "alice"
        assert len(server.requests) == 2


async def test_invented_keys_make_nobody_ask_more_often_for_keys_where_asking_fails(
    mock_clock: MockClock,
) -> None:
    async with http_server(lambda _: certs("k1")) as server, published(server) as login:
        server.answer = lambda _: Reply(500)
        mock_clock.jump(31.0)
        for _ in range(10):
            with pytest.raises(BadToken):
                await login.uid_of(tokens.token("k9"))
        assert len(server.requests) == 2
        assert await login.uid_of(tokens.token("k1")) == "alice"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500),
        Reply(302, headers={"Location": "http://127.0.0.1:9/"}),
        Reply(200, b"{}"),
        Reply(200, b"x" * 65_536, endless=True),
    ],
)
async def test_a_server_without_keys_is_not_ready_and_tries_again(
    reply: Reply, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    monkeypatch.setattr(keys_module, "RETRY_SECONDS", (0.05, 0.1))
    async with http_server(lambda _: reply) as server, published(server) as login:
        assert login.problem == "the login has no keys to check tokens with"
        with pytest.raises(BadToken):
            await login.uid_of(tokens.token())
        await server.until(lambda: len(server.requests) >= 4)
        server.answer = lambda _: certs("k1")
        await wait_until(lambda: login.problem is None, 10)
        assert await login.uid_of(tokens.token()) == "alice"
        assert server.sent_bytes < 20_000_000
    told = capfd.readouterr().err
    assert told.count("login_keys_unavailable") == told.count("login_keys_fetched") == 1


async def test_keys_are_taken_from_no_other_address() -> None:
    def answer(request: Request) -> Reply:
        elsewhere = Reply(302, headers={"Location": "/elsewhere"})
        return elsewhere if request.target == "/certs" else certs("k1")

    async with http_server(answer) as server, published(server) as login:
        assert login.problem is not None
        assert {request.target for request in server.requests} == {"/certs"}


def test_no_secret_signs_a_token() -> None:
    """What is published would be enough to sign: the library refuses it as well, but need not always."""
    assert {"RS256"} == FIREBASE_ALGORITHMS
    assert {name[:2] for name in OPENID_ALGORITHMS} == {"RS", "PS", "ES", "Ed"}


async def test_old_keys_serve_until_they_expire_which_is_told_once_more(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info", "text")
    answers: list[bytes | None] = [tokens.certificates("k1"), None]

    async def fetch(*_: object) -> tuple[bytes, str, str]:
        await trio.lowlevel.checkpoint()
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if answer is None:
            raise OSError("HTTP 500")
        return answer, "max-age=1000", "100"

    monkeypatch.setattr(keys_module, "fetch_bounded", fetch)
    async with open_http_client() as client, trio.open_nursery() as nursery:
        keys = PublishedKeys("http://x/", read_certificates, client, Random(1))
        await nursery.start(keys.keep_fresh)
        started = trio.current_time()
        await trio.sleep_until(started + 899)
        assert set(keys.keys.by_id) == {"k1"}
        await trio.sleep_until(started + 901)
        assert set(keys.keys.by_id) == set()
        await trio.sleep(200)
        answers[:] = [tokens.certificates("k2")]
        await trio.sleep(120)
        assert set(keys.keys.by_id) == {"k2"}
        told = [line.partition("] ")[2].strip() for line in capfd.readouterr().err.splitlines()]
        assert told == [
            "login_keys_unavailable reason='HTTP 500' are_kept=True",
            "login_keys_unavailable reason='HTTP 500' are_kept=False",
            "login_keys_fetched keys=1",
        ]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("answer", "kept"),
    [("max-age=0", 60), ("max-age=5", 60), ("max-age=999999999", 86_400), ("no-store", 3_600)],
)
async def test_keys_are_kept_for_a_minute_at_least_and_a_day_at_most(
    answer: str, kept: float, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    asked_at: list[float] = []

    async def fetch(*_: object) -> tuple[bytes, str, str]:
        await trio.lowlevel.checkpoint()
        asked_at.append(trio.current_time())
        return tokens.certificates("k1"), answer, ""

    monkeypatch.setattr(keys_module, "fetch_bounded", fetch)
    async with open_http_client() as client, trio.open_nursery() as nursery:
        keys = PublishedKeys("http://x/", read_certificates, client, Random(1))
        await nursery.start(keys.keep_fresh)
        await trio.sleep(kept)
        nursery.cancel_scope.cancel()
    assert asked_at[1] - asked_at[0] == pytest.approx(kept * 0.8)
    assert len(asked_at) == 2


@pytest.mark.parametrize(
    ("cache_control", "age", "seconds"),
    [
        ("public, max-age=19845, must-revalidate", "", 19845),
        ("max-age=100", "30", 70),
        ("MAX-AGE=100", "x", 100),
        ("max-age=100", "400", 0),
        ("s-maxage=5", "", 3600),
        ("", "", 3600),
        ("max-age=-1", "", 3600),
    ],
)
def test_the_age_of_a_document_is_what_its_answer_says(
    cache_control: str, age: str, seconds: float
) -> None:
    assert max_age_seconds(cache_control, age, 3600) == seconds


# What a failure costs.


def test_each_failure_of_an_address_waits_longer_up_to_a_bound_and_a_pause_forgives() -> None:
    failed = FailedLogins()
    waits = [failed.note("10.0.0.1", now) for now in range(8)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert failed.note("10.0.0.2", 8) == 0.1
    assert failed.note("::ffff:10.0.0.1", 8) == 5.0
    assert failed.note("10.0.0.1", 68) == 0.1


def test_an_ipv6_household_is_one_and_memory_is_bounded() -> None:
    failed = FailedLogins()
    assert failed.note("2001:db8::1", 0) == 0.1
    assert failed.note("2001:db8::2:3", 0) == 0.2
    assert failed.note("2001:db8:0:1::1", 0) == 0.1
    for number in range(20_000):
        failed.note(f"10.{number // 65536}.{number // 256 % 256}.{number % 256}", 1)
    assert len(failed._records) == 10_000


def test_no_key_is_shown() -> None:
    assert "RSA" not in repr(KEYS)
    assert repr(KeySet()) == "KeySet()"
