"""install.sh on every OS it knows, and twice: every command that it calls is a fake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_nats import DEPLOY

SCRIPT = DEPLOY / "gpu-node/install.sh"
SUPPORTED = {
    "debian-12": ('ID=debian\nVERSION_ID="12"\n', "repos/debian12/", "linux/debian bookworm"),
    "ubuntu-22.04": ('ID=ubuntu\nVERSION_ID="22.04"\n', "repos/ubuntu2204/", "linux/ubuntu jammy"),
    "ubuntu-24.04": ('ID=ubuntu\nVERSION_ID="24.04"\n', "repos/ubuntu2404/", "linux/ubuntu noble"),
}
# What the machine is: packages in $STATE/installed, the driver runs once nvidia-open is there, Docker reads
# daemon.json when it is restarted. Each command that changes something says so in $STATE/changes.
FAKES = {
    "id": "echo ${FAKE_UID:-0}",
    "uname": '[ "$1" = -m ] && echo ${FAKE_MACHINE:-x86_64} || echo 6.1.0-test',
    "dpkg-query": 'for last; do :; done; grep -qxF "$last" "$STATE/installed" && echo installed',
    "dpkg": 'echo "dpkg $*" >>"$STATE/changes"; echo cuda-keyring >>"$STATE/installed"',
    "apt-get": (
        'echo "apt-get $*" >>"$STATE/changes"; [ "$1" = install ] || exit 0; shift\n'
        'for p; do case $p in -*) ;; *) echo "$p" >>"$STATE/installed";; esac; done'
    ),
    "curl": (
        'echo "curl $*" >>"$STATE/changes"\n'
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo fetched >"$2"; shift; done; exit 0'
    ),
    "modprobe": "exit 0",
    "systemctl": (
        'echo "systemctl $*" >>"$STATE/changes"; cp "$HELIX_ROOT/etc/docker/daemon.json" "$STATE/live" || :'
    ),
    "nvidia-smi": (
        'grep -qxF nvidia-open "$STATE/installed" || { echo "NVIDIA-SMI has failed"; exit 9; }\n'
        "echo ${FAKE_DRIVER:-580.95.05}; echo ${FAKE_DRIVER:-580.95.05}"
    ),
    "docker": (
        'grep -qxF docker-ce "$STATE/installed" || exit 1\n'
        'case "$*" in *ServerVersion*) echo 28.0.0;; *Runtimes*) cat "$STATE/live";;\n'
        '*CgroupDriver*) grep -q cgroupfs "$STATE/live" && echo cgroupfs || echo systemd;;\n'
        "*ulimit*) echo 65536;; *nvidia-smi*) exit ${FAKE_GPU_RUN:-0};; esac"
    ),
}


@dataclass
class Machine:
    """A pretended machine under one folder."""

    root: Path
    env: dict[str, str]

    def run(self, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *flags],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def changes(self) -> str:
        return (self.root / "state/changes").read_text()

    def files(self) -> dict[str, str]:
        return {str(file): file.read_text() for file in sorted(self.root.rglob("*")) if file.is_file()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    fakes, state, root = tmp_path / "bin", tmp_path / "state", tmp_path / "root"
    for folder in (fakes, state, root / "sys/bus/pci/devices/0000:01:00.0", root / "etc/apt"):
        folder.mkdir(parents=True)
    for name, body in FAKES.items():
        (fakes / name).write_text(f"#!/bin/sh\n{body}\n")
        (fakes / name).chmod(0o755)
    for name in ("installed", "changes", "live"):
        (state / name).touch()
    (root / "sys/bus/pci/devices/0000:01:00.0/vendor").write_text("0x10de\n")
    (root / "sys/bus/pci/devices/0000:01:00.0/class").write_text("0x030200\n")
    (tmp_path / "os-release").write_text(SUPPORTED["debian-12"][0])
    env = {
        "PATH": f"{fakes}:{os.environ['PATH']}",
        "STATE": str(state),
        "HELIX_ROOT": str(root),
        "HELIX_OS_RELEASE": str(tmp_path / "os-release"),
    }
    return Machine(tmp_path, env)


def test_bash_can_read_it() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True, timeout=10)
    assert "set -euo pipefail" in SCRIPT.read_text()
    assert os.access(SCRIPT, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    result = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout


def test_a_dry_run_on_this_very_machine_says_the_same_twice(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text(SUPPORTED["debian-12"][0])
    here = Machine(tmp_path, {"PATH": os.environ["PATH"], "HELIX_OS_RELEASE": str(release)})
    first, second = here.run("--dry-run"), here.run("--dry-run")
    if os.uname().machine != "x86_64":
        pytest.skip("the script is for x86_64")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout
    assert first.stdout.endswith("nothing was changed\n")


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_dry_run_names_the_repositories_of_the_os_and_changes_nothing(machine: Machine, name: str) -> None:
    release, cuda, docker = SUPPORTED[name]
    Path(machine.env["HELIX_OS_RELEASE"]).write_text(release)
    before = machine.files()
    result = machine.run("--dry-run", FAKE_UID="1000")
    assert result.returncode == 0, result.stderr
    assert cuda in result.stdout
    assert docker in result.stdout
    assert "nvidia-driver-pinning-580" in result.stdout
    assert ("contrib" in result.stdout) is (name == "debian-12")
    assert "native.cgroupdriver=cgroupfs" in result.stdout
    assert machine.files() == before


def test_a_dry_run_says_what_the_real_run_then_does(machine: Machine) -> None:
    planned = machine.run("--dry-run").stdout
    done = machine.run().stdout
    wanted = [
        line.removeprefix("would run ") for line in planned.splitlines() if line.startswith("would run ")
    ]
    did = [line[2:] for line in done.splitlines() if line.startswith("+ ") and not line.startswith("+ write")]
    assert did == wanted


def test_other_systems_are_refused_by_name(machine: Machine) -> None:
    Path(machine.env["HELIX_OS_RELEASE"]).write_text('ID=fedora\nVERSION_ID="44"\n')
    result = machine.run("--dry-run")
    assert result.returncode == 1
    assert result.stderr == (
        "install.sh: unsupported OS 'fedora 44': Debian 12, Ubuntu 22.04 and Ubuntu 24.04 are supported\n"
    )
    Path(machine.env["HELIX_OS_RELEASE"]).write_text(SUPPORTED["debian-12"][0])
    assert "unsupported machine 'aarch64'" in machine.run("--dry-run", FAKE_MACHINE="aarch64").stderr


def test_without_a_gpu_it_installs_nothing(machine: Machine) -> None:
    shutil.rmtree(machine.root / "root/sys")
    result = machine.run()
    assert result.returncode == 1
    assert "no NVIDIA GPU on PCI" in result.stderr
    assert machine.changes == ""


def test_only_root_installs(machine: Machine) -> None:
    result = machine.run(FAKE_UID="1000")
    assert result.returncode == 1
    assert "must be root" in result.stderr
    assert machine.changes == ""


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is one of the packages the script installs")
def test_a_second_run_changes_nothing(machine: Machine) -> None:
    first = machine.run()
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith("ready\n")
    settings = json.loads((machine.root / "root/etc/docker/daemon.json").read_text())
    assert settings["exec-opts"] == ["native.cgroupdriver=cgroupfs"]
    assert settings["runtimes"]["nvidia"]["path"] == "nvidia-container-runtime"
    assert settings["default-ulimits"]["nofile"]["Soft"] == 65536

    before = machine.files()
    second = machine.run()
    assert second.returncode == 0, second.stderr
    assert machine.files() == before
    assert "+ " not in second.stdout
    assert "would" not in machine.run("--dry-run").stdout
    assert machine.run("--check").returncode == 0


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is one of the packages the script installs")
def test_docker_settings_of_others_are_kept(machine: Machine) -> None:
    file = machine.root / "root/etc/docker/daemon.json"
    file.parent.mkdir(parents=True)
    others = {"data-root": "/big", "exec-opts": ["native.cgroupdriver=systemd", "other=1"]}
    file.write_text(json.dumps(others))
    assert machine.run().returncode == 0
    settings = json.loads(file.read_text())
    assert settings["data-root"] == "/big"
    assert settings["exec-opts"] == ["other=1", "native.cgroupdriver=cgroupfs"]
    file.write_text("{broken")
    result = machine.run()
    assert result.returncode == 1
    assert "not valid JSON" in result.stderr
    assert file.read_text() == "{broken"


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is one of the packages the script installs")
def test_a_restart_that_did_not_happen_is_made_up_for(machine: Machine) -> None:
    assert machine.run().returncode == 0
    (machine.root / "state/live").write_text("")
    (machine.root / "state/changes").write_text("")
    assert machine.run().returncode == 0
    assert machine.changes == "systemctl restart docker\n"


def test_check_only_looks_and_lists_what_is_missing(machine: Machine) -> None:
    before = machine.files()
    result = machine.run("--check", FAKE_UID="1000")
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == "install.sh: not ready, missing:"
    assert "  - a running NVIDIA driver (nvidia-smi finds none)" in result.stderr
    assert "  - a running Docker engine" in result.stderr
    assert machine.files() == before


def test_check_knows_the_cgroup_trap_and_a_container_without_gpu(machine: Machine) -> None:
    (machine.root / "state/installed").write_text("nvidia-open\ndocker-ce\n")
    result = machine.run("--check", FAKE_GPU_RUN="1")
    assert result.returncode == 1
    for part in ("the Docker runtime nvidia", "cgroup driver cgroupfs", "a GPU inside a container"):
        assert f"  - {part}" in result.stderr or part in result.stderr
    assert "ok       open files in a container: 65536" in result.stdout


def test_no_driver_leaves_the_driver_alone(machine: Machine) -> None:
    result = machine.run("--dry-run", "--no-driver")
    assert result.returncode == 0
    assert "nvidia-open" not in result.stdout
    assert "cuda-keyring" not in result.stdout


def test_another_branch_is_installed_only_when_asked_for(machine: Machine) -> None:
    (machine.root / "state/installed").write_text("nvidia-open\n")
    assert "ok       driver 570.1.1" in machine.run("--dry-run", FAKE_DRIVER="570.1.1").stdout
    asked = machine.run("--dry-run", "--driver-version", "590", FAKE_DRIVER="570.1.1").stdout
    assert "nvidia-driver-pinning-590" in asked


def test_a_driver_that_does_not_run_yet_asks_for_a_reboot(machine: Machine) -> None:
    (machine.root / "bin/nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    result = machine.run()
    assert result.returncode == 3
    assert "reboot, then run this again" in result.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--frobnicate"],
        ["extra"],
        ["--driver-version"],
        ["--driver-version", "latest"],
        ["--dry-run", "--check"],
        ["--no-driver", "--driver-version", "580"],
    ],
)
def test_wrong_use_exits_2_with_one_line(machine: Machine, flags: list[str]) -> None:
    result = machine.run(*flags)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert machine.changes == ""
