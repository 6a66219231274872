"""The counts that a connection is in, and how it leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Counts:
    """What is to be called when a connection ends, or is one of its kind no longer.

    An ``ExitStack`` does more, for 1.2 KB, and each session has two of these for as long as it lasts.
    """

    __slots__ = ("_leaves",)

    def __init__(self) -> None:
        self._leaves: tuple[tuple[Callable[[Any], object], Any], ...] = ()

    def add(self, leave: Callable[[T], object], who: T) -> None:
        """Let `close` call ``leave`` with ``who``. It must not raise."""
        self._leaves = (*self._leaves, (leave, who))

    def close(self) -> None:
        """Call everything, the last first. A second call does nothing."""
        leaves, self._leaves = self._leaves, ()
        for leave, who in reversed(leaves):
            leave(who)
