"""`helix fleet` as it is, but for the runners that it starts: `python fake_fleet.py SOCKET [options]`."""

from __future__ import annotations

import sys
from pathlib import Path

from helix_es.cli.fleet import fleet
from helix_projections.fleet import pools
from tests.projections.fleet.stage import command

socket = Path(sys.argv.pop(1))
pools.runner_command = lambda name, settings, here, gpu: command(socket, gpu)
fleet()
