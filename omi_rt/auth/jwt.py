"""JSON Web Tokens, through PyJWT and cryptography (the one file that imports them)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import jwt
from attrs import frozen
from cryptography.x509 import load_pem_x509_certificate

from omi_rt.auth.keys import KeySet, NoKeys
from omi_rt.core.ids import is_valid_id
from omi_rt.core.json import JSONError, loads
from omi_rt.core.login import MAX_TOKEN_CHARACTERS, BadToken, TokenExpired

if TYPE_CHECKING:
    from collections.abc import Callable

SKEW_SECONDS: Final = 60.0
"""So far may the clocks of whoever made a token and of this machine differ."""
FIREBASE_ALGORITHMS: Final = frozenset({"RS256"})
OPENID_ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)
"""Signatures by a key pair: with a secret (HS256), what is published would be enough to sign."""
_REQUIRED: Final = ["exp", "iat", "iss", "aud", "sub"]
_CHECKS: Final = {
    f"verify_{claim}": True for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
}


@frozen
class JWTRules:
    """What a token must say of itself."""

    issuer: str
    audience: str
    algorithms: frozenset[str]
    is_unsigned: bool = False
    """Whether the tokens are an emulator's, which signs nothing."""


def read_certificates(document: bytes) -> KeySet:
    """Read Google's form: an object of PEM certificates by key id.

    Raises:
        NoKeys: it holds none.
    """
    return _read_keys(
        _object(document).items(),
        lambda pem: load_pem_x509_certificate(str(pem).encode()).public_key(),
    )


def read_jwks(document: bytes) -> KeySet:
    """Read a JSON Web Key Set. Keys that are secrets, or for encryption, are passed over.

    Raises:
        NoKeys: it holds none that can be used.
    """
    listed = _object(document).get("keys")
    keys = [key for key in listed if isinstance(key, dict)] if isinstance(listed, list) else []
    usable = [
        (key.get("kid"), key)
        for key in keys
        if key.get("kty") != "oct" and key.get("use", "sig") == "sig"
    ]
    return _read_keys(usable, lambda key: jwt.PyJWK(key).key)


def key_id_of(token: str) -> str | None:
    """Read which key a token says that it is signed with; None where it names none.

    Raises:
        BadToken: it is no token.
    """
    key_id = _header(token).get("kid")
    return key_id if isinstance(key_id, str) else None


def read_token(token: str, keys: KeySet, rules: JWTRules) -> str:
    """Check a token's signature and claims; returns the uid that it is for.

    Raises:
        TokenExpired: it was good once.
        BadToken: it is not good.
    """
    header = _header(token)
    if rules.is_unsigned:
        if header.get("alg") != "none" or not token.endswith("."):
            raise BadToken
        key = ""
    else:
        if header.get("alg") not in rules.algorithms or header.get("kid") not in keys:
            raise BadToken
        key = keys.by_id[header["kid"]]
    options: Any = {**_CHECKS, "verify_signature": not rules.is_unsigned, "require": _REQUIRED}
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=sorted(rules.algorithms),
            audience=rules.audience,
            issuer=rules.issuer,
            leeway=SKEW_SECONDS,
            options=options,
        )
    except jwt.ExpiredSignatureError:
        raise TokenExpired from None
    # TypeError: a key of another kind than the algorithm's; the others are from odd claims.
    except (jwt.PyJWTError, TypeError, ValueError, OverflowError):
        raise BadToken from None
    uid = claims["sub"]
    if not isinstance(uid, str) or not is_valid_id(uid):
        raise BadToken
    return uid


def _header(token: str) -> dict[str, Any]:
    if not token.isascii() or len(token) > MAX_TOKEN_CHARACTERS:
        raise BadToken
    try:
        return dict(jwt.get_unverified_header(token))
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise BadToken from None


def _object(document: bytes) -> dict[str, Any]:
    try:
        value = loads(document.decode())
    except (JSONError, UnicodeDecodeError):
        raise NoKeys("the document is no JSON") from None
    if not isinstance(value, dict):
        raise NoKeys("the document is no object")
    return value


def _read_keys(entries: Any, read: Callable[[Any], Any]) -> KeySet:
    found = {}
    for key_id, entry in entries:
        if not isinstance(key_id, str):
            continue
        try:
            found[key_id] = read(entry)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            # A kind of key that is not known here: the others may be.
            continue
    if not found:
        raise NoKeys("the document has no key that can be used")
    return KeySet(found)
