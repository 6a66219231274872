"""The guard: looks at all running sessions once a second, and ends those that are over a limit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import trio

from omi_rt.core import endings
from omi_rt.core.limits import DailyAccount, DayUsedUp, IdleWatch, LagMeter, TooManySessions
from omi_rt.files import replace_file
from omi_rt.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import date
    from pathlib import Path

    from omi_rt.core.endings import Ending
    from omi_rt.settings import Settings

LOOK_SECONDS = 1.0
KEEP_SECONDS = 5.0
"""Between two times that the account of the day is written: so much a crash forgets."""
LAG_LOOK_SECONDS = 0.1
CLOSE_SECONDS = 5.0
"""For the last writing of the account."""


class Watched(Protocol):
    """What the guard asks of a session."""

    @property
    def uid(self) -> str: ...
    @property
    def received_samples(self) -> int: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def is_reading(self) -> bool: ...
    @property
    def takes_audio(self) -> bool: ...
    def end(self, ending: Ending) -> None:
        """End it in order."""


def _today() -> date:
    return datetime.now(UTC).date()


class Guard:
    """The limits of one server, over all of its sessions.

    Args:
        settings: of the server.
        today: tells the day (UTC).
    """

    def __init__(self, settings: Settings, today: Callable[[], date] = _today) -> None:
        self._settings = settings
        self._today = today
        self.account = DailyAccount(settings.daily_seconds)
        self._lag = LagMeter()
        self._watches: WeakKeyDictionary[Watched, IdleWatch] = WeakKeyDictionary()
        self._has_failed = False

    @property
    def lag(self) -> float:
        """By how many seconds the event loop is late."""
        return self._lag.lag

    def check(self, uid: str, sessions: Collection[Watched]) -> None:
        """See whether a uid may have another session.

        Raises:
            LimitReached: it may not.
        """
        most = self._settings.max_uid_sessions
        if not uid:
            return
        if most:
            # One that is ending only waits for its last words: its device may be who comes back.
            running = sum(session.uid == uid and session.takes_audio for session in sessions)
            if running >= most:
                raise TooManySessions(f"too many sessions of this uid: {running} of {most}")
        if self.account.is_used_up(uid, self._today()):
            raise DayUsedUp(f"the day's {self._settings.daily_seconds} s of audio are used up")

    async def watch_sessions(
        self,
        sessions: Collection[Watched],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Watch ``sessions`` until cancelled; the account of the day is then written once more.

        Started when the account has been read that an earlier process has left.
        """
        path = self._settings.daily_file if self._settings.daily_seconds else None
        if path is not None:
            await self._load(path)
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._measure_lag)
                if path is not None:
                    nursery.start_soon(self._keep, path)
                while True:
                    self.look(sessions, trio.current_time())
                    await trio.sleep(LOOK_SECONDS)
        finally:
            if path is not None:
                self.look(sessions, trio.current_time())
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await self._write(path)

    def look(self, sessions: Collection[Watched], now: float) -> None:
        """Look at every session once, at ``now``."""
        limit = self._settings.idle_seconds
        for session in tuple(sessions):
            watch = self._watches.get(session)
            if watch is None:
                watch = self._watches[session] = IdleWatch(now)
            self._count(session, watch, now)
            if self.account.is_used_up(session.uid, self._today()):
                session.end(endings.DAY_USED_UP)
            elif limit and watch.idle_seconds(now) >= limit:
                session.end(endings.NO_AUDIO)

    def leave(self, session: Watched) -> None:
        """Count what a session has brought that ends before it is looked at again."""
        now = trio.current_time()
        self._count(session, self._watches.get(session, IdleWatch(now)), now)

    def _count(self, session: Watched, watch: IdleWatch, now: float) -> None:
        new = watch.look(session.received_samples, now, is_read=session.is_reading)
        if new and self._settings.daily_seconds and session.uid:
            self.account.note(session.uid, new / session.sample_rate, self._today())

    async def _measure_lag(self) -> None:
        while True:
            due = trio.current_time() + LAG_LOOK_SECONDS
            await trio.sleep_until(due)
            self._lag.note(trio.current_time() - due)

    async def _keep(self, path: Path) -> None:
        while True:
            await trio.sleep(KEEP_SECONDS)
            await self._write(path)

    async def _load(self, path: Path) -> None:
        try:
            text = await trio.to_thread.run_sync(path.read_text)
            self.account.read(text)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            get_logger().error("day_unreadable", reason=type(error).__name__)

    async def _write(self, path: Path) -> None:
        if not self.account.has_changed:
            return
        content = self.account.write().encode()
        try:
            await trio.to_thread.run_sync(replace_file, path, content)
        except OSError as error:
            self.account.has_changed = True
            if not self._has_failed:
                self._has_failed = True
                get_logger().error("day_unwritable", reason=error.strerror or "?")
        else:
            self._has_failed = False
