"""JSON through orjson: the one file that imports it.

orjson writes a float always with a decimal point, which old Omi apps need in a segment's times
(they read ``12`` as an int and throw the batch away), and turns NaN into null.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

_LEAST, _BEYOND = -(1 << 63), 1 << 64
"""orjson reads and writes integers from the one up to the other."""
_MOST_DIGITS = 20
"""An integer in that range has at most this many digits, with its sign."""


class JSONError(ValueError):
    """The text is not JSON."""


def dumps(value: Any) -> str:
    """Write ``value`` as compact JSON text."""
    return orjson.dumps(value).decode()


def loads(text: str | bytes, *, mends: bool = False) -> Any:
    """Read JSON, and also the ``NaN`` and ``Infinity`` that some writers put into it.

    Args:
        text: the JSON.
        mends: whether half of a surrogate pair, which nobody could write again, is read as U+FFFD.

    Raises:
        JSONError: the text is not JSON, or names half of a surrogate pair that is not mended.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(text, parse_int=_integer)
        written = json.dumps(value, ensure_ascii=False)
        if mends:
            units = written.encode("utf-16-le", "surrogatepass")
            return json.loads(units.decode("utf-16-le", "replace"))
        written.encode()
    except (ValueError, RecursionError):
        # The cause is left out, because its message quotes the text, which may be a transcript.
        raise JSONError("not JSON") from None
    return value


def _integer(digits: str) -> int | float:
    """Read an integer as orjson does: one that could not be written again is a float."""
    if len(digits) <= _MOST_DIGITS and _LEAST <= int(digits) < _BEYOND:
        return int(digits)
    return float(digits)
