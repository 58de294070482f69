"""Traces are read as they are written, or refused with the line that is wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from helix_es.core.errors import Unreadable
from helix_es.core.events import Workload
from helix_projections.simulation.arrival import Arrival
from helix_projections.simulation.traces import detect, merged, mooncake, read_trace

HEAD = "t_ms,session_id,turn,input_tokens,output_tokens,prefix_blocks,shared_blocks_with_parent\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PHILLY = "job,submit_s,duration_s,num_gpus,vc\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def requests(*lines: tuple[int, int, int, list[int]]) -> str:
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    return "\n".join(json.dumps(dict(zip(names, line, strict=True))) for line in lines)


def test_a_turn_is_read_with_its_time_scaled_and_what_its_session_knows(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + "0,4,1,1100,30,2,0\n3000,4,2,1500,0,3,2\n9000,5,1,800,20,1,0\n")
    first, second = mooncake(path, time_scale=0.5, until_ms=9000)
    assert first == Arrival(at_ms=0, session="m4", turn=1, prompt_tokens=1100, output_tokens=30)
    assert second == Arrival(
        at_ms=1500, session="m4", turn=2, prompt_tokens=1500, output_tokens=1, known_tokens=1024
    )


@pytest.mark.parametrize(
    "line", ["x,4,1,1100,30,2,0", "0,4,1,1100", "0,4,1,eleven,30,2,0", "0,4,1,-1,30,2,0"]
)
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, HEAD + "0,4,1,1100,30,2,0\n" + line + "\n")
    with pytest.raises(Unreadable, match=r"trace\.csv, line 3"):
        list(mooncake(path))


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="line 2"):
        list(mooncake(written(tmp_path, "a,b\n1,2\n")))


def test_requests_of_the_published_trace_are_linked_by_the_blocks_that_they_share(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        requests(
            (0, 1100, 30, [0, 1, 2]),  # the last block is not full
            (1000, 600, 30, [0, 7]),  # shares the system prompt alone
            (2000, 1600, 40, [0, 1, 3, 4]),  # goes on from the first
            (3000, 1600, 40, [0, 1, 3, 4]),  # the same again is no continuation of itself, but of the first
            (4000, 2600, 0, [0, 1, 3, 5, 6, 8]),  # of the second
        ),
    )
    found = [(a.session, a.turn, a.known_tokens) for a in read_trace(path, time_scale=0.5)]
    assert found == [("m0", 1, 0), ("m1", 1, 0), ("m0", 2, 1024), ("m0", 2, 1024), ("m0", 3, 1536)]
    assert [a.at_ms for a in read_trace(path, time_scale=0.5, until_ms=2001)] == [0, 500, 1000]


@pytest.mark.parametrize(
    "line", ["{", '{"timestamp":1}', '{"timestamp":"x","input_length":1,"output_length":1,"hash_ids":[]}']
)
def test_a_request_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, requests((0, 1100, 30, [0, 1])) + "\n\n" + line)
    with pytest.raises(Unreadable, match=r"trace\.csv, line 3"):
        list(read_trace(path))


@pytest.mark.parametrize(
    "times",
    [("2023-11-16 18:15:46.6805900", "2023-11-16 18:15:50.68059"), ("2024-05-10 00:00:00.5+00:00",) * 2],
)
def test_azures_requests_are_sessions_of_their_own_and_count_from_the_first(
    tmp_path: Path, times: tuple[str, str]
) -> None:
    path = written(tmp_path, AZURE + f"{times[0]},374,44\n{times[1]},20,0\n")
    first, second = read_trace(path, time_scale=0.5)
    assert first == Arrival(at_ms=0, session="a0", turn=1, prompt_tokens=374, output_tokens=44)
    assert second.session == "a1"
    assert second.at_ms in (0, 2000)
    assert second.output_tokens == 1
    assert len(list(read_trace(path, until_ms=4000))) == (1 if second.at_ms else 2)


def test_a_job_of_several_gpus_is_as_many_jobs(tmp_path: Path) -> None:
    path = written(tmp_path, PHILLY + "0,45,30,1,6214e9\n1,50,0,2,11cb48\n")
    tuned = Workload("finetune", "text", "smollm2")
    first, *others = read_trace(path, time_scale=2.0, batch=tuned)
    assert first == Arrival(
        at_ms=90_000, session="p0", turn=1, work_ms=30_000, workload=tuned, owner="6214e9"
    )
    assert [(a.session, a.at_ms, a.work_ms) for a in others] == [("p1-0", 100_000, 1), ("p1-1", 100_000, 1)]


@pytest.mark.parametrize(
    "text",
    [
        AZURE + "yesterday,1,2\n",
        AZURE + "2023-11-16 18:15:46,x,2\n",
        PHILLY + "0,45,-1,1,a\n",
        PHILLY + "0,1\n",
    ],
)
def test_a_row_of_azure_or_philly_that_does_not_fit_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(Unreadable, match=r"trace\.csv, line 2"):
        list(read_trace(written(tmp_path, text)))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (HEAD, "mooncake"),
        (AZURE, "azure"),
        ("\ufeff" + AZURE, "azure"),
        (PHILLY, "philly"),
        (requests((0, 1, 1, [0])), "mooncake-jsonl"),
        ('{"seq":1,"at_ms":2,"subject":"a.b.c","payload":null}', "log"),
    ],
)
def test_a_form_is_known_by_its_first_line(tmp_path: Path, text: str, form: str) -> None:
    assert detect(written(tmp_path, text)) == form


def test_a_folder_is_an_export_of_a_log(tmp_path: Path) -> None:
    assert detect(tmp_path) == "log"
    with pytest.raises(Unreadable, match="--log"):
        read_trace(tmp_path)


@pytest.mark.parametrize("text", ["", "a,b,c\n", '{"a":1}', "{", "\x00\xff"])
def test_what_is_none_of_these_is_refused_with_what_is_known(tmp_path: Path, text: str) -> None:
    with pytest.raises(Unreadable, match=r"trace\.csv"):
        detect(written(tmp_path, text))
    with pytest.raises(Unreadable, match="No such file"):
        detect(tmp_path / "nowhere.csv")


def test_traces_are_merged_by_time() -> None:
    chats = [Arrival(at_ms=at, session=f"c{at}", turn=1) for at in (0, 10, 20)]
    jobs = [Arrival(at_ms=at, session=f"j{at}", turn=1, work_ms=5) for at in (5, 10)]
    assert [each.session for each in merged(chats, jobs)] == ["c0", "j5", "c10", "j10", "c20"]


def mooncakes(form: str) -> tuple[str, list[str]]:
    """Return the header and the rows of a small trace, in order of time; a session in it has three turns."""
    if form == "mooncake":
        turns = [(0, 4, 1), (900, 5, 1), (3000, 4, 2), (3001, 6, 1), (9000, 4, 3)]
        return HEAD, [f"{at},{session},{turn},1500,{at},3,{turn - 1}" for at, session, turn in turns]
    chain = [[0, 1, 2], [7, 8], [0, 1, 3, 4], [9, 8, 9], [0, 1, 3, 5, 6, 8]]
    asked = [(at, 1000 + at, 30, ids) for at, ids in zip((0, 900, 3000, 3001, 9000), chain, strict=True)]
    return "", requests(*asked).splitlines()


def others(form: str) -> tuple[str, list[str]]:
    """The same of requests less than a ms apart, and of jobs of one and two GPUs."""
    if form == "azure":
        times = ["45.0000010", "45.0000020", "45.0000030", "48.5000000", "54.0000000"]
        return AZURE, [f"2023-11-16 18:15:{at},{n + 1},{n + 9}" for n, at in enumerate(times)]
    return PHILLY, [f"{n},{at},{30 + n},{1 + n % 2},vc{n}" for n, at in enumerate((0, 1, 3, 4, 9))]


@pytest.mark.parametrize("until_ms", [None, 9000])
@pytest.mark.parametrize("form", ["mooncake", "mooncake-jsonl", "azure", "philly"])
def test_a_trace_that_is_not_in_order_is_read_as_if_it_were(
    tmp_path: Path, form: str, until_ms: int | None
) -> None:
    head, rows = mooncakes(form) if form.startswith("mooncake") else others(form)
    in_order = list(read_trace(written(tmp_path, head + "\n".join(rows)), time_scale=0.5, until_ms=until_ms))
    times = [each.at_ms for each in in_order]
    assert times[0] == 0
    assert times == sorted(times)
    assert max(times) == (4500 if until_ms is None else {"azure": 1750, "philly": 2000}.get(form, 1500))
    for seed in range(5):
        shuffled = random.Random(seed).sample(rows, len(rows))
        path = written(tmp_path, head + "\n".join(shuffled))
        assert list(read_trace(path, time_scale=0.5, until_ms=until_ms)) == in_order


def test_requests_that_come_at_once_keep_the_order_of_the_file(tmp_path: Path) -> None:
    late, early = "2023-11-16 18:15:47", "2023-11-16 18:15:46"
    rows = [f"{late},1,1", f"{early},2,1", f"{late},3,1", f"{early},4,1"]
    found = read_trace(written(tmp_path, AZURE + "\n".join(rows)))
    assert [(a.at_ms, a.prompt_tokens) for a in found] == [(0, 2), (0, 4), (1000, 1), (1000, 3)]


def test_traces_that_are_not_in_order_are_merged_by_time(tmp_path: Path) -> None:
    chats, jobs = tmp_path / "chats.csv", tmp_path / "jobs.csv"
    chats.write_text(HEAD + "9000,5,1,800,20,1,0\n0,4,1,1100,30,2,0\n")
    jobs.write_text(PHILLY + "0,12,30,1,a\n1,5,30,1,b\n")
    assert [a.session for a in merged(read_trace(chats), read_trace(jobs))] == ["m4", "p1", "m5", "p0"]
