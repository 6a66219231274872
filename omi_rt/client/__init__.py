"""A client of ``/listen`` that behaves like a device: ``omi-rt stream`` and the demo."""

from __future__ import annotations
