"""The configuration: one frozen value, read from a TOML file, refused by name where it is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from helix_es.core.catalogue import BUILTIN, Model
from helix_es.core.errors import Misconfigured, Rejected
from helix_es.core.events import Policy
from helix_es.core.subjects import token


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Sessions(_Strict, frozen=True, kw_only=True):
    """[sessions]"""

    idle_after_s: float = 10.0
    """While others wait, a session gives its slot back after this long without a word."""
    heartbeat_s: float = 1.0
    """How often a runner says that it is alive; three missed ones and its GPU is lost."""


class Limits(_Strict, frozen=True, kw_only=True):
    """[limits]: what one request and one owner may ask for."""

    body_bytes: int = 786_432
    """A request's body; what comes of it must fit a NATS message of 1 MiB."""
    prompt_chars: int = 400_000
    max_tokens: int = 4096
    default_max_tokens: int = 512
    file_bytes: int = 268_435_456
    """Of one upload; an artefact that a worker makes is held to it as well."""


class Batch(_Strict, frozen=True, kw_only=True):
    """[batch]"""

    reserved: int = 0
    """GPUs that never serve chats."""


class Pool(_Strict, frozen=True, kw_only=True):
    """[pool.<name>]"""

    min: int = 0
    max: int = 1
    provider: str = "local"
    idle: float = 300.0


class Auth(_Strict, frozen=True, kw_only=True):
    """[auth]: without keys everybody is the owner `local`, and the API should not leave loopback."""

    keys: dict[str, str] = {}
    """SHA-256 of an API key, in hex -> owner. The key itself stands nowhere."""
    workers: dict[str, str] = {}
    """SHA-256 of a worker's key, in hex -> the one worker that may use it, or `*` for any. Workers see every prompt."""


ANY_WORKER = "*"


class Settings(_Strict, frozen=True, kw_only=True):
    """Everything that can be set; every key has a default that serves `make up`."""

    models: dict[str, Model] = msgspec.field(default_factory=lambda: dict(BUILTIN))
    coefficients: dict[str, int] = {}
    """`<gpu kind>/<model>` -> sessions that one such GPU may hold."""
    pool: dict[str, Pool] = {}
    batch: Batch = Batch()
    sessions: Sessions = Sessions()
    limits: Limits = Limits()
    auth: Auth = Auth()

    @property
    def policy(self) -> Policy:
        """What of this the scheduler decides by."""
        return Policy(idle_after_ms=int(self.sessions.idle_after_s * 1000), coefficients=self.coefficients)


# key -> (least, most): a type alone would let an hour be a negative one
RANGES: dict[str, tuple[float, float]] = {
    "sessions.idle_after_s": (0, 86_400),
    "sessions.heartbeat_s": (0.05, 60),
    "limits.body_bytes": (1_024, 1 << 30),
    "limits.prompt_chars": (1, 1 << 26),
    "limits.max_tokens": (1, 1 << 20),
    "limits.default_max_tokens": (1, 1 << 20),
    "limits.file_bytes": (1, 1 << 36),
    "batch.reserved": (0, 1 << 20),
}


def read(path: str | Path | None) -> Settings:
    """Return the settings in the TOML file at `path`, or the defaults for None.

    Raises Misconfigured with the key's name, what was found and what is allowed.
    """
    if path is None:
        return Settings()
    try:
        text = Path(path).read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        raise Misconfigured(f"configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"configuration {path} is not TOML: {error}") from error
    return parse(raw)


def parse(raw: dict[str, Any]) -> Settings:
    """Return the settings in `raw`. Models given are added to the built-in ones, key by key."""
    raw = dict(raw)
    models = raw.get("models", {})
    if isinstance(models, dict):
        built = {slug: msgspec.to_builtins(model) for slug, model in BUILTIN.items()}
        merged = {**built}
        for slug, given in models.items():
            merged[slug] = {**built.get(slug, {}), **given} if isinstance(given, dict) else given
        raw["models"] = merged
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        raise Misconfigured(_explain(error, raw)) from error
    _check(settings)
    return settings


def _explain(error: msgspec.ValidationError, raw: dict[str, Any]) -> str:
    """Say which key, what was found there and what is allowed."""
    text = str(error)
    what, _, where = text.partition(" - at `$")
    path = [part for part in where.rstrip("`").replace("[...]", "").split(".") if part]
    found: Any = raw
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    allowed = ""
    if "unknown field" in what:
        allowed = f"; allowed are: {', '.join(_fields(path))}"
        return f"configuration [{'.'.join(path) or 'top level'}]: {what}{allowed}"
    shown = "" if isinstance(found, dict) or found is None else f", found {found!r}"
    return f"configuration key {'.'.join(path) or '(top level)'}: {what}{shown}"


def _fields(path: list[str]) -> list[str]:
    struct: Any = Settings
    for part in path:
        hints = {f.name: f.type for f in msgspec.structs.fields(struct)}
        struct = hints.get(part, struct)
        if part in ("models", "pool"):
            return list((Model if part == "models" else Pool).__struct_fields__)
    return list(getattr(struct, "__struct_fields__", Settings.__struct_fields__))


def _check(settings: Settings) -> None:
    for key, (least, most) in RANGES.items():
        section, name = key.split(".")
        value = getattr(getattr(settings, section), name)
        if not least <= value <= most:
            raise Misconfigured(f"configuration key {key}: found {value!r}, allowed is {least:g} to {most:g}")
    for key, slots in settings.coefficients.items():
        kind, _, model = key.rpartition("/")
        if not kind or model not in settings.models:
            raise Misconfigured(
                f"configuration key coefficients.{key}: must be '<gpu kind>/<model>' with a model of "
                f"{', '.join(sorted(settings.models))}"
            )
        if not 0 <= slots <= 10_000:
            raise Misconfigured(f"configuration key coefficients.{key}: found {slots}, allowed is 0 to 10000")
    for key, worker in settings.auth.workers.items():
        try:
            _ = worker == ANY_WORKER or token(worker, "worker")
        except Rejected as error:
            raise Misconfigured(
                f"configuration key auth.workers.{key[:8]}…: {error}, or '{ANY_WORKER}' for any"
            ) from error
    for slug in settings.models:
        try:
            token(slug, "model slug")
        except Rejected as error:
            raise Misconfigured(f"configuration key models.{slug}: {error}") from error
