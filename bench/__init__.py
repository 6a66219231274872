"""The benchmarks: what the relay costs, beside what else could be run (see README.md here)."""

from __future__ import annotations
