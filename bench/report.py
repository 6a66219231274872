"""The results for people: a Markdown page of tables, and ``results.json`` for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from attrs import asdict

from bench.records import (
    CAPACITY,
    GRID,
    MEMORY,
    PROFILE,
    RECONNECT,
    SETUP,
    SLOPE,
    Records,
    Spread,
    Term,
    cpu,
    p99_to_device,
    p99_to_provider,
    running_memory,
    streams,
)
from bench.servers import OURS, PEERS, SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from bench.goals import Goal

KIBIBYTE = 1024
PREFACE = (
    "Every figure is the median over the rounds, with the least and the greatest in brackets. "
    "Ratios are omi_rt's figure divided by the peer's of the same round. "
    "How it is measured: `bench/README.md`."
)


def write_json(
    path: Path, machine: dict[str, Any], mode: str, seconds: float, run: Records, goals: list[Goal]
) -> None:
    """Everything that was measured, with nothing left out."""
    document = {
        "mode": mode,
        "seconds": round(seconds, 1),
        "machine": machine,
        "goals": [{**asdict(goal), "verdict": goal.verdict} for goal in goals],
        "records": [asdict(record) for record in run.items],
    }
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


def write_markdown(
    path: Path,
    machine: dict[str, Any],
    mode: str,
    seconds: float,
    run: Records,
    goals: list[Goal],
    plots: Sequence[str],
) -> None:
    """The tables: goals first, then what they were computed from."""
    parts = [
        f"# Results ({mode} run, {seconds / 60:.0f} min)",
        PREFACE,
        "## Goals",
        _goals_table(goals),
        *(f"![{name}]({name})" for name in plots),
        *_sections(run),
        "## Machine",
        _table(("", ""), ((key, str(value)) for key, value in machine.items())),
        *_remarks(run),
    ]
    path.write_text("\n\n".join(part for part in parts if part) + "\n")


def _sections(run: Records) -> Iterable[str]:
    if run.scenarios(GRID):
        yield "## Latency, device to provider: p99 in ms"
        yield _figure_table(run, GRID, p99_to_provider, 2)
        yield "## Latency, device to provider: p50, p90, p99 and greatest, in ms"
        yield _detail_table(run, "to_provider")
        yield "## Latency, provider to device: p99 in ms"
        yield _figure_table(run, GRID, p99_to_device, 2)
        yield "## Latency, provider to device: p50, p90, p99 and greatest, in ms"
        yield _detail_table(run, "to_device")
        yield "## CPU per stream-second, in ms"
        yield _figure_table(run, GRID, cpu, 2)
        yield "## Ratios to the peers"
        yield "### p99, device to provider"
        yield _ratio_table(run, GRID, p99_to_provider)
        yield "### CPU per stream-second"
        yield _ratio_table(run, GRID, cpu)
    if run.scenarios(CAPACITY):
        yield "## Streams on one core with p99 under 50 ms"
        yield _figure_table(run, CAPACITY, streams, 0)
        yield _ratio_table(run, CAPACITY, streams)
    if run.scenarios(MEMORY):
        yield "## Memory per stream, in KiB (PSS)"
        yield _memory_table(run)
        yield "Ratios, running without what is not final:"
        yield _ratio_table(run, MEMORY, running_memory)
    if run.scenarios(SETUP):
        yield "## From a device's connecting to its first frame at the provider, in ms (median session)"
        yield _figure_table(run, SETUP, _in(("median",)), 2)
        yield _ratio_table(run, SETUP, _in(("median",)))
    if run.scenarios(SLOPE):
        yield "## From one session to a thousand (100 ms messages)"
        yield "CPU per stream-second, in ms:"
        yield _figure_table(run, SLOPE, cpu, 3)
        yield "p99, device to provider, in ms:"
        yield _figure_table(run, SLOPE, p99_to_provider, 2)
    if run.scenarios(RECONNECT):
        yield "## A connection to the provider is cut (omi_rt only: the peers lose the session)"
        yield _own_table(
            run,
            RECONNECT,
            (
                ("to the first frame sent again, median, ms", ("first_frame", "median"), 1.0),
                ("to the first frame sent again, greatest, ms", ("first_frame", "max"), 1.0),
                ("frames sent again per cut", ("replayed",), 1.0),
                ("frames lost", ("lost",), 1.0),
            ),
        )
    if run.scenarios(PROFILE):
        yield "## First segment, with a speech profile and without (omi_rt only)"
        yield _own_table(
            run,
            PROFILE,
            (
                ("first segment with a profile, median, s", ("first_segment", "median"), 1e-3),
                ("first segment without, median, s", ("first_segment_without", "median"), 1e-3),
                ("the user is known, median, s", ("user_known", "median"), 1e-3),
            ),
        )


def _in(path: Sequence[str]) -> Callable[[dict[str, Any]], float]:
    def figure(figures: dict[str, Any]) -> float:
        value: Any = figures
        for key in path:
            value = value[key]
        return float(value)

    return figure


def _goals_table(goals: list[Goal]) -> str:
    rows = []
    for goal in goals:
        limit = f"{'≤' if goal.is_upper else '≥'} {brief(goal.limit)}"
        rows.append((goal.figure, limit, _spread(goal.measured, 3), goal.verdict, goal.note))
    return _table(("figure", "goal", "measured", "", "remarks"), rows)


def _figure_table(
    run: Records, kind: str, figure: Callable[[dict[str, Any]], float], digits: int
) -> str:
    """Scenarios down, servers across."""
    rows = [
        (
            scenario,
            *(
                _spread(run.spread(kind, scenario, name, figure), None, digits)
                or _failure(run, kind, scenario, name)
                for name in SERVERS
            ),
        )
        for scenario in run.scenarios(kind)
    ]
    return _table(("", *(f"{s.name} {s.letter}" for s in SERVERS.values())), rows)


def _ratio_table(run: Records, kind: str, figure: Callable[[dict[str, Any]], float]) -> str:
    rows = []
    for scenario in run.scenarios(kind):
        ratios = [
            run.ratio(Term(kind, scenario, OURS, figure), Term(kind, scenario, peer, figure))
            for peer in PEERS
        ]
        if any(ratios):
            rows.append((scenario, *(_spread(ratio, 3) for ratio in ratios)))
    return _table(("", *(f"{name} {SERVERS[name].letter}" for name in PEERS)), rows)


def _detail_table(run: Records, direction: str) -> str:
    """Medians over the rounds."""
    rows = []
    for scenario in run.scenarios(GRID):
        for name in SERVERS:
            spreads = [
                run.spread(GRID, scenario, name, _in((direction, key)))
                for key in ("p50", "p90", "p99", "max")
            ]
            if all(spreads):
                rows.append((scenario, name, *(f"{s.median:.2f}" for s in spreads if s)))
    return _table(("", "", "p50", "p90", "p99", "max"), rows)


def _memory_table(run: Records) -> str:
    keys = ("idle", "running", "pending", "running_without_pending")
    rows = []
    for name in SERVERS:
        spreads = [run.spread(MEMORY, "", name, _in((key,))) for key in keys]
        # No peer has a session that waits, and an older run did not measure it.
        waiting = [
            figures["waiting"]
            for figures in run.figures(MEMORY, "", name).values()
            if figures.get("waiting") is not None
        ]
        spreads.append(Spread.of(waiting))
        rows.append((name, *(_scaled(spread, 1 / KIBIBYTE) for spread in spreads)))
    titles = ("idle", "running", "audio that is not final", "running without it", "device lost")
    return _table(("", *titles), rows)


def _own_table(run: Records, kind: str, lines: Sequence[tuple[str, tuple[str, ...], float]]) -> str:
    rows = []
    for title, path, factor in lines:
        known = [
            figures
            for figures in run.figures(kind, "", OURS).values()
            if figures.get(path[0]) is not None
        ]
        rows.append((title, _scaled(Spread.of(map(_in(path), known)), factor)))
    return _table(("", ""), rows)


def _scaled(spread: Spread | None, factor: float) -> str:
    if spread is None:
        return "–"
    return f"{spread.median * factor:.2f} ({spread.min * factor:.2f} – {spread.max * factor:.2f})"


def _spread(spread: Spread | None, significant: int | None, digits: int = 0) -> str:
    if spread is None:
        return ""

    def show(value: float) -> str:
        return f"{value:.{digits}f}" if significant is None else brief(value, significant)

    return f"{show(spread.median)} ({show(spread.min)} – {show(spread.max)})"


def brief(value: float, significant: int = 3) -> str:
    """So many significant digits, and of a large number all before the point."""
    return f"{value:,.0f}" if abs(value) >= 10**significant else f"{value:.{significant}g}"


def _failure(run: Records, kind: str, scenario: str, server: str) -> str:
    errors = [
        record.error
        for record in run.items
        if (record.kind, record.scenario, record.server) == (kind, scenario, server)
    ]
    return "failed" if errors else "–"


def _remarks(run: Records) -> Iterable[str]:
    """What failed, and which figures were disturbed."""
    lines = []
    for record in run.items:
        place = f"{record.kind} {record.scenario} {record.server}, round {record.round}"
        if record.error:
            text = " ".join(record.error.split())[:300]
            lines.append(f"- {place}: failed: {text}")
        elif record.figures and record.figures.get("is_rig_limited"):
            lines.append(f"- {place}: at least; the rig was at its limit, not the server")
        elif record.figures and record.figures.get("warnings"):
            lines.append(f"- {place}: {'; '.join(record.figures['warnings'])}")
    return ("## Failures and disturbances", "\n".join(lines)) if lines else ()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
