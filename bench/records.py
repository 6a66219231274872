"""What a run produced, one record a measurement, and the ratios that are drawn from them.

A ratio is always formed inside a round: both servers ran within minutes of one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from attrs import define, field, frozen

GRID = "grid"
SLOPE = "slope"
CAPACITY = "capacity"
MEMORY = "memory"
OVERLOAD = "overload"
SETUP = "setup"
RECONNECT = "reconnect"
PROFILE = "profile"


@frozen
class Record:
    """One measurement of one server in one round."""

    kind: str
    scenario: str
    """Its name; empty where there is only one."""
    server: str
    round: int
    figures: dict[str, Any] | None
    """None: it failed."""
    error: str = ""


@frozen
class Spread:
    """A figure over the rounds."""

    min: float
    median: float
    max: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None if there are none."""
        known = sorted(values)
        return cls(known[0], median(known), known[-1], len(known)) if known else None


Figure = Callable[[dict[str, Any]], float]


@define
class Records:
    """All records of a run."""

    items: list[Record] = field(factory=list)

    def add(self, record: Record) -> None:
        """Append one."""
        self.items.append(record)

    def figures(self, kind: str, scenario: str, server: str) -> dict[int, dict[str, Any]]:
        """By round; rounds that failed are left out."""
        return {
            record.round: record.figures
            for record in self.items
            if (record.kind, record.scenario, record.server) == (kind, scenario, server)
            and record.figures is not None
        }

    def spread(self, kind: str, scenario: str, server: str, figure: Figure) -> Spread | None:
        """A figure of one server over the rounds."""
        return Spread.of(map(figure, self.figures(kind, scenario, server).values()))

    def ratio(self, over: Term, under: Term) -> Spread | None:
        """The ratio of two figures, round by round."""
        above = self.figures(over.kind, over.scenario, over.server)
        below = self.figures(under.kind, under.scenario, under.server)
        values = []
        for number in sorted(above.keys() & below.keys()):
            divisor = under.figure(below[number])
            if divisor:
                values.append(over.figure(above[number]) / divisor)
        return Spread.of(values)

    def scenarios(self, kind: str) -> list[str]:
        """The names, in the order in which they were first measured."""
        return list(dict.fromkeys(record.scenario for record in self.items if record.kind == kind))


@frozen
class Term:
    """One side of a ratio."""

    kind: str
    scenario: str
    server: str
    figure: Figure


def p99_to_provider(figures: dict[str, Any]) -> float:
    """Milliseconds."""
    return float(figures["to_provider"]["p99"])


def p99_to_device(figures: dict[str, Any]) -> float:
    """Milliseconds."""
    return float(figures["to_device"]["p99"])


def cpu(figures: dict[str, Any]) -> float:
    """Milliseconds of processor time per stream and second."""
    return float(figures["cpu_ms_per_stream_second"])


def streams(figures: dict[str, Any]) -> float:
    """The capacity."""
    return float(figures["streams"])


def running_memory(figures: dict[str, Any]) -> float:
    """Bytes per running stream, without the audio that is not final yet."""
    return float(figures["running_without_pending"])
