"""The configuration: one frozen value, read from a TOML file, refused by name where it is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from helix_es.core.capacity import known_slots
from helix_es.core.catalogue import BUILTIN, Model, checked
from helix_es.core.decision import RULES
from helix_es.core.errors import Misconfigured, Rejected
from helix_es.core.events import Kind, Mode, Policy, PoolRule, Workload
from helix_es.core.subjects import token


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Sessions(_Strict, frozen=True, kw_only=True):
    """[sessions]"""

    idle_after_s: float = 10.0
    """While others wait, a session gives its slot back after this long without a word."""
    heartbeat_s: float = 1.0
    """How often a runner says that it is alive; three missed ones and its GPU is lost."""
    stuck_s: float = 120.0
    """A GPU that says it is alive, but none of whose running turns moved for so long, is lost too; 0: never."""


class Limits(_Strict, frozen=True, kw_only=True):
    """[limits]: what one request and one owner may ask for."""

    body_bytes: int = 786_432
    """A request's body; what comes of it must fit a NATS message of 1 MiB."""
    prompt_chars: int = 400_000
    max_tokens: int = 4096
    default_max_tokens: int = 512
    file_bytes: int = 268_435_456
    """Of one upload; an artefact that a worker makes is held to it as well."""
    slots_per_owner: int = 0
    """Slots that one owner's sessions may hold at once; 0: as many as the fair queue gives."""
    waiting_per_owner: int = 0
    """Turns of one owner that may wait at once; more are refused; 0: no limit."""


class Batch(_Strict, frozen=True, kw_only=True):
    """[batch]"""

    reserved: int = 0
    """GPUs that can do batch work and never serve chats."""
    yield_s: float = 10.0
    """How long a fine-tune on a borrowed GPU may take to make a checkpoint before it is moved."""


class Scheduling(_Strict, frozen=True, kw_only=True):
    """[scheduling]"""

    switch_after_s: float = 5.0
    """A GPU that holds nobody for so long may be given to another model."""
    starve_after_s: float = 30.0
    """After such a wait for a model that no GPU serves, one is drained for it."""
    attempts: int = 3
    """A turn that failed with so many GPUs under it is not tried again."""


class Pool(_Strict, frozen=True, kw_only=True):
    """[pool.<name>]: GPUs that come and go with demand."""

    min: int = 0
    max: int = 1
    provider: Literal["local", "command", "kubernetes"] = "local"
    idle: float = 300.0
    """Seconds that a GPU holds nobody before it may go."""
    wait_s: float = 10.0
    """The pool grows when somebody would wait longer than this."""
    serves: list[str] = msgspec.field(default_factory=lambda: ["text:smollm2"])
    """What one of its GPUs can run: text:<model>, image:<model>, batch:<model>."""
    slots: dict[str, int] = {}
    """model -> sessions that one of its GPUs will hold, where [coefficients] says nothing for its kind."""
    kind: str = "cpu"
    """The kind of its GPUs, as in [coefficients]."""
    device: str | None = None
    """Provider local: what its runners compute on."""
    command: str = ""
    """Provider command: a shell command; it finds HELIX_POOL, HELIX_SIZE and HELIX_PREVIOUS in its environment."""
    namespace: str = "default"
    """Provider kubernetes: where the Deployment is."""
    deployment: str = ""
    """Provider kubernetes: the Deployment that is scaled."""
    kubeconfig: str | None = None
    """Provider kubernetes: by default the pod's own service account, else ~/.kube/config."""


class Auth(_Strict, frozen=True, kw_only=True):
    """[auth]: without keys everybody is the owner `local`, and the API should not leave loopback."""

    keys: dict[str, str] = {}
    """SHA-256 of an API key, in hex -> owner. The key itself stands nowhere."""
    workers: dict[str, str] = {}
    """SHA-256 of a worker's key, in hex -> the one worker that may use it, or `*` for any. Workers see every prompt."""
    analysts: list[str] = []
    """Owners who may ask the analytics over HTTP; these hold what everybody said."""


class Analytics(_Strict, frozen=True, kw_only=True):
    """[analytics]: the log as tables, and what a query may use."""

    folder: str | None = None
    """Where `helix analytics` keeps its database and its snapshots for readers; by default `analytics` beside NATS's
    data of `helix up`."""
    parquet: str | None = None
    """Where it exports every full hour to; by default `parquet` in that folder."""
    export_every_s: float = 3_600.0
    """0: never."""
    fresh_s: float = 2.0
    """How old the snapshot may be that a query reads, while the log goes on."""
    query_s: float = 10.0
    """A query that runs longer is ended."""
    query_rows: int = 10_000
    """A query returns no more rows than this; it says so when there were more."""
    query_bytes: int = 536_870_912
    """Memory that a query may use."""


ANY_WORKER = "*"


