"""The crowd: so many clients at once, one visit after the other, until enough turns were acknowledged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx

from tests.chaos.client import Client, Refused
from tests.chaos.told import Told
from tests.chaos.visits import OWNERS, Step, Visit

CLIENTS = 60
DATASET = b"".join(
    json.dumps({"instruction": f"Say {n}.", "output": f"It is {n}."}).encode() + b"\n" for n in range(8)
)
REQUEST_S = 6.0


class Crowd:
    """`run` until `stop`; visits that have begun are made to their end."""

    def __init__(self, urls: list[str], make: Callable[[int], Visit]) -> None:
        self.told = Told()
        self._urls = urls
        self._make = make
        self._next = 0
        self._stopping = False
        self._datasets: dict[str, str] = {}

    def stop(self) -> None:
        """Nobody comes in any more."""
        self._stopping = True

    async def run(self) -> None:
        """Let them come."""
        limits = httpx.Limits(max_connections=4 * CLIENTS, max_keepalive_connections=2 * CLIENTS)
        timeout = httpx.Timeout(REQUEST_S, pool=60)
        async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False) as http:
            for number, owner in enumerate(OWNERS):
                client = Client(http, self._urls, self.told, owner=owner, first=number)
                file, data = {"file": ("toy.jsonl", DATASET)}, {"purpose": "dataset"}
                made = await client.ask("POST", "/files", files=file, data=data)
                self._datasets[owner] = made["file_id"]
            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(self._come(http))

    async def _come(self, http: httpx.AsyncClient) -> None:
        while not self._stopping:
            visit, self._next = self._make(self._next), self._next + 1
            client = Client(http, self._urls, self.told, owner=visit.owner, first=visit.number)
            try:
                await self._visit(client, visit)
            except Refused:
                continue  # it is counted; whoever was refused goes home

    async def _visit(self, client: Client, visit: Visit) -> None:
        self.told.visits += 1
        view = await client.ask("POST", "/sessions", key=visit.key, json=self._opening(visit))
        session = str(view["session_id"])
        self.told.asked[session] = 1
        client.acknowledged(session, 1)
        for turn, step in enumerate(visit.steps, start=1):
            if turn > 1:
                await asyncio.sleep(step.think_s)
                await self._say(client, visit, session, turn)
            midway = visit.closing == "midway" and turn == len(visit.steps)
            stream = await self._listen(client, session, turn, step, midway=midway)
            if stream.state != "completed":
                break
        if visit.closing == "after":
            await client.ask("DELETE", f"/sessions/{session}")

    def _opening(self, visit: Visit) -> dict[str, Any]:
        first = visit.steps[0]
        body: dict[str, Any] = {"model": visit.model, "type": visit.type, "mode": visit.mode}
        body |= {"params": first.params, "priority": visit.priority}
        if first.max_wait_s is not None:
            body["max_wait_s"] = first.max_wait_s
        if visit.mode == "finetune":
            return body | {"dataset": self._datasets[visit.owner], "name": f"toy-{visit.number}"}
        return body | {"prompt": first.prompt}

    async def _say(self, client: Client, visit: Visit, session: str, turn: int) -> None:
        step = visit.steps[turn - 1]
        body: dict[str, Any] = {"prompt": step.prompt, "params": step.params}
        if step.max_wait_s is not None:
            body["max_wait_s"] = step.max_wait_s
        self.told.asked[session] += 1
        key = f"{visit.key}-{turn}"
        view = await client.ask("POST", f"/sessions/{session}/turns", key=key, json=body)
        client.acknowledged(session, int(view["turn"]))

    async def _listen(self, client: Client, session: str, turn: int, step: Step, *, midway: bool) -> Any:
        async with asyncio.TaskGroup() as group:
            heard = group.create_task(client.hear(session, turn, step))
            if step.cancel_after_s is not None:
                path = f"/sessions/{session}/turns/{turn}/cancel"
                group.create_task(_meanwhile(step.cancel_after_s, client.ask("POST", path)))
            elif midway:
                group.create_task(_meanwhile(0.5, client.ask("DELETE", f"/sessions/{session}")))
        return heard.result()


async def _meanwhile(after_s: float, asking: Awaitable[Any]) -> None:
    await asyncio.sleep(after_s)
    with suppress(Refused):
        await asking
