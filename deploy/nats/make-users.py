#!/usr/bin/env python3
"""Make the broker's users: one nkey seed a user in `secrets/`, and `users.conf` with what each may do."""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nkeys

GPU = re.compile(r"[a-z0-9_-]+-[0-9]+")  # <node>-<index>, one subject token
MODEL = re.compile(r"(text|image)/[a-z0-9_-]+")
OWNER = re.compile(r"[0-9]+(:[0-9]+)?")
CATALOGUE = (
    "text/mistral",
    "text/smollm2",
    "image/sdxl",
    "image/scenes",
)  # the models that helix knows unconfigured
STREAMS = ("LOG", "BEATS", "TASKS", "DELTAS", "OBJ_files")
RUNNER = "runner-"


class BadUsers(Exception):
    """Something on disk or on the command line that this script will not guess about."""


@dataclass(frozen=True)
class Permissions:
    """The subjects a user may publish to and subscribe to; everything else is denied."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def follow(*streams: str) -> list[str]:
    """Read a stream: ephemeral consumers with random names, and direct gets."""
    api = "$JS.API"
    return [
        subject
        for stream in streams
        for subject in (
            f"{api}.STREAM.INFO.{stream}",
            f"{api}.CONSUMER.CREATE.{stream}",
            f"{api}.CONSUMER.CREATE.{stream}.>",
            f"{api}.CONSUMER.MSG.NEXT.{stream}.*",
            f"{api}.DIRECT.GET.{stream}",
            f"{api}.DIRECT.GET.{stream}.>",
            f"{api}.STREAM.MSG.GET.{stream}",  # how far the leader is: a replica that answers may lag
            f"$JS.FC.{stream}.>",
        )
    ]


def files() -> list[str]:
    """Read and add objects of the store `files`; never purge, so a stored object cannot be destroyed."""
    return [
        *follow("OBJ_files"),
        "$JS.API.STREAM.NAMES",
        "$O.files.C.*",
        "$O.files.M.*",
    ]


def worker_facts(gpu: str) -> list[str]:
    """What whoever works as `gpu` says of itself and of the turns it holds; `*` is any GPU."""
    turns = ("started", "progressed", "returned", "completed", "failed", "cancelled")
    own = ("joined", "left", "ready", "heartbeat")
    return [
        *(f"session.*.turn.{verb}.{gpu}" for verb in turns),
        *(f"gpu.{gpu}.{verb}" for verb in own),
        "delta.*.*.*",
    ]


def api(*, http_workers: bool) -> Permissions:
    publish = [
        "session.*.created.*.*",
        "session.*.turn.queued.*.*.*",
        "session.*.turn.continued.*.*.*",
        "session.*.turn.cancelling.*",
        "session.*.turn.cancelled",
        "session.*.turn.cancelled.*",
        "session.*.closed",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.TASKS",
        *follow("LOG", "BEATS", "DELTAS"),
        *files(),
    ]
    if http_workers:
        publish += [
            *worker_facts("*"),
            "$JS.API.CONSUMER.INFO.TASKS.*",
            "$JS.API.CONSUMER.MSG.NEXT.TASKS.*",
            "$JS.ACK.TASKS.*.>",
        ]
    return Permissions(
        unique(publish), ("_INBOX_api.>", "session.>", "gpu.>", "fleet.>", "beat.>", "delta.>")
    )


def scheduler() -> Permissions:
    """The scheduler decides, and is the one provisioner: only it makes streams and consumers on TASKS."""
    publish = [
        "session.*.turn.admitted.*.*.*",
        "session.*.turn.yielding.*",
        "session.*.turn.failed.none",  # what waited too long, or failed with too many GPUs
        "session.*.released.*",
        "gpu.*.assigned",
        "gpu.*.lost",
        "fleet.*.resized",
        "fleet.policy.set",
        "beat.scheduler",
        "$JS.API.INFO",
        *(f"$JS.API.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE", "INFO") for stream in STREAMS),
        "$JS.API.STREAM.LEADER.STEPDOWN.TASKS",  # a source that stands still after the loss of a node
        "$JS.API.STREAM.PURGE.TASKS",  # tasks for a GPU that is gone
        "$JS.API.STREAM.PURGE.OBJ_files",  # a snapshot takes the place of the one before
        "$JS.API.CONSUMER.CREATE.TASKS.>",
        "$JS.API.CONSUMER.DURABLE.CREATE.TASKS.*",
        "$JS.API.CONSUMER.INFO.TASKS.*",
        "$JS.API.CONSUMER.LIST.TASKS",
        "$JS.API.CONSUMER.NAMES.TASKS",
        "$JS.API.CONSUMER.DELETE.TASKS.*",
        *follow("LOG", "BEATS"),
        *files(),
    ]
    subscribe = (
        "_INBOX_scheduler.>",
        "session.>",
        "gpu.>",
        "fleet.>",
        "beat.>",
        "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.TASKS.*",
        "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.TASKS.*",
    )
    return Permissions(unique(publish), subscribe)


def observer() -> Permissions:
    """Reads everything, writes nothing.

    No CONSUMER.LIST.LOG: whoever knows the name of a follower's consumer can pull its messages away.
    """
    publish = [
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        "$JS.API.STREAM.INFO.TASKS",
        "$JS.API.CONSUMER.INFO.TASKS.*",
        "$JS.API.CONSUMER.LIST.TASKS",
        "$JS.API.CONSUMER.NAMES.TASKS",
        *follow("LOG", "BEATS", "DELTAS", "OBJ_files"),
        "$JS.API.STREAM.MSG.GET.LOG",
        "$JS.API.STREAM.MSG.GET.BEATS",
        "$JS.API.STREAM.MSG.GET.OBJ_files",
    ]
    reads = ("_INBOX_observer.>", "session.>", "gpu.>", "fleet.>", "beat.>", "task.>", "delta.>")
    return Permissions(unique(publish), reads)


def runner(gpu: str, models: Iterable[str]) -> Permissions:
    """What the runner of `gpu` may do: its own facts, its own consumers, and reading."""
    kinds = [model.replace("/", "-") for model in models]
    consumers = [f"continue-{gpu}", *(f"{mode}-{kind}" for mode in ("create", "finetune") for kind in kinds)]
    publish = [
        *worker_facts(gpu),
        *(
            subject
            for consumer in consumers
            for subject in (
                f"$JS.API.CONSUMER.INFO.TASKS.{consumer}",
                f"$JS.API.CONSUMER.MSG.NEXT.TASKS.{consumer}",
                f"$JS.ACK.TASKS.{consumer}.>",
            )
        ),
        *follow("LOG"),
        *files(),
    ]
    subscribe = (
        f"_INBOX_{RUNNER}{gpu}.>",
        f"gpu.{gpu}.assigned",
        f"session.*.turn.cancelling.{gpu}",
        f"session.*.turn.yielding.{gpu}",
        f"session.*.released.{gpu}",
        "session.*.closed",
    )
    return Permissions(unique(publish), subscribe)


def unique(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subjects))


def public_key(seed_file: Path) -> str:
    """Return the public nkey of a seed file. Raises: BadUsers: if it is open to others or no user's."""
    if stat.S_IMODE(seed_file.stat().st_mode) & 0o077:
        raise BadUsers(f"{seed_file} can be read by others: chmod 600 it, or delete it to make a new one")
    try:
        pair = nkeys.from_seed(bytearray(seed_file.read_bytes().strip()))
        key = pair.public_key.decode()
    except (nkeys.NkeysError, ValueError) as error:
        raise BadUsers(f"{seed_file} holds no nkey seed") from error
    if not key.startswith("U"):
        raise BadUsers(f"{seed_file} holds a seed, but not a user's")
    return str(key)


