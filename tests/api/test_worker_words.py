"""What a worker may say, asked of the parsers alone: every refusal names what is wrong and what is allowed."""

from __future__ import annotations

import hashlib
import io
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helix_es.api.owner import Unauthorized
from helix_es.api.workers.handout import filled
from helix_es.api.workers.keys import NotAWorker, check_worker
from helix_es.api.workers.offer import request_of
from helix_es.api.workers.recent import Recent
from helix_es.api.workers.reports import MOST_DETAIL_BYTES, Completion, Failing, Piece, read
from helix_es.api.workers.taskid import TaskId
from helix_es.api.workers.workers import media_of
from helix_es.core.errors import Misconfigured, Rejected
from helix_es.core.events import GpuId, SessionId, Workload
from helix_es.settings import Auth, Settings, parse

MISTRAL = "mistralai/Mistral-7B-Instruct-v0.1"
GOOD = {"model_name": "mistral", "worker": "w1"}


def test_the_filter_of_the_notes_is_understood_in_any_case() -> None:
    query = {"mode": "Create", "type": "Text", "model_name": MISTRAL.upper(), "worker": "w1", "wait_s": "0.5"}
    asked = request_of(query, Settings())
    assert asked.offer.workload == Workload("create", "text", "mistral")
    assert (asked.offer.slots, asked.offer.lease_ms, asked.wait_s, asked.holds) == (1, 30_000, 0.5, None)
    more = request_of({**GOOD, "slots": "3", "lease_s": "4.5", "kind": "L4", "holds": "a, b,"}, Settings())
    assert (more.offer.slots, more.offer.lease_ms, more.offer.kind) == (3, 4500, "l4")
    assert more.holds == {"a", "b"}


BAD_QUERIES: list[tuple[dict[str, str], str, str]] = [
    ({"worker": ""}, "invalid_request", "worker"),
    ({"worker": "Über"}, "invalid_request", "worker"),
    ({"worker": "a.b"}, "invalid_request", "worker"),
    ({"worker": "x" * 65}, "invalid_request", "worker"),
    ({"worker": "none"}, "invalid_request", "reserved"),
    ({"worker": "task"}, "invalid_request", "reserved"),
    ({"mode": "continue"}, "invalid_request", "mode"),
    ({"type": "smell"}, "invalid_request", "type"),
    ({"model_name": ""}, "invalid_request", "model_name"),
    ({"model_name": "gpt-99"}, "unknown_model", "mistral"),
    ({"type": "image"}, "wrong_type", "mistral makes text"),
    ({"mode": "finetune", "model_name": "scenes"}, "mode_unavailable", "scenes makes image"),
    ({"wait_s": "61"}, "invalid_request", "wait_s"),
    ({"wait_s": "nan"}, "invalid_request", "wait_s"),
    ({"wait_s": "soon"}, "invalid_request", "wait_s"),
    ({"slots": "0"}, "invalid_request", "slots"),
    ({"slots": "65"}, "invalid_request", "slots"),
    ({"slots": "1.5"}, "invalid_request", "slots"),
    ({"lease_s": "2"}, "invalid_request", "lease_s"),
    ({"lease_s": "inf"}, "invalid_request", "lease_s"),
    ({"kind": "a b"}, "invalid_request", "kind"),
    ({"waits": "3"}, "invalid_request", "wait_s"),
    ({"holds": ",".join(str(n) for n in range(65))}, "invalid_request", "holds"),
]


@pytest.mark.parametrize(("changed", "code", "named"), BAD_QUERIES, ids=str)
def test_a_bad_filter_is_refused_by_name(changed: dict[str, str], code: str, named: str) -> None:
    with pytest.raises(Rejected, match=named) as refused:
        request_of({**GOOD, **changed}, Settings())
    assert refused.value.code == code


def test_a_task_id_is_read_as_it_was_written() -> None:
    task = TaskId(SessionId("s1"), 3, 2, GpuId("w_1"), "http-0a")
    assert TaskId.parse(str(task)) == task


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "s.1.1.w",
        "s.1.1.w.i.x",
        "s.0.1.w.i",
        "s.01.1.w.i",
        "s.+1.1.w.i",
        "s.1.1.w.",
        "*.1.1.w.i",
        "s.1.1.>.i",
        "s.1e3.1.w.i",
        "s.².1.w.i",
        "s." + "9" * 30 + ".1.w.i",
        "S.1.1.w.i",
    ],
)
def test_what_was_never_a_task_id_is_not_found(text: str) -> None:
    with pytest.raises(Rejected) as refused:
        TaskId.parse(text)
    assert refused.value.code == "task_not_found"


