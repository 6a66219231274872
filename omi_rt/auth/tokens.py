"""Static tokens: a file of ``token uid`` lines, read again when it changes."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import trio
from attrs import field, frozen

from omi_rt.core.errors import BadRequest, OmiRtError
from omi_rt.core.ids import ID_RULE, is_valid_id
from omi_rt.core.login import (
    MAX_FILE_BYTES,
    MAX_TOKEN_CHARACTERS,
    BadToken,
    TokenFileError,
    TokenTable,
    hash_token,
    parse_tokens,
    without_uid,
)
from omi_rt.files import replace_file
from omi_rt.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_T = TypeVar("_T")

LOOK_SECONDS: Final = 1.0
"""Between two looks whether the file has changed."""
TOKEN_BYTES: Final = 32
"""Of randomness in a token that is made here."""
_OTHERS: Final = 0o077


class TokensUnusable(OmiRtError):
    """The token file cannot be used; the message is one clear line, with no token in it."""


_Version: TypeAlias = "tuple[int, int, int, int]"


@frozen
class _Reading:
    version: _Version | None
    """None where there is no file."""
    table: TokenTable = field(eq=False)
    is_open_to_others: bool = False


class TokenFile:
    """The tokens of one file. ``run`` must run for a change to be noticed.

    What a changed file says counts within `LOOK_SECONDS`, for new sessions. One that is not whole
    changes nothing: it may be half written. One that is gone, or empty, lets nobody in once it is so for
    two looks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limiter = trio.CapacityLimiter(1)
        self._table = TokenTable({})
        self._seen: _Version | None = None
        self._emptied: _Reading | None = None
        """What the last look has found, where that was no token any more."""
        self._told = ""

    @property
    def problem(self) -> str | None:
        """Why nobody can log in now."""
        return None

    async def uid_of(self, token: str) -> str:
        """Return the uid that a token stands for.

        Raises:
            BadToken: it stands for none.
        """
        await trio.lowlevel.checkpoint()
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise BadToken
        uid = self._table.find(token)
        if uid is None:
            raise BadToken
        return uid

    async def follow_file(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Read the file, and again whenever it changes; until cancelled.

        Raises:
            TokensUnusable: it cannot be read at the start.
        """
        try:
            reading = await self._read()
        except OSError as error:
            raise TokensUnusable(f"{self._path}: {_reason(error)}") from None
        except TokenFileError as error:
            raise TokensUnusable(f"{self._path}: {error}") from None
        if reading.version is None:
            raise TokensUnusable(
                f"{self._path}: no such token file; make one with omi-rt token add UID"
            )
        self._take(reading)
        task_status.started()
        while True:
            await trio.sleep(LOOK_SECONDS)
            await self._look()

    async def _look(self) -> None:
        try:
            version = await self._in_thread(lambda: _version(self._path))
            if version == self._seen:
                return
            reading = await self._read()
            if not reading.table and self._table and reading != self._emptied:
                # Whoever writes the file anew may have emptied or removed it just before.
                self._emptied = reading
                return
            self._take(reading)
        except (OSError, TokenFileError) as error:
            reason = str(error) if isinstance(error, TokenFileError) else _reason(error)
            if reason != self._told:
                self._told = reason
                get_logger().error("tokens_unreadable", reason=reason, tokens=len(self._table))

    def _take(self, reading: _Reading) -> None:
        is_change = self._seen is not None or self._told
        self._seen, self._table, self._told = reading.version, reading.table, ""
        self._emptied = None
        if reading.version is None:
            self._told = "gone"
            get_logger().error("tokens_gone", meaning="nobody can log in")
            return
        if is_change:
            get_logger().info("tokens_read", tokens=len(reading.table))
        if reading.is_open_to_others:
            get_logger().warning(
                "tokens_open_to_others",
                meaning="others on this machine may read the token file: chmod 600",
            )

    async def _read(self) -> _Reading:
        return await self._in_thread(lambda: _read_file(self._path))

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await trio.to_thread.run_sync(
            function, abandon_on_cancel=True, limiter=self._limiter
        )


def add_token(path: Path, uid: str) -> str:
    """Make a token for ``uid``, put its hash into the file, and return it: it is kept nowhere.

    The file is replaced as a whole, and readable by its owner alone.

    Raises:
        BadRequest: the uid cannot be one.
        OSError: the file cannot be written.
        TokensUnusable: the file that is there is not whole.
    """
    if not is_valid_id(uid):
        raise BadRequest(f"uid: {ID_RULE}")
    text = _text(path)
    try:
        parse_tokens(text)
    except TokenFileError as error:
        raise TokensUnusable(f"{path}: {error}") from None
    token = secrets.token_urlsafe(TOKEN_BYTES)
    replace_file(path, f"{text}{hash_token(token)} {uid}\n".encode())
    return token


def forget_tokens(path: Path, uid: str) -> bool:
    """Take all tokens of ``uid`` out of the file; returns whether there were any. Raises ``OSError``."""
    text = _text(path)
    rest = without_uid(text, uid)
    if rest == text:
        return False
    replace_file(path, rest.encode())
    return True


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise TokensUnusable(f"{path}: it is no text") from None


def _version(path: Path) -> _Version | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # Of these only the last changes with the mode, or where somebody has put the time back.
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _read_file(path: Path) -> _Reading:
    version = _version(path)
    if version is None:
        return _Reading(None, TokenTable({}))
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise TokenFileError(f"it has more than {MAX_FILE_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise TokenFileError("it is no text") from None
    return _Reading(version, parse_tokens(text), bool(mode & _OTHERS))


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
