"""omi_rt: a standalone real-time transcription server for wearables."""

from __future__ import annotations

__version__ = "0.1.0"
