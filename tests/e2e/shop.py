"""A whole `helix up` as its users start it, with the real model; and a client that reads event streams."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec

from helix_es.core.codec import type_of
from helix_es.core.events import Recorded
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog

HELIX = [sys.executable, "-m", "helix_es.cli.__main__"]
READY_S = 150.0


class Event(msgspec.Struct, kw_only=True):
    """One server-sent event."""

    name: str = ""
    id: str = ""
    data: Any = None


class Shop:
    """`helix up` in a folder of its own."""

    def __init__(
        self, folder: Path, *, runners: str = "text:smollm2", config: str = "", args: tuple[str, ...] = ()
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.data = folder / "data"
        command = [*HELIX, "up", "--port", "0", "--data-dir", str(self.data), "--runners", runners, *args]
        if config:
            (folder / "helix.toml").write_text(config)
            command += ["--config", str(folder / "helix.toml")]
        (self.data / "api.url").unlink(missing_ok=True)  # of an earlier life, killed
        self.wanted = sum(int(part.partition("*")[2] or 1) for part in runners.split(",") if part)
        self.out = (folder / "up.log").open("wb")
        self.process = subprocess.Popen(command, stdout=self.out, stderr=self.out)
        self.url = ""

    def start(self) -> None:
        """Wait until every runner is ready."""
        self.until(lambda: (self.data / "api.url").exists(), "an API")
        self.url = (self.data / "api.url").read_text().strip()
        if self.wanted:
            self.until(self.ready, "ready runners")

    def ready(self) -> bool:
        try:
            gpus = httpx.get(f"{self.url}/api/v1/gpus", timeout=5).json()["data"]
        except httpx.HTTPError:
            return False
        return sum(gpu["state"] == "ready" for gpu in gpus) >= self.wanted

    def until(self, good: Callable[[], bool], what: str, seconds: float = READY_S) -> None:
        """Poll `good`, with a deadline."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.logs()
            if good():
                return
            time.sleep(0.05)
        raise AssertionError(f"no {what} within {seconds} s\n{self.logs()}")

    @property
    def nats_url(self) -> str:
        return (self.data / "nats.url").read_text().strip()

    def pid(self, name: str) -> int:
        return int(json.loads((self.data / "pids.json").read_text())[name])

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of the processes, -9 unless told otherwise."""
        os.kill(self.pid(name), number)

    def logs(self) -> str:
        files = [self.folder / "up.log", *sorted(self.data.glob("*.log"))]
        return "\n".join(f"== {f.name}\n{f.read_text()[-3000:]}" for f in files if f.exists())

    def stop(self) -> int:
        """End it as Ctrl-C does and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(40)
        finally:
            self.process.kill()
            self.out.close()


class Client:
    """What an application does."""

    def __init__(self, url: str) -> None:
        self.http = httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=60)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def open(self, prompt: str, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        body = {"model": "smollm2", "prompt": prompt, **more}
        answer = await self.http.post("/sessions", json=body, headers=headers)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def say(self, sid: str, prompt: str, **more: Any) -> dict[str, Any]:
        answer = await self.http.post(f"/sessions/{sid}/turns", json={"prompt": prompt, **more})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def session(self, sid: str) -> dict[str, Any]:
        return dict((await self.http.get(f"/sessions/{sid}")).raise_for_status().json())

    async def events(self, sid: str, turn: int | None = None, last: str = "") -> AsyncIterator[Event]:
        """Yield the session's events from one connection."""
        headers = {"Last-Event-ID": last} if last else {}
        params = {"turn": turn} if turn else {}
        async with self.http.stream(
            "GET", f"/sessions/{sid}/events", params=params, headers=headers
        ) as answer:
            answer.raise_for_status()
            event = Event()
            async for line in answer.aiter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    event.name = value
                elif key == "id":
                    event.id = value
                elif key == "data":
                    event.data = json.loads(value)
                elif not line and event.name:
                    yield event
                    event = Event()

    async def follow(self, sid: str, turn: int, last: str = "", seconds: float = 120) -> AsyncIterator[Event]:
        """Yield events to the turn's end, coming back with Last-Event-ID whenever the connection breaks."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                async for event in self.events(sid, turn, last):
                    last = event.id or last
                    yield event
                    if event.name in ENDS and event.data["turn"]["turn"] == turn:
                        return
            except (httpx.HTTPError, httpx.StreamError):
                await asyncio.sleep(0.1)  # the server is away
        raise AssertionError(f"turn {turn} of {sid} did not end within {seconds} s")

    async def answer(self, sid: str, turn: int = 1, seconds: float = 120) -> dict[str, Any]:
        """Wait for a turn's end and return it; the pieces must make up its output."""
        text, ended = "", {}
        async for event in self.follow(sid, turn, seconds=seconds):
            text = joined(text, event)
            ended = event.data
        assert ended["turn"]["state"] != "completed" or text == ended["turn"]["output"]
        return dict(ended["turn"])


ENDS = ("turn.completed", "turn.failed", "turn.cancelled", "session.closed")


def joined(text: str, event: Event) -> str:
    """Return the text after `event` as a client keeps it: a new attempt starts at 0 and replaces the old one's."""
    if event.name != "delta":
        return text
    assert event.data["offset"] <= len(text), "a gap"
    return text[: event.data["offset"]] + str(event.data["text"])


async def facts(nats_url: str, subject_filter: str) -> list[Recorded]:
    """Return what the log holds under a filter."""
    connection = await connect(NatsSettings(url=nats_url))
    try:
        return await JetStreamLog(connection).history(subject_filter)
    finally:
        await connection.close()


def tags(records: list[Recorded]) -> list[str]:
    """Return the facts' names, in order."""
    return [type_of(r.event) if r.event is not None else "?" for r in records]


async def helix(shop: Shop, *words: str, seconds: float = 200) -> subprocess.CompletedProcess[str]:
    """Run a command against the shop; it must succeed."""
    done = await asyncio.to_thread(
        subprocess.run,
        [*HELIX, *words],
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, "HELIX_URL": shop.url},
        check=False,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done


async def ended(client: Client, sid: str, turn: int = 1, seconds: float = 200) -> dict[str, Any]:
    """Wait for a turn's end, whatever it is, and return the turn."""
    last = Event()
    async for event in client.follow(sid, turn, seconds=seconds):
        last = event
    return dict(last.data["turn"])


async def runner_of(client: Client, sid: str) -> str:
    """Return the name of the process that serves the session."""
    return f"runner-{(await client.session(sid))['gpu'].rsplit('-', 1)[-1]}"


async def until_fact(
    shop: Shop, subject: str, good: Callable[[list[Recorded]], bool], seconds: float = 120
) -> list[Recorded]:
    """Poll the log, with a deadline, until what it holds under `subject` is good; return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = await facts(shop.nats_url, subject)
        if good(found):
            return found
        await asyncio.sleep(0.2)
    raise AssertionError(f"{subject}: not within {seconds} s\n{shop.logs()}")
