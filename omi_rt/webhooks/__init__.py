"""Webhooks: what sessions tell, posted to somebody's own server."""

from __future__ import annotations