class Settings(_Strict, frozen=True, kw_only=True):
    """Everything that can be set; every key has a default that serves `make up`."""

    models: dict[str, Model] = msgspec.field(default_factory=lambda: dict(BUILTIN))
    coefficients: dict[str, int] = {}
    """`<gpu kind>/<model>` -> sessions that one such GPU may hold."""
    pool: dict[str, Pool] = {}
    batch: Batch = Batch()
    scheduling: Scheduling = Scheduling()
    sessions: Sessions = Sessions()
    limits: Limits = Limits()
    auth: Auth = Auth()
    analytics: Analytics = Analytics()

    @property
    def policy(self) -> Policy:
        """What of this the scheduler decides by."""
        return Policy(
            idle_after_ms=_ms(self.sessions.idle_after_s),
            coefficients=self.coefficients,
            reserved=self.batch.reserved,
            attempts=self.scheduling.attempts,
            slots_per_owner=self.limits.slots_per_owner,
            switch_after_ms=_ms(self.scheduling.switch_after_s),
            starve_after_ms=_ms(self.scheduling.starve_after_s),
            yield_ms=_ms(self.batch.yield_s),
            pools={name: self._rule(pool) for name, pool in self.pool.items()},
            rules=RULES,
        )

    def _rule(self, pool: Pool) -> PoolRule:
        workloads = [served(each, self.models) for each in pool.serves]
        slots = {work.model: self._pooled(pool, work) for work in workloads}
        return PoolRule(
            min=pool.min,
            max=pool.max,
            idle_ms=_ms(pool.idle),
            wait_target_ms=_ms(pool.wait_s),
            workloads=workloads,
            slots=slots,
        )

    def _pooled(self, pool: Pool, work: Workload) -> int:
        """Return the sessions that one of the pool's GPUs will hold, as far as that can be known beforehand."""
        table = self.coefficients.get(f"{pool.kind}/{work.model}", pool.slots.get(work.model))
        if table is not None or work.mode == "finetune":
            return table or 1
        known = known_slots(self.models[work.model], pool.kind)
        return 1 if known is None else known


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


SERVES: dict[str, tuple[Mode, Kind]] = {
    "text": ("create", "text"),
    "image": ("create", "image"),
    "batch": ("finetune", "text"),
}


def served(word: str, models: dict[str, Model]) -> Workload:
    """Return the workload that `text:<model>`, `image:<model>` or `batch:<model>` names.

    Raises Misconfigured with what is allowed.
    """
    kind, _, model = word.partition(":")
    if kind not in SERVES:
        raise Misconfigured(f"{word!r}: must be text:<model>, image:<model> or batch:<model>")
    mode, makes = SERVES[kind]
    if model not in models or models[model].type != makes:
        there = ", ".join(sorted(slug for slug, each in models.items() if each.type == makes))
        raise Misconfigured(f"{word!r}: {kind} needs one of the models {there}")
    return Workload(mode, makes, model)


# key -> (least, most): a type alone would let an hour be a negative one
RANGES: dict[str, tuple[float, float]] = {
    "sessions.idle_after_s": (0, 86_400),
    "sessions.heartbeat_s": (0.05, 60),
    "limits.body_bytes": (1_024, 1 << 30),
    "limits.prompt_chars": (1, 1 << 26),
    "limits.max_tokens": (1, 1 << 20),
    "limits.default_max_tokens": (1, 1 << 20),
    "limits.file_bytes": (1, 1 << 36),
    "limits.slots_per_owner": (0, 1 << 20),
    "limits.waiting_per_owner": (0, 1 << 20),
    "sessions.stuck_s": (0, 86_400),
    "batch.reserved": (0, 1 << 20),
    "batch.yield_s": (0, 3_600),
    "scheduling.switch_after_s": (0, 86_400),
    "scheduling.starve_after_s": (0, 86_400),
    "scheduling.attempts": (1, 100),
    "analytics.export_every_s": (0, 7 * 86_400),
    "analytics.fresh_s": (0, 3_600),
    "analytics.query_s": (0.1, 3_600),
    "analytics.query_rows": (1, 10_000_000),
    "analytics.query_bytes": (1 << 24, 1 << 40),
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
        kind, _, slug = key.rpartition("/")
        if not kind or slug not in settings.models:
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
    for name, pool in settings.pool.items():
        _check_pool(name, pool, settings)
    for slug, model in settings.models.items():
        try:
            checked(slug, model)
        except Rejected as error:
            raise Misconfigured(f"configuration key {error}") from error
        try:
            token(slug, "model slug")
        except Rejected as error:
            raise Misconfigured(f"configuration key models.{slug}: {error}") from error


POOL_RANGES: dict[str, tuple[float, float]] = {
    "min": (0, 10_000),
    "max": (1, 10_000),
    "idle": (0, 86_400 * 7),
    "wait_s": (0, 86_400),
}


def _check_pool(name: str, pool: Pool, settings: Settings) -> None:
    key = f"configuration key pool.{name}"
    try:
        token(name, "pool")
        for each in pool.serves:
            served(each, settings.models)
    except (Rejected, Misconfigured) as error:
        raise Misconfigured(f"{key}: {error}") from error
    if name in ("default", "policy"):
        raise Misconfigured(f"{key}: this name is taken; choose another")
    if not pool.serves:
        raise Misconfigured(f"{key}.serves: is empty; name what its GPUs run, as in text:smollm2")
    for field, (least, most) in POOL_RANGES.items():
        value = getattr(pool, field)
        if not least <= value <= most:
            raise Misconfigured(f"{key}.{field}: found {value!r}, allowed is {least:g} to {most:g}")
    if pool.min > pool.max:
        raise Misconfigured(f"{key}.min: found {pool.min}, allowed is at most max, {pool.max}")
    for model, slots in pool.slots.items():
        if model not in settings.models or not 1 <= slots <= 10_000:
            raise Misconfigured(f"{key}.slots.{model}: found {slots}, allowed is a model with 1 to 10000")
