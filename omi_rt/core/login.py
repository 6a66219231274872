"""Who may speak as whom, as far as that can be decided without waiting."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, ClassVar

from attrs import define, frozen

from omi_rt.core.errors import DeviceError
from omi_rt.core.ids import is_valid_id

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TOKEN_CHARACTERS = 8192
"""A longer token is refused unread. Firebase's have about 1,000, large providers' up to 4,000."""
MAX_FILE_BYTES = 16_777_216
"""Of a token file: a hundred thousand lines have about so many."""
BAD_TOKEN = "Bad token"  # noqa: S105 - what is said of one
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


class BadToken(DeviceError):
    """A client did not prove who it is. The message never says why: it would help to guess."""

    kind: ClassVar[str] = "bad"
    """The label of the metric."""

    def __init__(self) -> None:
        super().__init__(BAD_TOKEN)


class NoToken(BadToken):
    """The client has shown no token at all."""

    kind = "missing"


class TokenExpired(BadToken):
    """The token was good once. Omi's apps fetch another one upon this close code."""

    kind = "expired"
    close_code = 4001


class TokenFileError(ValueError):
    """A token file is not whole; the message names the first bad line by its number."""


def hash_token(token: str) -> str:
    """Return how a token stands in a file that does not give it away."""
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    return f"sha256:{digest}"


class TokenTable:
    """The tokens of a file, as hashes, and the uid of each."""

    __slots__ = ("_uids",)

    def __init__(self, uids: Mapping[str, str]) -> None:
        self._uids = uids

    def __len__(self) -> int:
        return len(self._uids)

    def find(self, token: str) -> str | None:
        """Return the uid that a token stands for.

        It is looked up by its hash, which nobody can aim: how long that takes tells nothing of the
        tokens that are there, and depends on their number as little as on which of them it is.
        """
        return self._uids.get(hash_token(token))


def parse_tokens(text: str) -> TokenTable:
    """Read a file of ``token uid`` or ``sha256:DIGEST uid`` lines; ``#`` begins a comment line.

    Raises:
        TokenFileError: a line is none of these, or the last one has no end and may be cut off.
    """
    if text and not text.endswith("\n"):
        raise TokenFileError("the last line has no line end: it may be half written")
    uids = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        token, _, uid = line.strip().partition(" ")
        uid = uid.strip()
        if not is_valid_id(uid):
            raise TokenFileError(f"line {number} is no token and uid")
        uids[token if _HASHED.fullmatch(token) else hash_token(token)] = uid
    return TokenTable(uids)


def without_uid(text: str, uid: str) -> str:
    """Return a token file's text without the lines of one uid."""
    kept = [
        line
        for line in text.splitlines(keepends=True)
        if line.startswith("#") or line.strip().partition(" ")[2].strip() != uid
    ]
    return "".join(kept)


def max_age_seconds(cache_control: str, age: str, default: float) -> float:
    """Read for how many seconds an HTTP answer may still be kept (RFC 9111)."""
    found = re.search(r"(?:^|[,\s])max-age=\"?(\d{1,9})", cache_control, re.IGNORECASE)
    seconds = float(found.group(1)) if found else default
    passed = float(age) if re.fullmatch(r"\d{1,9}", age) else 0.0
    return max(0.0, seconds - passed)


def address_group(address: str) -> str:
    """Return what stands for whoever has an address: of IPv6 the /64, which one household has."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> 64 << 64)) + "/64"
    return str(parsed)


@define
class _Record:
    failures: int
    last_at: float


@frozen
class Slowness:
    """How failed logins are slowed down, in seconds."""

    first: float = 0.1
    """After the first failure; each further one doubles it."""
    longest: float = 5.0
    forgiven_after: float = 60.0
    """Without another failure."""
    addresses: int = 10_000
    """That are remembered at most; the one that failed longest ago is forgotten first."""


class FailedLogins:
    """The failed logins of each address, and how long its next failure has to wait for the answer.

    A good token never waits: behind one address may be a whole school.
    """

    def __init__(self, slowness: Slowness | None = None) -> None:
        self._slowness = slowness or Slowness()
        self._records: OrderedDict[str, _Record] = OrderedDict()

    def note(self, address: str, now: float) -> float:
        """Count a failure at ``now``; returns the seconds to wait before it is answered."""
        slowness, group = self._slowness, address_group(address)
        record = self._records.pop(group, None)
        if record is None or now - record.last_at >= slowness.forgiven_after:
            record = _Record(0, now)
        record.failures += 1
        record.last_at = now
        self._records[group] = record
        while len(self._records) > slowness.addresses:
            self._records.popitem(last=False)
        doublings = min(record.failures - 1, 30)
        return min(slowness.longest, slowness.first * 2.0**doublings)
