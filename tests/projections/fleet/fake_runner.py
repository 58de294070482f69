"""A runner that does as it is told over a socket: `python fake_runner.py SOCKET [words] --gpu NAME`."""

from __future__ import annotations

import os
import signal
import socket
import sys


def main() -> None:
    path, gpu = sys.argv[1], sys.argv[sys.argv.index("--gpu") + 1]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    stage = socket.socket(socket.AF_UNIX)
    stage.connect(path)
    words = stage.makefile("rw")
    print(f"{gpu} {os.getpid()} {os.environ.get('HELIX_NATS_URL', '-')}", file=words, flush=True)
    for line in words:
        word, _, value = line.strip().partition(" ")
        if word == "exit":
            print("I leave", flush=True)
            os._exit(int(value))
        elif word == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("done", file=words, flush=True)


if __name__ == "__main__":
    main()
