"""The composition root: everything that one server process is made of, put together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio
from attrs import define, field, frozen

import omi_rt
from omi_rt.codecs import open_decoder
from omi_rt.codecs.opus import OpusUnavailable
from omi_rt.core.budget import BacklogBudget
from omi_rt.deepgram.credentials import open_http_client
from omi_rt.deepgram.provider import make_provider
from omi_rt.local.process import Room, run_local_recogniser
from omi_rt.local.wire import LANGUAGES
from omi_rt.log import get_logger, log_lines
from omi_rt.metrics import Metrics
from omi_rt.net.listeners import open_listeners
from omi_rt.net.poller import open_poller
from omi_rt.profiles.commands import open_store
from omi_rt.profiles.service import Profiles
from omi_rt.server.app import LISTEN_BACKLOG, Server, is_loopback_address, raise_file_limit
from omi_rt.server.memory import calm_the_collector, default_backlog_bytes, keep_memory_low
from omi_rt.server.pace import Pace
from omi_rt.server.provider_watch import look_at_key, probe_provider
from omi_rt.server.shared import Shared
from omi_rt.server.signals import drain_on_signal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from omi_rt.deepgram.provider import Provider
    from omi_rt.log import Announce
    from omi_rt.settings import Settings

_CLOSE_STORE_SECONDS = 5.0


@define
class _End:
    """How a process ends: drained, or by force."""

    scope: trio.CancelScope
    """Of everything."""
    draining: trio.Event = field(factory=trio.Event)
    server: Server | None = None
    """Once there is one."""

    @property
    def cut_sessions(self) -> int:
        return 0 if self.server is None else self.server.cut_sessions

    def force(self) -> None:
        if self.server is not None:
            self.server.note_cut("a second signal")
        self.scope.cancel()


async def serve(
    settings: Settings,
    host: str,
    port: int,
    *,
    announce: Announce,
    handles_signals: bool = True,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Run a server until SIGTERM has drained it. The started value is its ``ws://`` address.

    Returns how many sessions were cut: by a second signal, or because the time to drain was over.
    Cancelling this ends all sessions at once.

    Args:
        settings: of this server.
        host: to bind.
        port: to bind; 0 picks a free one.
        announce: gets the lines for whoever started it: what is used, and when it is ready.
        handles_signals: drain on SIGTERM, SIGINT and SIGHUP; else that is the caller's.
        task_status: told the address when connections are accepted.

    Raises:
        BindFailed: the address cannot be bound.
        RecogniserError: the embedded recogniser is needed, and does not run.
    """
    raise_file_limit()
    calm_the_collector()
    _load_libopus(announce)
    metrics, pace = Metrics(), Pace(settings.message_cap_ms / 1000)
    metrics.load.set_function(lambda: pace.load)
    log_lines().count_lost_with(metrics.log_lines_lost.inc)
    listeners = await open_listeners(host, port, backlog=LISTEN_BACKLOG)
    bound: tuple[str, int] = listeners[0].socket.getsockname()[:2]
    address = f"{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_lines().run)
        end = _End(nursery.cancel_scope)
        if handles_signals:
            # Before anything else: a signal may come while the recogniser starts.
            await nursery.start(drain_on_signal, end.draining, end.force)
        _warn_of_strangers(listeners)
        async with (
            open_poller(pace.turn_pause),
            _provider(settings, metrics, announce) as provider,
            _profiles(settings) as profiles,
        ):
            budget = BacklogBudget(settings.backlog_bytes or default_backlog_bytes())
            shared = Shared(settings, provider, metrics, pace, budget, profiles)
            end.server = server = Server(shared, end.draining)
            nursery.start_soon(
                keep_memory_low, lambda: provider.failures, lambda: server.ended_connections
            )
            _say_ready(announce, address)
            task_status.started(f"ws://{address}")
            await server.serve(listeners)
        nursery.cancel_scope.cancel()
    return end.cut_sessions


def _say_ready(announce: Announce, address: str) -> None:
    announce(
        f"omi-rt is ready on http://{address} (devices: ws://{address}/listen)",
        "ready",
        address=f"http://{address}",
        version=omi_rt.__version__,
    )


@asynccontextmanager
async def _provider(
    settings: Settings, metrics: Metrics, announce: Announce
) -> AsyncIterator[Provider]:
    """The way to Deepgram, looked at once, and watched beside the body."""
    async with (
        open_http_client() as client,
        _upstream(settings, announce) as upstream,
        trio.open_nursery() as nursery,
    ):
        provider = make_provider(
            settings,
            base_url=upstream.base_url,
            metrics=metrics,
            client=client,
            languages=upstream.languages,
            tells_speakers_apart=upstream.tells_speakers_apart,
            find_carried=upstream.find_carried,
        )
        if settings.deepgram_api_key:
            await look_at_key(provider, settings.deepgram_api_key, client)
        nursery.start_soon(probe_provider, provider)
        yield provider
        nursery.cancel_scope.cancel()


def _warn_of_strangers(listeners: Sequence[trio.SocketListener]) -> None:
    """Say that there is no login, where others than this machine can come."""
    hosts = [listener.socket.getsockname()[0] for listener in listeners]
    strangers = [host for host in hosts if not is_loopback_address(host)]
    if strangers:
        get_logger().warning(
            "no_login",
            address=", ".join(strangers),
            meaning="whoever reaches this address can use the server",
        )


@asynccontextmanager
async def _profiles(settings: Settings) -> AsyncIterator[Profiles | None]:
    if settings.profile_mode == "off":
        yield None
        return
    store = open_store(settings.profile_bucket or None, settings.profile_dir)
    try:
        yield Profiles(store, settings.profile_seconds)
    finally:
        with trio.move_on_after(_CLOSE_STORE_SECONDS, shield=True):
            await store.aclose()


def _load_libopus(announce: Announce) -> None:
    """Load it now: the first decoder of a process takes 10 ms, which no session should wait for."""
    try:
        open_decoder("opus", 16_000, 1).close()
    except OpusUnavailable as error:
        announce(f"{error}; devices that send Opus are refused until then", "opus_unavailable")


@frozen
class _Upstream:
    """The provider's address, and what it says of itself, where it says anything."""

    base_url: str
    languages: frozenset[str] | None = None
    """Those that it knows."""
    tells_speakers_apart: bool = True
    find_carried: Callable[[], int | None] = lambda: None
    """Finds how many sessions it can carry."""


@asynccontextmanager
async def _upstream(settings: Settings, announce: Announce) -> AsyncIterator[_Upstream]:
    if not settings.uses_embedded_recogniser:
        yield _Upstream(settings.deepgram_url)
        return
    announce(
        "no DEEPGRAM_API_KEY and no DEEPGRAM_URL: using the embedded recogniser (English, one speaker)",
        "embedded_recogniser",
    )
    room = Room()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(partial(run_local_recogniser, room=room))
        yield _Upstream(
            url, LANGUAGES, tells_speakers_apart=False, find_carried=lambda: room.carried
        )
        nursery.cancel_scope.cancel()
