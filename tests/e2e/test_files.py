"""Files through the API: what goes in comes out, what is wrong is refused with the line that is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.e2e.shop import Client, Shop

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

LIMIT = 4_000_000
PAIR = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
LINE = json.dumps(PAIR).encode() + b"\n"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """An API without runners, and two owners."""
    keys = {hashlib.sha256(name.encode()).hexdigest(): name for name in ("ann", "bob")}
    config = f"[limits]\nfile_bytes = {LIMIT}\n[auth.keys]\n"
    config += "".join(f'"{digest}" = "{name}"\n' for digest, name in keys.items())
    shop = Shop(tmp_path_factory.mktemp("files"), runners="", config=config)
    try:
        shop.until(lambda: (shop.data / "api.url").exists(), "an API")
        async with Client((shop.data / "api.url").read_text().strip()) as made:
            made.http.headers["authorization"] = "Bearer ann"
            yield made
    finally:
        shop.stop()


async def send(client: Client, data: bytes, name: str = "a.jsonl", **fields: str) -> Any:
    return await client.http.post("/files", files={"file": (name, data)}, data=fields)


async def test_a_dataset_goes_in_and_comes_out(client: Client) -> None:
    data = LINE * 30_000
    answer = await send(client, data)
    assert answer.status_code == 201, answer.text
    stored = answer.json()
    assert stored["dataset"] == {"form": "messages", "examples": 30_000} | stored["dataset"]
    assert (stored["name"], stored["purpose"], stored["size"]) == ("a.jsonl", "dataset", len(data))
    assert stored["sha256"] == hashlib.sha256(data).hexdigest()
    got = await client.http.get(f"/files/{stored['file_id']}/content")
    assert got.content == data
    assert got.headers["content-type"] == "application/octet-stream"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert "a.jsonl" in got.headers["content-disposition"]
    one = (await client.http.get(f"/files/{stored['file_id']}")).json()
    assert {**stored, "dataset": None} == one


async def test_files_are_listed_newest_first_in_pages(client: Client) -> None:
    made = [(await send(client, LINE * (2 + n))).json()["file_id"] for n in range(3)]
    first = (await client.http.get("/files", params={"limit": 2, "purpose": "dataset"})).json()
    assert [each["file_id"] for each in first["data"]] == [made[2], made[1]]
    assert first["has_more"]
    more = (await client.http.get("/files", params={"limit": 1, "after": made[1]})).json()
    assert [each["file_id"] for each in more["data"]] == [made[0]]
    assert (await client.http.get("/files", params={"purpose": "image"})).json()["data"] == []


async def test_another_owner_sees_nothing_of_it(client: Client) -> None:
    file = (await send(client, LINE * 2)).json()["file_id"]
    bob = {"authorization": "Bearer bob"}
    for path in (f"/files/{file}", f"/files/{file}/content"):
        answer = await client.http.get(path, headers=bob)
        assert (answer.status_code, answer.json()["code"]) == (404, "file_not_found")
    assert (await client.http.get("/files", headers=bob)).json()["data"] == []
    tune = {"model": "smollm2", "mode": "finetune", "name": "a", "dataset": file}
    answer = await client.http.post("/sessions", json=tune, headers=bob)
    assert (answer.status_code, answer.json()["code"]) == (404, "file_not_found")


BROKEN = {
    "not JSON": (b'{"messages": [\n' + LINE, "line 1"),
    "a wrong line in the middle": (LINE * 3 + b'{"messages": []}\n' + LINE, "line 4"),
    "another form in the middle": (LINE + b'{"instruction": "a", "output": "b"}\n', "line 2"),
    "nobody answers": (LINE + b'{"messages": [{"role": "user", "content": "x"}]}\n', "line 2"),
    "an unknown role": (LINE + b'{"messages": [{"role": "king", "content": "x"}]}\n', "line 2"),
    "not UTF-8": (LINE + b'{"messages": "\xff\xfe"}\n', "line 2"),
    "one example": (LINE, "2"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(400), "line 1"),
    "nested for ever": (b"[" * 200_000 + b"\n" + LINE, "line 1"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_malformed_dataset_is_refused_with_its_line(client: Client, what: str) -> None:
    data, named = BROKEN[what]
    before = len((await client.http.get("/files", params={"limit": 1000})).json()["data"])
    answer = await send(client, data)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "invalid_dataset"), problem
    assert named in problem["detail"], problem
    assert len((await client.http.get("/files", params={"limit": 1000})).json()["data"]) == before


async def test_what_is_no_upload_is_refused(client: Client) -> None:
    for answer, status, code in (
        (await send(client, LINE * 2, name="../../etc/passwd"), 422, "invalid_file"),
        (await send(client, LINE * 2, name="x" * 300), 422, "invalid_file"),
        (await send(client, b""), 422, "invalid_file"),
        (await send(client, LINE * 2, purpose="weights"), 422, "invalid_file"),
        (await client.http.post("/files", data={"purpose": "dataset"}), 422, "invalid_file"),
        (await client.http.post("/files", json={"file": "x"}), 422, "invalid_file"),
        (await send(client, LINE * (LIMIT // len(LINE) + 1)), 413, "file_too_large"),
        (await send(client, LINE * (2 * LIMIT // len(LINE))), 413, "body_too_large"),
        (await client.http.get("/files/nothing"), 404, "file_not_found"),
        (await client.http.get("/files/..%2f..%2fx/content"), 404, "not_found"),
        (await client.http.get("/files", params={"purpose": "x"}), 400, "invalid_request"),
        (await client.http.get("/files", params={"limit": 0}), 400, "invalid_request"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
