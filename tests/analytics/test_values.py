"""Every kind of value that DuckDB has, as JSON."""

from __future__ import annotations

import msgspec
import pytest

from helix_es.analytics.keeper import Keeper
from helix_es.analytics.questions import Question


@pytest.mark.parametrize(
    ("sql", "cell"),
    [
        ("NULL", "null"),
        ("true", "true"),
        ("9223372036854775807", "9223372036854775807"),
        ("170141183460469231731687303715884105727::HUGEINT", "170141183460469231731687303715884105727"),
        ("12.340::DECIMAL(10, 3)", "12.340"),
        ("0.1::DOUBLE", "0.1"),
        ("'nan'::DOUBLE", "null"),
        ("'-inf'::FLOAT", "null"),
        ("['nan'::DOUBLE, 1]", "[null,1.0]"),
        ("'ä\"\n'", '"ä\\"\\n"'),
        ("TIMESTAMPTZ '2026-11-24 01:02:03.5+02'", '"2026-11-23T23:02:03.500Z"'),
        ("TIMESTAMPTZ '2026-11-24 00:00:00.000001+00'", '"2026-11-24T00:00:00.000001Z"'),
        ("TIMESTAMP '2026-11-24 01:02:03'", '"2026-11-24T01:02:03.000"'),
        ("'infinity'::TIMESTAMPTZ", "null"),
        ("'-infinity'::DATE", "null"),
        ("'290000-01-01'::TIMESTAMP", '"290000-01-01 00:00:00"'),
        ("DATE '2026-11-24'", '"2026-11-24"'),
        ("TIME '12:00:01'", '"12:00:01"'),
        ("INTERVAL '1 month 2 days 3 seconds'", '"P32DT3S"'),
        ("'\\xAA\\x00'::BLOB", '"qgA="'),
        ("UUID '12345678-1234-1234-1234-123456789012'", '"12345678-1234-1234-1234-123456789012"'),
        ("'10101'::BIT", '"10101"'),
        ("{'a': 1, 'b': [{'c': DATE '2026-01-01'}]}", '{"a":1,"b":[{"c":"2026-01-01"}]}'),
        ("MAP {1: 'x', 2: NULL}", '{"1":"x","2":null}'),
        ("MAP {DATE '2026-01-01': 1}", '{"2026-01-01":1}'),
        ("[1, 2]::INTEGER[2]", "[1,2]"),
        ("'b'::ENUM ('a', 'b')", '"b"'),
        ("union_value(a := 1)", "1"),
        ("'{\"a\": 1}'::JSON", '"{\\"a\\": 1}"'),
    ],
)
def test_a_value_is_what_json_has_for_it(keeper: Keeper, sql: str, cell: str) -> None:
    answer = keeper.ask(Question(sql=f"SELECT {sql}"))
    assert f'"rows":[[{cell}]]' in answer.decode()


def test_types_are_duckdbs_own(keeper: Keeper) -> None:
    answer = msgspec.json.decode(
        keeper.ask(Question(sql="SELECT logged_at, [seq] AS s, NULL AS n FROM events"))
    )
    assert [column["type"] for column in answer["columns"]] == [
        "TIMESTAMP WITH TIME ZONE",
        "BIGINT[]",
        "NULL",
    ]
