"""The embedded recogniser: transcription with no account, no key and no network.

It is a process of its own that speaks Deepgram's live protocol on loopback, so that a session runs
the same code with a key and without one. It understands people with Whisper (``whisper``) where that is
installed, else with pocketsphinx (``sphinx``), and tells their voices apart (``speakers``).

Three kinds of process take part, each living no longer than the one before it:

* the one that wants a recogniser (``process``) starts
* the server (``__main__``, ``server``), which speaks WebSocket and never decodes, and which starts
* a worker for each connection (``worker``), which decodes and does nothing else.

Workers are processes and not threads because pocketsphinx keeps the interpreter's lock while it
searches (0.1 s and more at the end of an utterance): threads would share one core and hold up the loop.
Each runs its networks on one thread.
"""

from __future__ import annotations
