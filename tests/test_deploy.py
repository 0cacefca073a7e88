"""deploy/: what can be checked of it without an engine. Every check is shown to refuse a planted mistake."""

import copy
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tasks.config import run_config
from tasks.session import WAIT
from winnow.plan.plan import make_plan
from winnow.plan.settings import read_settings

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.34"
RAY_CLUSTER = json.loads((ROOT / "tests" / "raycluster.schema.json").read_text())
Json = Any


def manifests() -> list[Json]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


def check(manifest: Json) -> None:
    """A Kubernetes resource, strictly. Of a RayCluster: our schema of the keys we use, and its pods as pod templates."""
    if manifest["kind"] != "RayCluster":
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    jsonschema.validate(manifest, RAY_CLUSTER)
    for template in pod_templates(manifest):
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        kubernetes_validate.validate(wrapped, KUBERNETES, strict=True)


def pod_templates(cluster: Json) -> list[Json]:
    spec = cluster["spec"]
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def containers(cluster: Json) -> list[Json]:
    return [container for template in pod_templates(cluster) for container in template["spec"]["containers"]]


def ray_cluster() -> Json:
    (found,) = [manifest for manifest in manifests() if manifest["kind"] == "RayCluster"]
    return found


@pytest.mark.parametrize("manifest", manifests(), ids=lambda manifest: manifest["kind"])
def test_manifests_are_what_kubernetes_takes(manifest: Json) -> None:
    check(manifest)


