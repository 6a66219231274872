"""What the signals do that ask a server to stop."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def drain_on_signal(
    draining: trio.Event,
    force: Callable[[], None],
    *,
    reload: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """On the first SIGTERM, SIGINT or SIGHUP set ``draining``; on the second call ``force``.

    Where there is something to ``reload``, SIGHUP does that instead, as of any server with files.

    SIGHUP forces nothing: a terminal that closes often sends two. Where it is ignored from the start
    (``nohup``) it stays so.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    with trio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP and reload is not None:
                await reload()
            elif not draining.is_set():
                draining.set()
            elif number != signal.SIGHUP:
                force()
                return
