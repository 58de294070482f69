"""`helix up`: the whole shop on this machine."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import rich_click as click

from helix_es.cli.output import run
from helix_es.cli.serve import log_lines, node_name, on_signals
from helix_es.cli.up_runners import FORM, RUNNERS, RunnerSpec, commands, parse_runners
from helix_es.core.errors import Misconfigured
from helix_es.jetstream.server import command as nats_command
from helix_es.jetstream.server import free_port, write_config
from helix_es.processes import STOP_S, Child, Supervisor, end_leftovers
from helix_es.settings import read

URL_FILES = ("nats.url", "api.url")  # there while we serve
START_S = 60.0  # an interpreter that imports everything from a cold disk
CONFIG = """\
# The configuration of this Helix. The scheduler takes in [coefficients], [batch], [scheduling], [sessions],
# [limits] slots_per_owner and [pool.*] sizes as they are saved; the rest, and new pools, at the next start.
#
# [coefficients]
# "cpu/smollm2" = 8
"""
FLEET_STOP_S = 2 * STOP_S  # its runners end first
READY_S = 180.0  # weights are converted at the very first start: 20 s here


@click.command()
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="Of the API.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the API listens on.")
@click.option("--data-dir", default="var/helix", show_default=True, type=click.Path(file_okay=False))
@click.option("--runners", default=RUNNERS, show_default=True, help=FORM)
@click.option("--nats", "nats_url", envvar="HELIX_NATS_URL", help="Use this server, start none.")
@click.option(
    "--config",
    envvar="HELIX_CONFIG",
    type=click.Path(),
    help="TOML configuration.  [default: helix.toml in the data directory]",
)
@click.option("--slots", type=click.IntRange(1, 10_000), help="Sessions that each runner holds.")
def up(
    port: int,
    host: str,
    data_dir: str,
    runners: str,
    nats_url: str | None,
    config: str | None,
    slots: int | None,
) -> None:
    """Serve everything: NATS, scheduler, API, web page and runners, until Ctrl-C."""
    log_lines()

    folder = Path(data_dir).resolve()

    async def work() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = _config(config, folder)
        settings = read(path)
        specs = parse_runners(runners, settings)
        with _only_one(folder):
            for name in URL_FILES:
                (folder / name).unlink(missing_ok=True)
            await end_leftovers(folder)
            shop = Shop(folder, host=host, port=port, config=path, slots=slots)
            await shop.serve(nats_url, specs, pools=bool(settings.pool))

    run(work)


def _config(given: str | None, folder: Path) -> Path:
    """Return the configuration's path; the data directory's own is made, empty, so that it is there to be changed."""
    if given:
        return Path(given).resolve()
    path = folder / "helix.toml"
    if not path.exists():
        path.write_text(CONFIG)
    return path


class _only_one:
    """Holds the data directory: two shops in one would destroy each other's log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._file = (self._folder / "lock").open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Misconfigured(
                f"--data-dir {self._folder}: another 'helix up' is using it; stop that one or choose another"
            ) from None

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Shop:
    """The children of one `helix up`."""

    def __init__(self, folder: Path, *, host: str, port: int, config: Path, slots: int | None) -> None:
        self._folder = folder
        self._host = host
        self._port = port or free_port()
        self._config = ["--config", str(config)]
        self._slots = slots
        self._children = Supervisor(folder)

    async def serve(self, nats_url: str | None, specs: list[RunnerSpec], *, pools: bool) -> None:
        """Start everything, say where it is, wait for a signal, end everything."""
        self._refuse_taken_port()
        stop = asyncio.Event()
        on_signals(stop.set)
        started = asyncio.create_task(self._start(nats_url, specs, pools))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({started, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                await started
                await stop.wait()
        finally:
            started.cancel()
            stopping.cancel()
            _say("stopping …")
            await self._children.stop()
            for name in URL_FILES:
                (self._folder / name).unlink(missing_ok=True)

    def _refuse_taken_port(self) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                raise Misconfigured(
                    f"--port {self._port}: {error.strerror} on {self._host}; choose another"
                ) from error

    async def _start(self, nats_url: str | None, specs: list[RunnerSpec], pools: bool) -> None:
        nats = nats_url or await self._start_nats()
        (self._folder / "nats.url").write_text(nats + "\n")
        await self._child("scheduler", "scheduler", nats, *self._config)
        host, port = self._host, str(self._port)
        data = ["--data-dir", str(self._folder)]
        await self._child("api", "api", nats, *self._config, *data, "--host", host, "--port", port)
        for name, words, env in commands(specs, node_name(), self._slots):
            await self._child(name, words[0], nats, *words[1:], *self._config, env=env)
        if pools:
            words = ["fleet", nats, *self._config, "--data-dir", str(self._folder), "--drain-s", "2"]
            await self._child("fleet", *words, stop_s=FLEET_STOP_S)
        url = f"http://{host}:{port}"
        await self._until(f"{url}/readyz", START_S, "the API")
        (self._folder / "api.url").write_text(url + "\n")
        _say(f"Helix serves at {url}   (NATS at {nats}, data in {self._folder})")
        wanted = sum(spec.count for spec in specs)
        if pools and not wanted:
            _say("ready: GPUs of the pools come with the first request; Ctrl-C ends everything")
        if wanted:
            _say("loading weights …")
            await self._until_ready(url, wanted)
            _say('ready: type  helix chat "Hello"  in another terminal; Ctrl-C ends everything')
        if find_spec("duckdb") is not None and find_spec("pyarrow") is not None:  # extra "analytics"
            await self._child(
                "analytics", "analytics", nats, *self._config, *data
            )  # last: nobody waits for it

    async def _start_nats(self) -> str:
        port = free_port()
        config = write_config(self._folder / "nats", port)
        await self._children.start(Child("nats", nats_command(config)))
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"nats://127.0.0.1:{port}"
            await asyncio.sleep(0.05)
        raise Misconfigured(f"nats-server did not start; see {self._folder / 'nats.log'}")

    async def _child(
        self, name: str, *words: str, env: dict[str, str] | None = None, stop_s: float = STOP_S
    ) -> None:
        kind, nats, *rest = words
        command = [sys.executable, "-m", "helix_es.cli.__main__", *kind.split(), "--nats", nats, *rest]
        await self._children.start(Child(name, command, env or {}, stop_s))

    async def _until(self, url: str, seconds: float, what: str) -> None:
        if await self._poll(url, seconds, lambda response: response.status_code == 200):
            return
        raise Misconfigured(f"{what} did not start within {seconds:.0f} s; see the logs in {self._folder}")

    async def _until_ready(self, url: str, wanted: int) -> None:
        def all_ready(response: Any) -> bool:
            return len([gpu for gpu in response.json()["data"] if gpu["state"] == "ready"]) >= wanted

        headers = (
            {"Authorization": f"Bearer {os.environ['HELIX_API_KEY']}"}
            if "HELIX_API_KEY" in os.environ
            else {}
        )
        if not await self._poll(f"{url}/api/v1/gpus", READY_S, all_ready, headers):
            _say(f"no runner is ready yet; see the logs in {self._folder}")

    @staticmethod
    async def _poll(url: str, seconds: float, good: Any, headers: dict[str, str] | None = None) -> bool:
        import httpx

        deadline = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=5, headers=headers) as client:
            while time.monotonic() < deadline:
                try:
                    response = await client.get(url)
                    if response.status_code == 401 or good(response):
                        return True
                except (httpx.HTTPError, KeyError):
                    pass
                await asyncio.sleep(0.1)
        return False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
