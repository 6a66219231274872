"""A fake Deepgram that listens to a made-up language, keeps the provider's rules, and breaks on
request: for tests, and as ``omi-rt fake-deepgram`` for anyone's client.
"""

from __future__ import annotations

from omi_rt.fake.deepgram import FakeDeepgram
from omi_rt.fake.faults import FaultScript
from omi_rt.fake.records import ConnectionRecord, Options
from omi_rt.fake.schedules import random_options, random_provider, random_schedule
from omi_rt.fake.scripts import Scenario, ScriptError, parse_script, read_script
from omi_rt.fake.speech import Script, SpokenWord, plain_words, random_script, synthesise
from omi_rt.fake.streams import bounded_stream_pair

__all__ = [
    "ConnectionRecord",
    "FakeDeepgram",
    "FaultScript",
    "Options",
    "Scenario",
    "Script",
    "ScriptError",
    "SpokenWord",
    "bounded_stream_pair",
    "parse_script",
    "plain_words",
    "random_options",
    "random_provider",
    "random_schedule",
    "random_script",
    "read_script",
    "synthesise",
]
