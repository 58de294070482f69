"""Whose request it is: the owner of its API key, or `local` where no keys are configured."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from litestar import Request

from helix_es.core.errors import HelixError
from helix_es.settings import Auth

LOCAL = "local"


class Unauthorized(HelixError):
    """Send `Authorization: Bearer <API key>` with a key that this server knows."""

    code = "unauthorized"


def owner_of(request: Request[Any, Any, Any], auth: Auth) -> str:
    """Return the owner. Raises Unauthorized if keys are configured and the request has none of them."""
    if not auth.keys:
        return LOCAL
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    given = hashlib.sha256(key.strip().encode()).hexdigest()
    found = None
    for known, owner in auth.keys.items():  # all of them, so that time tells nothing
        if hmac.compare_digest(known.lower(), given):
            found = owner
    if scheme.lower() != "bearer" or found is None:
        raise Unauthorized("send 'Authorization: Bearer <API key>' with a key that this server knows")
    return found
