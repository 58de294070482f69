"""`helix analytics` and `helix export`, as somebody types them."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helix_es.analytics.parquet import ParquetArchive, files
from helix_es.analytics.schema import DATABASE, SNAPSHOT
from helix_es.cli.analytics import analytics
from helix_es.cli.export import export
from helix_es.core.codec import encode
from helix_es.core.errors import Misconfigured
from helix_es.jetstream.client import NatsSettings, connect
from helix_es.jetstream.streams import provision
from helix_projections.analytics.opening import held
from tests.bench.crowd import Crowd
from tests.conftest import NatsServer
from tests.projections.analytics.kit import contents


@pytest.fixture
def shop(nats_server: NatsServer) -> Iterator[str]:
    """A server with six facts in its log; what the commands set for their process is undone."""
    asyncio.run(_six_facts(nats_server.url))
    before = gc.get_threshold()
    yield nats_server.url
    gc.set_threshold(*before)


async def _six_facts(url: str) -> None:
    connection = await connect(NatsSettings(url=url))
    await provision(connection)
    for record in Crowd(gpus=2, slots=1).fleet():
        assert record.event is not None
        await connection.nc.publish(record.subject, encode(record.event))
    await connection.close()


def said(command: object, *words: object) -> Result:
    return CliRunner().invoke(command, [str(each) for each in words])  # type: ignore[arg-type]


def seqs(folder: Path) -> list[int]:
    return [seq for stored in ParquetArchive(folder).messages() for seq in stored.seqs]


def test_the_log_becomes_tables_once(shop: str, tmp_path: Path) -> None:
    done = said(analytics, "--once", "--nats", shop, "--data-dir", tmp_path)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "analytics"
    assert len(contents(folder / DATABASE)["events"]) == 6
    assert contents(folder / SNAPSHOT) == contents(folder / DATABASE)


def test_the_configuration_says_where_they_are(shop: str, tmp_path: Path) -> None:
    config = tmp_path / "helix.toml"
    config.write_text(f'[analytics]\nfolder = "{tmp_path}/tables"\n', encoding="utf-8")
    done = said(analytics, "--once", "--nats", shop, "--config", config)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "tables" / SNAPSHOT).exists()


def test_a_log_without_a_database_is_exported_and_leaves_none(shop: str, tmp_path: Path) -> None:
    done = said(export, tmp_path / "out", "--nats", shop, "--data-dir", tmp_path / "data", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"directory": str(tmp_path / "out"), "last_seq": 6, "events": 6}
    assert seqs(tmp_path / "out") == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "data").exists()
    again = said(export, tmp_path / "out", "--nats", shop, "--data-dir", tmp_path / "data")
    assert again.stdout == f"{tmp_path / 'out'}: 0 events came on top, up to sequence 6\n"


def test_a_database_that_nobody_writes_to_is_brought_up_to_the_log_first(shop: str, tmp_path: Path) -> None:
    assert said(analytics, "--once", "--nats", shop, "--data-dir", tmp_path).exit_code == 0
    asyncio.run(_six_facts(shop))
    done = said(export, tmp_path / "out", "--nats", shop, "--data-dir", tmp_path)
    assert done.exit_code == 0, done.output
    assert seqs(tmp_path / "out") == list(range(1, 13))


def test_a_database_is_exported_without_its_log(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(_name: str, _options: object) -> None:
        raise Misconfigured("no NATS server answers")

    assert said(analytics, "--once", "--nats", shop, "--data-dir", tmp_path).exit_code == 0
    monkeypatch.setattr("helix_es.cli.export.connection", nobody)
    done = said(export, tmp_path / "out", "--data-dir", tmp_path)
    assert done.exit_code == 0, done.output
    assert "what is exported is what the database had" in done.stderr
    assert seqs(tmp_path / "out") == [1, 2, 3, 4, 5, 6]


def test_what_a_running_process_has_is_exported_from_its_snapshot(
    shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helix_es.cli.export.SNAPSHOT_S", 0.2)
    with held(tmp_path / "analytics"):
        nothing_yet = said(export, tmp_path / "out", "--nats", shop, "--data-dir", tmp_path)
    assert (nothing_yet.exit_code, "has made no snapshot yet" in nothing_yet.output) == (2, True)
    assert said(analytics, "--once", "--nats", shop, "--data-dir", tmp_path).exit_code == 0
    with held(tmp_path / "analytics"):
        done = said(export, tmp_path / "out", "--nats", "nats://127.0.0.1:1", "--data-dir", tmp_path)
    assert done.exit_code == 0, done.output
    assert seqs(tmp_path / "out") == [1, 2, 3, 4, 5, 6]


def test_a_new_export_may_begin_later_and_an_old_one_not(shop: str, tmp_path: Path) -> None:
    where = ("--nats", shop, "--data-dir", tmp_path)
    assert said(export, tmp_path / "out", "--from", 3, *where).exit_code == 0
    assert [each.first_seq for each in files(tmp_path / "out")] == [3]
    again = said(export, tmp_path / "out", "--from", 1, *where)
    assert (again.exit_code, "--from is for a new export" in again.output) == (2, True)
