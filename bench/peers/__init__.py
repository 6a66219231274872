"""Other ways to build the same relay, each as good as its shape allows, to be measured beside the server.

All of them do the same work: accept ``/listen``, dial the provider, decode Opus, forward each frame at
once, group the words of a final by speaker and send the segments as one JSON array. None of them
keeps what the server keeps: no backlog, no reconnect, no pacing, no ledger, no deadlines.
"""

from __future__ import annotations
