"""``python -m omi_rt`` is ``omi-rt``."""

from __future__ import annotations

from omi_rt.cli import main

main()
