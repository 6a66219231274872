"""Faces: how each kind of client talks to a session.

A face reads its client's request and messages, and writes what the session knows in its client's
form. Sessions know no face but by `omi_rt.faces.face.Face`; faces know no connection to a provider.
`omi_rt.faces.table` lists them all.
"""

from __future__ import annotations
