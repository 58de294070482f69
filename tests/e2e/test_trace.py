"""One trace from the HTTP request over the log to the runner and back, at a real OTLP endpoint."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.shop import Client, Shop

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


class Collector(ThreadingHTTPServer):
    """Keeps (service, span name, trace id) of everything that is exported to it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[tuple[str, str, bytes]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.server.spans.append((names["service.name"], span.name, span.trace_id))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_chat_is_one_trace_over_three_processes(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    shop = Shop(tmp_path)
    try:
        await asyncio.to_thread(shop.start)
        async with Client(shop.url) as client:
            trace = "0af7651916cd43dd8448eb211c80319c"
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            session = await client.open("Say hi.", headers, params={"max_tokens": 4})
            await client.answer(session["session_id"])
    finally:
        await asyncio.to_thread(shop.stop)
    mine = {(service, name) for service, name, trace_id in collector.spans if trace_id.hex() == trace}
    assert ("helix-api", "POST /sessions") in mine
    assert ("helix-api", "append turn.queued") in mine
    assert ("helix-scheduler", "append turn.admitted") in mine
    assert ("helix-runner", "turn.start") in mine
    assert ("helix-runner", "turn.perform") in mine
