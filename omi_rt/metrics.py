"""Counters and gauges for ``/metrics``, through prometheus_client (the one file that imports it)."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


# Each series' time of birth: as many lines again, which nobody asked for.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server. Seconds of audio are summed when a session ends."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"omi_rt_{name}", text, labels, registry=self._registry)

        self.sessions = Gauge("omi_rt_sessions", "Sessions that run.", registry=self._registry)
        self.load = Gauge(
            "omi_rt_loop_load", "Share of time that the event loop works.", registry=self._registry
        )
        self.sessions_ended = counter("sessions_ended", "Sessions that ended.", ("reason",))
        self.upgrades_refused = counter("upgrades_refused", "Upgrades answered 503.", ("reason",))
        self.connections_dropped = counter(
            "connections_dropped", "Connections that never became a request."
        )
        self.faults = counter("faults", "Errors of our own, each logged with its session.")
        self.backlog_bytes = Gauge(
            "omi_rt_backlog_bytes",
            "Memory that the audio kept by all sessions takes.",
            registry=self._registry,
        )
        self.held_back = counter(
            "held_back", "Times that a device was not read because all sessions keep too much."
        )
        self.log_lines_lost = counter("log_lines_lost", "Log lines that could not be written.")
        self.audio_seconds = counter(
            "audio_seconds", "Seconds of audio of ended sessions, by what became of it.", ("state",)
        )
        self.provider_seconds = counter(
            "provider_seconds", "Seconds of audio sent to Deepgram, by purpose.", ("purpose",)
        )
        self.provider_dials = counter("provider_dials", "Dials to Deepgram.", ("outcome",))
        self.provider_drops = counter("provider_drops", "Deepgram connections that were lost.")
        self.provider_messages = counter(
            "provider_messages", "Messages from Deepgram that brought nothing.", ("kind",)
        )
        self.provider_disagreements = counter(
            "provider_disagreements", "Connections whose Metadata.duration is not what was sent."
        )
        self.words_discarded = counter(
            "words_discarded", "Words of finals that were not delivered, by reason.", ("reason",)
        )
        self.concealed_packets = counter("concealed_packets", "Opus packets that were concealed.")
        self.profile_failures = counter("profile_failures", "Profiles that could not be used.")
        self.setup_seconds = Histogram(
            "omi_rt_provider_setup_seconds",
            "From dialling Deepgram to an open connection.",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
            registry=self._registry,
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
