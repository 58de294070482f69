"""From the configuration to providers; what cannot work is refused with its key."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from helix_es.cli.serve import runner_any
from helix_es.core.errors import Misconfigured
from helix_es.settings import Settings, parse
from helix_projections.fleet.command import Command
from helix_projections.fleet.local import Local
from helix_projections.fleet.pools import Here, check, provider_of, runner_command

pytestmark = pytest.mark.anyio


def settings(**pool: Any) -> Settings:
    return parse({"pool": {"burst": pool}})


def here(folder: Path, node: str = "n") -> Here:
    env = {"HELIX_NATS_URL": "nats://me:secret@here"}
    return Here(node=node, folder=folder, config=Path("/etc/helix.toml"), env=env)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"provider": "command"}, r"pool\.burst\.command: is empty"),
        ({"provider": "command", "command": "  "}, r"pool\.burst\.command: is empty"),
        ({"provider": "kubernetes"}, r"pool\.burst\.deployment: found ''"),
        ({"provider": "kubernetes", "deployment": "a/../b"}, r"pool\.burst\.deployment: found 'a/\.\./b'"),
        (
            {"provider": "kubernetes", "deployment": "a", "namespace": "A"},
            r"pool\.burst\.namespace: found 'A'",
        ),
    ],
)
def test_a_provider_without_what_it_needs_is_refused(pool: dict[str, Any], message: str) -> None:
    with pytest.raises(Misconfigured, match=message):
        check(settings(**pool))


def test_a_configuration_without_pools_is_refused() -> None:
    with pytest.raises(Misconfigured, match="nothing to keep"):
        check(Settings())


def test_kubernetes_without_its_library_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Misconfigured, match=r"pip install 'helix-es\[kubernetes\]'"):
        check(settings(provider="kubernetes", deployment="burst"))


def test_all_that_is_there_is_accepted() -> None:
    check(settings())
    check(settings(provider="command", command="true"))
    check(settings(provider="kubernetes", deployment="burst-2", namespace="gpus"))


def test_a_runner_is_told_its_name_its_pool_and_what_it_serves_and_no_password(tmp_path: Path) -> None:
    made = settings(serves=["text:smollm2", "batch:smollm2"], max=64)
    words = runner_command("burst", made, here(tmp_path), "n-burst-0")
    assert words[1:5] == ["-m", "helix_es.cli.__main__", "runner", "any"]
    assert words[5:] == [
        *("--serve", "text:smollm2", "--serve", "batch:smollm2"),
        *("--gpu", "n-burst-0", "--pool", "burst", "--drain-s", "5", "--config", "/etc/helix.toml"),
        *("--threads", "1"),
    ]
    assert "secret" not in " ".join(words)


def test_the_runners_command_line_understands_what_it_is_told(tmp_path: Path) -> None:
    made = settings(serves=["text:smollm2", "batch:smollm2"], device="cpu")
    words = runner_command("burst", made, here(tmp_path), "n-burst-0")
    found = runner_any.make_context("any", words[5:]).params
    assert (found["gpu"], found["pool"], found["device"]) == ("n-burst-0", "burst", "cpu")
    assert found["words"] == ("text:smollm2", "batch:smollm2")


def test_runners_on_a_gpu_share_no_cores(tmp_path: Path) -> None:
    words = runner_command("burst", settings(device="cuda:0", kind="l4-24"), here(tmp_path), "n-burst-0")
    assert words[-2:] == ["--device", "cuda:0"]


def test_the_cores_are_shared_by_all_that_may_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    made = parse(
        {"pool": {"a": {"max": 1}, "b": {"max": 2}, "c": {"max": 9, "provider": "command", "command": "x"}}}
    )
    assert runner_command("a", made, here(tmp_path), "n-a-0")[-2:] == ["--threads", "4"]


async def test_each_pool_gets_the_provider_that_it_names(tmp_path: Path) -> None:
    local = await provider_of("burst", settings(), here(tmp_path), lambda: None)
    command = await provider_of(
        "burst", settings(provider="command", command="true"), here(tmp_path), lambda: None
    )
    assert isinstance(local, Local)
    assert isinstance(command, Command)
    for each in (local, command):
        await each.close()


async def test_a_name_too_long_for_a_subject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="its name is too long"):
        await provider_of("burst", settings(), here(tmp_path, "n" * 60), lambda: None)
