"""Public keys that somebody publishes: fetched, kept for their max-age, and fetched again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import field, frozen

from omi_rt.core.login import max_age_seconds
from omi_rt.log import get_logger
from omi_rt.net.http_client import ANSWER_SECONDS, fetch_bounded

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from omi_rt.net.http_client import HTTPClient

MAX_DOCUMENT_BYTES: Final = 1_048_576
DEFAULT_AGE_SECONDS: Final = 3600.0
"""Of a document that does not say how long it may be kept."""
AGE_SECONDS: Final = (60.0, 86_400.0)
"""Least and most that a document is kept, whatever it says."""
EARLY_SHARE: Final = 0.8
"""Of its age a document is fetched again, so that the old one serves while the server is away."""
RETRY_SECONDS: Final = (1.0, 60.0)
"""The first pause after a failure; each further one doubles it up to the second."""
ASKED_AGAIN_SECONDS: Final = 30.0
"""At least between two fetches because of a key id that is not known: anybody can invent one."""
FETCH_SECONDS: Final = 10.0
FIRST_WAIT_SECONDS: Final = 3.0
"""A server that starts waits so long for its first keys."""


class NoKeys(ValueError):
    """A document holds no key that can be used."""


@frozen
class KeySet:
    """The public keys that tokens may be signed with."""

    by_id: Mapping[str, Any] = field(factory=dict, repr=False)

    def __contains__(self, key_id: object) -> bool:
        return key_id in self.by_id


class PublishedKeys:
    """The keys at an address. ``run`` must run for there to be any.

    Args:
        url: of the document.
        read: takes it apart; raises `NoKeys`.
        client: of the process.
        random: spreads the retries.
    """

    def __init__(
        self, url: str, read: Callable[[bytes], KeySet], client: HTTPClient, random: Random
    ) -> None:
        self._url = url
        self._read = read
        self._client = client
        self._random = random
        self._keys = KeySet()
        self._expires_at = 0.0
        self._asked_at: float | None = None
        """When the keys were asked for last; None as long as there never were any."""
        self._wish = trio.Event()
        self._done = trio.Event()
        self._are_kept: bool | None = None
        """Whether there were keys when it was last told that none can be fetched; None where they can."""
        self._has_tried = False

    @property
    def keys(self) -> KeySet:
        """The keys that are good now; none before the first fetch, and after they have expired."""
        return self._keys if trio.current_time() < self._expires_at else KeySet()

    @property
    def are_there(self) -> bool:
        """Whether there is any key."""
        return bool(self.keys.by_id)

    async def keep_fresh(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Fetch the keys whenever it is time; until cancelled.

        Started when they have come, or have failed to for the first time.
        """
        failures = 0
        while True:
            is_good = False
            with trio.move_on_after(FETCH_SECONDS if self._has_tried else FIRST_WAIT_SECONDS):
                is_good = await self._fetch()
            self._done.set()
            self._done = trio.Event()
            if not self._has_tried:
                self._has_tried = True
                task_status.started()
            if is_good:
                failures = 0
                pause = (self._expires_at - trio.current_time()) * EARLY_SHARE
            else:
                self._tell_failure("no answer in time")
                failures += 1
                least, most = RETRY_SECONDS
                pause = min(most, least * 2.0 ** min(failures - 1, 10)) * self._random.uniform(
                    0.5, 1
                )
            self._wish = trio.Event()
            with trio.move_on_after(pause):
                await self._wish.wait()

    async def look_for(self, key_id: str) -> None:
        """Fetch the keys once more if ``key_id`` is not among them, and it is not too soon.

        Returns when that is done, within `ANSWER_SECONDS`. Cancelling this is safe.
        """
        if key_id in self.keys or self._asked_at is None:
            return
        if trio.current_time() - self._asked_at < ASKED_AGAIN_SECONDS:
            return
        # Whatever comes of it: a server that is away is not asked more often for that.
        self._asked_at = trio.current_time()
        done = self._done
        self._wish.set()
        with trio.move_on_after(ANSWER_SECONDS):
            await done.wait()

    async def _fetch(self) -> bool:
        try:
            document, cache_control, age = await fetch_bounded(
                self._client, self._url, MAX_DOCUMENT_BYTES
            )
            keys = self._read(document)
        except (OSError, NoKeys) as error:
            self._tell_failure(str(error))
            return False
        least, most = AGE_SECONDS
        kept = max_age_seconds(cache_control, age, DEFAULT_AGE_SECONDS)
        self._keys = keys
        self._asked_at = trio.current_time()
        self._expires_at = self._asked_at + min(most, max(least, kept))
        if self._are_kept is not None:
            self._are_kept = None
            get_logger().info("login_keys_fetched", keys=len(keys.by_id))
        return True

    def _tell_failure(self, reason: str) -> None:
        # Once while those that are here still serve, and once more when they have expired.
        if self._are_kept is None or self._are_kept > self.are_there:
            self._are_kept = self.are_there
            get_logger().error("login_keys_unavailable", reason=reason, are_kept=self._are_kept)
