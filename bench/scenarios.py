"""What is measured, and for how long."""

from __future__ import annotations

from attrs import frozen

from bench.audio import Framing
from bench.servers import ASYNCIO, FLOOR, OURS, PEERS, SDK

ALL = (OURS, *PEERS)


@frozen
class Scenario:
    """So many devices, all alike."""

    streams: int
    codec: str = "linear16"
    frame_ms: int = 20
    tls: bool = False
    """On the provider's side."""
    in_step: bool = False
    """All streams begin within one frame, so that the provider's finals come all at once, as they
    do when many sessions were opened by one cause. Otherwise they are spread over the second."""
    guarded: bool = False
    """On the devices' side: TLS, and a login with a token for each."""

    @property
    def framing(self) -> Framing:
        """How the devices cut their audio."""
        return Framing(self.codec, self.frame_ms)

    @property
    def dimension(self) -> str:
        """Everything but the number of streams."""
        tls, in_step = " TLS" if self.tls else "", " in step" if self.in_step else ""
        guarded = " device TLS, login" if self.guarded else ""
        return f"{self.codec} {self.frame_ms} ms{tls}{in_step}{guarded}"

    @property
    def name(self) -> str:
        """For tables and keys."""
        return f"{self.dimension} x{self.streams}"


@frozen
class Timing:
    """How long a measurement takes, in seconds."""

    ramp: float
    """In which the streams begin to send, one after another."""
    settle: float
    """Between the end of the ramp and the window."""
    window: float
    """The steady window: only frames and finals sent in it count."""
    grace: float
    """After the window, in which its last frames may still arrive."""


@frozen
class CapacityPlan:
    """How the greatest number of streams is looked for."""

    start: int
    most: int
    growth: float
    """Factor from one step to the next while all is well."""
    precision: float
    """The search ends when the lowest failure is at most this factor above the best success."""
    timing: Timing


@frozen
class Plan:
    """One whole run."""

    mode: str
    rounds: int
    most_seconds: float
    """What is not done by then is not measured."""
    timing: Timing
    grid: tuple[tuple[Scenario, tuple[str, ...]], ...]
    """Each scenario with the servers that take part."""
    capacity: CapacityPlan | None
    capacity_servers: tuple[str, ...]
    memory_streams: int
    """0: not measured."""
    memory_servers: tuple[str, ...]
    setup_sessions: int
    setup_servers: tuple[str, ...]
    reconnect_streams: int
    profile_sessions: int
    slope: tuple[int, ...]
    slope_servers: tuple[str, ...]


OVERLOAD_FACTOR = 1.3
"""What is measured beyond the streams per core: whether anything starves there."""
SLOPE_FRAME_MS = 100
"""A thousand streams at 20 ms are 50,000 messages a second, more than one core of any of these takes;
at 100 ms, as some phones send, what grows with the number of sessions is seen, not saturation."""


def _grid() -> tuple[tuple[Scenario, tuple[str, ...]], ...]:
    entries: list[tuple[Scenario, tuple[str, ...]]] = [
        (Scenario(streams), ALL) for streams in (10, 60, 150, 250, 400)
    ]
    entries.insert(2, (Scenario(100), (OURS, FLOOR)))
    # At 250 streams trio-websocket is past its limit however the audio is cut.
    for streams, servers in ((60, ALL), (250, (OURS, SDK, ASYNCIO, FLOOR))):
        entries += [
            (Scenario(streams, in_step=True), servers),
            (Scenario(streams, tls=True), servers),
            (Scenario(streams, frame_ms=10), servers),
            (Scenario(streams, codec="opus"), servers),
            (Scenario(streams, codec="opus", frame_ms=10), servers),
            # No peer has a login.
            (Scenario(streams, guarded=True), (OURS,)),
        ]
    return tuple(entries)


FULL = Plan(
    mode="full",
    rounds=3,
    most_seconds=44 * 60,
    timing=Timing(ramp=0.8, settle=0.7, window=2.5, grace=0.3),
    grid=_grid(),
    capacity=CapacityPlan(
        start=60,
        most=2_000,
        growth=1.5,
        precision=1.08,
        timing=Timing(ramp=0.8, settle=1.2, window=2.5, grace=0.3),
    ),
    capacity_servers=(OURS, SDK, ASYNCIO, FLOOR),
    memory_streams=100,
    memory_servers=ALL,
    setup_sessions=30,
    setup_servers=ALL,
    reconnect_streams=20,
    profile_sessions=5,
    slope=(1, 10, 100, 400, 1_000),
    slope_servers=(OURS, FLOOR),
)

QUICK = Plan(
    mode="quick",
    rounds=3,
    most_seconds=175,
    timing=Timing(ramp=0.5, settle=0.4, window=1.6, grace=0.2),
    grid=(
        (Scenario(60), ALL),
        (Scenario(60, guarded=True), (OURS,)),
        (Scenario(60, codec="opus"), (OURS, SDK, FLOOR)),
        (Scenario(250), (OURS, SDK, FLOOR)),
    ),
    capacity=None,
    capacity_servers=(),
    memory_streams=0,
    memory_servers=(),
    setup_sessions=0,
    setup_servers=(),
    reconnect_streams=0,
    profile_sessions=0,
    slope=(),
    slope_servers=(),
)
