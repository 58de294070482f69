"""`helix simulate` and `helix tune`: what they say, write and refuse, on a few minutes of a trace and on a log."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from helix_es.cli.simulate import simulate
from helix_es.cli.tune import tune
from helix_es.core.codec import encode
from helix_es.core.subjects import subject_of
from tests.projections.simulation.floor import OPEN_MS, TRACE, arrivals, simulated

MINUTES = ["--trace", str(TRACE), "--until", "2min", "--processes", "1"]
SHARE = "share of continued turns within 1.5s >= 60%"


def said(command: object, *words: str) -> Result:
    return CliRunner().invoke(command, words, catch_exceptions=False)  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of a small shop, as `make chaos` would leave it."""
    shop = simulated(arrivals(4, sessions=40, gap_ms=400), 2, 2, open_ms=OPEN_MS)
    path = tmp_path / "log.jsonl"
    lines = [
        {
            "seq": record.seq,
            "at_ms": record.at_ms,
            "subject": subject_of(record.event),
            "payload": msgspec.Raw(encode(record.event)),
        }
        for record in shop.records
        if record.event is not None
    ]
    path.write_bytes(b"\n".join(msgspec.json.encode(line) for line in lines))
    return path


def test_a_table_says_what_its_numbers_stand_on() -> None:
    told = said(simulate, *MINUTES, "--gpus", "8xa100-80", "--coefficient", "mistral=1,8", "--thin", "2")
    assert told.exit_code == 0
    lines = told.stdout.splitlines()
    assert lines[0].startswith("source  mooncake_conversation_sessions.csv: ")
    assert lines[1].endswith(
        "times of arrival × 1; one session in 2 (2 such parts, each simulated on its own, pooled)"
    )
    assert lines[2] == "fleet   8 × a100-80"
    assert lines[3].startswith("rules   coefficient of mistral 1 to 8, 0 GPUs kept free, idle after 10 s")
    assert lines[4].startswith("service default, not measured: 8,000 prompt tokens/s")
    assert [line.split()[0] for line in lines[-2:]] == ["1", "8"]
    assert "2 simulations in" in told.stderr


def test_json_csv_and_parquet_hold_all_that_was_measured(tmp_path: Path) -> None:
    words = [*MINUTES, "--gpus", "4,8", "--target", SHARE, "--service", "prefill=16000,decode=7+0.5,load=3s"]
    told = msgspec.json.decode(said(simulate, *words, "--json").stdout)
    assert told["about"]["service"] == [
        "given: 16,000 prompt tokens/s, step 7 ms + 0.5 ms a session, load 3 s"
    ]
    assert [row["settings"] for row in told["rows"]] == [{"gpus_a100-80": 4.0}, {"gpus_a100-80": 8.0}]
    path = tmp_path / "found.parquet"
    table = list(csv.DictReader(io.StringIO(said(simulate, *words, "--csv", "--parquet", str(path)).stdout)))
    stored = pq.read_table(path)
    assert stored.schema.metadata[b"helix.times"] == "times of arrival × 1".encode()
    for row, line, kept in zip(told["rows"], table, stored.to_pylist(), strict=True):
        assert (line["time_scale"], line["thin"]) == ("1", "1")
        assert kept["service"] == line["service"] == told["about"]["service"][0]
        assert kept["wait_p95_ms"] == row["measures"]["wait_p95_ms"]
        assert float(line["wait_p95_ms"]) == pytest.approx(row["measures"]["wait_p95_ms"])
        assert (kept["reached"] == 1.0) == row["reached"] == (line["reached"] == "1")
        assert line["finetune_start_p95_ms"] == ""


def test_pictures_are_written_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "what-if.svg"
    told = said(simulate, *MINUTES, "--gpus", "2..4", "--plot", str(path), "--plot", "-")
    assert told.exit_code == 0
    assert path.read_bytes().startswith(b"<?xml")
    assert "wait for a slot, all turns" in told.stdout
    assert f"wrote {path}" in told.stderr


