"""Login: how a token is told to be somebody's. `omi_rt.auth.login` lists the kinds."""

from __future__ import annotations
