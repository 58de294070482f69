"""`helix chat`: what stands on stdout and stderr, over every way a connection can break."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helix_es.cli import client
from helix_es.cli.answer import Again, Answer, Dropped, Ended, Text
from helix_es.cli.chat import chat
from helix_es.cli.client import Api, Interrupted, NoHelix
from tests.cli.fake import (
    SID,
    Answered,
    FakeApi,
    Streamed,
    delta,
    fact,
    problem,
    session,
    sse,
    terminal,
    turn,
)

NEW = "POST /api/v1/sessions"
EVENTS = f"GET /api/v1/sessions/{SID}/events?turn=1"
SESSION = f"GET /api/v1/sessions/{SID}"
STARTED = fact("turn.started", turn("running"), "3.1.0")


def completed(output: str, **others: Any) -> bytes:
    return fact("turn.completed", turn("completed", output, **others), "9.1.0")


def ask(api: FakeApi, *words: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(chat, ["--url", api.url, *words], input=stdin, catch_exceptions=False)


@pytest.fixture
def opened(api: FakeApi) -> FakeApi:
    api.on(NEW, Answered(session(turn()), 201))
    return api


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "POST_AGAIN_S", (0.0, 0.0))


def test_the_answer_is_on_stdout_and_all_else_on_stderr(opened: FakeApi) -> None:
    place = sse("queue", {"turn": 1, "position": 3, "wait_s": 12.2})
    opened.on(EVENTS, Streamed(place, STARTED, delta("Hel", 0), delta("lo", 3), completed("Hello")))
    said = ask(opened, "--max-tokens", "5", "--seed", "7", "--system", "be brief", "hi")
    assert (said.exit_code, said.stdout) == (0, "Hello\n")
    assert said.stderr == f"place 3, about 12 s\nsession {SID}\n"
    headers, body = opened.seen[NEW][0]
    assert len(headers["idempotency-key"]) == 32
    assert body == {
        "model": "smollm2",
        "system": "be brief",
        "prompt": "hi",
        "params": {"max_tokens": 5, "seed": 7},
    }


def test_a_place_without_a_gpu_says_so(opened: FakeApi) -> None:
    opened.on(EVENTS, Streamed(sse("queue", {"turn": 1, "position": 1, "wait_s": None}), completed("x")))
    assert "place 1, nothing serves this model now\n" in ask(opened, "hi").stderr


def test_a_session_goes_on_with_a_prompt_from_stdin(api: FakeApi) -> None:
    api.on(f"POST /api/v1/sessions/{SID}/turns", Answered(turn() | {"turn": 2}, 201))
    ended = turn("completed", "More") | {"turn": 2}
    api.on(f"GET /api/v1/sessions/{SID}/events?turn=2", Streamed(fact("turn.completed", ended, "12.1.0")))
    said = ask(api, "--session", SID, stdin="and then?\n")
    assert (said.exit_code, said.stdout) == (0, "More\n")
    assert api.seen[f"POST /api/v1/sessions/{SID}/turns"][0][1] == {"prompt": "and then?\n", "params": {}}


def test_json_is_the_turn_with_its_session(opened: FakeApi) -> None:
    opened.on(EVENTS, Streamed(delta("Hel", 0), completed("Hello")))
    said = ask(opened, "-o", "json", "hi")
    assert json.loads(said.stdout) == {"session_id": SID, **turn("completed", "Hello")}


def test_signs_of_life_between_events_are_no_events(opened: FakeApi) -> None:
    ping = b": ping\n\n"  # after an event with an id it reaches us as an event without data
    opened.on(
        EVENTS,
        Streamed(
            ping,
            delta("Hel", 0, event_id="3.1.3"),
            ping,
            delta("lo", 3, event_id="3.1.5"),
            ping,
            completed("Hello"),
        ),
    )
    assert ask(opened, "hi").stdout == "Hello\n"
    assert len(opened.seen[EVENTS]) == 1


def test_a_cut_stream_goes_on_from_the_last_event(opened: FakeApi) -> None:
    opened.on(
        EVENTS,
        Streamed(STARTED, delta("Größe ", 0, event_id="3.1.6"), cut=True),
        Streamed(delta("🚢 x", 6, event_id="3.1.9"), cut=True),
        Streamed(delta("🚢 x!", 6, event_id="3.1.10"), completed("Größe 🚢 x!")),
    )
    opened.on(SESSION, None)
    said = ask(opened, "hi")
    assert (said.exit_code, said.stdout) == (0, "Größe 🚢 x!\n")
    resumed = [headers.get("last-event-id") for headers, _ in opened.seen[EVENTS]]
    assert resumed == [None, "3.1.6", "3.1.9"]


def test_lines_that_only_unicode_calls_lines_are_text(opened: FakeApi) -> None:
    opened.on(EVENTS, Streamed(delta("a\u2028b\x85c", 0), completed("a\u2028b\x85c\nd")))
    assert ask(opened, "hi").stdout == "a\u2028b\x85c\nd\n"


def test_an_end_that_the_stream_did_not_tell_is_read_from_the_session(opened: FakeApi) -> None:
    opened.on(EVENTS, Streamed(STARTED, delta("Hel", 0)))
    opened.on(SESSION, Answered(session(turn("completed", "Hello"))))
    assert ask(opened, "hi").stdout == "Hello\n"


def test_a_new_attempt_goes_on_where_a_pipe_has_got_the_same(opened: FakeApi) -> None:
    again = fact("turn.started", turn("running", attempt=2), "6.2.0")
    pieces = [delta("The s", 0, attempt=2), delta("ea is blue", 5, attempt=2)]
    opened.on(EVENTS, Streamed(delta("The sea", 0), again, *pieces, completed("The sea is blue", attempt=2)))
    said = ask(opened, "hi")
    assert said.stdout == "The sea is blue\n"
    assert "attempt 2" in said.stderr


def test_a_new_attempt_that_differs_is_printed_in_full(opened: FakeApi) -> None:
    pieces = [delta("The sea", 0), delta("A lake", 0, attempt=2)]
    opened.on(EVENTS, Streamed(*pieces, completed("A lake", attempt=2)))
    said = ask(opened, "hi")
    assert said.stdout == "The sea\nA lake\n"
    assert "says something else" in said.stderr


def test_a_shorter_second_attempt_is_printed_in_full(opened: FakeApi) -> None:
    pieces = [delta("The sea", 0), delta("The", 0, attempt=2)]
    opened.on(EVENTS, Streamed(*pieces, completed("The", attempt=2)))
    assert ask(opened, "hi").stdout == "The sea\nThe\n"


def test_pieces_of_an_older_attempt_or_heard_before_are_left_out(opened: FakeApi) -> None:
    second = [delta("ab", 0, attempt=2), delta("zz", 2), delta("ab", 0, attempt=2), delta("xx", 9, attempt=2)]
    opened.on(EVENTS, Streamed(*second, completed("abcd", attempt=2)))
    assert ask(opened, "hi").stdout == "abcd\n"


def test_a_failed_turn_is_exit_code_1(opened: FakeApi) -> None:
    error = {"code": "engine_error", "message": "out of memory"}
    opened.on(EVENTS, Streamed(delta("Hel", 0), fact("turn.failed", turn("failed", "Hel", error=error), "5")))
    said = ask(opened, "hi")
    assert (said.exit_code, said.stdout) == (1, "Hel\n")
    assert said.stderr == f"session {SID}\nhelix: turn 1 failed: out of memory (engine_error)\n"


def test_a_turn_cancelled_by_others_is_exit_code_1(opened: FakeApi) -> None:
    opened.on(EVENTS, Streamed(fact("session.closed", turn("cancelled"), "5.1.0")))
    said = ask(opened, "hi")
    assert (said.exit_code, said.stdout) == (1, "")
    assert "turn 1 was cancelled" in said.stderr


def test_a_problem_is_one_line(api: FakeApi) -> None:
    api.on(NEW, problem(422, "unknown_model", "no model 'x'; there are: smollm2"))
    said = ask(api, "--model", "x", "hi")
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr == "helix: no model 'x'; there are: smollm2 (unknown_model)\n"


def test_a_post_is_repeated_with_its_key(api: FakeApi) -> None:
    api.on(NEW, None, problem(503, "log_unavailable", "later"), Answered(session(turn()), 201))
    api.on(EVENTS, Streamed(completed("ok")))
    assert ask(api, "hi").stdout == "ok\n"
    assert len({headers["idempotency-key"] for headers, _ in api.seen[NEW]}) == 1
    assert len(api.seen[NEW]) == 3


def test_the_key_is_sent_and_never_shown(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIX_API_KEY", "sk-hidden")
    api.on(NEW, problem(401, "unauthorized", "send a key"))
    said = ask(api, "hi")
    assert api.seen[NEW][0][0]["authorization"] == "Bearer sk-hidden"
    assert said.exit_code == 1
    assert "hidden" not in said.output
    monkeypatch.setenv("HELIX_API_KEY", "sk-hidden\nx")
    said = ask(api, "hi")
    assert said.exit_code == 2
    assert "hidden" not in said.output


def test_an_answer_gives_up_on_a_server_that_stays_away(api: FakeApi) -> None:
    api.on(EVENTS, Streamed(delta("Hel", 0), cut=True), None)
    pauses: list[float] = []
    with Api(api.url) as asked:
        updates = Answer(asked, SID, 1, again_s=(1.0, 2.0), pause=pauses.append).updates()
        assert [next(updates), type(next(updates))] == [Text("Hel"), Dropped]
        with pytest.raises(Interrupted, match="broke"):
            next(updates)
    assert pauses == [1.0, 2.0]


def test_an_answer_survives_a_server_that_starts_again() -> None:
    first = FakeApi()
    server = threading.Thread(target=first.server.serve_forever, args=(0.02,), daemon=True)
    server.start()
    first.on(EVENTS, Streamed(delta("Hel", 0, event_id="3.1.3"), cut=True))
    port = first.server.server_port
    tries: list[float] = []
    second: list[FakeApi] = []

    def start_again(pause_s: float) -> None:
        tries.append(pause_s)
        if len(tries) == 1:
            first.server.shutdown()
            first.server.server_close()
        if len(tries) == 3:
            second.append(_on_port(port))

    with Api(first.url) as asked:
        heard = list(Answer(asked, SID, 1, again_s=(0.0,) * 5, pause=start_again).updates())
    second[0].server.shutdown()
    second[0].server.server_close()
    server.join(10)
    assert [type(update) for update in heard] == [Text, Dropped, Text, Ended]
    assert second[0].seen[EVENTS][0][0]["last-event-id"] == "3.1.3"


def _on_port(port: int) -> FakeApi:
    api = FakeApi()
    api.server.server_close()
    api.server = type(api.server)(("127.0.0.1", port), api.server.RequestHandlerClass)
    api.on(EVENTS, Streamed(delta("lo", 3), completed("Hello")))
    threading.Thread(target=api.server.serve_forever, args=(0.02,), daemon=True).start()
    return api


def test_an_end_that_contradicts_the_pieces_begins_again(api: FakeApi) -> None:
    api.on(EVENTS, Streamed(delta("Hxl", 0), completed("Hello")))
    with Api(api.url) as asked:
        heard = list(Answer(asked, SID, 1).updates())
    assert heard[:3] == [Text("Hxl"), Again(1), Text("Hello")]


def test_nothing_at_the_address_is_no_helix() -> None:
    with Api("http://127.0.0.1:1") as asked, pytest.raises(NoHelix, match="start one with 'helix up'"):
        asked.get("/api/v1/gpus")


def test_a_conversation_in_a_terminal(opened: FakeApi) -> None:
    stop = threading.Event()
    opened.on(
        EVENTS, Streamed(delta("Once \x1b[31m", 0), fact("turn.cancelled", turn("cancelled"), "5"), wait=stop)
    )
    opened.on(f"POST /api/v1/sessions/{SID}/turns", Answered(turn() | {"turn": 2}, 201))
    second = turn("completed", "Fine") | {"turn": 2}
    opened.on(f"GET /api/v1/sessions/{SID}/events?turn=2", Streamed(fact("turn.completed", second, "12")))
    cancel = f"POST /api/v1/sessions/{SID}/turns/1/cancel"
    opened.on(cancel, Answered({"status": "accepted"}, 202))
    opened.hooks[cancel] = stop.set
    with terminal("chat", "--url", opened.url) as shell:
        shell.until("› ")
        shell.write("tell me\r")
        shell.until("Once \ufffd[31m")  # models cannot steer the terminal
        shell.write("\x03")
        shell.until("cancelling …")  # what was said so far stays
        seen = shell.until("turn 1 was cancelled")
        shell.until("› ", seen)
        shell.write("and now?\r")
        seen = shell.until("Fine")
        shell.until("› ", seen)
        shell.write("/quit\r")
        shell.until(f"session {SID}")
        assert shell.ended() == 0


def test_ctrl_c_cancels_the_one_question(opened: FakeApi) -> None:
    stop = threading.Event()
    opened.on(
        EVENTS, Streamed(delta("Once", 0), fact("turn.cancelled", turn("cancelled", "Once"), "5"), wait=stop)
    )
    cancel = f"POST /api/v1/sessions/{SID}/turns/1/cancel"
    opened.on(cancel, Answered({"status": "accepted"}, 202))
    opened.hooks[cancel] = stop.set
    with terminal("chat", "--url", opened.url, "tell me") as shell:
        shell.until("Once")
        shell.write("\x03")
        shell.until(f"session {SID}")
        assert shell.ended() == 130
    assert len(opened.seen[cancel]) == 1