def test_batch_jobs_run_beside_a_trace(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("job,submit_s,duration_s,num_gpus,vc\n0,5,30,1,a\n1,6,40,1,b\n2,500,1,1,b\n")
    told = said(simulate, *MINUTES, "--batch", str(jobs), "--gpus", "8", "--reserved", "0..1", "--json")
    rows = msgspec.json.decode(told.stdout)["rows"]
    assert [row["measures"]["finetunes"] for row in rows] == [2.0, 2.0]
    assert rows[1]["measures"]["finetune_start_p95_ms"] is not None


def test_a_log_is_shown_as_it_was_and_as_it_would_have_been(log: Path) -> None:
    told = said(simulate, "--log", str(log), "--coefficient", "mistral=1,4", "--processes", "1", "--json")
    found = msgspec.json.decode(told.stdout)
    assert [row["row"] for row in found["rows"]] == ["was", "own", "what_if", "what_if"]
    was, own, one, four = (row["measures"] for row in found["rows"])
    assert own["turns"] == was["turns"] > 40
    assert own["wait_p95_ms"] == pytest.approx(was["wait_p95_ms"], rel=0.15)
    assert one["wait_p95_ms"] > own["wait_p95_ms"] > four["wait_p95_ms"]
    assert found["about"]["fleet"] == "the log's own 2 × a100-80"
    assert found["about"]["service"][0].startswith(f"fitted to {log}: a100-80/mistral: ")
    table = said(simulate, "--log", str(log), "--processes", "1").stdout.splitlines()
    assert [line.split("  ")[0] for line in table[-2:]] == ["as it was", "own rules, simulated"]


def test_a_trace_can_take_its_service_model_from_a_log(log: Path) -> None:
    told = said(simulate, *MINUTES, "--gpus", "8", "--fit", str(log))
    assert told.exit_code == 0
    assert f"service fitted to {log}: a100-80/mistral: " in told.stdout


def test_tune_names_the_cheapest_and_the_frontier(tmp_path: Path) -> None:
    words = [*MINUTES, "--gpus", "4,8", "--coefficient", "mistral=2,32", "--target", SHARE]
    told = said(tune, *words, "--plot", str(tmp_path / "frontier.png"))
    assert told.exit_code == 0
    answer = told.stdout.splitlines()[-1]
    assert answer.startswith(
        "Least cost that reaches share of continued turns with first token within 1.5s >= 60%: "
    )
    assert answer.endswith("4 of 4 combinations simulated.")
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    found = msgspec.json.decode(said(tune, *words, "--json").stdout)
    reached = [row for row in found["rows"] if row["reached"]]
    assert found["best"]["cost"] == min(row["settings"]["gpus_a100-80"] for row in reached)
    assert found["best"]["reached"]
    assert found["best"] in found["frontier"]
    dear = msgspec.json.decode(said(tune, *words, "--price", "a100-80=2.5", "--json").stdout)
    assert dear["best"]["cost"] == 2.5 * found["best"]["cost"]


def test_tune_exits_with_1_and_names_the_closest_where_nothing_reaches_it() -> None:
    told = said(tune, *MINUTES, "--gpus", "1..2", "--target", "p50 first token <= 1ms")
    assert told.exit_code == 1
    assert told.stdout.splitlines()[-1].startswith(
        "No combination reaches p50 first token <= 1ms. The closest: 2 × "
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "give either --trace FILE or --log PATH"),
        (["--trace", str(TRACE)], "--gpus says on which fleet"),
        (["--trace", str(TRACE), "--gpus", "8xa100-80,4"], "give a number of each kind"),
        (["--trace", str(TRACE), "--gpus", "0"], "0 is not allowed"),
        (["--trace", str(TRACE), "--gpus", "0xa100-80"], "0 is not allowed; 1 to 10000 are"),
        (["--trace", str(TRACE), "--gpus", "0xa100-80,0xl4-24"], "0 GPUs in all are not allowed"),
        (
            [*MINUTES, "--gpus", "8", "--reserved", "9"],
            "at most 8 GPUs that can train; 0 to 8 can be kept free",
        ),
        ([*MINUTES, "--gpus", "8", "--target", "p95 finetune start <= 5min"], "has no fine-tunes"),
        (["--trace", str(TRACE), "--gpus", "8", "--coefficient", "16"], "give MODEL=RANGE"),
        (["--trace", str(TRACE), "--gpus", "8", "--coefficient", "mistrel=16"], "the models are"),
        (["--trace", str(TRACE), "--gpus", "8xt4-16"], "mistral on t4-16: does not fit; say its coefficient"),
        (["--trace", str(TRACE), "--gpus", "8xfoo"], "known are a100-40"),
        (["--trace", str(TRACE), "--gpus", "8", "--model", "sdxl"], "--model sdxl: must be one of"),
        (["--trace", str(TRACE), "--gpus", "8", "--service", "prefill=0"], "give prefill=8000"),
        (["--trace", str(TRACE), "--gpus", "8", "--within", "1.5"], "give a duration"),
        (["--trace", str(TRACE), "--gpus", "8", "--plot", "a.png"], "needs something that varies"),
        (["--trace", str(TRACE), "--gpus", "1..8", "--plot", "a.gif"], "must end in .png or .svg"),
        (["--trace", str(TRACE), "--gpus", "1..8", "--plot", "/nowhere/a.png"], "make it first"),
        (["--trace", str(TRACE), "--gpus", "8", "--csv", "--json"], "exclude each other"),
        (["--trace", str(TRACE), "--gpus", "8", "--target", "fast"], "is not understood"),
        (["--trace", str(TRACE), "--gpus", "1..999", "--coefficient", "mistral=1..999"], "are too many"),
        (["--log", "/nowhere"], "/nowhere is not there"),
        (["--trace", str(TRACE), "--gpus", "8", "--reserved", "1", "--reserved", "2..1"], "is no range"),
    ],
)
def test_wrong_use_ends_with_2_and_says_what_is_allowed(words: list[str], why: str) -> None:
    told = said(simulate, *words)
    assert told.exit_code == 2
    assert why in " ".join(told.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--gpus", "8"], "nothing to choose from"),
        (["--gpus", "1..8", "--thin", "1,2"], "one load has one answer"),
        (["--gpus", "1..8", "--price", "a100-80"], "give KIND=NUMBER"),
        (["--gpus", "1..8", "--price", "h100-80=2"], "the fleet has no h100-80; its kinds are a100-80"),
        (
            ["--gpus", "1..8", "--target", "p95 wait <= 1s and p95 finetune start <= 5min"],
            "--target 'p95 finetune start <= 5min': mooncake_conversation_sessions.csv has no fine-tunes; give a log",
        ),
    ],
)
def test_tune_refuses_what_has_no_answer(words: list[str], why: str) -> None:
    told = said(tune, *MINUTES, "--target", "p95 wait <= 1s", *words)
    assert told.exit_code == 2
    assert why in told.stderr


def test_a_log_whose_gpus_cannot_train_keeps_none_free(log: Path) -> None:
    told = said(simulate, "--log", str(log), "--reserved", "0..1")
    assert told.exit_code == 2
    assert "at most 0 GPUs that can train; only 0 can be kept free" in told.stderr


def test_one_kind_of_several_may_be_left_out_and_a_reservation_past_the_smallest_fleet_is_noted() -> None:
    words = ["--gpus", "0..1xa100-80,1xa100-40", "--reserved", "0,2", "--processes", "1", "--json"]
    told = said(simulate, "--trace", str(TRACE), "--until", "10s", *words)
    assert told.exit_code == 0
    notes = msgspec.json.decode(told.stdout)["about"]["notes"]
    assert notes == ["where more GPUs are to be kept free than can train, all that can are kept free"]
