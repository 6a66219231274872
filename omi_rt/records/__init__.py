"""Records: what is kept of sessions, where somebody wants that."""

from __future__ import annotations
