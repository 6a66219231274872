"""Decoded profiles, kept from session to session. This is pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from omi_rt.core.audio import AudioFormat

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

CACHE_BYTES: Final = 67_108_864
"""64 MiB hold the profiles of 200 users in 16 kHz mono, at 10 s each."""
ENTRY_BYTES: Final = 1_024
"""Each entry counts for this much besides its audio, so that entries without audio are bounded as well."""


@frozen
class CacheKey:
    """What was decoded, and how."""

    uid: str
    name: str
    audio_format: AudioFormat
    seconds: float
    """The longest that the stretch was allowed to be, in seconds."""


@frozen
class CachedStretch:
    """What became of one version of a stored sample."""

    version: str
    pcm: bytes = field(default=b"", repr=False)
    """The audio in the key's format; empty if there is a problem."""
    problem: str = ""
    """Why there is no audio; a broken file is kept too, so that it is not fetched again until it changes."""


class ProfileCache:
    """A cache for one thread. The least recently used entries go when the bytes are over the bound."""

    __slots__ = ("_bytes", "_entries", "_max_bytes")

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._entries: OrderedDict[CacheKey, CachedStretch] = OrderedDict()
        self._max_bytes = max_bytes
        self._bytes = 0

    @property
    def entries(self) -> int:
        """The number of stored samples that are held, in whatever formats and lengths."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """The number of bytes that are held; each entry counts with its `ENTRY_BYTES`."""
        return self._bytes

    def get(self, key: CacheKey, version: str) -> CachedStretch | None:
        """Return the entry if it is of that very version; one of another version is dropped."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.version != version:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: CacheKey, entry: CachedStretch) -> None:
        """Keep an entry in place of the key's earlier one; one that is over the bound is not kept."""
        if key in self._entries:
            self._drop(key)
        self._entries[key] = entry
        self._bytes += _size(entry)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def retain(self, uid: str, names: AbstractSet[str]) -> None:
        """Drop what is kept of samples of ``uid`` that are no longer stored."""
        gone = [key for key in self._entries if key.uid == uid and key.name not in names]
        for key in gone:
            self._drop(key)

    def _drop(self, key: CacheKey) -> None:
        self._bytes -= _size(self._entries.pop(key))


def _size(entry: CachedStretch) -> int:
    return len(entry.pcm) + ENTRY_BYTES