BAD_REPORTS: list[tuple[bytes, type[Any], str, str]] = [
    (b"{", Piece, "invalid_json", "JSON"),
    (b"\xff\xfe", Piece, "invalid_json", "JSON"),
    (b'{"detail": {"a": ' + b"[" * 100_000, Piece, "invalid_json", "JSON"),
    (b"[]", Piece, "invalid_request", "object"),
    (b'{"text": 7}', Piece, "invalid_request", "text"),
    (b'{"txt": "x"}', Piece, "invalid_request", "txt"),
    (b'{"offset": -1, "text": "x"}', Piece, "invalid_request", "offset"),
    (b'{"offset": 99999999, "text": "x"}', Piece, "invalid_request", "offset"),
    (b'{"step": 3}', Piece, "invalid_request", "steps"),
    (b'{"step": 5, "steps": 4}', Piece, "invalid_request", "step"),
    (b'{"step": -1, "steps": 4}', Piece, "invalid_request", "step"),
    (
        b'{"step": 1, "steps": 4, "detail": {"a": "%s"}}' % (b"x" * MOST_DETAIL_BYTES),
        Piece,
        "invalid_request",
        "detail",
    ),
    (b'{"output": null, "usage": {"prompt_tokens": -5}}', Completion, "invalid_request", "prompt_tokens"),
    (b'{"usage": {"completion_tokens": 1e99}}', Completion, "invalid_request", "completion_tokens"),
    (b'{"usage": {"joules": 1}}', Completion, "invalid_request", "joules"),
    (b'{"files": "all"}', Completion, "invalid_request", "files"),
    (b'{"finish_reason": "a\\nb"}', Completion, "invalid_request", "finish_reason"),
    (b'{"output": 5}', Completion, "invalid_request", "output"),
    (b"", Failing, "invalid_request", "message"),
    (b'{"message": ""}', Failing, "invalid_request", "message"),
    (b'{"message": "x", "code": "No Code"}', Failing, "invalid_request", "code"),
]


@pytest.mark.parametrize(("raw", "kind", "code", "named"), BAD_REPORTS, ids=lambda x: str(x)[:40])
def test_a_bad_report_is_refused_by_name(raw: bytes, kind: type[Any], code: str, named: str) -> None:
    with pytest.raises(Rejected, match=named) as refused:
        read(raw, kind)
    assert refused.value.code == code


def test_nothing_is_a_sign_of_life_and_an_end() -> None:
    assert read(b"", Piece) == Piece()
    assert read(b" \n", Completion) == Completion()


def test_a_template_is_filled_once() -> None:
    assert (
        filled("[INST]{system} {prompt}[/INST]", "{system}{prompt}", "S") == "[INST]S {system}{prompt}[/INST]"
    )
    assert filled("{prompt}{other}", "p", None) == "p{other}"


def test_a_picture_is_known_by_its_first_bytes() -> None:
    png = io.BytesIO(b"\x89PNG\r\n\x1a\n...")
    assert media_of("x.txt", png) == "image/png"
    assert png.tell() == 0
    assert media_of("x.webp", io.BytesIO(b"RIFF0000WEBPVP8 ")) == "image/webp"
    assert media_of("x.png", io.BytesIO(b"<html>")) == "application/octet-stream"
    assert media_of("A.JSONL", io.BytesIO(b"{}")) == "application/jsonl"


def test_the_oldest_is_forgotten_and_made_anew() -> None:
    made: Recent[str, list[int]] = Recent(2, list)
    for name in ("a", "b", "a", "c"):
        made[name].append(1)
    assert made["a"] == [1, 1]
    assert made["b"] == []


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


AUTH = Auth(keys={digest("user"): "ann"}, workers={digest("any"): "*", digest("mine").upper(): "w1"})


@pytest.mark.parametrize(
    ("header", "worker", "error"),
    [
        ("Bearer any", "w1", None),
        ("bearer mine", "w1", None),
        ("Bearer mine", "w2", NotAWorker),
        ("Bearer user", "w1", NotAWorker),
        ("Bearer other", "w1", Unauthorized),
        ("Basic any", "w1", Unauthorized),
        ("", "w1", Unauthorized),
    ],
)
def test_only_a_workers_key_makes_a_worker(header: str, worker: str, error: type[Exception] | None) -> None:
    if error is None:
        check_worker({"authorization": header}, AUTH, worker)
        return
    with pytest.raises(error):
        check_worker({"authorization": header}, AUTH, worker)


def test_workers_keys_alone_close_the_door_too_and_no_keys_leave_it_open() -> None:
    check_worker({}, Auth(), "w1")
    with pytest.raises(Unauthorized):
        check_worker({}, Auth(workers={digest("any"): "*"}), "w1")


def test_a_wrong_worker_in_the_configuration_is_refused_by_its_key() -> None:
    assert parse({"auth": {"workers": {"ab": "*", "cd": "w1"}}}).auth.workers == {"ab": "*", "cd": "w1"}
    with pytest.raises(Misconfigured, match=r"auth\.workers\.0123abcd"):
        parse({"auth": {"workers": {"0123abcdef": "Not A Name"}}})


def test_the_keys_of_the_readme_are_a_configuration() -> None:
    readme = Path(__file__).parents[2] / "deploy" / "worker" / "README.md"
    text = readme.read_text(encoding="utf-8").partition("```toml\n")[2].partition("```")[0]
    auth = parse(tomllib.loads(text)).auth
    assert auth.workers == {digest("secret"): "gpu-box-7"}


def test_the_structs_of_reports_are_closed() -> None:
    for kind in (Piece, Completion, Failing):
        assert kind.__struct_config__.forbid_unknown_fields
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"surprise": 1}, kind)
