"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from ctypes import c_char_p
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import opuslib.api

from bench.processes import ROOT, Cores

LIBRARIES = (
    "omi-rt",
    "trio",
    "trio-websocket",
    "wsproto",
    "websockets",
    "opuslib",
    "orjson",
    "picows",
    "uvloop",
    "fastapi",
    "starlette",
    "uvicorn",
    "deepgram-sdk",
)


def describe_machine(cores: Cores) -> dict[str, Any]:
    """Processor, kernel, Python and library versions, the commit, and how busy it was at the start."""
    return {
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name"),
        "cores": os.cpu_count(),
        "core_of_server": cores.server,
        "core_of_load_generator": cores.load,
        "core_of_provider": cores.sink,
        "memory": _first_value(Path("/proc/meminfo"), "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "libopus": _libopus_version(),
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
        "commit": _commit(),
        "load_average_before": os.getloadavg()[0],
    }


def _first_value(path: Path, name: str) -> str:
    with suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return "unknown"


def _libopus_version() -> str:
    function = opuslib.api.libopus.opus_get_version_string
    function.restype = c_char_p
    return str(function().decode())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    with suppress(OSError, subprocess.SubprocessError):
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
            timeout=10,
        )
        return run.stdout.strip()
    return "unknown"
