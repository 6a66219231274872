"""Profiles in Google Cloud Storage: the real client against hosts that fail, and what it asks them."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_server as listen_on
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote

import pytest
import trio
import trio.testing

from omi_rt.bucket import GCS_THREADS
from omi_rt.core.voices import USER
from omi_rt.profiles.gcs import GCSProfileStore
from omi_rt.profiles.store import StoredSample, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.realtime

BUCKET = "profiles"


async def threads_have_ended(store: GCSProfileStore) -> None:
    """Wait for the abandoned ones: only when it ends does a thread give its token back."""
    with trio.fail_after(5):
        for token in range(GCS_THREADS):
            await store._bucket._limiter.acquire_on_behalf_of(token)


async def test_missing_credentials_are_told_without_their_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    path = tmp_path_factory.mktemp("private") / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    store = GCSProfileStore(BUCKET)
    with pytest.raises(StoreUnavailable) as caught:
        await store.list_samples("u")
    assert str(caught.value) == "profiles: DefaultCredentialsError"


async def test_a_host_that_refuses_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen_on(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    store = GCSProfileStore(BUCKET, read_seconds=0.3)
    with pytest.raises(StoreUnavailable):
        await store.list_samples("u")
    await store.aclose()


class ScriptedHost(ThreadingHTTPServer):
    """A storage host that notes what is asked, and answers with the statuses it was given, then 404."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ScriptedHandler)
        self.asked: list[str] = []
        self.statuses: list[int] = []
        self.hung_up = threading.Event()


class _ScriptedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float | None] = 5

    def finish(self) -> None:
        super().finish()
        assert isinstance(self.server, ScriptedHost)
        self.server.hung_up.set()

    def do_GET(self) -> None:
        host = self.server
        assert isinstance(host, ScriptedHost)
        host.asked.append(unquote(self.path))
        body = b'{"error": {"message": "a secret of the host"}}'
        status = host.statuses.pop(0) if host.statuses else 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def scripted_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedHost]:
    with ScriptedHost() as host:
        thread = threading.Thread(target=host.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{host.server_port}")
        yield host
        host.shutdown()
        thread.join(5)


SAMPLE = StoredSample(
    "u", USER, "u/speech_profile.wav", "1234567890", datetime(2024, 1, 1, tzinfo=UTC), 4
)


async def test_a_read_asks_for_the_listed_generation_and_a_delete_for_the_name(
    scripted_host: ScriptedHost,
) -> None:
    """The emulator answers with the newest content whatever generation is asked for."""
    store = GCSProfileStore(BUCKET)
    assert await store.read(SAMPLE) is None
    assert not await store.delete(SAMPLE)
    read, delete = scripted_host.asked
    assert "generation=1234567890" in read
    assert "generation" not in delete
    await store.aclose()


async def test_a_listing_skips_what_the_layout_does_not_know(scripted_host: ScriptedHost) -> None:
    """The emulator knows neither offsets nor pages nor fields."""
    store = GCSProfileStore(BUCKET)
    with pytest.raises(StoreUnavailable):
        await store.list_samples("u")
    (path,) = scripted_host.asked
    asked = dict(part.split("=") for part in path.partition("?")[2].split("&"))
    assert (asked["prefix"], asked["startOffset"]) == ("u/", "u/people_profiles/")
    assert asked["fields"] == "items(name,generation,updated,size),nextPageToken"
    assert asked["maxResults"] == "10001"
    await store.aclose()


async def test_connections_stay_open_until_the_store_is_closed(
    scripted_host: ScriptedHost,
) -> None:
    scripted_host.statuses = [200, 200]
    store = GCSProfileStore(BUCKET)
    for _ in range(2):
        assert await store.list_samples("u") == []
    assert not scripted_host.hung_up.is_set()
    await store.aclose()
    # Sooner than the host would hang up by itself.
    assert await trio.to_thread.run_sync(scripted_host.hung_up.wait, 2.0)


async def test_a_passing_fault_is_tried_again(scripted_host: ScriptedHost) -> None:
    scripted_host.statuses = [503, 200]
    store = GCSProfileStore(BUCKET)
    assert await store.list_samples("u") == []
    assert len(scripted_host.asked) == 2
    await store.aclose()


async def test_a_refusal_is_told_at_once_by_its_status_alone(scripted_host: ScriptedHost) -> None:
    scripted_host.statuses = [403, 403]
    store = GCSProfileStore(BUCKET)
    for operation in (store.list_samples("u"), store.read(SAMPLE)):
        with pytest.raises(StoreUnavailable) as caught:
            await operation
        assert str(caught.value) == "profiles: HTTP 403"
    assert len(scripted_host.asked) == 2
    await store.aclose()


async def test_a_fault_that_lasts_is_told_when_the_time_is_up(scripted_host: ScriptedHost) -> None:
    scripted_host.statuses = [503] * 100
    store = GCSProfileStore(BUCKET, read_seconds=0.3)
    with pytest.raises(StoreUnavailable) as caught:
        await store.list_samples("u")
    assert "secret" not in str(caught.value)
    assert 2 <= len(scripted_host.asked) <= 20
    await store.aclose()


@pytest.fixture
def silent_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host that takes connections and never answers."""
    with listen_on(("127.0.0.1", 0), backlog=64) as silent:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        yield


async def test_a_host_that_does_not_answer_is_given_the_time_limit(silent_host: None) -> None:
    store = GCSProfileStore(BUCKET, read_seconds=0.2, write_seconds=0.2)
    began = time.perf_counter()
    with pytest.raises(StoreUnavailable):
        await store.list_samples("u")
    with pytest.raises(StoreUnavailable):
        await store.put("u", None, b"mine")
    assert time.perf_counter() - began < 5
    await store.aclose()


async def test_a_cancelled_read_returns_at_once_and_its_thread_ends_soon(
    silent_host: None,
) -> None:
    store = GCSProfileStore(BUCKET, read_seconds=0.5)
    with trio.move_on_after(0.1) as scope:
        await store.list_samples("u")
    assert scope.cancelled_caught
    assert store.threads == 1
    await threads_have_ended(store)
    await store.aclose()


async def test_a_hanging_bucket_takes_no_thread_from_others(silent_host: None) -> None:
    store = GCSProfileStore(BUCKET, read_seconds=0.5)

    async def list_samples() -> None:
        with pytest.raises(StoreUnavailable):
            await store.list_samples("u")

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(list_samples)
        await trio.testing.wait_all_tasks_blocked()
        assert store.threads == GCS_THREADS
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        nursery.cancel_scope.cancel()
    await threads_have_ended(store)
    await store.aclose()
