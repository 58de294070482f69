"""The web page: nothing from elsewhere, and only its own script may run."""

from __future__ import annotations

import base64
import hashlib
import re

from litestar import Litestar
from litestar.testing import TestClient

from helix_es.api.page import HTML, page


def test_only_the_script_and_style_of_the_page_may_run() -> None:
    with TestClient(Litestar([page], logging_config=None)) as client:
        answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy
    for kind in ("style", "script"):
        (text,) = re.findall(rf"<{kind}[^>]*>(.*?)</{kind}>", answer.text, re.DOTALL)
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy


def test_the_page_needs_nothing_from_elsewhere_and_never_makes_html_of_data() -> None:
    text = HTML.read_text(encoding="utf-8")
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|src=", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\son[a-z]+=", text)
    assert ' style="' not in text
