"""The kinds of login: static tokens, Firebase's ID tokens, and those of any OpenID provider."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

from omi_rt.auth.tokens import TokenFile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from omi_rt.net.http_client import HTTPClient
    from omi_rt.settings import Settings


class Login(Protocol):
    """Tells whose a token is."""

    @property
    def problem(self) -> str | None:
        """Why nobody can log in now; None where they can."""

    async def uid_of(self, token: str) -> str:
        """Return the uid that a token proves; raises `omi_rt.core.login.BadToken`."""


@asynccontextmanager
async def open_login(settings: Settings, client: HTTPClient) -> AsyncIterator[Login | None]:
    """Hold the login that the settings name; None where there is none.

    Raises:
        TokensUnusable: the token file cannot be read.
    """
    if settings.auth == "none":
        yield None
    elif settings.auth == "tokens":
        tokens = TokenFile(settings.token_file)
        async with trio.open_nursery() as nursery:
            await nursery.start(tokens.follow_file)
            yield tokens
            nursery.cancel_scope.cancel()
    else:
        from omi_rt.auth.signed import open_signed_login

        async with open_signed_login(settings, client) as login:
            yield login
