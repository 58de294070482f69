"""The Kubernetes example, checked as far as text can be: no cluster is asked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from helix_es.cli.fleet import fleet
from helix_es.cli.serve import runner_any
from helix_es.settings import parse
from helix_projections.fleet.pools import check

FOLDER = Path(__file__).parents[3] / "deploy/kubernetes"


def read() -> dict[tuple[str, str], Any]:
    found = [
        each
        for name in ("fleet", "runners")
        for each in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text())
    ]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


THERE = read()
RUNNERS = THERE["Deployment", "helix-burst"]
FLEET = THERE["Deployment", "helix-fleet"]


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_the_fleet_may_do_what_it_needs_and_no_more() -> None:
    assert THERE["Role", "helix-fleet"]["rules"] == [
        {
            "apiGroups": ["apps"],
            "resources": ["deployments/scale"],
            "resourceNames": ["helix-burst"],
            "verbs": ["get", "patch"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "patch"]},
    ]
    assert {kind for kind, _ in THERE} == {"ServiceAccount", "Role", "RoleBinding", "ConfigMap", "Deployment"}


def test_the_pool_is_the_deployment_that_is_beside_it() -> None:
    settings = parse(tomllib.loads(THERE["ConfigMap", "helix-config"]["data"]["helix.toml"]))
    check(settings)
    pool = settings.pool["burst"]
    about = RUNNERS["metadata"]
    assert (pool.provider, pool.namespace, pool.deployment) == (
        "kubernetes",
        about["namespace"],
        about["name"],
    )
    assert {each["metadata"]["namespace"] for each in THERE.values()} == {pool.namespace}


def test_a_runner_has_its_pods_name_and_its_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {each["name"]: each for each in container(RUNNERS)["env"]}
    assert env["HELIX_GPU"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    monkeypatch.setenv("HELIX_POOL", env["HELIX_POOL"]["value"])
    words = container(RUNNERS)["command"]
    assert words[:3] == ["helix", "runner", "any"]
    told = runner_any.make_context("any", words[3:], auto_envvar_prefix=None).params
    settings = parse(tomllib.loads(THERE["ConfigMap", "helix-config"]["data"]["helix.toml"]))
    assert list(told["words"]) == settings.pool["burst"].serves
    assert told["pool"] == "burst"
    assert RUNNERS["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > told["drain_s"]


def test_nothing_competes_with_the_fleet_for_which_pod_goes() -> None:
    assert "replicas" not in RUNNERS["spec"]
    assert "readinessProbe" not in container(RUNNERS)


def test_one_fleet_runs_at_a_time() -> None:
    assert FLEET["spec"]["replicas"] == 1
    assert FLEET["spec"]["strategy"] == {"type": "Recreate"}
    assert container(FLEET)["command"][:2] == ["helix", "fleet"]
    fleet.make_context("fleet", container(FLEET)["command"][2:])


@pytest.mark.parametrize("deployment", [RUNNERS, FLEET])
def test_containers_have_no_more_rights_than_those_of_compose(deployment: dict[str, Any]) -> None:
    assert container(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (
        deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    )
    mounted = {each["name"] for each in container(deployment)["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


def test_runners_get_no_token_of_the_cluster() -> None:
    assert RUNNERS["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
