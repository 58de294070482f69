"""`make demo`: the main job once, on the real model, shown on the screen."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import nats

from tests.e2e.shop import ENDS, Client, Shop, facts


async def told(client: Client, sid: str, turn: int) -> dict[str, Any]:
    """Print a turn's answer as it comes and return the turn."""
    async for event in client.follow(sid, turn):
        if event.name == "queue":
            print(f"   (place {event.data['position']}, about {event.data['wait_s']} s)")
        if event.name == "delta":
            print(event.data["text"], end="", flush=True)
        if event.name in ENDS:
            print("\n")
            return dict(event.data["turn"])
    raise AssertionError


async def show(shop: Shop) -> None:
    """Talk, continue, look at the floor and the log."""
    tasks: list[tuple[str, bytes]] = []
    watcher = await nats.connect(shop.nats_url)

    async def note(message: Any) -> None:
        tasks.append((message.subject, message.data))

    await watcher.subscribe("task.>", cb=note)
    await watcher.flush()
    async with Client(shop.url) as client:
        prompt = "My dog is called Bruno. Say hello to him."
        print(f"> {prompt}")
        session = await client.open(prompt, params={"max_tokens": 48})
        sid = session["session_id"]
        first = await told(client, sid, 1)
        prompt = "What is the name of my dog?"
        print(f"> {prompt}")
        await client.say(sid, prompt, params={"max_tokens": 48})
        second = await told(client, sid, 2)
        used = second["usage"]
        print(
            f"second turn: {used['prompt_tokens']} tokens of prompt, {used['cached_tokens']} still in memory\n"
        )

        print("the GPU floor:")
        for gpu in (await client.http.get("/gpus")).json()["data"]:
            print(
                f"   {gpu['gpu']}  kind {gpu['kind']}  {gpu['state']}  model {gpu['model']}  "
                f"{len(gpu['sessions'])}/{gpu['slots']} slots  sessions {', '.join(gpu['sessions'])}"
            )
            assert sid in gpu["sessions"]
        print("\nthe facts in the log:")
        for record in await facts(shop.nats_url, f"session.{sid}.>"):
            print(f"   {record.seq:>4}  {record.subject}")
        print("\nthe tasks that the broker made of them:")
        for subject, data in tasks:
            print(f"   {subject}  {data[:90].decode()}…")
        assert first["state"] == second["state"] == "completed"
        assert used["cached_tokens"] >= first["usage"]["prompt_tokens"], "the second turn knows the first"
        assert "task.create.text.smollm2" in [subject for subject, _ in tasks]
    await watcher.close()


def main() -> None:
    """Start a shop in a temporary folder, show, stop."""
    with tempfile.TemporaryDirectory(prefix="helix-demo-") as folder:
        shop = Shop(Path(folder))
        try:
            print("starting nats-server, scheduler, API and a text runner with real weights …", flush=True)
            shop.start()
            asyncio.run(show(shop))
        finally:
            code = shop.stop()
    print(f"\nstopped cleanly ({code})")
    sys.exit(code)


if __name__ == "__main__":
    main()
