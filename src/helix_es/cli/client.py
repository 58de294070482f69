"""The HTTP API as commands see it: where it is, how it is asked, and what its errors say."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import rich_click as click

from helix_es.cli.output import fail
from helix_es.core.errors import HelixError, Misconfigured

if TYPE_CHECKING:  # httpx takes 0.1 s to import, and `helix --help` needs none of it
    import httpx

DATA_DIR = Path("var/helix")  # where `helix up` writes its addresses unless told otherwise
DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_S = 5.0
ANSWER_S = 20.0  # a write waits for the disk, and for a leader election: 5 to 9 s
UPLOAD_S = 300.0  # of silence: the answer comes when all of the file is checked and stored
POST_AGAIN_S = (0.3, 1.0)  # waits before a POST is repeated with its key, or a download from its beginning
BUSY = frozenset({502, 503, 504})

Result = TypeVar("Result")


class NoHelix(HelixError):
    """Nothing answers at the address; start a Helix there or name another with --url."""

    code = "no_helix"


class Interrupted(HelixError):
    """The connection broke or the answer did not come in time; the request can be repeated."""

    code = "interrupted"


class Problem(HelixError):
    """The API refused; the text is its own, with its stable code."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{detail} ({code})", code=code)
        self.status = status


def url_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--url`; the command gets a checked `url`."""

    def checked(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
        return _checked(value or written_url("api.url") or DEFAULT_URL)

    return click.option(
        "--url",
        envvar="HELIX_URL",
        callback=checked,
        help=f"Of the API; by default what {DATA_DIR}/api.url says, else {DEFAULT_URL}.",
    )(command)


def written_url(name: str) -> str | None:
    """Return the address that a `helix up` in this folder wrote down, or None."""
    try:
        return (DATA_DIR / name).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good, parts = False, urlsplit("")
    if not good or parts.query or parts.fragment or "@" in parts.netloc or re.search(r"[\s\x00-\x1f]", url):
        raise click.BadParameter("must be http://HOST[:PORT] or https://HOST[:PORT], without a user in it")
    return url.rstrip("/")


def api_key() -> str | None:
    """Return HELIX_API_KEY. Raises Misconfigured, without saying the key, if it cannot stand in a header."""
    key = os.environ.get("HELIX_API_KEY", "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise Misconfigured("HELIX_API_KEY holds characters that no key has; set it again")
    return key or None


@contextmanager
def calling(url: str) -> Iterator[Api]:
    """Give the API at `url`; what goes wrong there ends the command with one line."""
    try:
        with Api(url, api_key()) as api:
            yield api
    except Misconfigured as error:
        fail(str(error), 2)
    except HelixError as error:
        fail(str(error))


class Api:
    """The API of one Helix. Every method raises NoHelix, Interrupted or Problem."""

    def __init__(self, url: str, key: str | None = None, *, answer_s: float = ANSWER_S) -> None:
        import httpx

        self.url = url
        loopback = urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(answer_s, connect=CONNECT_S),
            trust_env=not loopback,  # a proxy cannot reach our own loopback
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: str | int | None) -> Any:
        """Return the JSON at `path`; parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        with self._translated():
            return self._json(self._http.get(path, params=given))

    def text(self, path: str) -> str:
        """Return the text at `path`."""
        with self._translated():
            response = self._http.get(path)
        self._refuse(response)
        return response.text

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send `body` with an Idempotency-Key, again if the connection fails or the server is busy."""
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        return self._again(lambda: self._post(path, body, headers))

    def upload(self, path: Path, purpose: str) -> Any:
        """Send the file at `path`, in pieces; return what the API says of it. Raises OSError, too."""
        import httpx

        name = path.name.encode(errors="replace").decode()
        timeout = httpx.Timeout(UPLOAD_S, connect=CONNECT_S)
        with path.open("rb") as file, self._translated():
            parts = {"file": (name, file, "application/octet-stream")}
            answer = self._http.post("/api/v1/files", files=parts, data={"purpose": purpose}, timeout=timeout)
            return self._json(answer)

    def download(self, path: str, to: Path) -> None:
        """Write the bytes at `path` to the file `to`, which is there only when it is whole. Raises OSError, too."""
        self._again(lambda: self._download(path, to))

    def _download(self, path: str, to: Path) -> None:
        draft = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
        try:
            with self.stream(path, {}, ANSWER_S) as response, draft.open("xb") as out:
                for piece in response.iter_bytes():
                    out.write(piece)
            draft.replace(to)
        finally:
            draft.unlink(missing_ok=True)

    def _again(self, attempt: Callable[[], Result]) -> Result:
        for pause_s in POST_AGAIN_S:
            try:
                return attempt()
            except Problem as problem:
                if problem.status not in BUSY:
                    raise
            except (NoHelix, Interrupted):
                pass
            time.sleep(pause_s)
        return attempt()

    def _post(self, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> Any:
        with self._translated():
            return self._json(self._http.post(path, json=body, headers=headers))

    @contextmanager
    def stream(self, path: str, headers: dict[str, str], silence_s: float) -> Iterator[httpx.Response]:
        """Give the response to a GET whose body is read as it comes; `silence_s` without a byte ends it."""
        import httpx

        timeout = httpx.Timeout(silence_s, connect=CONNECT_S)
        with self._translated(), self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code != 200:
                response.read()
                self._refuse(response)
            yield response

    def _json(self, response: httpx.Response) -> Any:
        self._refuse(response)
        try:
            return response.json()
        except ValueError:
            raise Problem(response.status_code, "not_helix", f"{self.url} does not answer as Helix") from None

    def _refuse(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        status = response.status_code
        try:
            body = response.json()
            code, detail = str(body["code"]), str(body["detail"])
        except (ValueError, KeyError, TypeError):
            code, detail = f"http_{status}", f"{self.url} answered {status} {response.reason_phrase}"
        if status == 401:
            detail += "; the key is read from HELIX_API_KEY"
        raise Problem(status, code, detail)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NoHelix(f"no Helix at {self.url}; start one with 'helix up'") from error
        except httpx.TimeoutException as error:
            raise Interrupted(f"no answer in time from {self.url}; try again") from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            said = str(error) or type(error).__name__
            raise Interrupted(f"the connection to {self.url} broke: {said}") from error
