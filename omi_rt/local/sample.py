"""A short recorded dialogue, to show the whole way of speech without a microphone.

Two voices of Debian's ``flite``, ``rms`` and ``slt``, take turns; 11.2 s, 16 kHz, mono, 16 bit.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

_PACKAGE = "omi_rt.local"


def sample_wav() -> AbstractContextManager[Path]:
    """Return a context manager whose value is the path of the WAV file, valid inside it."""
    return resources.as_file(resources.files(_PACKAGE) / "sample.wav")


def sample_text() -> str:
    """Return what is said in it, one sentence a line."""
    return (resources.files(_PACKAGE) / "sample.txt").read_text(encoding="utf-8")
