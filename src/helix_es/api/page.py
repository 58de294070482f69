"""The live web page."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from litestar import MediaType, Response, get

HTML = Path(__file__).with_name("page.html")
_INLINE = re.compile(r"<(style|script)[^>]*>(.*?)</\1>", re.DOTALL)


@cache
def _page() -> tuple[str, dict[str, str]]:
    """Return the page and its headers: only the style and the script that stand in it may run."""
    html = HTML.read_text(encoding="utf-8")
    hashes: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _INLINE.findall(html):
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data: blob:; style-src {' '.join(hashes['style'])}; "
        f"script-src {' '.join(hashes['script'])}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


@get("/", include_in_schema=False, sync_to_thread=False)
def page() -> Response[str]:
    """The floor, the door and a chat, in one file without anything from elsewhere."""
    html, headers = _page()
    return Response(html, media_type=MediaType.HTML, headers=headers)
