"""Extra headers of a client's handshake, from ``NAME:VALUE``. This is pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from omi_rt.core.errors import OmiRtError

if TYPE_CHECKING:
    from collections.abc import Iterable

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""The form of a header's name (RFC 9110, 5.6.2)."""
_OF_THE_HANDSHAKE: Final = re.compile(r"host|connection|upgrade|content-.*|sec-websocket-.*")


class HeaderRefused(OmiRtError):
    """The header cannot be sent; the message does not hold its value, which may be a secret."""


def header_fields(texts: Iterable[str]) -> dict[str, str]:
    """Return names and values. Values of the same name are joined with a comma (RFC 9110, 5.3).

    Raises:
        HeaderRefused: one of them cannot be sent.
    """
    fields: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition(":")
        name, value = name.strip(), value.strip()
        if not separator or not _TOKEN.fullmatch(name):
            raise HeaderRefused("a header must look like NAME:VALUE")
        if not (value.isascii() and value.isprintable()):
            raise HeaderRefused(f"the value of {name} must be printable ASCII")
        if _OF_THE_HANDSHAKE.fullmatch(name.lower()):
            raise HeaderRefused(f"{name} is the handshake's own")
        known = next((each for each in fields if each.lower() == name.lower()), name)
        fields[known] = f"{fields[known]}, {value}" if known in fields else value
    return fields
