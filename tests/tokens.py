"""A maker of tokens for tests: an OpenID provider's key pairs, and tokens good and bad."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

PROJECT = "demo-project"
ISSUER = f"https://securetoken.google.com/{PROJECT}"
UID = "alice"


@cache
def private_key(name: str) -> rsa.RSAPrivateKey:
    """The key pair of that name, always the same in one process."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_pem(name: str) -> bytes:
    return (
        private_key(name)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@cache
def certificate(name: str) -> str:
    """A certificate of the key pair, signed by itself, as Google publishes them."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private_key(name).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(private_key(name), hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def certificates(*names: str) -> bytes:
    """The document with the certificates of these keys."""
    return json.dumps({name: certificate(name) for name in names}).encode()


def jwks(*names: str) -> bytes:
    """The JSON Web Key Set of these keys."""
    keys = []
    for name in names:
        key = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private_key(name).public_key()))
        keys.append(key | {"kid": name, "use": "sig"})
    return json.dumps({"keys": keys}).encode()


def claims(**changed: Any) -> dict[str, Any]:
    """What a good token says; a value of None leaves a claim out."""
    now = time.time()
    said = {"iss": ISSUER, "aud": PROJECT, "sub": UID, "iat": now - 10, "exp": now + 3600}
    return {name: value for name, value in (said | changed).items() if value is not None}


def token(key: str = "k1", *, kid: Any = None, **changed: Any) -> str:
    """A signed token."""
    headers = {"kid": key if kid is None else kid}
    return jwt.encode(claims(**changed), private_key(key), algorithm="RS256", headers=headers)


def raw_token(header: dict[str, Any], said: dict[str, Any], signature: bytes = b"") -> str:
    """A token put together by hand, as no library would."""
    parts = [json.dumps(header).encode(), json.dumps(said).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
