"""The live web page."""

from __future__ import annotations

from pathlib import Path

from litestar import MediaType, Response, get

HTML = Path(__file__).with_name("page.html")
POLICY = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'"


@get("/", include_in_schema=False, sync_to_thread=False)
def page() -> Response[str]:
    """The floor, the door and a chat, in one file without anything from elsewhere."""
    return Response(
        HTML.read_text(encoding="utf-8"),
        media_type=MediaType.HTML,
        headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"},
    )
