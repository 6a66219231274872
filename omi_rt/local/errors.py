"""What can go wrong with the embedded recogniser."""

from __future__ import annotations

from omi_rt.core.errors import OmiRtError


class RecogniserError(OmiRtError):
    """The embedded recogniser cannot be started, or did not stay up."""


class RecogniserNotInstalled(RecogniserError):
    """``pocketsphinx`` is not installed; the message says how to install it."""

    def __init__(self) -> None:
        super().__init__("the embedded recogniser needs pocketsphinx: pip install 'omi-rt[local]'")


class DecodingFailed(RecogniserError):
    """pocketsphinx gave up on the audio of one connection."""


class UnusableParameters(OmiRtError):
    """A query that the embedded recogniser cannot serve; the message names the parameter."""
