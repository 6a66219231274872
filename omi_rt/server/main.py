"""The composition root: everything that one server process is made of, put together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import trio
from attrs import define, field, frozen

import omi_rt
from omi_rt.auth.login import open_login
from omi_rt.codecs import open_decoder
from omi_rt.codecs.opus import OpusUnavailable
from omi_rt.core.budget import BacklogBudget
from omi_rt.core.errors import OmiRtError
from omi_rt.core.forwarded import is_loopback_address
from omi_rt.deepgram.connection import dial_tcp
from omi_rt.deepgram.provider import make_provider
from omi_rt.local.process import Room, run_local_recogniser
from omi_rt.local.wire import ANY_LANGUAGE
from omi_rt.log import get_logger, log_lines
from omi_rt.metrics import Metrics
from omi_rt.net.certificate import Certificate
from omi_rt.net.http_client import open_http_client
from omi_rt.net.listeners import open_listeners, raise_file_limit
from omi_rt.net.poller import open_poller
from omi_rt.profiles.commands import open_store
from omi_rt.profiles.service import Profiles
from omi_rt.records.commands import open_record_bucket, root_of
from omi_rt.records.service import Records
from omi_rt.records.uploads import Uploads
from omi_rt.server.app import LISTEN_BACKLOG, Server
from omi_rt.server.memory import calm_the_collector, default_backlog_bytes, keep_memory_low
from omi_rt.server.pace import Pace
from omi_rt.server.provider_watch import look_at_key, probe_provider
from omi_rt.server.shared import Shared
from omi_rt.server.signals import drain_on_signal
from omi_rt.timers import open_timers
from omi_rt.webhooks.service import Hooks, Webhooks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from omi_rt.core.observers import Watch
    from omi_rt.deepgram.connection import Dial
    from omi_rt.deepgram.provider import Provider
    from omi_rt.local.decoding import RecogniserInfo
    from omi_rt.log import Announce
    from omi_rt.net.http_client import HTTPClient
    from omi_rt.settings import Settings


class Unguarded(OmiRtError):
    """The server would stand open to everybody; the message is one clear line."""


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
    dial: Dial = dial_tcp,
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
        dial: connects to the provider's URL.
        task_status: told the address when connections are accepted.

    Raises:
        BindFailed: the address cannot be bound.
        Unguarded: there is no login, and others than this machine could come.
        RecogniserError: the embedded recogniser is needed, and does not run.
    """
    _prepare(announce)
    pace = Pace(settings.message_cap_ms / 1000)
    metrics = _metrics(pace)
    certificate = await _load_certificate(settings)
    listeners = await open_listeners(host, port, backlog=LISTEN_BACKLOG)
    address, s = _address(listeners), "" if certificate is None else "s"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log_lines().run)
        end = _End(nursery.cancel_scope)
        if handles_signals:
            # Before anything else: a signal may come while the recogniser starts.
            await _handle_signals(nursery, end, certificate)
        _check_strangers(settings, listeners)
        async with (
            open_poller(pace.turn_pause),
            open_timers(),
            _shared(settings, metrics, certificate, announce, dial) as shared,
        ):
            provider = shared.provider
            end.server = server = Server(shared, end.draining)
            nursery.start_soon(
                keep_memory_low,
                lambda: provider.failures,
                lambda: server.gone_connections,
                lambda: server.changed_sessions,
            )
            _say_ready(announce, address, s)
            task_status.started(f"ws{s}://{address}")
            await server.serve(listeners)
        nursery.cancel_scope.cancel()
    return end.cut_sessions


@asynccontextmanager
async def _shared(
    settings: Settings,
    metrics: Metrics,
    certificate: Certificate | None,
    announce: Announce,
    dial: Dial,
) -> AsyncIterator[Shared]:
    """Hold open what all sessions share."""
    async with (
        open_http_client() as client,
        open_login(settings, client) as login,
        _provider(settings, metrics, announce, client, dial) as provider,
        _profiles(settings) as profiles,
        _records(settings, metrics) as records,
        _webhooks(settings, metrics, client) as hooks,
    ):
        yield Shared(
            settings,
            provider,
            metrics,
            BacklogBudget(settings.backlog_bytes or default_backlog_bytes()),
            profiles,
            login,
            certificate,
            records + hooks,
        )


def _prepare(announce: Announce) -> None:
    raise_file_limit()
    calm_the_collector()
    _load_libopus(announce)


async def _handle_signals(
    nursery: trio.Nursery, end: _End, certificate: Certificate | None
) -> None:
    reload = None if certificate is None else certificate.reload
    await nursery.start(partial(drain_on_signal, end.draining, end.force, reload=reload))


def _metrics(pace: Pace) -> Metrics:
    metrics = Metrics()
    metrics.load.set_function(lambda: pace.load)
    log_lines().count_lost_with(metrics.log_lines_lost.inc)
    return metrics


def _address(listeners: Sequence[trio.SocketListener]) -> str:
    """Return host and port as they stand in a URL."""
    bound: tuple[str, int] = listeners[0].socket.getsockname()[:2]
    return f"{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"


