"""The wire: every tag ever shipped is still read, whatever does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from helix_es.core import events as e
from helix_es.core.codec import UPCASTERS, decode, encode, type_of
from helix_es.core.errors import Rejected, Unreadable
from helix_es.core.subjects import fence_of, subject_of, token
from helix_es.testing import matches

SAMPLES = sorted((Path(__file__).parent.parent / "data" / "events").glob("*.json"))


@pytest.mark.parametrize("path", SAMPLES, ids=[path.stem for path in SAMPLES])
def test_every_sample_ever_shipped_is_read_and_written_the_same(path: Path) -> None:
    sample = json.loads(path.read_text())
    data = json.dumps(sample["payload"]).encode()
    event = decode(sample["subject"], data)
    assert type_of(event) in (path.stem, UPCASTERS and type_of(event))
    assert subject_of(event) == sample["subject"]
    assert decode(sample["subject"], encode(event)) == event


def test_every_event_has_a_sample() -> None:
    known = {str(kind.__struct_config__.tag) for kind in get_args(e.AnyEvent)}
    assert known == {path.stem for path in SAMPLES}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x01",
        b"[" * 100_000,
        b'{"event":"session.closed","session":"\xff"}',
        b'{"event":"session.closed","session":"a\xff"}',
        b'{"event":' * 100_000,
        b"{",
        b"[]",
        b"7",
        b'"text"',
        b'{"stream":"LOG","seq":7}',
        b'{"event":"session.vanished","session":"a"}',
        b'{"event":"session.closed"}',
        b'{"event":"session.closed","session":7}',
        b'{"event":"session.closed","session":"b"}',
        b'{"event":["session.closed"]}',
        b'{"event":"gpu.lost","gpu":"a","incarnation":"i","silent_ms":1}',
    ],
)
def test_what_is_not_an_event_of_this_subject_is_refused(data: bytes) -> None:
    with pytest.raises(Unreadable):
        decode("session.a.closed", data)


def test_unknown_fields_are_let_pass_so_that_old_readers_read_new_events() -> None:
    data = b'{"event":"session.closed","session":"a","mood":"good"}'
    assert decode("session.a.closed", data) == e.SessionClosed(session=e.SessionId("a"))


def test_an_old_version_is_lifted_by_its_upcaster(monkeypatch: pytest.MonkeyPatch) -> None:
    def lift(raw: dict[str, object]) -> dict[str, object]:
        return {"event": "session.closed", "session": raw["name"]}

    monkeypatch.setitem(UPCASTERS, "session.ended", lift)
    data = b'{"event":"session.ended","name":"a"}'
    assert decode("session.a.closed", data) == e.SessionClosed(session=e.SessionId("a"))
    with pytest.raises(Unreadable):
        decode("session.a.closed", b'{"event":"session.ended"}')


def test_the_fence_is_one_string_for_everything_about_a_session() -> None:
    subjects = [
        "session.a.closed",
        "session.a.turn.queued.create.text.mistral",
        "session.a.turn.continued.text.mistral.box-0",
    ]
    assert {fence_of(subject) for subject in subjects} == {"session.a.>"}
    assert fence_of("gpu.box-0.lost") == "gpu.box-0.>"


@pytest.mark.parametrize("bad", ["", "a.b", "*", ">", "A", "a b", "ü", "x" * 65, "a\n"])
def test_what_cannot_stand_in_a_subject_is_refused(bad: str) -> None:
    with pytest.raises(Rejected):
        token(bad, "name")


@pytest.mark.parametrize(
    ("subject", "wanted", "fits"),
    [
        ("a.b.c", "a.>", True),
        ("a.b.c", "a.*.c", True),
        ("a.b.c", ">", True),
        ("a", "a.>", False),
        ("a.b", "a.*.c", False),
        ("a.b.c", "a.b", False),
    ],
)
def test_filters_match_as_nats_does(subject: str, wanted: str, fits: bool) -> None:
    assert matches(subject, wanted) is fits


def test_defaults_are_written_out_for_readers_without_our_code() -> None:
    event = e.SessionReleased(
        session=e.SessionId("a"),
        gpu=e.GpuId("g-0"),
        incarnation="i",
        reason="idle",
        decided_seq=1,
        decided_at_ms=2,
    )
    assert set(msgspec.json.decode(encode(event))) == {"event", *e.SessionReleased.__struct_fields__}