def in_a_pod(cluster: Json) -> None:
    cluster["spec"]["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["imagePullPolcy"] = "Always"


def in_a_probe(cluster: Json) -> None:
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["readinessProbe"]["periodSecond"] = 3


def in_a_group(cluster: Json) -> None:
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3


def in_the_autoscaler(cluster: Json) -> None:
    cluster["spec"]["autoscalerOptions"]["idleTimeout"] = 60


def in_a_number(cluster: Json) -> None:
    cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # KubeRay wants text


@pytest.mark.parametrize("mistake", [in_a_pod, in_a_probe, in_a_group, in_the_autoscaler, in_a_number])
def test_a_mistake_in_the_cluster_is_found(mistake: Callable[[Json], None]) -> None:
    cluster = copy.deepcopy(ray_cluster())
    mistake(cluster)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(cluster)


def test_nothing_is_reachable_from_outside_and_nothing_runs_as_root() -> None:
    cluster = ray_cluster()
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "winnow-ray-token"}
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    for template in pod_templates(cluster):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        mounted = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        (shm,) = [volume for volume in spec["volumes"] if volume["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory" and "hostPath" not in json.dumps(spec)
    for container in containers(cluster):
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not any("hostPort" in port for port in container.get("ports", ()))
        assert "memory" in container["resources"]["limits"] and "cpu" in container["resources"]["requests"]
    assert not any(manifest["kind"] in ("Service", "Ingress") for manifest in manifests())
    (policy,) = [manifest for manifest in manifests() if manifest["kind"] == "NetworkPolicy"]
    label = {"app.kubernetes.io/name": "winnow"}
    assert policy["spec"]["podSelector"]["matchLabels"] == label
    assert all(template["metadata"]["labels"].items() >= label.items() for template in [*pod_templates(cluster), job()["spec"]["template"]])


def test_secrets_are_named_and_never_written() -> None:
    text = "\n".join(path.read_text() for path in DEPLOY.rglob("*") if path.is_file())
    assert not re.search(r"AKIA[0-9A-Z]{16}|(?i:secret_access_key)\s*[:=]\s*[A-Za-z0-9/+]{20}", text)
    secrets = {source["secretRef"]["name"] for container in containers(ray_cluster()) for source in container.get("envFrom", ())}
    assert secrets == {"winnow-s3"}
    for name in (*secrets, "winnow-ray-token"):
        assert f"create secret generic {name} " in (DEPLOY / "kuberay.yaml").read_text(), "its head says how to make each secret"


def test_images_and_versions_are_those_of_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+) ", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    cluster = ray_cluster()
    assert cluster["spec"]["rayVersion"] == locked["ray"]
    assert cluster["spec"]["autoscalerOptions"]["image"].startswith(f"rayproject/ray:{locked['ray']}-py311")
    assert {container["image"] for container in containers(cluster)} == {f"registry.example/winnow:{project['version']}"}
    assert job_template()["variables"]["properties"]["image"]["default"] == f"registry.example/winnow:{project['version']}"
    for file in ("prefect.yaml", "deploy/prefect-kubernetes.yaml"):
        assert yaml.safe_load((ROOT / file).read_text())["prefect-version"] == locked["prefect"]
    (base,) = {line.split()[1] for line in dockerfile() if line.startswith("FROM")}
    assert base.startswith("python:3.11-slim") and project["requires-python"] == ">=3.11,<3.12"


# The pool and its deployments


def job_template() -> Json:
    return json.loads((DEPLOY / "prefect-job-template.json").read_text())


def filled(value: Json, variables: dict[str, Json]) -> Json:
    """As Prefect fills it: a text that is one hole becomes the value, or is left out if there is none; other holes are text."""
    if isinstance(value, dict):
        made = {key: filled(one, variables) for key, one in value.items()}
        return {key: one for key, one in made.items() if one is not None}
    if isinstance(value, list):
        return [filled(one, variables) for one in value]
    if not isinstance(value, str) or "{{" not in value:
        return value
    whole = re.fullmatch(r"{{ (\w+) }}", value)
    return variables.get(whole[1]) if whole else re.sub(r"{{ (\w+) }}", lambda hole: str(variables[hole[1]]), value)


def job(**chosen: Json) -> Json:
    """The job of a flow run of the pool."""
    template = job_template()
    defaults = {name: one["default"] for name, one in template["variables"]["properties"].items() if "default" in one}
    run = {"name": "nightly", "labels": {"prefect.io/flow-run-name": "nightly"}, "command": ["prefect", "flow-run", "execute"]}
    found = filled(template["job_configuration"]["job_manifest"], {**defaults, **run, **chosen})
    pod = found["spec"]["template"]["spec"]
    # Prefect's worker insists on these two in the pod, where Kubernetes ignores them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    return found


def test_the_pools_job_is_what_kubernetes_takes() -> None:
    check(job())
    with pytest.raises(kubernetes_validate.ValidationError):
        check(job(cpu={"two": 2}))


def test_every_hole_of_the_job_has_a_variable_and_every_variable_a_hole() -> None:
    template = job_template()
    holes = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert holes == set(template["variables"]["properties"])


def test_the_driver_reaches_the_cluster_that_kuberay_makes() -> None:
    (container,) = job()["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["RAY_ADDRESS"]["value"] == f"{ray_cluster()['metadata']['name']}-head-svc:6379"  # KubeRay's name for a head's service
    assert env["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == ray_cluster()["spec"]["authOptions"]["secretName"]
    assert container["command"] == ["/opt/winnow/deploy/join.sh"] and (DEPLOY / "join.sh").stat().st_mode & 0o111
    assert container["volumeMounts"][-1]["mountPath"] == containers(ray_cluster())[1]["volumeMounts"][-1]["mountPath"] == "/data"


def deployments() -> list[Json]:
    found = yaml.safe_load((DEPLOY / "prefect-kubernetes.yaml").read_text())["deployments"]
    return [*found, *yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]


def settled(value: Json) -> Json:
    """As deploying fills in variables of the environment."""
    if isinstance(value, dict):
        return {key: settled(one) for key, one in value.items()}
    return re.sub(r"{{ \$(\w+) }}", r"/somewhere/\1@example.org", value) if isinstance(value, str) else value


def check_deployment(deployment: Json) -> None:
    """The flow exists and takes the parameters; schedules are cron lines; variables are the pool's."""
    from prefect import Flow
    from prefect.client.schemas.schedules import CronSchedule

    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert isinstance(flow, Flow), deployment["entrypoint"]
    config = run_config(settled(deployment["parameters"]["config"]))
    config.download.check_contact()
    flow.validate_parameters({**deployment["parameters"], "config": config})
    for schedule in deployment.get("schedules", ()):
        assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"]).timezone == "UTC"
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    # Deployments share a workspace: one that is scheduled while another runs must wait for its lock, not fail.
    assert float(deployment["work_pool"]["job_variables"]["env"][WAIT]) >= 12 * 3600
    if deployment["work_pool"]["name"] == "winnow":
        jsonschema.validate(deployment["work_pool"]["job_variables"], job_template()["variables"])


@pytest.mark.parametrize("deployment", deployments(), ids=lambda one: f"{one['work_pool']['name']}-{one['name']}")
def test_each_deployment_names_a_flow_and_settings_that_exist(deployment: Json) -> None:
    check_deployment(deployment)


def planted(name: str) -> tuple[Json, str]:
    """The nightly deployment with one mistake in it, and what must be said of it."""
    right = deployments()[0]
    variables, config = right["work_pool"]["job_variables"], right["parameters"]["config"]

    def pool(**changed: Json) -> Json:
        return {"work_pool": {"name": "winnow", "job_variables": {**variables, **changed}}}

    changed, said = {
        "flow": ({"entrypoint": "flows.curate.curat"}, "curat"),
        "setting": ({"parameters": {"config": {**config, "workspce": "x"}}}, "workspce: unknown setting"),
        "cron": ({"schedules": [{"cron": "0 25 * * *", "timezone": "UTC"}]}, "(?i)cron"),
        "variable": (pool(imge="x"), "'imge' was unexpected"),
        "value": (pool(image_pull_policy="always"), "'always' is not one of"),
        "no waiting": (pool(env={WAIT: "0"}), "12"),
    }[name]
    return {**right, **changed}, said


@pytest.mark.parametrize("mistake", ["flow", "setting", "cron", "variable", "value", "no waiting"])
def test_a_mistake_in_a_deployment_is_found(mistake: str) -> None:
    deployment, said = planted(mistake)
    with pytest.raises((AttributeError, AssertionError, ValueError, jsonschema.ValidationError), match=said):
        check_deployment(deployment)


# The image


def dockerfile() -> list[str]:
    """Instructions, a line each, comments gone."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def copied() -> list[str]:
    words = [line.split()[1:-1] for line in dockerfile() if line.startswith("COPY") and "--from" not in line]
    return [source for sources in words for source in sources]


def test_what_the_image_copies_is_there_and_let_through() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore, "everything else is kept out"
    assert set(copied()) == allowed
    for source in copied():
        assert (ROOT / source).exists(), source
        assert (ROOT / source).is_dir() == source.endswith("/")


def test_the_image_has_every_package_and_runs_as_the_user_that_pods_demand() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {f"{package}/" for package in packages} <= set(copied())
    users = [line for line in dockerfile() if line.startswith("USER")]
    assert users == ["USER 1000:1000"] and dockerfile().index(users[0]) == len(dockerfile()) - 2
    assert any("--require-hashes" in line for line in dockerfile())
    assert not re.search(r"https?://|--index-url|--trusted-host", "\n".join(dockerfile()))


def test_without_cuda_takes_away_torch_and_what_serves_it_alone() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    made = subprocess.run([sys.executable, DEPLOY / "without_cuda.py"], input=lock, capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"^([a-z0-9._-]+)==", made, re.MULTILINE))
    gone = set(re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE)) - names
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13"} <= gone
    assert all(re.match("nvidia-|cuda-|torch$|torchvision$|triton$", name) for name in gone), gone
    assert made.count("==") == len(names) and all(f"\n{name}==" in f"\n{made}" for name in names)
    assert len(re.findall(r"^[a-z].* \\\n    --hash=sha256:", made, re.MULTILINE)) == len(names), "each keeps its hashes"


def test_the_store_forgets_orphan_uploads() -> None:
    (rule,) = json.loads((DEPLOY / "lifecycle.json").read_text())["Rules"]
    assert (rule["Status"], rule["AbortIncompleteMultipartUpload"]) == ("Enabled", {"DaysAfterInitiation": 7})
    assert "Expiration" not in rule, "it must never delete an object"


@pytest.mark.parametrize(("column", "size"), list(enumerate(["1m", "100m", "1b"])))
def test_the_sizes_told_are_those_that_the_plan_computes(column: int, size: str) -> None:
    ledger = make_plan(read_settings(str(DEPLOY / "sizes" / f"{size}.yaml"))).ledger
    rows = {}
    for line in (ROOT / "docs" / "cluster.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4:
            rows[cells[0]] = [float(number.replace(",", "")) for number in re.findall(r"[0-9][0-9.,]*(?<![.,])", cells[1 + column])]
    assert rows["partitions of 10,000"] == [ledger["listed"] / 10_000]
    told = {
        "download": ledger["download_hours"],
        "embed, ViT-B/16, three crops": ledger["embed_hours"],
        "raw images in the store": ledger["raw_bytes"] / 1e12,
        "all else: features, decisions, cells, shards": (ledger["total_bytes"] - ledger["raw_bytes"]) / 1e12,
        "GPU hours, CPU hours": ledger["total_gpu_hours"],
    }
    for name, value in told.items():
        assert rows[name][0] == pytest.approx(value, rel=0.1), name
    assert rows["GPU hours, CPU hours"][1] == pytest.approx(ledger["total_cpu_hours"], rel=0.2)
    minutes = 60 * ledger["duplicates_hours"], 60 * (ledger["score_hours"] + ledger["shard_hours"])
    assert (rows["near-duplicates"][0], rows["score three filters, shard"][0]) == pytest.approx(minutes, rel=0.1, abs=0.5)