async def _load_certificate(settings: Settings) -> Certificate | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    certificate = Certificate(settings.tls_cert, settings.tls_key)
    await certificate.load()
    return certificate


def _say_ready(announce: Announce, address: str, s: str) -> None:
    """Say it; ``s`` is what TLS puts at the end of a scheme."""
    announce(
        f"omi-rt is ready on http{s}://{address} (devices: ws{s}://{address}/listen)",
        "ready",
        address=f"http{s}://{address}",
        version=omi_rt.__version__,
    )


@asynccontextmanager
async def _provider(
    settings: Settings, metrics: Metrics, announce: Announce, client: HTTPClient, dial: Dial
) -> AsyncIterator[Provider]:
    """The way to Deepgram, looked at once, and watched beside the body."""
    async with (
        _upstream(settings, announce) as upstream,
        trio.open_nursery() as nursery,
    ):
        provider = make_provider(
            settings,
            base_url=upstream.base_url,
            metrics=metrics,
            dial=dial,
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


def _check_strangers(settings: Settings, listeners: Sequence[trio.SocketListener]) -> None:
    """Refuse to serve others than this machine without a login, or say so where that is wanted."""
    hosts = [listener.socket.getsockname()[0] for listener in listeners]
    strangers = ", ".join(host for host in hosts if not is_loopback_address(host))
    if not strangers:
        return
    if settings.auth == "firebase" and settings.firebase_emulator:
        raise Unguarded(
            f"FIREBASE_AUTH_EMULATOR_HOST: its tokens prove nothing, and {strangers} is not loopback"
        )
    if settings.auth != "none":
        return
    if not settings.insecure:
        raise Unguarded(
            f"without a login everybody could use {strangers}: set OMI_RT_AUTH, or OMI_RT_INSECURE=1"
        )
    get_logger().warning(
        "no_login",
        address=strangers,
        meaning="whoever reaches this address can use the server",
    )


@asynccontextmanager
async def _profiles(settings: Settings) -> AsyncIterator[Profiles | None]:
    if settings.profile_mode == "off":
        yield None
        return
    async with open_store(settings.profile_bucket or None, settings.profile_dir) as store:
        yield Profiles(store, settings.profile_seconds)


@asynccontextmanager
async def _records(settings: Settings, metrics: Metrics) -> AsyncIterator[tuple[Watch, ...]]:
    """What observes each session, as long as the body runs."""
    root = root_of(settings.transcript_dir, settings.transcript_spool)
    if root is None:
        yield ()
        return
    async with open_record_bucket(settings.transcript_dir) as store, trio.open_nursery() as nursery:
        uploads = None if store is None else Uploads(root, store, metrics, Random())
        end_uploads = None if uploads is None else await nursery.start(uploads.upload_all)
        records = Records(
            root,
            metrics,
            audio=settings.record_audio,
            retention_days=settings.retention_days,
            store=store,
            uploads=uploads,
        )
        async with trio.open_nursery() as writing:
            writing.start_soon(records.look_after_records)
            await writing.start(records.write_records)
            yield (records.watch,)
            writing.cancel_scope.cancel()
        if end_uploads is not None:
            end_uploads()


@asynccontextmanager
async def _webhooks(
    settings: Settings, metrics: Metrics, client: HTTPClient
) -> AsyncIterator[tuple[Watch, ...]]:
    if not settings.webhook_transcript and settings.webhook_audio is None:
        yield ()
        return
    hooks = Hooks(
        settings.webhook_transcript,
        settings.webhook_audio,
        settings.webhook_secret,
        settings.webhook_private,
    )
    webhooks = Webhooks(hooks, client, metrics, Random())  # seeded by the system
    async with trio.open_nursery() as nursery:
        end = await nursery.start(webhooks.post_all)
        yield (webhooks.watch,)
        end()


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
    room = Room()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(
            partial(
                run_local_recogniser,
                max_connections=settings.local_connections or None,
                model=settings.whisper_model,
                room=room,
                announce=lambda line: announce(line, "embedded_recogniser"),
            )
        )
        info = room.info
        assert info is not None
        announce(_describe(info), "embedded_recogniser", model=info.model)
        for note in room.notes:
            announce(note, "embedded_recogniser")
        nursery.start_soon(_tell_carried, room, announce)
        yield _Upstream(
            url,
            frozenset({*info.languages, ANY_LANGUAGE}),
            tells_speakers_apart=info.tells_speakers_apart,
            find_carried=lambda: room.carried,
        )
        nursery.cancel_scope.cancel()


def _describe(info: RecogniserInfo) -> str:
    languages = "English" if info.languages == ("en",) else f"{len(info.languages)} languages"
    speakers = "tells speakers apart" if info.tells_speakers_apart else "one speaker"
    return (
        "no DEEPGRAM_API_KEY and no DEEPGRAM_URL: using the embedded recogniser "
        f"({info.model}, {languages}, {speakers})"
    )


async def _tell_carried(room: Room, announce: Announce) -> None:
    """Say once how many sessions the embedded recogniser carries, when it has measured that."""
    await room.measured.wait()
    announce(
        f"the embedded recogniser carries {room.carried} sessions on this machine",
        "embedded_recogniser",
        sessions=room.carried,
    )
