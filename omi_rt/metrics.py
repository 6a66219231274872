"""Counters and gauges for ``/metrics``, through prometheus_client (the one file that imports it).

Every series is there from the start, at zero, so that a rate over its first event is right. No label
has values that a peer can choose.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

import omi_rt
from omi_rt.core.dials import DialCause
from omi_rt.core.endings import EndingClass
from omi_rt.core.heard import Discard
from omi_rt.core.ledger import Cost
from omi_rt.core.login import BadToken, NoToken, TokenExpired
from omi_rt.core.resume import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

    from omi_rt.core.audio import AudioFormat
    from omi_rt.core.ledger import Ledger

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

UPGRADE_REFUSALS = (
    *("draining", "full", "memory", "recogniser", "breaker", "login", "lag"),
    *("unfinished", "address", "uid", "day", "origin", "request"),
)
CLOSE_CODES = ("1008", "1011", "1013", "4001", "4002")
PROVIDER_STATUSES = ("400", "401", "402", "403", "404", "429", "500", "502", "503", "504", "other")
_NANOSECONDS = 1_000_000_000

# Each series would have a second line with its time of birth, which nobody asked for.
disable_created_metrics()  # type: ignore[no-untyped-call]


def status_label(status: int) -> str:
    """Return the label of an HTTP status that the provider answered with."""
    return str(status) if str(status) in PROVIDER_STATUSES else "other"


class _Positions(Protocol):
    start: int
    end: int


class _Audio(Protocol):
    """The part of a session's coverage that is asked here."""

    @property
    def audio_format(self) -> AudioFormat: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def backlog(self) -> _Positions: ...


class _Concealing(Protocol):
    @property
    def concealed_packets(self) -> int: ...


@frozen(eq=False)
class AudioAccount:
    """One session's audio, as it stands whenever somebody asks."""

    coverage: _Audio
    cost: Cost
    decoder: _Concealing


class AudioAccounts(Collector):
    """The audio of all sessions, those that run included, added up when somebody asks.

    In this way a frame costs nothing more on its way. The sums are whole nanoseconds, because a sum of
    fractions would depend on its order, and a counter that falls by the last digit counts as a restart.
    """

    def __init__(self) -> None:
        self._running: set[AudioAccount] = set()
        self._ended = _Sums()

    def open(self, account: AudioAccount) -> None:
        """Count a session's audio from now on."""
        self._running.add(account)

    def close(self, account: AudioAccount) -> None:
        """Take a session's figures as final, because it has ended. A second close does nothing."""
        if account in self._running:
            self._running.discard(account)
            self._ended.add(account)

    def collect(self) -> Iterable[Metric]:
        """Yield the sums, as prometheus_client asks for them."""
        sums = self._ended.copy()
        pending = 0
        for account in self._running:
            sums.add(account)
            backlog = account.coverage.backlog
            rate = account.coverage.audio_format.sample_rate
            pending += (backlog.end - backlog.start) * _NANOSECONDS // rate
        yield CounterMetricFamily(
            "omi_rt_received_seconds",
            "Seconds of audio received from devices, as it comes.",
            value=sums.received / _NANOSECONDS,
        )
        yield _family(
            "omi_rt_audio_seconds",
            "Seconds of audio by what became of it, as it becomes that.",
            "state",
            sums.states,
        )
        yield GaugeMetricFamily(
            "omi_rt_pending_seconds",
            "Seconds of audio that wait to become final, over all sessions.",
            value=pending / _NANOSECONDS,
        )
        yield _family(
            "omi_rt_provider_seconds",
            "Seconds of audio sent to Deepgram, by purpose, as they are sent.",
            "purpose",
            sums.purposes,
        )
        yield CounterMetricFamily(
            "omi_rt_concealed_packets",
            "Opus packets that were concealed.",
            value=sums.concealed_packets,
        )


