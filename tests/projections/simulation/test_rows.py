"""Files as spreadsheets and scripts write them are read; what is wrong in a row is said with its place and value."""

from __future__ import annotations

from pathlib import Path

import pytest

from helix_es.core.errors import Unreadable
from helix_projections.simulation.traces import read_trace

MOONCAKE = "t_ms,session_id,turn,input_tokens,output_tokens,prefix_blocks,shared_blocks_with_parent\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PHILLY = "job,submit_s,duration_s,num_gpus,vc\n"
FILES = {
    "mooncake": MOONCAKE + "0,4,1,1100,30,2,0\n3000,4,2,1500,7,3,2\n",
    "azure": AZURE + "2023-11-16 18:15:46.68059,374,44\n2023-11-16 18:15:50,20,9\n",
    "philly": PHILLY + "0,45,30,1,6214e9\n1,50,60,2,11cb48\n",
    "jsonl": '{"timestamp":0,"input_length":9,"output_length":2,"hash_ids":[1]}\n'
    '{"timestamp":20,"input_length":8,"output_length":1,"hash_ids":[]}\n',
}
WRITTEN = {
    "with a byte order mark": lambda text: "\ufeff" + text,
    "with CRLF": lambda text: text.replace("\n", "\r\n"),
    "with empty lines": lambda text: "\n \n" + text.replace("\n", "\n\n  \n"),
    "with a mark, CRLF and empty lines": lambda text: "\ufeff\r\n" + text.replace("\n", "\r\n\r\n"),
    "without the last end of line": lambda text: text.rstrip("\n"),
}


def trace(folder: Path, data: str | bytes) -> Path:
    path = folder / "odd.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def refusal(path: Path) -> str:
    """Return what is said of it."""
    with pytest.raises(Unreadable) as refused:
        list(read_trace(path))
    return str(refused.value)


@pytest.mark.parametrize("how", WRITTEN)
@pytest.mark.parametrize("form", FILES)
def test_a_file_is_read_however_its_lines_are_written(tmp_path: Path, form: str, how: str) -> None:
    plain = list(read_trace(trace(tmp_path, FILES[form])))
    assert len(plain) >= 2
    assert list(read_trace(trace(tmp_path, WRITTEN[how](FILES[form])))) == plain


@pytest.mark.parametrize("form", ["mooncake", "azure", "philly"])
def test_names_and_values_may_have_quotes_and_spaces_around_them(tmp_path: Path, form: str) -> None:
    plain = list(read_trace(trace(tmp_path, FILES[form])))
    for between in ('","', '", "', '" ,"', ' " , " '):
        lines = [between.join(line.split(",")) for line in FILES[form].splitlines()]
        quoted = "\n".join(f'"{line}"' for line in lines)
        assert list(read_trace(trace(tmp_path, quoted))) == plain, between
    spaced = FILES[form].replace(",", " , ")
    assert list(read_trace(trace(tmp_path, spaced))) == plain


def test_times_of_mooncakes_jsonl_may_have_fractions_of_a_millisecond(tmp_path: Path) -> None:
    line = '{"timestamp":%s,"input_length":9,"output_length":2,"hash_ids":[]}\n'
    path = trace(tmp_path, "".join(line % at for at in ("1500.75", "1500.0", "1500.5", "4000")))
    assert [each.at_ms for each in read_trace(path, time_scale=2.0)] == [3000, 3001, 3002, 8000]
    assert len(list(read_trace(path, until_ms=1501))) == 3


