"""A flame graph of a loaded server: ``python -m bench.flame`` (py-spy).

Not named ``profile``: the standard library has a module of that name.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from bench.processes import ROOT, BenchError
from bench.rig import Workshop, open_rig
from bench.scenarios import Scenario
from bench.servers import OURS, SERVERS

SAMPLES_PER_SECOND = 500
EXTRA_SECONDS = 60.0
"""For py-spy to start and to draw."""


async def record_flame(
    scenario: Scenario, server: str, seconds: int, output: Path, *, native: bool
) -> None:
    """Load a server and record where its time goes.

    Raises:
        BenchError: the server, the rig or py-spy failed.
    """
    recorder = shutil.which("py-spy") or str(Path(sys.executable).with_name("py-spy"))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        workshop = Workshop.furnish(Path(directory))
        async with open_rig(workshop, SERVERS[server], scenario.framing, tls=scenario.tls) as rig:
            await rig.open_streams(scenario.streams)
            await rig.start(1.0)
            command = [
                recorder, "record", "--format", "flamegraph",
                "--rate", str(SAMPLES_PER_SECOND), "--duration", str(seconds),
                "--pid", str(rig.server.pid), "--output", str(output),
                *(["--native"] if native else []),
            ]  # fmt: skip
            with trio.fail_after(seconds + EXTRA_SECONDS):
                run = await trio.run_process(
                    command, check=False, capture_stdout=True, capture_stderr=True
                )
            if run.returncode:
                raise BenchError(f"py-spy: {run.stderr.decode(errors='replace').strip()}")
            window = await rig.watch(2.0)
    utilisation = window.server_cpu / window.seconds
    cost = 1e3 * utilisation / scenario.streams
    print(
        f"{scenario.name}, {server}: {utilisation:.0%} of a core, {cost:.2f} ms per stream-second"
    )
    print(output)


def main() -> None:
    """Read the command line and record."""
    parser = argparse.ArgumentParser(prog="python -m bench.flame", description=__doc__)
    parser.add_argument("--server", choices=list(SERVERS), default=OURS)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--codec", choices=["linear16", "opus"], default="opus")
    parser.add_argument("--frame-ms", type=int, default=20)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--native", action="store_true", help="C functions too; slows the server")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "flame.svg")
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    scenario = Scenario(arguments.streams, arguments.codec, arguments.frame_ms, arguments.tls)
    try:
        trio.run(
            partial(
                record_flame,
                scenario,
                arguments.server,
                arguments.seconds,
                arguments.output,
                native=arguments.native,
            )
        )
    except (BenchError, trio.TooSlowError, OSError, subprocess.SubprocessError) as error:
        sys.exit(f"no flame graph: {error}")


if __name__ == "__main__":
    main()
