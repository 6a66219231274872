"""``omi-rt fake-deepgram`` with faults, as anyone's client meets it: ours loses no word over TCP."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import frozen

from omi_rt.core.errors import PeerClosed
from omi_rt.fake import Options, Script, random_provider, synthesise
from omi_rt.fake.faults import Close, ConnectionPlan, Drop
from omi_rt.fake.serve import FAULT_SECONDS
from omi_rt.fake.speech import utterance
from tests.harness import words_of
from tests.processes_e2e import KEY, fake_program, run, serving

if TYPE_CHECKING:
    from pathlib import Path

    from omi_rt.fake import FaultScript

pytestmark = pytest.mark.realtime

TALK = Script(
    [
        *utterance("amber bako celu", 1, 0.2),
        *utterance("dorin elfa", 4, 1.3),
        *utterance("fimo garo hesta", 1, 2.1),
    ],
    3.2,
)
BYTES_PER_SECOND = 32_000

IN_JSON = {
    "options": {"lateness": [0.1, 0.4], "finalize": "speech", "early_metadata": 1},
    "connections": [
        {"faults": [{"kind": "refuse", "status": 503}]},
        {"faults": [{"kind": "drop", "at": "frame", "after_results": 1}]},
        {"faults": [{"kind": "double"}, {"kind": "close", "code": 1011, "after_audio": 1.2}]},
        {"faults": [{"kind": "drop", "at": "response"}]},
        {"faults": [{"kind": "malformed", "what": "invalid_json"}]},
    ],
}
IN_TOML = """
[[connections]]
[[connections.faults]]
kind = "drop"
at = "result"
after_audio = 0.8
[[connections]]
[[connections.faults]]
kind = "close"
code = 1001
after_results = 1
"""


def breaks_early_and_then_holds(options: Options, faults: FaultScript) -> bool:
    """Whether a prompt and tidy provider loses the first connection at once, and the second lasts
    for all of `TALK`.
    """
    first, second = (*faults.connections, ConnectionPlan(), ConnectionPlan())[:2]
    lost = [fault for fault in first.faults if isinstance(fault, Close | Drop)]
    held = [fault for fault in second.faults if isinstance(fault, Close | Drop)]
    return (
        (options.lateness[1], options.claims_ahead, options.early_metadata) == (0, 0, 0)
        and (options.finalize, options.borders) == ("all", "clean")
        and len(first.faults) == len(lost) == 1
        and 0.0 < (lost[0].after_audio or 0.0) < TALK.seconds / 2
        and len(second.faults) == len(held) == 1
        and (held[0].after_audio or 0.0) > 2 * TALK.seconds
    )


def seed() -> int:
    """Find a seed of such a provider."""
    return next(
        seed
        for seed in range(100_000)
        if breaks_early_and_then_holds(*random_provider(Random(seed), FAULT_SECONDS))
    )


@frozen
class Survived:
    """What a device got through the faults."""

    words: list[str]
    statuses: list[str]
    session_ended: dict[str, Any]
    closed: PeerClosed | None


async def survive(*arguments: str) -> Survived:
    """Have `TALK` transcribed by a server behind such a fake."""
    async with (
        fake_program(*arguments) as fake,
        serving(DEEPGRAM_URL=fake, DEEPGRAM_API_KEY=KEY) as server,
        server.device(codec="pcm16", sample_rate=16_000) as device,
    ):
        await device.stream_audio(synthesise(TALK, 16_000), BYTES_PER_SECOND, speed=1.2)
        ended = await device.finish(30)
        return Survived(words_of(device.segments), device.statuses(), ended, device.closed)


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Survived]:
    """The same talk through each kind of faults, all at once."""
    directory = tmp_path_factory.mktemp("faults")
    (directory / "faults.json").write_text(json.dumps(IN_JSON))
    (directory / "faults.toml").write_text(IN_TOML)
    kinds = {
        "JSON": ("--script", str(directory / "faults.json")),
        "TOML": ("--script", str(directory / "faults.toml")),
        "seed": ("--seed", str(seed())),
    }
    survived: dict[str, Survived] = {}

    async def use(name: str, arguments: tuple[str, ...]) -> None:
        survived[name] = await survive(*arguments)

    async def use_all() -> None:
        async with trio.open_nursery() as nursery:
            for name, arguments in kinds.items():
                nursery.start_soon(use, name, arguments)

    trio.run(use_all)
    return survived


@pytest.mark.parametrize("name", ["JSON", "TOML", "seed"])
def test_a_session_survives_the_faults_of_a_script_or_a_seed_word_for_word(
    survived: dict[str, Survived], name: str
) -> None:
    session = survived[name]
    assert session.words == TALK.transcript()
    assert session.session_ended["received"] == session.session_ended["finalised"] == TALK.seconds
    assert session.closed is not None
    assert session.closed.code == 1000
    assert "stt_degraded" in session.statuses, "nothing went wrong"
    assert session.statuses[-1] in {"stt_recovered", "identities_unavailable"}


WRONG = {
    "kind must be one of ": '{"connections": [{"faults": [{"kind": "dorp"}]}]}',
    "connections[0].faults[1]: 'seconds' must be > 0": (
        '{"connections": [{"faults": [{"kind": "silence"}, {"kind": "stall", "seconds": -1}]}]}'
    ),
    "wrong.json: ": "[",
}
"""What is said of each."""


async def test_a_script_that_is_wrong_is_one_clear_line_and_status_1(tmp_path: Path) -> None:
    async def serve(number: int, text: str, message: str) -> None:
        path = tmp_path / str(number) / "wrong.json"
        path.parent.mkdir()
        path.write_text(text)
        finished = await run("fake-deepgram", "--script", str(path))
        assert (finished.status, finished.output) == (1, "")
        assert finished.errors.startswith("omi-rt: ")
        assert finished.errors.count("\n") == 1
        assert message in finished.errors

    async with trio.open_nursery() as nursery:
        for number, (message, text) in enumerate(WRONG.items()):
            nursery.start_soon(serve, number, text, message)
