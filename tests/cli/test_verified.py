"""`helix replay --verify`: what was not verified is never called right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helix_es.cli.replay import replay
from helix_es.core import events as e
from helix_es.core.decision import RULES
from tests.cli.recorded import stored
from tests.core.test_verify import busy_shop, changed


def verified(path: Path, *words: str) -> Result:
    return CliRunner().invoke(replay, ["--log", str(path), "--verify", *words], catch_exceptions=False)


def test_a_log_of_these_rules_is_verified_whole(tmp_path: Path) -> None:
    found = verified(stored(busy_shop().log.records, tmp_path / "log.jsonl"))
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout.endswith("no difference\n")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A log that says that another release decided it."""
    policy = e.Policy(idle_after_ms=1000, rules=RULES + 1)
    records, _ = changed(busy_shop().log.records, e.PolicySet, lambda _: e.PolicySet(policy=policy))
    return stored(records, tmp_path / "log.jsonl")


def test_what_other_rules_decided_is_not_called_verified(elsewhere: Path) -> None:
    found = verified(elsewhere)
    assert found.exit_code == 1
    assert found.stderr.count("\n") == 1
    assert "are not verified: replay those with the release that made them" in found.stderr
    assert json.loads(verified(elsewhere, "--json").stdout)["ok"] is False


def test_it_can_be_passed_over(elsewhere: Path) -> None:
    found = verified(elsewhere, "--other-rules")
    assert found.exit_code == 0
    assert "not judged" in found.stdout
    assert json.loads(verified(elsewhere, "--other-rules", "--json").stdout)["ok"] is True
