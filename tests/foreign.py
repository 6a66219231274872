"""Programs that nobody here wrote: where they are, and how they are run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import trio

SCRIPTS = Path(__file__).parent / "clients"
PYTHON = os.environ.get("CLIENTS_PYTHON", sys.executable)
"""The Python that has the clients: theirs and ours need not go together in one environment."""
NODE_FOLDER = os.environ.get("CLIENTS_NODE", "")
"""Where ``npm install @deepgram/sdk@5`` was done."""


@cache
def version_of(package: str) -> tuple[int, ...] | None:
    """The version of a package for `PYTHON`, as far as it is numbers; None where it is missing."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    return tuple(int(part) for part in done.stdout.strip().split(".")[:2] if part.isdigit())


def missing(package: str, least: tuple[int, ...]) -> str | None:
    """Why a client's test cannot run; None where it can."""
    found = version_of(package)
    if found is not None and found >= least:
        return None
    wanted = f"{package} {'.'.join(map(str, least))} or later"
    return f"{wanted} is not installed for {PYTHON}: pip install '.[clients]', and CLIENTS_PYTHON"


def missing_node() -> str | None:
    """Why the test of the JavaScript SDK cannot run; None where it can."""
    if shutil.which("node") is None:
        return "there is no node"
    if not (Path(NODE_FOLDER) / "node_modules" / "@deepgram" / "sdk").is_dir():
        return "CLIENTS_NODE is no folder in which npm install @deepgram/sdk@5 was done"
    return None


async def run_client(*command: str, within: float = 90.0) -> list[Any]:
    """Run a client to its end; returns the JSON lines that it printed.

    Raises:
        trio.TooSlowError: it takes longer than ``within`` seconds; it is then killed.
    """
    with trio.fail_after(within):
        done = await trio.run_process(
            list(command), capture_stdout=True, capture_stderr=True, check=False
        )
    output = done.stdout.decode()
    assert done.returncode == 0, done.stderr.decode()[-2000:] + output
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


async def run_python(script: str, *arguments: str) -> list[Any]:
    """Run one of `SCRIPTS` with the Python that has the clients."""
    return await run_client(PYTHON, str(SCRIPTS / script), *arguments)
