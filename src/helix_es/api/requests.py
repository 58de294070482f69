"""What clients may send, and the rules for it; all refusals name the field and what is allowed."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

from helix_es.core import events as e
from helix_es.core.catalogue import Picture, find
from helix_es.core.errors import Rejected
from helix_es.core.events import Kind, Message, Mode
from helix_es.core.params import ImageParams, TrainParams, parsed
from helix_es.settings import Settings

PRIORITIES = range(-10, 11)
MOST_STOPS = 8
STOP_CHARS = 200
KEY_CHARS = 255
MOST_WAIT_S = 7 * 86_400
MOST_TOKENS_AT_ONCE = 8_192  # of a training: activations and logits of all of them are in memory together
MOST_A_STEP = 1_024  # examples of a training
ADAPTER = re.compile(r"[a-z0-9_-]{1,64}")


class NewSession(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /sessions."""

    model: str
    prompt: str | None = None
    """What is asked; a fine-tune has none."""
    type: Kind = "text"
    mode: Mode = "create"
    system: str | None = None
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    adapter: str | None = None
    dataset: str | None = None
    priority: int = 0
    name: str | None = None
    max_wait_s: float | None = None
    """The first turn fails rather than wait longer for a slot."""


class NewTurn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /sessions/{sid}/turns."""

    prompt: str
    params: dict[str, Any] = msgspec.field(default_factory=dict)
    max_wait_s: float | None = None
    """It fails rather than wait longer for a slot, if the session holds none."""


class Params(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a text turn may set."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


def checked_session(body: NewSession, settings: Settings) -> e.Workload:
    """Return the workload that `body` asks for. Raises Rejected for whatever cannot be served."""
    slug = find(settings.models, body.model)
    model = settings.models[slug]
    if model.type != body.type:
        raise Rejected("wrong_type", f"model {slug} makes {model.type}, not {body.type}")
    if body.priority not in PRIORITIES:
        raise Rejected("invalid_request", f"priority: {body.priority} is not allowed; it must be -10 to 10")
    if body.name is not None and not 0 < len(body.name) <= 200:
        raise Rejected("invalid_request", "name: must be 1 to 200 characters")
    checked_wait_ms(body.max_wait_s)
    if body.mode == "finetune":
        _check_finetune(body)
    else:
        _check_create(body, settings)
    return e.Workload(body.mode, body.type, slug)


def checked_wait_ms(max_wait_s: float | None) -> int | None:
    """Return `max_wait_s` in ms. Raises Rejected if it is out of range."""
    if max_wait_s is None:
        return None
    if not 0 < max_wait_s <= MOST_WAIT_S:
        raise Rejected("invalid_request", f"max_wait_s: must be more than 0 and at most {MOST_WAIT_S}")
    return max(1, int(max_wait_s * 1000))


def _check_create(body: NewSession, settings: Settings) -> None:
    if body.dataset is not None:
        raise Rejected("invalid_request", "dataset: belongs to mode 'finetune'; leave it out")
    if body.type == "image" and (body.system is not None or body.adapter is not None):
        raise Rejected("invalid_request", "system and adapter: belong to text; leave them out for images")
    if body.system is not None and len(body.system) > settings.limits.prompt_chars:
        raise Rejected("prompt_too_long", f"system: more than {settings.limits.prompt_chars} characters")
    if body.prompt is None:
        raise Rejected("invalid_request", "prompt: is missing")
    check_prompt(body.prompt, settings)


def _check_finetune(body: NewSession) -> None:
    if body.type != "text":
        raise Rejected("mode_unavailable", "mode 'finetune': only models of type 'text' can be fine-tuned")
    if body.dataset is None:
        raise Rejected(
            "invalid_request", "dataset: is missing; upload one to POST /api/v1/files, give its file_id"
        )
    if body.name is None or not ADAPTER.fullmatch(body.name):
        raise Rejected(
            "invalid_request", "name: a fine-tune needs one for its adapter: 1 to 64 of a-z, 0-9, '_' and '-'"
        )
    if body.prompt is not None or body.system is not None or body.adapter is not None:
        raise Rejected("invalid_request", "prompt, system and adapter: a fine-tune has none; leave them out")


def check_prompt(prompt: str, settings: Settings) -> None:
    """Raise Rejected for a prompt that cannot be served."""
    if not prompt.strip():
        raise Rejected("empty_prompt", "prompt: must not be empty")
    if len(prompt) > settings.limits.prompt_chars:
        raise Rejected(
            "prompt_too_long",
            f"prompt: {len(prompt)} characters; at most {settings.limits.prompt_chars} are allowed",
        )


def checked_params(raw: dict[str, Any], settings: Settings, workload: e.Workload) -> dict[str, Any]:
    """Return the parameters to store, refused where they are out of range."""
    if workload.mode == "finetune":
        return _given(_checked_training(parsed(raw, TrainParams)), raw)
    if workload.type == "image":
        return _given(_checked_picture(parsed(raw, ImageParams), settings, workload.model), raw)
    return _checked_text(raw, settings)


def _given(params: ImageParams | TrainParams, raw: dict[str, Any]) -> dict[str, Any]:
    """Return exactly what was given: a default that is said goes before what the session said, and lasts."""
    found: dict[str, Any] = msgspec.to_builtins(params)
    return {name: value for name, value in found.items() if name in raw}


def _checked_training(params: TrainParams) -> TrainParams:
    """Refuse what would take all the memory, or compute for hours between two steps."""
    for name, value, most in (
        ("batch_size times sequence_tokens", params.batch_size * params.sequence_tokens, MOST_TOKENS_AT_ONCE),
        (
            "batch_size times gradient_accumulation",
            params.batch_size * params.gradient_accumulation,
            MOST_A_STEP,
        ),
    ):
        if value > most:
            raise Rejected("invalid_params", f"params: {name} is {value}; it must be at most {most}")
    return params


def _checked_picture(params: ImageParams, settings: Settings, slug: str) -> ImageParams:
    """Refuse what one request must not take: a few numbers could ask for hours and for all the memory."""
    model = settings.models.get(slug)
    most = (model.image if model is not None else None) or Picture()
    for name, value, limit in (
        ("width", params.width, most.most_side),
        ("height", params.height, most.most_side),
        ("steps", params.steps, most.most_steps),
        ("count", params.count, most.most_count),
    ):
        if value is not None:
            _within(name, value, 1, limit)
    return params


def _checked_text(raw: dict[str, Any], settings: Settings) -> dict[str, Any]:
    try:
        params = msgspec.convert(raw, Params)
    except msgspec.ValidationError as error:
        allowed = ", ".join(Params.__struct_fields__)
        raise Rejected("invalid_params", f"params: {error}; allowed are: {allowed}") from error
    most = settings.limits.max_tokens
    _within("max_tokens", params.max_tokens, 1, most)
    _within("temperature", params.temperature, 0, 2)
    _within("top_p", params.top_p, 0.0001, 1)
    _within("seed", params.seed, 0, 2**63 - 1)
    found: dict[str, Any] = msgspec.to_builtins(params)
    if params.stop is not None:
        found["stop"] = _stops(params.stop)
    return found


def _within(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise Rejected(
            "invalid_params", f"params.{name}: {value} is not allowed; it must be {least} to {most}"
        )


def _stops(stop: str | list[str]) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > MOST_STOPS or any(not 0 < len(each) <= STOP_CHARS for each in stops):
        raise Rejected(
            "invalid_params", f"params.stop: at most {MOST_STOPS} strings of 1 to {STOP_CHARS} characters"
        )
    return stops


def checked_history(messages: list[Message], settings: Settings) -> list[Message]:
    """Return a conversation brought along, refused if it is longer than a prompt may be."""
    if sum(len(each.content) for each in messages) > settings.limits.prompt_chars:
        raise Rejected(
            "prompt_too_long", f"messages: more than {settings.limits.prompt_chars} characters in all"
        )
    return messages


def checked_key(key: str | None) -> str | None:
    """Return an Idempotency-Key as it is used. Raises Rejected for an empty or endless one."""
    if key is not None and not 0 < len(key) <= KEY_CHARS:
        raise Rejected("invalid_request", f"Idempotency-Key: must be 1 to {KEY_CHARS} characters")
    return key


def digest(*parts: str) -> str:
    """Return a short fingerprint of `parts`: 26 characters that can stand in a subject."""
    joined = "\x00".join(parts).encode()
    return hashlib.sha256(joined).hexdigest()[:26]
