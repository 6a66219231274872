"""Listening sockets, and what to say where there cannot be any."""

from __future__ import annotations

import errno
import resource
import socket

import trio

from omi_rt.core.errors import OmiRtError

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


class BindFailed(OmiRtError):
    """The address cannot be listened on; the message names it, the cause, and what to change."""


async def open_listeners(
    host: str, port: int, *, backlog: int | None = None
) -> list[trio.SocketListener]:
    """Listen on every address of ``host``; port 0 picks a free one.

    Raises:
        BindFailed: one of them cannot be had.
    """
    try:
        return await trio.open_tcp_listeners(port, host=host, backlog=backlog)
    except OSError as error:
        raise BindFailed(f"cannot bind {_in_url(host)}:{port}: {_advice(error)}") from error


def raise_file_limit() -> None:
    """Allow as many open files as the system lets us: two sockets a session."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connectable(host: str) -> str:
    """Return the host, as a URL has it, under which this machine's clients find what ``host`` binds."""
    return _in_url(_EVERY_ADDRESS.get(host, host))


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _advice(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host; choose another with --host"
    match error.errno:
        case errno.EADDRINUSE:
            return "in use; choose another with --port"
        case errno.EACCES:
            return "not permitted; choose another with --port, 1024 or more"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return "this machine has no such address; choose another with --host"
    return (error.strerror or str(error)).lower()
