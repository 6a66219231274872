"""Autobahn's fuzzing client against the server's WebSocket shell; run by ``just autobahn``.

The client runs under Python 2.7, which ``AUTOBAHN_PYTHON`` names. The first time it is installed into
``AUTOBAHN_FOLDER`` (default: a folder for temporary files), about 60 MB. Its cases of speed (9) and of compression
(12, 13), which is never negotiated here, are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import trio

from omi_rt.core.errors import HandshakeFailed, PeerClosed, PeerTooSlow
from omi_rt.net.handshake import ServerHandshake
from omi_rt.net.stream import TCPStream

SUITE = "autobahntestsuite==0.8.2"
PYTHON = os.environ.get("AUTOBAHN_PYTHON", "python2.7")
FOLDER = Path(os.environ.get("AUTOBAHN_FOLDER", str(Path(tempfile.gettempdir()) / "autobahn")))
MAX_MESSAGE_BYTES = 16_777_216
SEND_SECONDS = 30.0
RUN_SECONDS = 900.0
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
KNOWN_TO_FAIL = {"7.1.5"}
"""Fails with the library's own echo too: a close between two fragments is answered with 1002."""


async def echo(stream: trio.SocketStream) -> None:
    """Send back whatever one connection sends."""
    try:
        async with trio.open_nursery() as nursery:
            handshake = ServerHandshake(TCPStream(stream.socket), MAX_MESSAGE_BYTES)
            await handshake.receive_request()
            websocket = handshake.accept()
            nursery.start_soon(websocket.run_writer, SEND_SECONDS)
            try:
                while True:
                    for message in await websocket.receive():
                        websocket.send_nowait(message)
            except PeerClosed:
                await websocket.aclose()
            nursery.cancel_scope.cancel()
    except* (HandshakeFailed, PeerTooSlow, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


def install() -> None:
    """Install the client, unless it is there."""
    target = FOLDER / "p27"
    if not (target / "bin" / "wstest").exists():
        command = [PYTHON, "-m", "pip", "install", "-q", "--target", str(target), SUITE]
        subprocess.run(command, check=True)
        (target / "zope" / "__init__.py").touch()


async def fuzz() -> dict[str, str]:
    """Run all cases; returns the verdict on each."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        specification = {
            "outdir": str(FOLDER / "reports"),
            "servers": [{"agent": "omi-rt", "url": f"ws://127.0.0.1:{port}"}],
            "cases": ["*"],
            "exclude-cases": ["9.*", "12.*", "13.*"],
        }
        path = trio.Path(FOLDER / "fuzzingclient.json")
        await path.write_text(json.dumps(specification))
        target = FOLDER / "p27"
        command = [PYTHON, str(target / "bin" / "wstest"), "-m", "fuzzingclient", "-s", str(path)]
        with trio.fail_after(RUN_SECONDS):
            await trio.run_process(
                command, env={**os.environ, "PYTHONPATH": str(target)}, capture_stdout=True
            )
        nursery.cancel_scope.cancel()
    report = json.loads(await trio.Path(FOLDER / "reports" / "index.json").read_text())
    return {case: verdict["behavior"] for case, verdict in report["omi-rt"].items()}


def main() -> int:
    """Run, and tell what came of it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    install()
    verdicts = trio.run(fuzz)
    for word in sorted(set(verdicts.values())):
        cases = [case for case, verdict in verdicts.items() if verdict == word]
        named = "" if word == "OK" else ": " + ", ".join(sorted(cases))
        sys.stdout.write(f"{word}: {len(cases)} of {len(verdicts)}{named}\n")
    failed = {case for case, verdict in verdicts.items() if verdict not in GOOD}
    return int(bool(failed - KNOWN_TO_FAIL) or not verdicts)


if __name__ == "__main__":
    sys.exit(main())
