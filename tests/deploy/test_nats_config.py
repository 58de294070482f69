"""The shipped broker configuration: valid, closed without users, and a cluster of three with R3 streams."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from local_nats import DEPLOY, NATS_SERVER, Server, config_folder, connect, free_port, make_users
from nats.js.errors import NoStreamResponseError

NODE = {
    "NODE_NAME": "n1",
    "NODE_ADDR": "127.0.0.1",
    "CLIENT_PORT": "4222",
    "ROUTE_PORT": "6222",
    "MONITOR": "127.0.0.1:8222",
    "STORE_DIR": "data",
    "ROUTE_PASSWORD": "r00f",
    "ROUTES": '["nats://route:r00f@127.0.0.1:6222"]',
}


def check_config(folder: Path, name: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NATS_SERVER, "-t", "-c", folder / name],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize("name", ["single.conf", "cluster.conf"])
def test_nats_server_accepts_the_configuration(tmp_path: Path, name: str) -> None:
    result = check_config(config_folder(tmp_path, "--gpu", "node-0"), name, NODE)
    assert result.returncode == 0, result.stderr
    assert "is valid" in result.stderr


@pytest.mark.parametrize("name", ["single.conf", "cluster.conf"])
def test_without_users_the_broker_does_not_start(tmp_path: Path, name: str) -> None:
    (config_folder(tmp_path) / "users.conf").unlink()
    result = check_config(tmp_path, name, NODE)
    assert result.returncode == 1
    assert "users.conf" in result.stderr


@pytest.mark.parametrize("missing", sorted(NODE))
def test_a_missing_node_value_stops_the_start(tmp_path: Path, missing: str) -> None:
    env = {name: value for name, value in NODE.items() if name != missing}
    result = check_config(config_folder(tmp_path), "cluster.conf", env)
    assert result.returncode == 1
    assert f"variable reference for '{missing}'" in result.stderr


def test_the_example_environment_is_complete_and_valid(tmp_path: Path) -> None:
    example = (DEPLOY / "nats/cluster.env.example").read_text()
    assert set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)) == set(NODE)
    config_folder(tmp_path)
    (tmp_path / "cluster.env").write_text(example.replace("ROUTE_PASSWORD=\n", "ROUTE_PASSWORD=r00f\n"))
    result = subprocess.run(
        ["bash", "-c", 'set -a; . ./cluster.env; set +a; exec "$0" -t -c cluster.conf', NATS_SERVER],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_seeds_are_private_and_never_printed_or_replaced(tmp_path: Path) -> None:
    first = make_users(tmp_path, "--gpu", "node-0")
    seeds = {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()}
    assert set(seeds) == {f"{user}.nk" for user in ("api", "scheduler", "observer", "runner-node-0")}
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "secrets").iterdir()} == {0o600}
    users = (tmp_path / "users.conf").read_text()

    second = make_users(tmp_path, "--gpu", "node-0")
    assert {file.name: file.read_text() for file in (tmp_path / "secrets").iterdir()} == seeds
    assert (tmp_path / "users.conf").read_text() == users
    said = first.stdout + first.stderr + second.stdout + second.stderr + users
    assert not [name for name, seed in seeds.items() if seed.strip() in said]


def test_the_seeds_can_be_given_to_another_user(tmp_path: Path) -> None:
    assert make_users(tmp_path, "--owner", f"{os.getuid()}:{os.getgid()}").returncode == 0
    assert (tmp_path / "secrets/api.nk").stat().st_uid == os.getuid()
    assert make_users(tmp_path, "--owner", "nobody").returncode == 2


def test_another_gpu_joins_without_the_first_being_forgotten(tmp_path: Path) -> None:
    make_users(tmp_path, "--gpu", "node-0")
    make_users(tmp_path, "--gpu", "node-1")
    users = (tmp_path / "users.conf").read_text()
    assert "runner-node-0" in users
    assert "runner-node-1" in users


def test_deleting_a_seed_revokes_it(tmp_path: Path) -> None:
    make_users(tmp_path, "--gpu", "node-0")
    (tmp_path / "secrets/runner-node-0.nk").unlink()
    make_users(tmp_path)
    assert "node-0" not in (tmp_path / "users.conf").read_text()


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--gpu", "NODE-0"), ("--gpu", "a.b-0"), ("--gpu", "*-0"), ("--gpu", "node"), ("--model", "mistral")],
)
def test_a_name_that_would_widen_a_subject_is_refused(tmp_path: Path, flag: str, value: str) -> None:
    result = make_users(tmp_path, flag, value)
    assert result.returncode == 2
    assert value in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "mode", "says"), [("no seed", 0o600, "holds no nkey seed"), ("", 0o644, "read by others")]
)
def test_a_broken_or_open_seed_is_refused(tmp_path: Path, content: str, mode: int, says: str) -> None:
    make_users(tmp_path)
    seed = tmp_path / "secrets/api.nk"
    seed.write_text(content)
    seed.chmod(mode)
    result = make_users(tmp_path)
    assert result.returncode == 1
    assert says in result.stderr
    assert seed.read_text() == content


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Server]]:
    """Three nodes of cluster.conf on loopback."""
    config_folder(tmp_path, "--gpu", "node-0")
    routes = [free_port() for _ in range(3)]
    urls = ", ".join(f'"nats://route:r00f@127.0.0.1:{port}"' for port in routes)
    nodes = []
    for index, route in enumerate(routes):
        folder = tmp_path / f"n{index}"
        folder.mkdir()
        values = {
            "NODE_NAME": folder.name,
            "CLIENT_PORT": "-1",
            "ROUTE_PORT": str(route),
            "MONITOR": f"127.0.0.1:{free_port()}",
            "ROUTES": f"[{urls}]",
            "STORE_DIR": str(folder / "data"),
        }
        nodes.append(Server(folder, ("-c", str(tmp_path / "cluster.conf")), {**NODE, **values}))
    started: list[Server] = []
    try:
        for node in nodes:
            started.append(node)
            node.start()
        yield nodes
    finally:
        for node in started:
            node.stop()


def test_three_nodes_form_a_cluster_that_keeps_three_copies(cluster: list[Server], tmp_path: Path) -> None:
    for node in cluster:
        node.until(lambda node=node: node.get("/healthz").get("status") == "ok")
        node.until(lambda node=node: node.get("/jsz").get("meta_cluster", {}).get("cluster_size") == 3)
        node.until(lambda node=node: bool(node.get("/jsz")["meta_cluster"].get("leader")))

    async def check() -> None:
        scheduler = await connect(cluster[0].url, tmp_path, "scheduler")
        runner = await connect(cluster[1].url, tmp_path, "runner-node-0")
        try:
            stream = {"name": "LOG", "subjects": ["session.>"], "storage": "file", "num_replicas": 3}
            made = await scheduler.call("$JS.API.STREAM.CREATE.LOG", stream)
            assert "error" not in made
            assert len(made["cluster"]["replicas"]) == 2
            stored = None
            async with asyncio.timeout(20):
                while stored is None:  # the other nodes hear of a new stream a moment later
                    with suppress(NoStreamResponseError):
                        stored = await runner.nc.jetstream().publish(
                            "session.s.turn.started.node-0", b"{}", timeout=10, headers={"Nats-Msg-Id": "m1"}
                        )
            assert (stored.stream, stored.seq) == ("LOG", 1)
            assert await runner.refused("session.s.turn.started.other-0")
        finally:
            await runner.nc.close()
            await scheduler.nc.close()

    asyncio.run(check())


def test_a_node_with_the_wrong_route_password_stays_outside(cluster: list[Server], tmp_path: Path) -> None:
    folder = tmp_path / "intruder"
    folder.mkdir()
    port = cluster[0].env["ROUTE_PORT"]
    env = {
        **cluster[0].env,
        "NODE_NAME": "intruder",
        "ROUTE_PORT": "-1",
        "MONITOR": f"127.0.0.1:{free_port()}",
        "ROUTES": f'["nats://route:wrong@127.0.0.1:{port}"]',
        "STORE_DIR": str(folder / "data"),
    }
    intruder = Server(folder, ("-c", str(tmp_path / "cluster.conf")), env)
    try:
        intruder.start()
        cluster[0].until(lambda: "authentication error" in cluster[0].log.read_text())
        assert "intruder" not in {route["remote_name"] for route in cluster[0].get("/routez")["routes"]}
    finally:
        intruder.stop()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")
def test_the_tls_lines_work_when_taken_into_use(tmp_path: Path) -> None:
    config_folder(tmp_path, "--gpu", "node-0")
    certificates(tmp_path / "tls")
    shutil.copy(DEPLOY / "nats/tls.conf.example", tmp_path / "tls.conf")
    shutil.copy(DEPLOY / "nats/route-tls.conf.example", tmp_path / "route-tls.conf")
    for name in ("single.conf", "cluster.conf"):
        file = tmp_path / name
        file.write_text(re.sub(r"^(\s*)# include", r"\1include", file.read_text(), flags=re.MULTILINE))
        assert check_config(tmp_path, name, NODE).returncode == 0

    server = Server(
        tmp_path, ("-c", "single.conf", "-p", "-1", "-m", "-1"), {"STORE_DIR": str(tmp_path / "data")}
    )

    async def check() -> None:
        context = ssl.create_default_context(cafile=str(tmp_path / "tls/ca.pem"))
        context.load_cert_chain(tmp_path / "tls/server.pem", tmp_path / "tls/server.key")
        url = server.url.replace("nats://", "tls://")
        runner = await connect(url, tmp_path, "runner-node-0", tls=context)
        try:
            assert not await runner.refused("gpu.node-0.heartbeat")
        finally:
            await runner.nc.close()

    try:
        server.start()
        asyncio.run(check())
    finally:
        server.stop()


def certificates(folder: Path) -> None:
    """Make a CA, and a certificate for 127.0.0.1 that serves both ends."""
    folder.mkdir()

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True, timeout=30)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        "req",
        "-x509",
        *key,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=helix test CA",
        "-days",
        "2",
    )
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=n1")
    (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext")
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.pem", *signed)
