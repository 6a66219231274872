"""What can go wrong with the embedded recogniser."""

from __future__ import annotations

from omi_rt.core.errors import OmiRtError


class RecogniserError(OmiRtError):
    """The embedded recogniser cannot be started, or did not stay up."""


class RecogniserNotInstalled(RecogniserError):
    """No recogniser is installed; the message says how to install one."""

    def __init__(self) -> None:
        super().__init__("the embedded recogniser is not installed: pip install 'omi-rt[local]'")


class ModelUnusable(RecogniserError):
    """A model is missing, damaged or another than it should be; the message says which and why."""


class DecodingFailed(RecogniserError):
    """The recogniser gave up on the audio of one connection."""


class UnusableParameters(OmiRtError):
    """A query that the embedded recogniser cannot serve; the message names the parameter."""