def _family(name: str, text: str, label: str, sums: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, nanoseconds in sums.items():
        family.add_metric([value], nanoseconds / _NANOSECONDS)
    return family


class _Sums:
    """Sums over accounts, in nanoseconds."""

    __slots__ = ("concealed_packets", "purposes", "received", "states")

    def __init__(self) -> None:
        self.received = 0
        self.states = dict.fromkeys(("finalised", "gated", "lost"), 0)
        self.purposes = dict.fromkeys(("live", "replay", "overlap", "lead_in", "filler"), 0)
        self.concealed_packets = 0

    def copy(self) -> _Sums:
        sums = _Sums()
        sums.received, sums.concealed_packets = self.received, self.concealed_packets
        sums.states, sums.purposes = dict(self.states), dict(self.purposes)
        return sums

    def add(self, account: AudioAccount) -> None:
        coverage, cost = account.coverage, account.cost
        rate, ledger = coverage.audio_format.sample_rate, coverage.ledger
        self.received += ledger.received * _NANOSECONDS // rate
        for state in self.states:
            self.states[state] += getattr(ledger, state) * _NANOSECONDS // rate
        for purpose in self.purposes:
            self.purposes[purpose] += getattr(cost, purpose) * _NANOSECONDS // rate
        self.concealed_packets += account.decoder.concealed_packets


@frozen
class MetricRow:
    """One of our own metrics, as a table shows it."""

    name: str
    kind: str
    labels: Mapping[str, Sequence[str]] = field(factory=dict)
    """The values that each label can have."""
    text: str = ""


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._build_server_metrics()
        self._build_resume_metrics()
        self._build_keeping_metrics()
        self._build_provider_metrics()
        self.audio = AudioAccounts()
        self._registry.register(self.audio)
        build = Info("omi_rt_build", "The versions that run.", registry=self._registry)
        build.info({"version": omi_rt.__version__, "python": platform.python_version()})
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def _build_server_metrics(self) -> None:
        self.sessions = self._gauge("sessions", "Sessions that run.")
        self.max_sessions = self._gauge("max_sessions", "Sessions that may run at once.")
        self.sessions_degraded = self._gauge(
            "sessions_degraded", "Sessions that run and have no connection to Deepgram."
        )
        self.sessions_behind = self._gauge(
            "sessions_behind", "Sessions whose recogniser has said that it is behind."
        )
        self.behind_seconds: dict[str, float] = {}
        """How far each session's recogniser is behind, in seconds, by the session's id."""
        self._gauge(
            "behind_seconds",
            "Seconds of audio that the recogniser is behind, in the session where it is most.",
        ).set_function(lambda: max(self.behind_seconds.values(), default=0.0))
        self.carried_sessions = self._gauge(
            "carried_sessions",
            "Sessions that the embedded recogniser can carry by its own measure; 0 with Deepgram.",
        )
        self.draining = self._gauge("draining", "1 while the server ends its sessions to go.")
        self.load = self._gauge("loop_load", "Share of time that the event loop works.")
        self.lag = self._gauge("loop_lag_seconds", "Seconds that the event loop is late.")
        self.backlog_bytes = self._gauge(
            "backlog_bytes", "Memory that the audio kept by all sessions takes."
        )
        self.outbox_bytes = self._gauge(
            "outbox_bytes", "Memory that what all sessions were told takes, kept for resumes."
        )
        self.sessions_ended = self._counter(
            "sessions_ended",
            "Sessions that ended.",
            reason=tuple(kind.value for kind in EndingClass),
        )
        self.upgrades_refused = self._counter(
            "upgrades_refused",
            "Connections and upgrades refused: by a limit, 503, 403 for a foreign origin, or 400 or 401 as Deepgram does.",
            reason=UPGRADE_REFUSALS,
        )
        self.requests_closed = self._counter(
            "requests_closed",
            "Requests for /listen that were closed at once, by close code.",
            code=CLOSE_CODES,
        )
        self.login_failures = self._counter(
            "login_failures",
            "Clients that did not prove who they are.",
            kind=tuple(error.kind for error in (NoToken, BadToken, TokenExpired)),
        )
        self.connections_dropped = self._counter(
            "connections_dropped", "Connections that never became a request."
        )
        self.faults = self._counter("faults", "Errors of our own, each logged with its session.")
        self.held_back = self._counter(
            "held_back", "Times that a device was not read because all sessions keep too much."
        )
        self.log_lines_lost = self._counter(
            "log_lines_lost", "Log lines that could not be written."
        )

    def _build_resume_metrics(self) -> None:
        self.sessions_away = self._gauge(
            "sessions_away", "Sessions that run and wait for their device to come back."
        )
        self.resumes = self._counter(
            "resumes",
            "Connections that wanted to take a session up, by what came of it.",
            outcome=[outcome.value for outcome in Outcome],
        )

    def _build_keeping_metrics(self) -> None:
        self.watchers = self._gauge("watchers", "Pages that follow sessions, or the list of them.")
        self.watchers_refused = self._counter(
            "watchers_refused",
            "Watchers refused: there are as many as may be, on the server or of one uid, or it goes.",
            reason=("full", "uid", "draining"),
        )
        self.watch_missed = self._counter(
            "watch_messages_missed", "Messages that a slow watcher did not get."
        )
        self.records_lost = self._counter(
            "records_lost",
            "Lines that could not be kept, and sessions whose audio could not be kept to the end.",
            kind=("line", "audio"),
        )
        self.record_uploads = self._counter(
            "record_uploads",
            "Sessions whose record was uploaded to the bucket, or could not be and stays here for now.",
            outcome=("uploaded", "failed"),
        )
        self.records_waiting = self._gauge(
            "records_waiting", "Sessions that have ended and whose record is still to be uploaded."
        )
        kinds = ("transcript", "audio")
        self.webhooks = self._counter(
            "webhooks",
            "Messages to webhooks.",
            kind=kinds,
            outcome=("delivered", "failed"),
        )
        self.webhooks_dropped = self._counter(
            "webhooks_dropped",
            "Segments and pieces of audio that a slow webhook left no room for.",
            kind=kinds,
        )

    def _build_provider_metrics(self) -> None:
        self.breaker_open = self._gauge(
            "breaker_open", "1 while new sessions get 503 because Deepgram refuses all of them."
        )
        self.provider_dials = self._counter(
            "provider_dials",
            "Dials to Deepgram, by what for and what came of it.",
            cause=[cause.value for cause in DialCause],
            outcome=["open", "failed"],
        )
        self.provider_refusals = self._counter(
            "provider_refusals",
            "Dials that Deepgram answered with an HTTP status instead of a connection.",
            status=PROVIDER_STATUSES,
        )
        self.provider_drops = self._counter(
            "provider_drops", "Deepgram connections that were lost."
        )
        self.provider_messages = self._counter(
            "provider_messages",
            "Messages from Deepgram that brought nothing.",
            kind=["ignored", "malformed"],
        )
        self.provider_disagreements = self._counter(
            "provider_disagreements", "Connections whose Metadata.duration is not what was sent."
        )
        self.words_discarded = self._counter(
            "words_discarded",
            "Words of finals that were not delivered, by reason.",
            reason=[reason.value for reason in Discard],
        )
        self.profile_failures = self._counter(
            "profile_failures", "Profiles that could not be used."
        )
        self.setup_seconds = Histogram(
            "omi_rt_provider_setup_seconds",
            "From dialling Deepgram to an open connection.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self._registry,
        )
        self.finalisation_lag = Histogram(
            "omi_rt_finalisation_lag_seconds",
            "From receiving audio to its being final, once for each second of audio.",
            buckets=(0.5, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120),
            registry=self._registry,
        )

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"omi_rt_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str, **labels: Sequence[str]) -> Counter:
        counter = Counter(f"omi_rt_{name}", text, tuple(labels), registry=self._registry)
        combinations: list[tuple[str, ...]] = [()]
        for values in labels.values():
            combinations = [(*before, value) for before in combinations for value in values]
        if labels:
            for combination in combinations:
                counter.labels(*combination)
        return counter

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def rows(self) -> list[MetricRow]:
        """Return our own metrics, without prometheus_client's figures of the process."""
        rows = []
        for family in self._registry.collect():
            if not family.name.startswith("omi_rt_"):
                continue
            labels: dict[str, list[str]] = {}
            for sample in family.samples:
                for label, value in sample.labels.items():
                    if label != "le" and value not in labels.setdefault(label, []):
                        labels[label].append(value)
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            rows.append(MetricRow(family.name + suffix, family.type, labels, family.documentation))
        return rows
