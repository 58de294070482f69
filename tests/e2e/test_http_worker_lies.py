"""HTTP-only workers that lie or err are refused with a stable code, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from helix_es.core import events as e
from helix_es.jetstream.beats import Beats
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.log import JetStreamLog
from tests.e2e.shop import Shop
from tests.e2e.worker import Hand, Place, open_shop, place

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def empty_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop without runners of its own."""
    with open_shop(tmp_path_factory.mktemp("workers")) as running:
        yield running


@pytest.fixture
async def here(empty_shop: Shop) -> AsyncIterator[Place]:
    async with place(empty_shop) as made:
        yield made


async def test_a_worker_that_lies_about_its_task_is_refused_and_disturbs_nothing(here: Place) -> None:
    honest, liar = here.hand("w1", lease_s=60), here.hand("w2", lease_s=60)
    polls = [asyncio.create_task(hand.task()) for hand in (honest, liar)]
    for prompt in ("one", "two"):
        await here.open(prompt)
    theirs, mine = [await poll for poll in polls]
    sid, turn, attempt, _, secret = theirs["task_id"].split(".")
    own = mine["task_id"].rpartition(".")[2]
    forged = {
        "its own secret": f"{sid}.{turn}.{attempt}.w1.{own}",
        "its own name": f"{sid}.{turn}.{attempt}.w2.{own}",
        "a secret that it guessed": f"{sid}.{turn}.{attempt}.w1.http-{secrets.token_hex(16)}",
        "the right secret under its name": f"{sid}.{turn}.{attempt}.w2.{secret}",
        "a turn to come": f"{sid}.2.1.w1.{secret}",
        "an attempt to come": f"{sid}.{turn}.2.w1.{secret}",
        "no session": f"nobody.1.1.w2.{own}",
        "no id": "rubbish",
        "a wildcard": f"*.1.1.w2.{own}",
    }
    before = await here.seq()
    for what, name in forged.items():
        for verb, body in (
            ("delta", {"text": "x"}),
            ("complete", {"output": "x"}),
            ("fail", {"message": "x"}),
        ):
            answer = await liar.say({"task_id": name}, verb, **body)
            assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found"), what
        answer = await liar.http.get(f"/task/{name}/input/f1")
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found"), what
        answer = await liar.http.post(f"/task/{name}/files", files={"file": ("a.txt", b"x")})
        assert (answer.status_code, answer.json()["code"]) == (404, "task_not_found"), what
    for verb, body, status, code in BAD_BODIES:
        answer = await liar.http.post(f"/task/{mine['task_id']}/{verb}", content=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), (verb, body[:60])
        assert answer.headers["content-type"].startswith("application/problem+json")
    assert await here.seq() == before
    for hand, task in ((honest, theirs), (liar, mine)):
        await hand.accepted(task, "complete", output="true")
        assert (await here.turn(task["session_id"]))["output"] == "true"
    after = await here.seq()
    answer = await liar.say(mine, "fail", message="no, wait")
    assert (answer.status_code, answer.json()["code"]) == (409, "stale_attempt"), "over is over"
    assert await here.seq() == after


BAD_BODIES: list[tuple[str, bytes, int, str]] = [
    ("delta", b"{", 400, "invalid_json"),
    ("delta", b"\xff", 400, "invalid_json"),
    ("delta", b'{"text": "\\ud800"}', 400, "invalid_json"),
    ("delta", b'{"text": 5}', 400, "invalid_request"),
    ("delta", b'{"txt": "x"}', 400, "invalid_request"),
    ("delta", b'{"text": "x", "offset": -4}', 400, "invalid_request"),
    ("delta", b'{"text": "x", "offset": 786432}', 413, "output_too_large"),
    ("delta", b'{"step": 9, "steps": 3}', 400, "invalid_request"),
    ("delta", b'{"text": "%s"}' % (b"x" * 800_000), 413, "body_too_large"),
    ("complete", b'{"usage": {"prompt_tokens": -1}}', 400, "invalid_request"),
    ("complete", b'{"files": ["nothing"]}', 404, "file_not_found"),
    ("complete", b'{"output": "%s"}' % ("\\u0001" * 131_100).encode(), 413, "body_too_large"),
    ("complete", b'{"finish_reason": "<b>"}', 400, "invalid_request"),
    ("fail", b"{}", 400, "invalid_request"),
    ("fail", b'{"message": "x", "code": "Not A Code"}', 400, "invalid_request"),
]


async def test_an_output_that_fits_a_request_but_not_the_log_is_refused(here: Place) -> None:
    hand = here.hand("w1")
    sid = await here.open()
    task = await hand.task()
    piece = "é" * 100_000  # two bytes each
    for _ in range(4):
        await hand.accepted(task, "delta", text=piece)
    answer = await hand.say(task, "complete")
    assert (answer.status_code, answer.json()["code"]) == (413, "output_too_large")
    await hand.accepted(task, "complete", output=piece * 3)
    assert len((await here.turn(sid))["output"]) == 300_000


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"model_name": "gpt-99"}, 422, "unknown_model"),
        ({"type": "Image"}, 422, "wrong_type"),
        ({"mode": "destroy"}, 400, "invalid_request"),
        ({"worker": "No Name"}, 400, "invalid_request"),
        ({"worker": ""}, 400, "invalid_request"),
        ({"slots": "many"}, 400, "invalid_request"),
        ({"lease_s": 1}, 400, "invalid_request"),
        ({"wait_s": 3600}, 400, "invalid_request"),
        ({"color": "red"}, 400, "invalid_request"),
    ],
)
async def test_a_bad_filter_is_refused(here: Place, query: dict[str, Any], status: int, code: str) -> None:
    before = await here.seq()
    answer = await here.hand("w1").ask(**query)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert await here.seq() == before


async def test_a_worker_cannot_take_the_name_of_a_gpu_of_another_sort(here: Place) -> None:
    connection = await connect(NatsSettings(url=here.shop.nats_url))
    try:
        log = JetStreamLog(connection)
        about: Any = {"gpu": e.GpuId("box-0"), "incarnation": "native"}
        work = [e.Workload("create", "text", "mistral")]
        ours = e.GpuJoined(**about, kind="cpu", memory_total_bytes=1, workloads=work)
        await log.append(ours, expected_seq=0, key=secrets.token_hex(4))
        await here.until(lambda: there(here, "box-0"), "the GPU")
        hand = Hand(here.shop.url, "box-0")
        for answer in (await hand.ask(), await hand.http.delete("/box-0")):
            assert (answer.status_code, answer.json()["code"]) == (409, "worker_name_taken")
        forged = {"task_id": "s.1.1.box-0.native"}
        for verb, body in (("delta", {}), ("complete", {}), ("fail", {"message": "x"})):
            assert (await hand.say(forged, verb, **body)).status_code == 404
        await connection.request("$JS.API.STREAM.INFO.BEATS", b"")  # what was published before is stored
        assert "box-0" not in await Beats(connection).latest(), "nobody else keeps it alive"
        said = await log.history("gpu.box-0.>")
        await log.append(e.GpuLeft(**about), expected_seq=said[-1].seq, key=secrets.token_hex(4))
        await hand.http.aclose()
    finally:
        await connection.close()


async def there(here: Place, name: str) -> bool:
    return name in await here.gpus()
