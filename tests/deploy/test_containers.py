"""The images and compose.yaml, checked as far as text can be: no container engine is asked."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from local_nats import DEPLOY

ROOT = DEPLOY.parent
DOCKERFILES = [DEPLOY / "docker/Dockerfile.control", DEPLOY / "docker/Dockerfile.runner"]
# The variables that helix and what runs beside it read; a misspelt one would be ignored in silence.
KNOWN = {
    "HELIX_NATS_URL",
    "HELIX_NATS_USER",
    "HELIX_NATS_SEED_FILE",
    "HELIX_API_KEY",
    "HELIX_DATA_DIR",
    "HELIX_GPU",
    "HELIX_LIVEZ_URL",
    "HF_TOKEN",
    "STORE_DIR",
    "TMPDIR",
}
SERVICE_KEYS = {
    "build",
    "cap_add",
    "cap_drop",
    "command",
    "depends_on",
    "deploy",
    "entrypoint",
    "env_file",
    "environment",
    "healthcheck",
    "image",
    "init",
    "logging",
    "network_mode",
    "ports",
    "profiles",
    "read_only",
    "restart",
    "secrets",
    "security_opt",
    "shm_size",
    "stop_grace_period",
    "tmpfs",
    "ulimits",
    "user",
    "volumes",
}


def instructions(file: Path) -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with continued lines joined and comments dropped."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE))
    return [
        (line.split()[0].upper(), line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()
    ]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def runtime(compose: dict[str, Any]) -> dict[str, Any]:
    """The services that `docker compose up` starts."""
    return {name: service for name, service in compose["services"].items() if "profiles" not in service}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_is_built_from_a_pinned_base_and_ends_as_a_plain_user(file: Path) -> None:
    steps = instructions(file)
    bases = [value for name, value in steps if name == "ARG" and value.startswith("PYTHON_IMAGE=")]
    assert [
        re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-bookworm", base) is not None for base in bases
    ] == [True]
    assert {value.split()[0] for name, value in steps if name == "FROM"} == {"${PYTHON_IMAGE}"}
    last = max(index for index, (name, _) in enumerate(steps) if name == "FROM")
    assert [value for name, value in steps[last:] if name == "USER"] == ["10001:10001"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_every_copied_file_exists_and_is_sent_to_the_builder(file: Path) -> None:
    ignore = file.with_name(f"{file.name}.dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignore if line.startswith("!")]
    assert "*" in ignore
    for name, value in instructions(file):
        if name == "ADD":
            pytest.fail("ADD fetches and unpacks; COPY is meant")
        if name != "COPY" or value.startswith("--from=build "):
            continue
        for source in value.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.removeprefix("./") in sent
    assert [line for line in sent if not (ROOT / line).exists()] == []


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_no_secret_gets_into_a_layer(file: Path) -> None:
    for name, value in instructions(file):
        if name in {"ENV", "ARG"}:
            assert not re.search(r"KEY|TOKEN|SEED|PASSWORD|SECRET", value), value
    kept_out = file.with_name(f"{file.name}.dockerignore").read_text().splitlines()
    assert {"**/*.nk", "**/*.env"} <= set(kept_out)
    assert not [
        line for line in kept_out if line.startswith("!") and fnmatch("deploy/nats/secrets", line[1:])
    ]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_the_extras_that_an_image_installs_are_the_projects(file: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [named] = re.findall(r'"\.\[(.+?)\]"', file.read_text())
    if named == "${EXTRAS}":
        [named] = re.findall(r"^ARG EXTRAS=(.+)$", file.read_text(), re.MULTILINE)
    assert set(named.split(",")) <= set(extras)


def test_the_control_image_asks_livez_and_the_runner_pretends_no_health() -> None:
    control, runner = (dict(instructions(file)) for file in DOCKERFILES)
    assert 'CMD ["python", "/opt/helix/livez.py"]' in control["HEALTHCHECK"]
    assert runner["HEALTHCHECK"] == "NONE"


def test_the_compose_file_uses_only_keys_that_compose_has(compose: dict[str, Any]) -> None:
    assert {key for key in compose if not key.startswith("x-")} == {"name", "services", "volumes", "secrets"}
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE_KEYS, name
        build = service["build"]
        assert ((DEPLOY / build["context"]).resolve() / build["dockerfile"]).is_file()


def test_what_is_published_is_bound_to_loopback(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_service_restarts_and_runs_without_rights(compose: dict[str, Any]) -> None:
    for service in runtime(compose).values():
        assert service["restart"] == "unless-stopped"
        assert "user" not in service  # the image's own: 10001
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        assert "privileged" not in service
        assert service["read_only"] is True


RUNNERS = ("runner-text", "runner-image", "runner-finetune")


def test_each_runner_reserves_an_nvidia_gpu_of_its_own(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for number, name in enumerate(RUNNERS):
        [device] = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": [str(number)], "capabilities": ["gpu"]}
    assert {name for name, service in services.items() if "deploy" in service} == set(RUNNERS)


def test_only_the_text_runner_starts_unless_told(compose: dict[str, Any]) -> None:
    assert {name for name in RUNNERS if "profiles" not in compose["services"][name]} == {"runner-text"}


def test_each_service_holds_its_own_seed_and_no_other(compose: dict[str, Any]) -> None:
    holders = {name: service for name, service in compose["services"].items() if "secrets" in service}
    assert set(holders) == {"api", "scheduler", "analytics", *RUNNERS}
    for service in holders.values():
        user = service["environment"]["HELIX_NATS_USER"]
        assert service["secrets"] == [user]
        assert service["environment"]["HELIX_NATS_SEED_FILE"] == f"/run/secrets/{user}"
        assert compose["secrets"][user] == {"file": f"./nats/secrets/{user}.nk"}
    runners = [holders[name]["environment"] for name in RUNNERS]
    assert all(runner["HELIX_NATS_USER"] == f"runner-{runner['HELIX_GPU']}" for runner in runners)


def test_volumes_are_named_or_the_brokers_users(compose: dict[str, Any]) -> None:
    for service in runtime(compose).values():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                assert volume["source"] == "./nats/users.conf"
                assert volume["bind"] == {"create_host_path": False}
            else:
                assert volume.split(":")[0] in compose["volumes"]


def environment_files(compose: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    for name, service in compose["services"].items():
        for file in service.get("env_file", []):
            yield name, DEPLOY / f"{file}.example"


def test_every_environment_file_has_an_example_and_every_name_is_known(compose: dict[str, Any]) -> None:
    names = {name for service in compose["services"].values() for name in service.get("environment", {})}
    for _, file in environment_files(compose):
        names |= set(re.findall(r"^([A-Z_]+)=", file.read_text(), re.MULTILINE))
    assert names == KNOWN


def test_keys_are_empty_in_the_examples_and_only_for_whom_they_are(compose: dict[str, Any]) -> None:
    seen = {(name, file.name) for name, file in environment_files(compose) if "API_KEY" in file.read_text()}
    assert seen == {("api", "api.env.example")}
    for _, file in environment_files(compose):
        assert not re.search(r"^\w*(KEY|TOKEN)=.+$", file.read_text(), re.MULTILINE)


def test_the_commands_are_the_command_lines(compose: dict[str, Any]) -> None:
    commands = {name: " ".join(service["command"]) for name, service in runtime(compose).items()}
    assert commands == {
        "nats": "nats-server -c /etc/nats/single.conf -a 0.0.0.0",
        "api": "helix api --host 0.0.0.0 --port 8080",
        "scheduler": "helix scheduler",
        "analytics": "helix analytics --data-dir /var/lib/helix",
        "runner-text": "helix runner text --model mistral --device cuda:0",
    }


class Livez(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/livez" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(("path", "exit_code"), [("/livez", 0), ("/other", 1)])
def test_the_health_check_follows_the_answer(path: str, exit_code: int) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Livez) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}{path}"
        script = [sys.executable, str(DEPLOY / "docker/livez.py")]
        result = subprocess.run(
            script, env={"HELIX_LIVEZ_URL": url}, capture_output=True, timeout=20, check=False
        )
        thread.join(timeout=10)
    assert result.returncode == exit_code


def test_nothing_here_names_a_place_on_somebodys_machine() -> None:
    for file in DEPLOY.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert not re.search(r"/(work|home|root|Users)/", file.read_text()), file
