"""What memory a session takes: idle, running, and waiting for a device that was lost.

``python -m bench.memory [--streams N] [--rounds N] [--server NAME]`` prints each round's figures in KiB of
PSS for each session. A round takes 20 s and begins with a fresh server.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from attrs import asdict

from bench.extras import measure_memory
from bench.processes import BenchError
from bench.rig import Workshop
from bench.servers import OURS, SERVERS

_KIBIBYTE = 1024


async def run(server: str, streams: int, rounds: int) -> None:
    """Measure and print. Raises `BenchError`."""
    with TemporaryDirectory() as directory:
        workshop = Workshop.furnish(Path(directory))
        for _ in range(rounds):
            figures = asdict(await measure_memory(workshop, SERVERS[server], streams))
            print(
                ", ".join(
                    f"{name.replace('_', ' ')} {value / _KIBIBYTE:.1f}"
                    for name, value in figures.items()
                    if value is not None
                ),
                flush=True,
            )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", choices=sorted(SERVERS), default=OURS)
    arguments = parser.parse_args()
    try:
        trio.run(run, arguments.server, arguments.streams, arguments.rounds)
    except BenchError as error:
        sys.exit(f"bench.memory: {error}")


if __name__ == "__main__":
    main()
