"""Login as it is run: processes, sockets, and an OpenID provider that is a real HTTP server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from omi_rt.core.errors import HandshakeFailed, PeerClosed
from omi_rt.net.handshake import open_websocket
from tests import tokens
from tests.http_server import Reply, http_server
from tests.processes_e2e import KEY, NOWHERE, fake_in_process, run, running, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.processes_e2e import ServerProgram

pytestmark = pytest.mark.realtime

FORMAT = "codec=pcm16&sample_rate=16000"


async def close_code(server: ServerProgram, token: str | None, path: str = "/listen") -> int | None:
    """What becomes of a client: its close code, or None where it has a session."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    stream = await server.connect()
    async with stream:
        base = server.url.removesuffix("/listen")
        websocket = await open_websocket(stream, f"{base}{path}?uid=u1&{FORMAT}", headers=headers)
        with trio.fail_after(10):
            try:
                await websocket.receive()
            except PeerClosed as closed:
                return closed.code
    return None


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_without_a_login_a_server_does_not_start_where_others_can_come(host: str) -> None:
    done = await run("serve", "--host", host, "--port", "0", DEEPGRAM_URL=NOWHERE)
    assert done.status == 1
    assert done.errors.count("\n") == 1
    assert "set OMI_RT_AUTH, or OMI_RT_INSECURE=1" in done.errors


async def test_the_emulators_tokens_are_for_loopback_alone() -> None:
    settings: dict[str, Any] = {
        "DEEPGRAM_URL": NOWHERE,
        "OMI_RT_AUTH": "firebase",
        "OMI_RT_FIREBASE_PROJECT": tokens.PROJECT,
        "FIREBASE_AUTH_EMULATOR_HOST": "localhost:9099",
    }
    insecure: dict[str, Any] = settings | {"OMI_RT_INSECURE": "1"}
    done = await run("serve", "--host", "0.0.0.0", "--port", "0", **insecure)
    assert done.status == 1
    assert "FIREBASE_AUTH_EMULATOR_HOST" in done.errors
    unsigned = tokens.raw_token({"alg": "none", "typ": "JWT"}, tokens.claims())
    async with serving(**settings) as server:
        assert await close_code(server, unsigned) is None
        assert await close_code(server, tokens.token()) == 1008


async def test_a_token_is_made_on_the_command_line_and_opens_a_session(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "DEEPGRAM_API_KEY": KEY,
        "OMI_RT_AUTH": "tokens",
        "OMI_RT_TOKEN_FILE": str(tmp_path / "tokens"),
    }
    nothing = await run("serve", "--port", "0", **settings)
    assert (nothing.status, nothing.errors.count("\n")) == (1, 1)
    assert "omi-rt token add UID" in nothing.errors
    token = (await run("token", "add", "alice", **settings)).output.strip()
    assert len(token) >= 40
    async with fake_in_process() as (_, url), serving(DEEPGRAM_URL=url, **settings) as server:
        assert await close_code(server, token) is None
        assert await close_code(server, token, "/v4/listen") is None
        assert await close_code(server, None) == 1008
        assert await close_code(server, "guess") == 1008
        with pytest.raises(HandshakeFailed) as caught:
            await close_code(server, "guess", "/v1/listen")
        assert caught.value.status == 401
        second = (await run("token", "add", "bob", **settings)).output.strip()
        await server.program.says("tokens_read")
        assert await close_code(server, second) is None
        (tmp_path / "tokens").unlink()
        await server.program.says("tokens_gone")
        assert await close_code(server, token) == 1008
    assert token not in server.program.errors
    assert second not in server.program.errors


async def test_a_token_file_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("secret-token alice\n")
    path.chmod(0o644)
    settings = {"OMI_RT_AUTH": "tokens", "OMI_RT_TOKEN_FILE": str(path)}
    async with running(
        "serve", "--host", "0.0.0.0", "--port", "0", DEEPGRAM_URL=NOWHERE, **settings
    ) as program:
        await program.says("tokens_open_to_others")
        await program.says("is ready on")
        assert "no_login" not in program.errors
        assert "secret" not in program.errors


async def test_an_openid_providers_users_log_in_and_a_late_provider_is_waited_for() -> None:
    async with http_server(lambda _: Reply(503)) as provider:
        settings = {
            "DEEPGRAM_URL": NOWHERE,
            "OMI_RT_AUTH": "jwks",
            "OMI_RT_JWKS_URL": provider.url("/keys"),
            "OMI_RT_JWT_ISSUER": tokens.ISSUER,
            "OMI_RT_JWT_AUDIENCE": tokens.PROJECT,
        }
        async with serving(**settings) as server:
            assert (await server.get("/readyz"))[0] == 503
            provider.answer = lambda _: Reply(body=tokens.jwks("k1"))
            await server.program.says("login_keys_fetched")
            assert (await server.get("/readyz"))[0] == 200
            assert await close_code(server, tokens.token()) is None
            assert await close_code(server, tokens.token(aud="x")) == 1008
            assert await close_code(server, tokens.token(exp=1.0)) == 4001


async def test_a_kind_of_login_names_what_it_needs() -> None:
    done = await run("serve", OMI_RT_AUTH="jwks", OMI_RT_JWT_ISSUER="x")
    assert done.status == 2
    assert done.errors == (
        "omi-rt: OMI_RT_JWKS_URL: OMI_RT_AUTH=jwks needs it\n"
        "omi-rt: OMI_RT_JWT_AUDIENCE: OMI_RT_AUTH=jwks needs it\n"
    )
