"""A network namespace that holds nothing but loopback, for a peer that binds to every interface; Linux only."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h


def confined(command: list[str]) -> list[str]:
    """Return `command` so that it runs in a network namespace of its own, as whoever runs this may make one."""
    mine = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--net", *mine, "--", *command]


def bring_up() -> None:
    """Switch loopback on. Raises OSError if this process sees any other interface: it would listen on that."""
    there = [name for _, name in socket.if_nameindex()]
    if there != ["lo"]:
        raise OSError(f"not confined to loopback: there are {', '.join(there)}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        asked = struct.pack("16sh14x", b"lo", 0)
        _, flags = struct.unpack_from("16sh", fcntl.ioctl(probe, SIOCGIFFLAGS, asked))
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
