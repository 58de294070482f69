"""`helix files` and `helix adapters`: what there is, brought and fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helix_es.cli import files, show
from tests.cli.fake import Answered, FakeApi, problem

FILE = {
    "file_id": "f1",
    "name": "a\x1b[31m.jsonl",
    "media_type": "application/jsonl",
    "purpose": "dataset",
    "size": 12,
    "sha256": "00",
    "created_at": "2026-11-24T08:00:00.000Z",
    "session_id": None,
    "dataset": None,
}
ADAPTER = {
    "adapter": "pirate",
    "model": "smollm2",
    "session_id": "s1",
    "files": ["w", "c"],
    "created_at": "2026-11-24T08:00:00.000Z",
}


def run(api: FakeApi, *words: str) -> Result:
    return CliRunner().invoke(files.files, [*words, "--url", api.url], catch_exceptions=False)


def listed(*rows: Any) -> Answered:
    return Answered({"object": "list", "data": list(rows), "has_more": False})


def test_files_are_a_table_that_steers_no_terminal(api: FakeApi) -> None:
    api.on("GET /api/v1/files?limit=20", listed(FILE))
    said = run(api).stdout
    assert said.split()[:6] == ["FILE", "NAME", "PURPOSE", "BYTES", "SESSION", "AGE"]
    assert "f1" in said
    assert "\x1b" not in said


def test_files_are_listed_as_json(api: FakeApi) -> None:
    api.on("GET /api/v1/files?purpose=image&limit=3", listed(FILE))
    said = run(api, "--purpose", "image", "--limit", "3", "--json").stdout
    assert json.loads(said)["data"][0]["file_id"] == "f1"


def test_a_dataset_is_brought_and_its_id_printed(api: FakeApi, tmp_path: Path) -> None:
    api.on("POST /api/v1/files", Answered(FILE, 201))
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert run(api, "put", str(tmp_path / "a.jsonl")).stdout == "f1\n"


def test_a_wrong_dataset_is_one_line_and_exit_code_1(api: FakeApi, tmp_path: Path) -> None:
    api.on("POST /api/v1/files", problem(422, "invalid_dataset", "line 3: is not JSON;\nline 4: is not JSON"))
    (tmp_path / "a.jsonl").write_text("{}\n")
    result = run(api, "put", str(tmp_path / "a.jsonl"))
    assert result.exit_code == 1
    assert (
        result.stderr.splitlines()[-1] == "helix: line 3: is not JSON; line 4: is not JSON (invalid_dataset)"
    )


def test_a_file_is_fetched(api: FakeApi, tmp_path: Path) -> None:
    api.on("GET /api/v1/files/f1/content", Answered(b"content", media="application/octet-stream"))
    to = tmp_path / "got"
    assert run(api, "get", "f1", "-o", str(to)).stdout == f"{to}\n"
    assert to.read_bytes() == b"content"


@pytest.mark.parametrize("words", [["get", "f1"], ["get", "../x", "-o", "y"], ["put"], ["--purpose", "x"]])
def test_wrong_use_is_refused(api: FakeApi, words: list[str]) -> None:
    assert run(api, *words).exit_code == 2
    assert not api.seen


def test_a_file_that_is_not_there_leaves_nothing_behind(api: FakeApi, tmp_path: Path) -> None:
    api.on("GET /api/v1/files/f9/content", problem(404, "file_not_found", "no file 'f9'"))
    result = run(api, "get", "f9", "-o", str(tmp_path / "got"))
    assert result.exit_code == 1
    assert "file_not_found" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_a_table(api: FakeApi) -> None:
    api.on("GET /api/v1/adapters", listed(ADAPTER))
    result = CliRunner().invoke(show.adapters, ["--url", api.url], catch_exceptions=False)
    assert result.stdout.splitlines()[1].split()[:3] == ["pirate", "smollm2", "s1"]
