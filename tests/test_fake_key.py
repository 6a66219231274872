"""The fake's one REST call: whether a key passes."""

from __future__ import annotations

import httpx
import pytest

from omi_rt.core.errors import HandshakeFailed
from omi_rt.deepgram.key_check import KeyVerdict, check_key
from omi_rt.fake import FaultScript
from omi_rt.fake.faults import Refuse
from omi_rt.net.handshake import open_websocket
from omi_rt.net.stream import open_tcp_stream
from tests.processes_e2e import fake_in_process

pytestmark = pytest.mark.realtime


async def test_whether_a_key_passes_can_be_asked_and_is_no_connection() -> None:
    faults = FaultScript.of([Refuse(status=402)])
    async with fake_in_process(faults, keys=frozenset({"key"})) as (fake, url):
        async with httpx.AsyncClient() as client:
            for key, verdict in [("key", KeyVerdict.ACCEPTED), ("other", KeyVerdict.REFUSED)]:
                assert (await check_key(url, key, client))[0] is verdict
        assert fake.connections == []
        # The first connection still gets what the script has for it.
        stream = await open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        with pytest.raises(HandshakeFailed, match="402"):
            await open_websocket(stream, f"{url}/v1/listen", headers={"Authorization": "Token key"})
        await stream.aclose()
        (record,) = fake.connections
        assert record.status == 402
