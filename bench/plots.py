"""The results as pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from bench.capacity import P99_LIMIT_MS
from bench.records import (
    CAPACITY,
    GRID,
    MEMORY,
    SLOPE,
    Records,
    Spread,
    cpu,
    p99_to_provider,
    running_memory,
    streams,
)
from bench.scenarios import SLOPE_FRAME_MS, Scenario
from bench.servers import SERVERS

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = dict(zip(SERVERS, ("#d62728", "#7f7f7f", "#1f77b4", "#9467bd", "#2ca02c"), strict=True))
_KIBIBYTE = 1024

Figure = Callable[[dict[str, Any]], float]


def draw_plots(directory: Path, run: Records) -> list[str]:
    """Draw what was measured; the names of the files."""
    numbers = (10, 60, 100, 150, 250, 400)
    plain = [Scenario(number) for number in numbers]
    slope = [Scenario(number, frame_ms=SLOPE_FRAME_MS) for number in (1, 10, 100, 400, 1_000)]
    drawn = [
        _lines(
            directory / "latency.png",
            run,
            GRID,
            plain,
            p99_to_provider,
            "p99 device to provider (ms), linear16 20 ms",
            is_log=True,
        ),
        _lines(
            directory / "cpu.png",
            run,
            GRID,
            plain,
            cpu,
            "CPU per stream-second (ms), linear16 20 ms",
        ),
        _bars(
            directory / "capacity.png", run, CAPACITY, streams, 1, "streams per core, p99 < 50 ms"
        ),
        _bars(
            directory / "memory.png",
            run,
            MEMORY,
            running_memory,
            1 / _KIBIBYTE,
            "memory per running stream (KiB), without audio that is not final",
        ),
        _lines(
            directory / "slope.png",
            run,
            SLOPE,
            slope,
            cpu,
            f"CPU per stream-second (ms), {SLOPE_FRAME_MS} ms messages",
            is_log=True,
        ),
    ]
    return [path.name for path in drawn if path is not None]


def _lines(
    path: Path,
    run: Records,
    kind: str,
    scenarios: list[Scenario],
    figure: Figure,
    title: str,
    *,
    is_log: bool = False,
) -> Path | None:
    """A figure over the number of streams, with the range over the rounds as a band."""
    axes = _axes(title)
    is_empty = True
    for name, server in SERVERS.items():
        points = [
            (scenario.streams, spread)
            for scenario in scenarios
            if (spread := run.spread(kind, scenario.name, name, figure)) is not None
        ]
        if not points:
            continue
        is_empty = False
        numbers = [number for number, _ in points]
        axes.plot(
            numbers, [s.median for _, s in points], "o-", color=COLOURS[name], label=server.title
        )
        axes.fill_between(
            numbers,
            [s.min for _, s in points],
            [s.max for _, s in points],
            color=COLOURS[name],
            alpha=0.15,
        )
    if is_log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    shown = [scenario.streams for scenario in scenarios]
    axes.set_xticks(shown, list(map(str, shown)))
    axes.minorticks_off()
    if figure is p99_to_provider:
        axes.axhline(P99_LIMIT_MS, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel("streams")
    if not is_empty:
        axes.legend(fontsize=8)
    return _save(path, is_empty)


def _bars(
    path: Path, run: Records, kind: str, figure: Figure, factor: float, title: str
) -> Path | None:
    axes = _axes(title)
    found: list[tuple[str, Spread]] = [
        (name, spread)
        for name in SERVERS
        if (spread := run.spread(kind, "", name, figure)) is not None
    ]
    for name, spread in found:
        error = [
            [(spread.median - spread.min) * factor],
            [(spread.max - spread.median) * factor],
        ]
        axes.bar(name, spread.median * factor, yerr=error, capsize=4, color=COLOURS[name])
    return _save(path, not found)


def _axes(title: str) -> Any:
    _, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, which="major", alpha=0.3)
    return axes


def _save(path: Path, is_empty: bool) -> Path | None:
    if not is_empty:
        plt.savefig(path, dpi=120)
    plt.close()
    return None if is_empty else path