WHOLE = "not a whole number of at least 0"
MOMENT = "2023-11-16 18:15:46"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (AZURE + f"{MOMENT},12x,2\n", f"line 2: ContextTokens is '12x', {WHOLE}"),
        (AZURE + f"{MOMENT},-5,2\n", f"line 2: ContextTokens is '-5', {WHOLE}"),
        (AZURE + f"{MOMENT},5,NaN\n", f"line 2: GeneratedTokens is 'NaN', {WHOLE}"),
        (AZURE + f"{MOMENT},5,inf\n", f"line 2: GeneratedTokens is 'inf', {WHOLE}"),
        (AZURE + f"{MOMENT},,2\n", f"line 2: ContextTokens is '', {WHOLE}"),
        (AZURE + f"{MOMENT},5\n", "line 2: column GeneratedTokens is missing"),
        (
            AZURE + "yesterday,5,2\n",
            "line 2: TIMESTAMP is 'yesterday', not a time such as 2023-11-16 18:15:46.68",
        ),
        (AZURE + f"{MOMENT},{'9' * 16},2\n", f"line 2: ContextTokens is '{'9' * 16}', too large"),
        (AZURE + f"{MOMENT},{'9' * 5000},2\n", f"line 2: ContextTokens is '{'9' * 98}…, too large"),
        (MOONCAKE + "0,4,1,1100,30,2,0\n1.5,4,2,1100,30,2,0\n", f"line 3: t_ms is '1.5', {WHOLE}"),
        (MOONCAKE + "0,-4,1,1100,30,2,0\n", f"line 2: session_id is '-4', {WHOLE}"),
        (MOONCAKE + "0,4,1,1100\n", "line 2: column output_tokens is missing"),
        (PHILLY + "0,45,30,1,a\n1,45.5,30,2,a\n", f"line 3: submit_s is '45.5', {WHOLE}"),
        (PHILLY + "x,45,30,1,a\n", f"line 2: job is 'x', {WHOLE}"),
        (PHILLY + "0,45,30,1\n", "line 2: column vc is missing"),
        ("\n\n" + AZURE + f"\n{MOMENT},5,2\n \n{MOMENT},5,2b\n", f"line 7: GeneratedTokens is '2b', {WHOLE}"),
        (
            AZURE + f'{MOMENT},5,2\n\n{MOMENT},"5\n,2\n',
            "line 4: ContextTokens is '5\\n,2', not a whole number of at least 0",
        ),
        (
            AZURE + f'{MOMENT},5,2\n{MOMENT},"{"5" * 200_000}',
            "line 3: this is no row of a CSV: is a quote left open, or a line ended by a CR alone?",
        ),
    ],
)
def test_what_is_wrong_in_a_row_is_said_with_its_line_column_and_value(
    tmp_path: Path, text: str, said: str
) -> None:
    assert refusal(trace(tmp_path, text)) == f"odd.csv, {said}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"timestamp":"x","input_length":1,"output_length":1,"hash_ids":[]}',
            'timestamp is "x", not a number',
        ),
        (
            '{"timestamp":-1,"input_length":1,"output_length":1,"hash_ids":[]}',
            "timestamp is -1, not a number",
        ),
        (
            '{"timestamp":NaN,"input_length":1,"output_length":1,"hash_ids":[]}',
            "timestamp is NaN, not a number",
        ),
        (
            '{"timestamp":Infinity,"input_length":1,"output_length":1,"hash_ids":[]}',
            "timestamp is Infinity, too",
        ),
        (
            '{"timestamp":1e300,"input_length":1,"output_length":1,"hash_ids":[]}',
            "timestamp is 1e+300, too large",
        ),
        (
            '{"timestamp":1,"input_length":1.5,"output_length":1,"hash_ids":[]}',
            f"input_length is 1.5, {WHOLE}",
        ),
        (
            '{"timestamp":1,"input_length":null,"output_length":1,"hash_ids":[]}',
            f"input_length is null, {WHOLE}",
        ),
        (
            '{"timestamp":1,"input_length":1,"output_length":-2,"hash_ids":[]}',
            f"output_length is -2, {WHOLE}",
        ),
        (
            '{"timestamp":1,"input_length":1,"output_length":1,"hash_ids":["a"]}',
            'hash_ids is ["a"], not a list of whole numbers',
        ),
        ('{"timestamp":1,"input_length":1,"output_length":1}', "hash_ids is missing"),
        ("[1]", "'[1]' is not an object, as in {…}"),
        ('{"timestamp":1,', "this is not JSON (Input data was truncated)"),
    ],
)
def test_what_is_wrong_in_a_line_of_json_is_said_with_its_name_and_value(
    tmp_path: Path, line: str, said: str
) -> None:
    path = trace(tmp_path, FILES["jsonl"] + "\n" + line + "\n")
    assert refusal(path).startswith(f"odd.csv, line 4: {said}")


def test_a_nan_on_the_first_line_is_named_too(tmp_path: Path) -> None:
    path = trace(tmp_path, '\n{"timestamp":NaN,"input_length":1,"output_length":1,"hash_ids":[]}\n')
    assert refusal(path) == "odd.csv, line 2: timestamp is NaN, not a number of at least 0"


@pytest.mark.parametrize("form", FILES)
def test_what_is_not_utf_8_is_said_with_its_line(tmp_path: Path, form: str) -> None:
    first, *others = FILES[form].encode().splitlines(keepends=True)
    path = trace(tmp_path, first + b"\xff" + b"".join(others))
    assert refusal(path) == "odd.csv, line 2: not UTF-8; save it as UTF-8"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is nothing in it; give our Mooncake CSV"),
        (" \n\r\n", "there is nothing in it; give our Mooncake CSV"),
        (
            "TIMESTAMP;ContextTokens;GeneratedTokens\n1;2;3\n",
            "first line is 'TIMESTAMP;ContextTokens;GeneratedTokens'",
        ),
        ("\n\n{\n", "line 3: this is not JSON in one line"),
        ('{"timestamp":1}', "its first line has 'timestamp'"),
        ("TIMESTAMP,ContextTokens\r,GeneratedTokens\r1,2,3", "its first line is 'TIMESTAMP,ContextTokens\\r"),
    ],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    told = refusal(trace(tmp_path, text))
    assert said in told
    assert "\n" not in told
