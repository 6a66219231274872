"""What the text of a setting may be: each function reads one form, and its docstring names that form.

All of them raise ``ValueError`` or ``KeyError`` where the text is something else.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from omi_rt.core.forwarded import Network, parse_networks
from omi_rt.core.origin import ANY, Origin, parse_origin
from omi_rt.core.records import AudioKind, BucketPlace, parse_bucket_place
from omi_rt.core.webhooks import AudioHook, parse_audio_hook, parse_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_FIXED_OPTIONS = frozenset({"encoding", "sample_rate", "channels"})


def seconds_in(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError
        return value

    parse.__doc__ = f"a number from {low:g} to {high:g}"
    return parse


def integer_in(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    parse.__doc__ = f"a whole number from {low} to {high}"
    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return text.lower()

    parse.__doc__ = "one of " + ", ".join(choices)
    return parse


def read_flag(text: str) -> bool:
    """1 or 0"""
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


def read_text(text: str) -> str:
    """text in printable ASCII without spaces"""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError
    return text


def read_path_or_name(text: str) -> str:
    """a path or a name"""
    if not text.isprintable():
        raise ValueError
    return text


def read_log_key(text: str) -> str:
    """16 or more characters of printable ASCII without spaces"""
    if len(text) < 16:
        raise ValueError
    return read_text(text)


def read_url(text: str) -> str:
    """a ws, wss, http or https address; its query must not have encoding, sample_rate or channels"""
    parts = urlsplit(text)
    if parts.scheme not in {"ws", "wss", "http", "https"} or not parts.hostname or parts.username:
        raise ValueError
    _ = parts.port
    if parts.fragment:
        raise ValueError
    if parts.query:
        read_options(parts.query)
    return text


def read_web_url(text: str) -> str:
    """an http or https address without a user"""
    parts = urlsplit(read_text(text))
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ValueError
    _ = parts.port
    return text


def read_networks(text: str) -> tuple[Network, ...]:
    """addresses or networks such as 10.0.0.0/8, separated by commas"""
    return parse_networks(text)


def read_record_place(text: str) -> Path | BucketPlace:
    """a directory, or gs://BUCKET[/PREFIX] of lower-case letters, digits, '.', '_' and '-'"""
    if "://" not in text:
        return Path(text)
    return parse_bucket_place(text)


def read_audio_kind(text: str) -> AudioKind | None:
    """1, wav, flac or 0"""
    kinds = {
        "1": AudioKind.WAV,
        "true": AudioKind.WAV,
        "wav": AudioKind.WAV,
        "flac": AudioKind.FLAC,
    }
    return None if text.lower() in {"0", "false"} else kinds[text.lower()]


def read_audio_hook(text: str) -> AudioHook:
    """an http or https address, a comma, and 1 to 60 seconds"""
    hook = parse_audio_hook(text)
    read_web_url(hook.url)
    return hook


def read_webhook_secret(text: str) -> bytes:
    """whsec_ and 24 to 64 bytes in base64"""
    return parse_secret(text)


def read_origins(text: str) -> frozenset[Origin]:
    """* or origins such as https://app.example.com, separated by commas"""
    found: set[Origin] = set()
    for part in text.split(","):
        origin = ANY if part.strip() == "*" else parse_origin(part)
        if origin is None:
            raise ValueError
        found.add(origin)
    return frozenset(found)


def read_options(text: str) -> Mapping[str, tuple[str, ...]]:
    """query parameters for Deepgram, as in model=nova-3&keyterm=a&keyterm=b (not encoding, sample_rate, channels)"""
    parsed = parse_qs(text, keep_blank_values=True, strict_parsing=True)
    if _FIXED_OPTIONS & parsed.keys():
        raise ValueError
    return {name: tuple(value for value in values if value) for name, values in parsed.items()}
