"""Logins by tokens that somebody else signs: Firebase's ID tokens, and those of any OpenID provider.

It is imported only where such a login is asked for: what checks signatures takes 9 MB of memory and
30 ms of a start.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import trio

from omi_rt.auth.jwt import (
    FIREBASE_ALGORITHMS,
    OPENID_ALGORITHMS,
    JWTRules,
    key_id_of,
    read_certificates,
    read_jwks,
    read_token,
)
from omi_rt.auth.keys import KeySet, PublishedKeys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from omi_rt.net.http_client import HTTPClient
    from omi_rt.settings import Settings

GOOGLE_CERTS = (
    "https://www.googleapis.com/robot/v1/metadata/x509/securetoken@system.gserviceaccount.com"
)
FIREBASE_ISSUER = "https://securetoken.google.com/"
"""And the project's id after it."""


class KeyLogin:
    """Tokens that somebody else signs, with keys that they publish."""

    def __init__(self, keys: PublishedKeys, rules: JWTRules) -> None:
        self._keys = keys
        self._rules = rules

    @property
    def problem(self) -> str | None:
        """Why nobody can log in now; None where they can."""
        return None if self._keys.are_there else "the login has no keys to check tokens with"

    async def uid_of(self, token: str) -> str:
        """Return the uid that a token proves. Cancelling is safe.

        Raises:
            BadToken: it is not good, or (`TokenExpired`) no longer.
        """
        await trio.lowlevel.checkpoint()
        key_id = key_id_of(token)
        if key_id is not None:
            await self._keys.look_for(key_id)
        return read_token(token, self._keys.keys, self._rules)


class EmulatorLogin:
    """Firebase's emulator for developers, which signs nothing: on loopback only."""

    problem = None

    def __init__(self, rules: JWTRules) -> None:
        self._rules = rules

    async def uid_of(self, token: str) -> str:
        """Return the uid that a token names; raises `omi_rt.core.login.BadToken`."""
        await trio.lowlevel.checkpoint()
        return read_token(token, KeySet(), self._rules)


@asynccontextmanager
async def open_signed_login(
    settings: Settings, client: HTTPClient
) -> AsyncIterator[KeyLogin | EmulatorLogin]:
    """Hold the login for ``firebase`` or ``jwks``, whichever the settings name."""
    is_firebase = settings.auth == "firebase"
    if settings.firebase_emulator and is_firebase:
        yield EmulatorLogin(_firebase_rules(settings, is_unsigned=True))
        return
    certs_url = settings.firebase_certs_url or GOOGLE_CERTS
    url = certs_url if is_firebase else settings.jwks_url
    read = read_certificates if is_firebase else read_jwks
    keys = PublishedKeys(url, read, client, Random())  # seeded by the system
    async with trio.open_nursery() as nursery:
        await nursery.start(keys.keep_fresh)
        yield KeyLogin(keys, _firebase_rules(settings) if is_firebase else _rules(settings))
        nursery.cancel_scope.cancel()


def _firebase_rules(settings: Settings, *, is_unsigned: bool = False) -> JWTRules:
    project = settings.firebase_project
    return JWTRules(FIREBASE_ISSUER + project, project, FIREBASE_ALGORITHMS, is_unsigned)


def _rules(settings: Settings) -> JWTRules:
    return JWTRules(settings.jwt_issuer, settings.jwt_audience, OPENID_ALGORITHMS)
