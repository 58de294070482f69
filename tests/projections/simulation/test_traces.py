"""Traces are read as they are written, or refused with the line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from helix_es.core.errors import Unreadable
from helix_projections.simulation.traces import Arrival, mooncake

HEAD = "t_ms,session_id,turn,input_tokens,output_tokens,prefix_blocks,shared_blocks_with_parent\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_turn_is_read_with_its_time_scaled_and_what_its_session_knows(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + "0,4,1,1100,30,2,0\n3000,4,2,1500,0,3,2\n9000,5,1,800,20,1,0\n")
    first, second = mooncake(path, time_scale=0.5, until_ms=9000)
    assert first == Arrival(at_ms=0, session="m4", turn=1, prompt_tokens=1100, output_tokens=30)
    assert second == Arrival(
        at_ms=1500, session="m4", turn=2, prompt_tokens=1500, output_tokens=1, known_tokens=1024
    )


@pytest.mark.parametrize("line", ["x,4,1,1100,30,2,0", "0,4,1,1100", "0,4,1,eleven,30,2,0"])
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, HEAD + "0,4,1,1100,30,2,0\n" + line + "\n")
    with pytest.raises(Unreadable, match=r"trace\.csv, line 3"):
        list(mooncake(path))


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="line 2"):
        list(mooncake(written(tmp_path, "a,b\n1,2\n")))
