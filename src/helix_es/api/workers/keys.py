"""Who may be a worker: those see prompts of everybody, so a user's key is not enough."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from helix_es.api.owner import Unauthorized
from helix_es.core.errors import HelixError
from helix_es.settings import ANY_WORKER, Auth


class NotAWorker(HelixError):
    """The key is a user's, or another worker's; have one for this worker put under [auth.workers]."""

    code = "not_a_worker"


def check_worker(headers: Mapping[str, str], auth: Auth, worker: str) -> None:
    """Raise Unauthorized or NotAWorker unless the request may be the worker of that name."""
    if not auth.keys and not auth.workers:
        return
    scheme, _, key = headers.get("authorization", "").partition(" ")
    given = hashlib.sha256(key.strip().encode()).hexdigest()
    known, allowed = _found(auth.keys, given), _found(auth.workers, given)
    if scheme.lower() != "bearer" or (known is None and allowed is None):
        raise Unauthorized("send 'Authorization: Bearer <API key>' with a key of [auth.workers]")
    if allowed is None:
        raise NotAWorker("this key is a user's; a worker needs one of [auth.workers]")
    if allowed not in (ANY_WORKER, worker):
        raise NotAWorker(f"this key is for the worker {allowed!r} alone")


def _found(keys: Mapping[str, str], given: str) -> str | None:
    found = None
    for known, name in keys.items():  # all of them, so that time tells nothing
        if hmac.compare_digest(known.lower(), given):
            found = name
    return found
