"""Webhooks: where a message goes whose receiver's name leads to one address, and then to another."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme

from omi_rt.net import post as post_module
from omi_rt.net.http_client import open_http_client
from omi_rt.net.post import NotPosted, PrivateAddress, post
from tests.http_server import Reply, http_server

if TYPE_CHECKING:
    from pathlib import Path

NAME = "hooks.example"
CHECKED, TRAP = "127.0.0.1", "127.0.0.2"
"""What stands here for an address of the internet, and what for one of a private network."""


class ChangingNames(trio.abc.HostnameResolver):
    """Answers each question with the next list of addresses, and in the end with the last."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append(host if isinstance(host, str) else host.decode())
        addresses = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, 6, "", (address, int(port or 0))) for address in addresses]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _one_address_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_module, "is_public", lambda address: address == CHECKED)


@pytest.fixture
def context_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ssl.SSLContext, list[str | None]]:
    """A server's TLS, good for `NAME` alone, and the names that clients have asked it for."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    return context, asked


async def send(url: str, resolver: ChangingNames) -> int:
    trio.socket.set_custom_hostname_resolver(resolver)
    async with open_http_client() as client:
        return await post(client, url, b"{}", {}, within=5.0, may_be_private=False)


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    names = ChangingNames((CHECKED,), (TRAP,))
    async with http_server() as server, http_server(host=TRAP, port=server.port) as trap:
        assert await send(f"http://{NAME}:{server.port}/words?key=k", names) == 200
        assert names.asked == [NAME], "it is looked up once"
        (request,) = server.requests
        assert (request.headers["host"], request.target) == (
            f"{NAME}:{server.port}",
            "/words?key=k",
        )
        assert trap.connections == 0


async def test_over_tls_the_name_is_the_one_of_the_setting(
    context_and_names: tuple[ssl.SSLContext, list[str | None]],
) -> None:
    context, asked = context_and_names
    names = ChangingNames((CHECKED,), (TRAP,))
    async with http_server(context=context) as server:
        assert await send(f"https://{NAME}:{server.port}/", names) == 200
        assert asked == [NAME]
        assert server.requests[0].headers["host"] == f"{NAME}:{server.port}"
        assert names.asked == [NAME]


async def test_over_tls_a_certificate_of_another_name_is_refused(
    context_and_names: tuple[ssl.SSLContext, list[str | None]],
) -> None:
    context, _ = context_and_names
    async with http_server(context=context) as server:
        with pytest.raises(NotPosted, match=r"no trusted certificate: Hostname mismatch$"):
            await send(f"https://other.example:{server.port}/", ChangingNames((CHECKED,)))
        assert server.requests == []


@pytest.mark.parametrize("addresses", [(TRAP,), (CHECKED, TRAP), (TRAP, CHECKED), ()])
async def test_a_name_with_any_private_address_is_asked_for_nothing(
    addresses: tuple[str, ...],
) -> None:
    async with http_server() as server, http_server(host=TRAP, port=server.port) as trap:
        with pytest.raises(PrivateAddress):
            await send(f"http://{NAME}:{server.port}/", ChangingNames(addresses))
        assert (server.connections, trap.connections) == (0, 0)


async def test_each_message_is_checked_anew() -> None:
    names = ChangingNames((CHECKED,), (TRAP,))
    async with http_server(lambda _: Reply(200)) as server:
        trio.socket.set_custom_hostname_resolver(names)
        url = f"http://{NAME}:{server.port}/"
        async with open_http_client() as client:
            assert await post(client, url, b"1", {}, within=5.0, may_be_private=False) == 200
            with pytest.raises(PrivateAddress):
                await post(client, url, b"2", {}, within=5.0, may_be_private=False)
        assert [request.body for request in server.requests] == [b"1"]


async def test_a_receiver_may_have_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_module, "is_public", lambda address: address == "::1")
    async with http_server(host="::1") as server:
        assert await send(f"http://{NAME}:{server.port}/", ChangingNames(("::1",))) == 200
        assert server.requests[0].headers["host"] == f"{NAME}:{server.port}"


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:7f00:1]"])
async def test_an_address_in_disguise_is_known_for_what_it_is(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    async with open_http_client() as client:
        with pytest.raises(PrivateAddress):
            await post(client, f"http://{host}:9/", b"", {}, within=5.0, may_be_private=False)


class SilentNames(ChangingNames):
    """Never answers."""

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        await trio.sleep_forever()


async def test_names_that_are_never_found_end_in_time() -> None:
    trio.socket.set_custom_hostname_resolver(SilentNames())
    async with open_http_client() as client:
        with trio.fail_after(5), pytest.raises(NotPosted, match="in time"):
            await post(client, f"http://{NAME}/", b"", {}, within=0.2, may_be_private=False)


async def test_an_answer_that_drips_ends_in_time() -> None:
    """Each byte comes well before a single read would be over."""

    async def drip(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nX: ")
            while True:
                await stream.send_all(b"x")
                await trio.sleep(0.02)

    async with open_http_client() as client, trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, drip, 0)
        port = listeners[0].socket.getsockname()[1]
        url = f"http://127.0.0.1:{port}/"
        with trio.fail_after(5), pytest.raises(NotPosted, match="in time"):
            await post(client, url, b"", {}, within=0.2, may_be_private=True)
        nursery.cancel_scope.cancel()