def ensure_seed(seed_file: Path, owner: str | None) -> str:
    """Return the public key of `seed_file`, making the seed first if there is none; an existing one stays."""
    if not seed_file.exists():
        half = seed_file.with_name(f".{seed_file.name}.{os.getpid()}")
        with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(half, seed_file)  # unlike rename, never replaces a seed that somebody made meanwhile
        except FileExistsError:
            pass
        finally:
            half.unlink()
    if owner:
        uid, _, gid = owner.partition(":")
        os.chown(seed_file, int(uid), int(gid or uid))
    return public_key(seed_file)


def render(users: Sequence[tuple[str, str, Permissions]]) -> str:
    """Return users.conf; `users` are (name, public key, permissions)."""
    lines = [
        "# Made by make-users.py; public keys only. Delete a user's seed and run it again to revoke the key.",
        "",
    ]
    lines += ["authorization {", "  users: ["]
    for name, key, allowed in users:
        lines += [
            f"    # {name}, inbox prefix _INBOX_{name}",
            "    {",
            f"      nkey: {key}",
            "      permissions {",
        ]
        for verb, subjects in (("publish", allowed.publish), ("subscribe", allowed.subscribe)):
            lines += [f"        {verb}: {{ allow: ["]
            lines += [f'          "{subject}"' for subject in subjects]
            lines += ["        ] }"]
        lines += ["      }", "    }"]
    return "\n".join([*lines, "  ]", "}", ""])


def write_users(out: Path, options: argparse.Namespace) -> list[str]:
    """Write the seeds that are missing and users.conf anew; return the users' names."""
    secrets = out / "secrets"
    secrets.mkdir(parents=True, exist_ok=True)
    secrets.chmod(0o711)  # Docker mounts single files of it; each file is 0600
    known = (file.stem.removeprefix(RUNNER) for file in secrets.glob(f"{RUNNER}*.nk"))
    gpus = sorted({*options.gpu, *known})
    for gpu in gpus:
        if not GPU.fullmatch(gpu):
            raise BadUsers(f"{secrets / f'{RUNNER}{gpu}.nk'} is named after no GPU id")
    allowed = {
        "api": api(http_workers=options.http_workers),
        "scheduler": scheduler(),
        "observer": observer(),
        **{f"{RUNNER}{gpu}": runner(gpu, options.model or CATALOGUE) for gpu in gpus},
    }
    users = [(name, ensure_seed(secrets / f"{name}.nk", options.owner), may) for name, may in allowed.items()]
    half = out / f".users.conf.{os.getpid()}"
    half.write_text(render(users))
    half.chmod(0o644)
    half.replace(out / "users.conf")
    return list(allowed)


def token(pattern: re.Pattern[str], wanted: str) -> Callable[[str], str]:
    """An argparse type that takes only what `pattern` matches."""

    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise argparse.ArgumentTypeError(f"{value!r} is not {wanted}")
        return value

    return check


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    gpu = token(GPU, "a GPU id: <node>-<index> of a-z 0-9 _ -")
    model = token(MODEL, "TYPE/MODEL, such as text/mistral")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder (default: this one)")
    parser.add_argument("--gpu", type=gpu, action="append", default=[], help="a GPU id; may be repeated")
    parser.add_argument("--model", type=model, action="append", default=[], help="instead of the catalogue")
    parser.add_argument("--http-workers", action="store_true", help="the API works for HTTP-only workers too")
    parser.add_argument("--owner", type=token(OWNER, "UID or UID:GID"), help="who owns the seed files")
    options = parser.parse_args(argv)
    try:
        names = write_users(options.out, options)
    except (BadUsers, OSError) as error:
        print(f"make-users: {error}", file=sys.stderr)
        return 1
    print(f"{options.out / 'users.conf'}: {', '.join(names)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
